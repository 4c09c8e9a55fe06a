"""The whole law in one place: coefficients and a load in; mean latency, TTFT and spread out."""

from dataclasses import replace
from typing import Any, NamedTuple

from bayes_sd.physics.costs import FULL, Law
from bayes_sd.physics.crowd import in_flight_open
from bayes_sd.physics.experts import coverage, tokens_in_pass
from bayes_sd.physics.stages import Cycle, Stages, combine, scaled
from bayes_sd.physics.steady import headroom, latency_closed, utilization
from bayes_sd.physics.tiles import computed_tokens, free_tokens

NU = 5.0  # degrees of freedom of run means: neighbours on shared machines make outliers
NEWTON_STEPS = 6
SOFTNESS = 0.01  # rounding of the pole for measured runs; see headroom


class Outcome(NamedTuple):
    """What the law says of one load: seconds, and dimensionless shares.

    `decode_s` is what follows the first token, `prefill_s` a request's own prefill.
    `others_share` is the share of the latency that other requests cause; at an offered rate it is
    the utilization ``x``. `growth` is the relative change
    of the latency for one of C2: ``B C2 / C1 = x / (1 - x)`` at a rate, ``B C2 / L`` at a
    concurrency. `utilization` is ``rate * C2``, 0 at a fixed concurrency.
    """

    e2e_s: Any
    ttft_s: Any
    decode_s: Any
    prefill_s: Any
    c1_s: Any
    c2_s: Any
    in_flight: Any
    others_share: Any
    growth: Any
    utilization: Any


def system_stages(theta: Any, system: Any, load: Any, law: Law = FULL) -> Stages:
    """Stage costs with the server's own factors ``f_speed`` and ``f_capacity``."""
    alone, others = theta["f_speed"], theta["f_speed"] * theta["f_capacity"]
    stages = law.stages(theta, system, load)
    return Stages(
        *(
            scaled(cost, alone if name.startswith("c1") else others)
            for name, cost in stages._asdict().items()
        )
    )


def latency_beside(total: Cycle, system: Any, others: Any, k: Any, law: Law = FULL) -> Any:
    """Mean latency (s) beside `others` requests, from its :func:`bayes_sd.physics.combine`."""
    tokens = tokens_in_pass(others, k)
    c1 = total.c1 + coverage(system["idle"], tokens) * total.c1_experts
    if law.tile_tokens > 1:
        c1 = c1 - total.token * free_tokens(tokens, law.tile_tokens)
    return latency_closed(c1, total.c2, others)


def latency_at_rate(total: Cycle, system: Any, rate: Any, k: Any, law: Law = FULL) -> Any:
    """Mean latency (s) at a rate below the pole, from its :func:`bayes_sd.physics.combine`."""
    room = headroom(utilization(total.c2, rate))
    others = in_flight_open(total, system, rate, room, k, law.tile_tokens, NEWTON_STEPS)
    return latency_beside(total, system, others, k, law)


def outcome(
    theta: Any,
    system: Any,
    load: Any,
    softness: float = 0.0,
    detach: Any = None,
    law: Law = FULL,
) -> Outcome:
    r"""Mean latency and TTFT at a load.

    .. math::
        L &= C_1(\phi(B)) + B\, C_2, \qquad B = \lambda L \text{ or given} \\
        TTFT &= c_{1,prefill} + w\,[c_{1,verify} + k c_{1,draft} + B (c_{2,verify} + k c_{2,draft})]
               + \frac{\rho\, c_{2,prefill}}{2 (1 - \rho)}, \quad \rho = \lambda\, c_{2,prefill}

    The first token waits for `w` running cycles and, in a queue with constant service, for the
    prefills ahead of its own; prefills that arrive later stall decoding and are in L. A law
    without the part "stalls" charges them to the first token instead, as ``B c2,prefill``.

    Parameters
    ----------
    theta : mapping
        Coefficients, see :meth:`bayes_sd.physics.Law.stages`, and ``f_speed``, ``f_capacity``,
        ``wait``.
    system : mapping
        Sizes in 1e9 parameters; ``idle`` and ``log_idle`` of the experts.
    load : mapping
        ``k``, ``prompt_tokens``, ``output_tokens``, ``cycles``; ``closed`` (1 for a fixed
        concurrency, 0 for a rate), ``rate_rps`` and ``others`` (requests beside one's own). Where
        they are not ``k``, ``draft_passes`` (see :func:`bayes_sd.physics.draft_passes`); where they
        were measured, ``pass_tokens``, which with tiles stand in for those at the fixed point.
    softness : float
        Rounding of the pole, see :func:`bayes_sd.physics.headroom`; 0 is exact (infinite past it).
    detach : callable, optional
        See :func:`bayes_sd.physics.in_flight_with_experts`.
    law : Law
        Which parts.

    Returns
    -------
    Outcome
    """
    stages = system_stages(theta, system, load, law)
    return outcome_of(stages, theta, system, load, softness, detach, law)


