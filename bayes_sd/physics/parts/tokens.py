"""Verifying is not free: every drafted token is computed, in tiles where the hardware says so."""

from typing import Any

from bayes_sd.physics.stages import Stages

TERMS: tuple[str, ...] = ()


def costs(theta: Any, system: Any, load: Any, tile_tokens: float = 1.0) -> Stages:
    r"""Arithmetic of ``k + 1`` tokens a sequence instead of one.

    .. math:: c_{1,verify} \mathrel{+}= k\, s_{tok} a f_{2v}, \qquad
        c_{2,verify} \mathrel{+}= k\, s_{tok} a f_{2v}

    With tiles of more than one token, the tokens that fill up a started tile ride free, see
    :func:`bayes_sd.physics.free_tokens`; ``token`` is what one of them would have cost.
    """
    token = theta["r_tok"] * theta["s_2p"] * system["active"] * theta["f_2v"]
    extra = load["k"] * token
    return Stages(c1_verify=extra, c2_verify=extra, token=token if tile_tokens > 1 else 0.0)
