"""What every law has: costs proportional to the model's size, and a drafter's overheads."""

from typing import Any

from bayes_sd.physics.stages import Stages

TERMS = ("s_pass", "s_1p", "s_2p", "r_tok", "o_1d", "o_2d")


def costs(theta: Any, system: Any, load: Any, tile_tokens: float = 1.0) -> Stages:
    r"""Weights read once a pass, arithmetic of prompts and sequences.

    With `a`, `d` active parameters of verifier and drafter, `b` all those of the verifier (1e9),
    and :math:`s_{tok} = r_{tok} s_{2p}`:

    .. math::
        c_{1,prefill} &= s_{1p}\, a P f_{1p} + s_{1p}\, d P \\
        c_{2,prefill} &= s_{2p}\, a P f_{2p} + s_{2p}\, d P \\
        c_{1,verify}  &= s_{pass}\, b\, f_{1v}, \qquad
        c_{2,verify}   = s_{tok}\, a\, f_{2v} \\
        c_{1,draft}   &= (o_{1d} + s_{pass}\, d)\, f_{1d}, \qquad
        c_{2,draft}    = (o_{2d} + s_{tok}\, d)\, f_{2d}

    References
    ----------
    arXiv 2605.15051: coefficients linear in size, c2,prefill in P.
    """
    a, d, prompt = system["active"], system["drafter"], load["prompt_tokens"]
    s_tok = theta["r_tok"] * theta["s_2p"]
    weights = system["shared"] + system["expert"]
    return Stages(
        c1_prefill=theta["s_1p"] * (a * theta["f_1p"] + d) * prompt,
        c2_prefill=theta["s_2p"] * (a * theta["f_2p"] + d) * prompt,
        c1_verify=theta["s_pass"] * weights * theta["f_1v"],
        c2_verify=s_tok * a * theta["f_2v"],
        c1_draft=(theta["o_1d"] + theta["s_pass"] * d) * theta["f_1d"],
        c2_draft=(theta["o_2d"] + s_tok * d) * theta["f_2d"],
    )
