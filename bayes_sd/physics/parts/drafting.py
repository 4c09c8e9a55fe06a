"""A drafter's arithmetic at a price of its own: small kernels, and logits its size leaves out."""

from typing import Any

from bayes_sd.physics.stages import Stages

TERMS = ("r_draft",)


def costs(theta: Any, system: Any, load: Any, tile_tokens: float = 1.0) -> Stages:
    r"""Charge a drafted token by `r_draft` where the linear law has the verifier's `r_tok`.

    .. math:: c_{2,draft} \mathrel{+}= (r_{draft} - r_{tok})\, s_{2p}\, d\, f_{2d}
    """
    prompt_token = theta["s_2p"] * system["drafter"] * theta["f_2d"]
    return Stages(c2_draft=(theta["r_draft"] - theta["r_tok"]) * prompt_token)
