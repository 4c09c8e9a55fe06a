"""Stage costs of a draft-verify server, and their sum over a request: equation (2)."""

from typing import Any, NamedTuple


class Stages(NamedTuple):
    """Stage costs in seconds. `c1_*`: a request alone; `c2_*`: added by each other one in flight.

    A verify pass of a mixture-of-experts model costs ``c1_verify + coverage * c1_experts``. Where
    arithmetic comes in tiles, ``token`` is what each token saves that rides free in one.
    """

    c1_prefill: Any = 0.0
    c2_prefill: Any = 0.0
    c1_verify: Any = 0.0
    c1_experts: Any = 0.0
    c2_verify: Any = 0.0
    c1_draft: Any = 0.0
    c2_draft: Any = 0.0
    token: Any = 0.0


class Cycle(NamedTuple):
    """A request's latency coefficients in seconds.

    ``C1 = c1 + coverage * c1_experts - free * token``, ``C2 = c2``; see :class:`Stages`.
    """

    c1: Any
    c1_experts: Any
    c2: Any
    token: Any = 0.0


def add(first: Stages, *others: Stages) -> Stages:
    """Sum of stage costs; a cost that a part leaves alone is not touched.

    Examples
    --------
    >>> add(Stages(c1_verify=1.0), Stages(c1_verify=2.0)).c1_verify
    3.0
    """
    total = first
    for other in others:
        total = Stages(
            *(
                old if isinstance(new, float) and new == 0.0 else old + new
                for old, new in zip(total, other, strict=True)
            )
        )
    return total


def scaled(cost: Any, by: Any) -> Any:
    """Product that leaves a cost alone which a law does not have."""
    return cost if isinstance(cost, float) and cost == 0.0 else cost * by


def draft_passes(k: Any, loaded: Any) -> Any:
    r"""Passes of the drafter in a cycle: ``k``, and one at ``k = 0`` where a drafter is loaded.

    vLLM runs a loaded drafter's first pass even when nothing is to be drafted, so that the
    drafter's keys and values stay complete for when drafting begins again.

    Parameters
    ----------
    k : array_like
        Draft tokens per cycle.
    loaded : array_like
        1 where a drafter is loaded, 0 on a plain server.

    Examples
    --------
    >>> draft_passes(3, 1), draft_passes(0, 1), draft_passes(0, 0)
    (3, 1, 0)
    """
    return k + loaded * (k < 1)


def combine(stages: Stages, k: Any, cycles: Any) -> Cycle:
    r"""Sum stage costs over a request, equation (2).

    .. math:: C_i = c_{i,prefill} + n (c_{i,verify} + k\, c_{i,draft})

    Parameters
    ----------
    stages : Stages
        Stage costs in seconds.
    k : array_like
        Draft passes per cycle, see :func:`draft_passes`; at 0 the draft costs drop out.
    cycles : array_like
        Draft-verify cycles `n` of a request, see :func:`bayes_sd.physics.cycles`; about ``g / E``.

    Returns
    -------
    Cycle
        Seconds.

    Examples
    --------
    >>> combine(Stages(0.1, 0.01, 0.02, 0.0, 0.001, 0.002, 0.0001), k=0, cycles=10).c1
    0.30000000000000004
    """
    return Cycle(
        c1=stages.c1_prefill + cycles * (stages.c1_verify + k * stages.c1_draft),
        c1_experts=scaled(stages.c1_experts, cycles),
        c2=stages.c2_prefill + cycles * (stages.c2_verify + k * stages.c2_draft),
        token=scaled(stages.token, cycles),
    )
