"""Overheads that grow with depth: kernels launched and caches kept layer by layer."""

from typing import Any

from bayes_sd.physics.stages import Stages

TERMS = ("o_1p", "o_2p", "o_1v", "o_2v")


def costs(theta: Any, system: Any, load: Any, tile_tokens: float = 1.0) -> Stages:
    r"""An overhead a layer: :math:`n\, o_i f_i` for both prefills and both verify costs."""
    layers = system["layers"]
    return Stages(
        c1_prefill=layers * theta["o_1p"] * theta["f_1p"],
        c2_prefill=layers * theta["o_2p"] * theta["f_2p"],
        c1_verify=layers * theta["o_1v"] * theta["f_1v"],
        c2_verify=layers * theta["o_2v"] * theta["f_2v"],
    )
