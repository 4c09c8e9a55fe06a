"""What the law says of stage costs in a deployment: latency at a rate, capacity, the outcome."""

from collections.abc import Mapping
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from bayes_sd.physics.costs import FULL, Law
from bayes_sd.physics.law import Outcome, latency_at_rate, outcome_of
from bayes_sd.physics.stages import Cycle, combine
from bayes_sd.physics.steady import headroom, pole, utilization
from bayes_sd.physics.structures import Placed
from bayes_sd.predict.root import root

SECANTS = 12  # of a rate, to a relative error below 1e-9


class Route(NamedTuple):
    """A request's way through a deployment, which no rate changes.

    It is served as long as by the slowest of `cycles`, and is `away_s` seconds elsewhere; a
    prefill pool works `pool_s` on it.
    """

    cycles: tuple[Cycle, ...]
    away_s: Any = 0.0
    pool_s: Any = 0.0


def route(placed: Placed, load: Mapping[str, Any]) -> Route:
    """Sum what is placed over the cycles of a request."""
    n, drafts = load["cycles"], load.get("draft_passes", load["k"])
    return Route(
        tuple(combine(way, drafts, n) for way in placed.ways),
        placed.before_s + n * placed.away_s,
        placed.pool_s,
    )


def capacity_rps(own: Route) -> Any:
    """Rate at which the first of a deployment's servers saturates, requests/s."""
    return pole(reduce(np.maximum, [*(one.c2 for one in own.cycles), own.pool_s]))


def queue_s(pool_s: Any, rate: Any) -> Any:
    """Mean wait before a prefill pool: a queue with constant service."""
    load = utilization(pool_s, rate)
    return load * pool_s / (2 * headroom(load))


def latency_s(own: Route, system: Any, rate: Any, k: int, law: Law = FULL) -> Any:
    """Mean latency at a rate below capacity, s.

    Each way's latency solves ``L = f_i(L)`` with an increasing `f_i`, so that of the slowest way
    at every load, ``L = max_i f_i(L)``, is the longest of them.
    """
    served = reduce(np.maximum, (latency_at_rate(c, system, rate, k, law) for c in own.cycles))
    return served + own.away_s + queue_s(own.pool_s, rate)


def rate_holding(own: Route, system: Any, others: Any, k: int, law: Law = FULL) -> Any:
    r"""The rate at which so many requests are in flight, some of them elsewhere.

    Little's law, :math:`N / L(\lambda) = \lambda`. The left side falls to 0 at capacity, in a line
    where no request is elsewhere, so secants are soon there.
    """

    def missed(rate: Any) -> Any:
        # Every product begins with the draws, and so does the answer, as it does of one server.
        return latency_s(own, system, rate, k, law) ** -1 * others - rate

    high = capacity_rps(own)
    low = 0.0 * high * others
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return root(missed, low, high, missed(low), -high, SECANTS)


def deployed(
    placed: Placed, theta: Mapping[str, Any], system: Any, load: Mapping[str, Any], law: Law = FULL
) -> Outcome:
    """See :func:`bayes_sd.physics.law.outcome`, for stage costs in a deployment.

    Of ``c2_s`` the largest is given, so that ``1 / c2_s`` remains the capacity.
    """
    if not _is(placed.waits, 1.0):
        theta = {**theta, "wait": theta["wait"] * placed.waits}
    at_home = all(_is(s, 0.0) for s in (placed.before_s, placed.away_s, placed.pool_s))
    if at_home:
        return _served(placed, theta, system, load, law)
    own, closed, others = route(placed, load), bool(load["closed"]), load["others"]
    rate = rate_holding(own, system, others, load["k"], law) if closed else load["rate_rps"]
    served = _served(placed, theta, system, {**load, "closed": 0.0, "rate_rps": rate}, law)
    queue = queue_s(own.pool_s, rate)
    e2e = served.e2e_s + own.away_s + queue
    x, busy = served.utilization, utilization(own.pool_s, rate)
    # Relative change of the whole for one of the rate, or of what sets capacity.
    growth = (served.growth * served.e2e_s + queue / headroom(busy)) / e2e
    return Outcome(
        e2e_s=e2e,
        ttft_s=served.ttft_s + placed.before_s + queue,
        decode_s=served.decode_s + load["cycles"] * placed.away_s,
        prefill_s=served.prefill_s + placed.before_s,
        c1_s=served.c1_s + own.away_s,
        c2_s=np.maximum(served.c2_s, own.pool_s),
        in_flight=others if closed else rate * e2e,
        others_share=(served.others_share * served.e2e_s + queue) / e2e,
        # With the number in flight fixed, a slower server is asked less often.
        growth=growth / (1 + growth) if closed else growth,
        utilization=0.0 * x if closed else np.maximum(x, busy),
    )


def _is(value: Any, number: float) -> bool:
    """Whether a structure leaves a term at the plain number that stands for its absence."""
    return isinstance(value, float) and value == number


def _served(placed: Placed, theta: Any, system: Any, load: Any, law: Law) -> Outcome:
    return reduce(_slower, (outcome_of(way, theta, system, load, law=law) for way in placed.ways))


def _slower(one: Outcome, other: Outcome) -> Outcome:
    # Past the pole the fixed point has no root.
    seconds = [xr.where(o.utilization >= 1, np.inf, o.e2e_s) for o in (one, other)]
    first = seconds[0] >= seconds[1]
    found = Outcome(*(xr.where(first, a, b) for a, b in zip(one, other, strict=True)))
    return found._replace(c2_s=np.maximum(one.c2_s, other.c2_s))