def outcome_of(
    stages: Stages,
    theta: Any,
    system: Any,
    load: Any,
    softness: float = 0.0,
    detach: Any = None,
    law: Law = FULL,
) -> Outcome:
    """See :func:`outcome`, of given stage costs: of `theta` only ``wait`` is read."""
    k, rate, closed, tile = load["k"], load["rate_rps"], load["closed"], law.tile_tokens
    drafts = load.get("draft_passes", k)
    total = combine(stages, drafts, load["cycles"])
    x = utilization(total.c2, rate)
    own, own_law = total, law
    if tile > 1 and "pass_tokens" in load:
        # As measured, the tokens paid for are a number, and no fixed point crosses the staircase.
        paid = computed_tokens(load["pass_tokens"], tile) - k
        own = Cycle(
            total.c1 + paid * total.token, total.c1_experts, total.c2 - (k + 1) * total.token
        )
        own_law = replace(law, tile_tokens=1.0)
    room = headroom(utilization(own.c2, rate), softness)
    at_rate = in_flight_open(own, system, rate, room, k, own_law.tile_tokens, NEWTON_STEPS, detach)
    others = (1 - closed) * at_rate + closed * load["others"]
    tokens = tokens_in_pass(others, k)
    phi = coverage(system["idle"], tokens)
    c1 = total.c1 + phi * total.c1_experts
    e2e = latency_beside(own, system, others, k, own_law)
    added = others * total.c2
    pass_s = stages.c1_verify + phi * stages.c1_experts + drafts * stages.c1_draft
    shared_s = stages.c2_verify + drafts * stages.c2_draft
    cycle_s = pass_s + others * shared_s
    if tile > 1:
        paid = computed_tokens(load.get("pass_tokens", tokens), tile)
        cycle_s = cycle_s + stages.token * (paid - (tokens - 1))
        c1 = c1 - total.token * free_tokens(k + 1.0, tile)
        added = e2e - c1
    if law.stalls:
        prefill_load = (1 - closed) * utilization(stages.c2_prefill, rate) + closed * (
            others * stages.c2_prefill / e2e
        )
        ahead = prefill_load * stages.c2_prefill / (2 * headroom(prefill_load, 0.02))
    else:
        ahead = others * stages.c2_prefill
    ttft = stages.c1_prefill + theta["wait"] * cycle_s + ahead
    # At a rate an error of C2 feeds back through the requests in flight; a concurrency is fixed.
    growth = (1 - closed) * added / c1 + closed * added / e2e
    return Outcome(
        e2e_s=e2e,
        ttft_s=ttft,
        decode_s=e2e - ttft,
        prefill_s=stages.c1_prefill,
        c1_s=c1,
        c2_s=total.c2,
        in_flight=others,
        others_share=added / e2e,
        growth=growth,
        utilization=x,
    )


def run_scale(alone: Any, growing: Any, growth: Any) -> Any:
    """Scatter (log sd) of a run's mean: ``sqrt(alone^2 + (growing * growth)^2)``.

    A relative error of C2 moves the latency ``growth = x / (1 - x)`` times as much.
    """
    return (alone**2 + (growing * growth) ** 2) ** 0.5
