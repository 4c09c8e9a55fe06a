"""The whole law in one place: coefficients and a load in, mean latency, TTFT and load share out."""

from typing import Any, NamedTuple

from bayes_sd.physics.costs import Cycle, Stages, combine, stage_costs
from bayes_sd.physics.experts import coverage, in_flight_with_experts, tokens_in_pass
from bayes_sd.physics.steady import headroom, latency_closed, utilization

NU = 5.0  # degrees of freedom of run means: neighbours on shared machines make outliers
NEWTON_STEPS = 6
SOFTNESS = 0.01  # rounding of the pole for measured runs; see headroom


class Outcome(NamedTuple):
    """What the law says of one load: seconds, and dimensionless shares.

    `others_share` is ``B C2 / L``, the share of the latency that other requests cause; at an
    offered rate it is the utilization ``x``. `growth` is the relative change of the latency for
    one of C2: ``B C2 / C1 = x / (1 - x)`` at a rate, ``B C2 / L`` at a concurrency.
    `utilization` is ``rate * C2``, 0 at a fixed concurrency.
    """

    e2e_s: Any
    ttft_s: Any
    c1_s: Any
    c2_s: Any
    in_flight: Any
    others_share: Any
    growth: Any
    utilization: Any


def system_stages(theta: Any, system: Any, load: Any) -> Stages:
    """Stage costs with the server's own factors ``f_speed`` and ``f_capacity``."""
    alone, others = theta["f_speed"], theta["f_speed"] * theta["f_capacity"]
    stages = stage_costs(theta, system, load["k"], load["prompt_tokens"], load["output_tokens"])
    return Stages(
        *(
            cost * (alone if name.startswith("c1") else others)
            for name, cost in stages._asdict().items()
        )
    )


def cycle(theta: Any, system: Any, load: Any) -> Cycle:
    """Latency coefficients C1 (its part outside and inside the experts) and C2, in seconds."""
    stages = system_stages(theta, system, load)
    return combine(stages, load["k"], load["cycles"])


def _others_at_rate(
    total: Cycle, system: Any, rate: Any, room: Any, k: Any, detach: Any = None
) -> Any:
    # A dense model needs no iteration; whether a symbolic one is dense cannot be asked.
    dense = isinstance(system["expert"], float) and system["expert"] == 0.0
    steps = 0 if dense else NEWTON_STEPS
    idle, log_idle = system["idle"], system["log_idle"]
    return in_flight_with_experts(total, rate, room, idle, log_idle, k, steps, detach)


def latency_at_rate(total: Cycle, system: Any, rate: Any, k: Any) -> Any:
    """Mean latency (s) at a rate below the pole, from the coefficients of a :func:`cycle`."""
    room = headroom(utilization(total.c2, rate))
    others = _others_at_rate(total, system, rate, room, k)
    phi = coverage(system["idle"], tokens_in_pass(others, k))
    return latency_closed(total.c1 + phi * total.c1_experts, total.c2, others)


def outcome(
    theta: Any, system: Any, load: Any, softness: float = 0.0, detach: Any = None
) -> Outcome:
    r"""Mean latency and TTFT at a load.

    .. math::
        L &= C_1(\phi(B)) + B\, C_2, \qquad B = \lambda L \text{ or given} \\
        TTFT &= c_{1,prefill} + w\,[c_{1,verify} + k c_{1,draft} + B (c_{2,verify} + k c_{2,draft})]
               + \frac{\rho\, c_{2,prefill}}{2 (1 - \rho)}, \quad \rho = \lambda\, c_{2,prefill}

    The first token waits for `w` running cycles and, in a queue with constant service, for the
    prefills ahead of its own; prefills that arrive later stall decoding and are in L.

    Parameters
    ----------
    theta : mapping
        Coefficients, see :func:`bayes_sd.physics.stage_costs`, and ``f_speed``, ``f_capacity``,
        ``wait``.
    system : mapping
        Sizes in 1e9 parameters; ``idle`` and ``log_idle`` of the experts.
    load : mapping
        ``k``, ``prompt_tokens``, ``output_tokens``, ``cycles``; ``closed`` (1 for a fixed
        concurrency, 0 for a rate), ``rate_rps`` and ``others`` (requests beside one's own).
    softness : float
        Rounding of the pole, see :func:`bayes_sd.physics.headroom`; 0 is exact (infinite past it).
    detach : callable, optional
        See :func:`bayes_sd.physics.in_flight_with_experts`.

    Returns
    -------
    Outcome
    """
    stages = system_stages(theta, system, load)
    k, rate, closed = load["k"], load["rate_rps"], load["closed"]
    total = combine(stages, k, load["cycles"])
    x = utilization(total.c2, rate)
    room = headroom(x, softness)
    open_others = _others_at_rate(total, system, rate, room, k, detach)
    others = (1 - closed) * open_others + closed * load["others"]
    phi = coverage(system["idle"], tokens_in_pass(others, k))
    c1 = total.c1 + phi * total.c1_experts
    e2e = latency_closed(c1, total.c2, others)
    pass_s = stages.c1_verify + phi * stages.c1_experts + k * stages.c1_draft
    shared_s = stages.c2_verify + k * stages.c2_draft
    prefill_load = (1 - closed) * utilization(stages.c2_prefill, rate) + closed * (
        others * stages.c2_prefill / e2e
    )
    queue = prefill_load * stages.c2_prefill / (2 * headroom(prefill_load, 0.02))
    ttft = stages.c1_prefill + theta["wait"] * (pass_s + others * shared_s) + queue
    added = others * total.c2
    # At a rate an error of C2 feeds back through the requests in flight; a concurrency is fixed.
    growth = (1 - closed) * added / c1 + closed * added / e2e
    return Outcome(e2e, ttft, c1, total.c2, others, added / e2e, growth, x)


def run_scale(alone: Any, growing: Any, growth: Any) -> Any:
    """Scatter (log sd) of a run's mean: ``sqrt(alone^2 + (growing * growth)^2)``.

    A relative error of C2 moves the latency ``growth = x / (1 - x)`` times as much.
    """
    return (alone**2 + (growing * growth) ** 2) ** 0.5


def spread_variance(alone: Any, load: Any, intensity: Any) -> Any:
    r"""Variance of the log latency of single requests: ``alone^2 + load^2 * intensity``.

    For the latency, `intensity` is ``x C2 / C1``: while a request stays for L, a Poisson number of
    others arrives, each adding C2, so the variance of its latency is about
    :math:`\lambda L C_2^2 / (1 - x)`, that is :math:`x C_2 / C_1` in units of :math:`L^2`.
    """
    return alone**2 + load**2 * intensity
