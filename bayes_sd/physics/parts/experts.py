"""Mixture of experts: a pass reads only the experts that its tokens are routed to."""

from typing import Any

from bayes_sd.physics.stages import Stages

TERMS: tuple[str, ...] = ()


def costs(theta: Any, system: Any, load: Any, tile_tokens: float = 1.0) -> Stages:
    r"""Move the experts' weights from every pass to the share that is touched.

    .. math:: c_{1,verify} \mathrel{-}= s_{pass} x f_{1v}, \qquad
        c_{1,experts} \mathrel{+}= s_{pass} x f_{1v}

    The second is charged times :func:`bayes_sd.physics.coverage`, equation (4).
    """
    weights = theta["s_pass"] * system["expert"] * theta["f_1v"]
    return Stages(c1_verify=-weights, c1_experts=weights)
