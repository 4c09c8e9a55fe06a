"""Overheads that no model's size changes: the host's work for a request, a pass, a sequence."""

from typing import Any

from bayes_sd.physics.stages import Stages

TERMS = ("h_1p", "h_2p", "h_1v", "h_2v")


def costs(theta: Any, system: Any, load: Any, tile_tokens: float = 1.0) -> Stages:
    r"""A constant :math:`h_i f_i` for both prefills and both verify costs.

    References
    ----------
    arXiv 2605.15051: every coefficient is a constant plus a slope times the model's size.
    """
    return Stages(
        c1_prefill=theta["h_1p"] * theta["f_1p"],
        c2_prefill=theta["h_2p"] * theta["f_2p"],
        c1_verify=theta["h_1v"] * theta["f_1v"],
        c2_verify=theta["h_2v"] * theta["f_2v"],
    )
