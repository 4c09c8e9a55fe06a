"""What the law says of stage costs in a structure: latency at a rate, capacity, the outcome."""

from collections.abc import Mapping
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from bayes_sd.physics.costs import Totals, combine
from bayes_sd.physics.law import FULL, Law, Outcome, latency_at_rate, outcome, queue_s
from bayes_sd.physics.queue import find_roots, headroom
from bayes_sd.physics.structures import Placed


class Route(NamedTuple):
    """A request's way through a structure, which no rate changes.

    It is served as long as by the slowest of `totals`, and is `away_s` seconds elsewhere; a
    prefill pool works `pool_s` on it.
    """

    totals: tuple[Totals, ...]
    away_s: Any = 0.0
    pool_s: Any = 0.0

    @property
    def capacity_rps(self) -> Any:
        """Rate at which the first of the servers saturates, requests/s."""
        return 1 / reduce(np.maximum, [*(t.c2 for t in self.totals), self.pool_s])

    def latency_s(self, sizes: Any, rate_rps: Any, k: Any, law: Law = FULL) -> Any:
        """Mean latency at a rate below capacity, s.

        Each way's latency solves ``L = f_i(L)`` with an increasing `f_i`, so that of the slowest
        way at every load, ``L = max_i f_i(L)``, is the longest of them.
        """
        each = (latency_at_rate(t, sizes, rate_rps, k, law) for t in self.totals)
        return reduce(np.maximum, each) + self.away_s + queue_s(self.pool_s, rate_rps * self.pool_s)


def route(placed: Placed, workload: Mapping[str, Any]) -> Route:
    """Sum what is placed over the cycles of a request."""
    cycles = workload["cycles"]
    return Route(
        tuple(combine(way, workload["draft_passes"], cycles) for way in placed.ways),
        placed.before_s + cycles * placed.away_s,
        placed.pool_s,
    )


def take(value: Any, shape: tuple[int, ...], index: np.ndarray) -> Any:
    """Elements `index` of a value broadcast to `shape`; tuples and mappings element by element."""
    if isinstance(value, Mapping):
        return {name: take(one, shape, index) for name, one in value.items()}
    if isinstance(value, tuple):
        parts = [take(one, shape, index) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    array = np.asarray(value)
    return value if array.ndim == 0 else np.broadcast_to(array, shape).ravel()[index]


def rate_holding(own: Route, sizes: Any, others: Any, k: int, law: Law = FULL) -> np.ndarray:
    r"""The rate at which so many requests are in flight, some of them elsewhere.

    Little's law, :math:`N / L(\lambda) = \lambda`. The left side falls to 0 at capacity.
    """
    capacity = own.capacity_rps
    shape = np.broadcast_shapes(np.shape(capacity), np.shape(others))

    def missed(rate: np.ndarray, index: np.ndarray) -> np.ndarray:
        here, size, n = take((own, sizes, others), shape, index)
        return n / here.latency_s(size, rate, k, law) - rate

    high = np.broadcast_to(capacity, shape).ravel()
    return find_roots(missed, np.zeros_like(high), high).reshape(shape)


def placed_outcome(
    placed: Placed, queue_cycles: Any, sizes: Any, workload: Mapping[str, Any], law: Law = FULL
) -> Outcome:
    """See :func:`bayes_sd.physics.law.outcome`, for stage costs in a structure.

    Of ``c2_s`` the largest is given, so that ``1 / c2_s`` remains the capacity.
    """
    queue_cycles = queue_cycles * placed.waits
    here = [_is_zero(s) for s in (placed.before_s, placed.away_s, placed.pool_s)]
    if all(here):
        return _served(placed, queue_cycles, sizes, workload, law)
    own, others = route(placed, workload), workload["others"]
    closed = bool(np.all(workload["closed"]))  # one question has one kind of load
    rate = workload["rate_rps"]
    if closed:
        rate = rate_holding(own, sizes, others, workload["k"], law)
    at_rate = {**workload, "closed": 0.0, "rate_rps": rate}
    served = _served(placed, queue_cycles, sizes, at_rate, law)
    busy = rate * own.pool_s
    queue = queue_s(own.pool_s, busy)
    e2e = served.e2e_s + own.away_s + queue
    # Relative change of the whole for one of the rate, or of what sets capacity.
    growth = (served.growth * served.e2e_s + queue / headroom(busy)) / e2e
    return Outcome(
        e2e_s=e2e,
        ttft_s=served.ttft_s + placed.before_s + queue,
        decode_s=served.decode_s + workload["cycles"] * placed.away_s,
        prefill_s=served.prefill_s + placed.before_s,
        c1_s=served.c1_s + own.away_s,
        c2_s=np.maximum(served.c2_s, own.pool_s),
        others=others if closed else rate * e2e,
        others_share=(served.others_share * served.e2e_s + queue) / e2e,
        # With the number in flight fixed, a slower server is asked less often.
        growth=growth / (1 + growth) if closed else growth,
        utilization=0.0 * e2e if closed else np.maximum(served.utilization, busy),
    )


def _is_zero(value: Any) -> bool:
    """Whether a structure leaves a term at the plain number that stands for its absence."""
    return isinstance(value, float) and value == 0.0


def _served(placed: Placed, queue_cycles: Any, sizes: Any, workload: Any, law: Law) -> Outcome:
    each = (outcome(way, queue_cycles, sizes, workload, law=law) for way in placed.ways)
    return reduce(_slower, each)


def _slower(one: Outcome, other: Outcome) -> Outcome:
    """The outcome with the longer latency, element by element."""
    # Past the pole the fixed point has no root.
    seconds = [np.where(o.utilization >= 1, np.inf, o.e2e_s) for o in (one, other)]
    first = seconds[0] >= seconds[1]
    both = Outcome(*(np.where(first, a, b) for a, b in zip(one, other, strict=True)))
    return both._replace(c2_s=np.maximum(one.c2_s, other.c2_s))
