"""The whole law in one place: coefficients, sizes and a workload in; latency, TTFT, shares out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from bayes_sd.errors import InputError
from bayes_sd.physics import costs, queue
from bayes_sd.physics.costs import Stages, Totals, absent, combine, scaled
from bayes_sd.physics.structures import Placed

PARTS = (*costs.ADDED, "stalls")
OPTIONAL = ("host", "drafting")  # not in the default law
DEFAULT = tuple(part for part in PARTS if part not in OPTIONAL)
SOFTNESS = 0.01  # rounding of the pole for measured runs; see headroom
PREFILL_SOFTNESS = 0.02  # rounding of the pole of the queue of prefills


@dataclass(frozen=True)
class Law:
    """A latency law: costs proportional to size, and the parts added to them.

    Parameters
    ----------
    parts : tuple of str
        Any of ``host`` (overheads whatever the model), ``depth`` (overheads grow with layers),
        ``experts`` (a pass reads the experts it touches), ``tokens`` (verifying costs ``k + 1``
        tokens), ``context`` (keys and values are read), ``attention`` (prompts cost their square),
        ``drafting`` (a drafter's arithmetic has a price of its own) and
        ``stalls`` (prefills of others stall decoding; without it they delay the first token).
        ``host`` alone is the law of arXiv 2605.15051, with ``L = C1 / (1 - rate C2)``.
    tile_tokens : float
        Tokens that a pass computes at one price: 1, or the tile of the matrix kernels (128 on
        current GPUs), which makes the knee from memory- to compute-bound passes a staircase: where
        one more request begins a tile, all are slower and throughput falls. Without tiles it
        rises with concurrency as long as a request adds less than it takes alone.

    Examples
    --------
    >>> Law(parts=("host",)).terms[:2]
    ('weights_per_pass', 'prefill_token_alone')
    """

    parts: tuple[str, ...] = DEFAULT
    tile_tokens: float = 1.0

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown:
            known = ", ".join(PARTS)
            raise InputError(f"No part of the law is called {unknown[0]!r}; known: {known}.")
        if "context" in self.parts and "depth" not in self.parts:
            raise InputError("Part 'context' needs 'depth', whose cost of a sequence it spreads.")
        if not 1 <= self.tile_tokens <= 4096:
            raise InputError(f"tile_tokens = {self.tile_tokens!r}: must lie between 1 and 4096.")
        if self.tile_tokens > 1 and "tokens" not in self.parts:
            raise InputError("tile_tokens above 1 needs the part 'tokens'.")
        # One order, so that equal laws are equal.
        object.__setattr__(self, "parts", tuple(p for p in PARTS if p in self.parts))

    @property
    def _costs(self) -> list[costs.Part]:
        return [costs.LINEAR, *(costs.ADDED[p] for p in self.parts if p in costs.ADDED)]

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the coefficients this law needs."""
        waits = ("queue_cycles", "prefills_ahead") if self.stalls else ("queue_cycles",)
        return (*(term for part in self._costs for term in part.terms), *waits)

    @property
    def stalls(self) -> bool:
        """Whether other requests' prefills stall decoding instead of delaying the first token."""
        return "stalls" in self.parts

    def stages(self, coefficients: Any, sizes: Any, workload: Any) -> Stages:
        """Stage costs in seconds: the sum of the parts, times the server's own factors."""
        total = costs.add(*(p.costs(coefficients, sizes, workload) for p in self._costs))
        if self.tile_tokens == 1:
            total = total._replace(tile_token=0.0)
        total = scaled(total, Stages._fields, coefficients["factor_slowness"])
        total = scaled(total, (*costs.OTHERS, "tile_token"), coefficients["factor_crowding"])
        if self.stalls:
            ahead = costs.times(total.prefill_others, coefficients["prefills_ahead"])
            total = total._replace(prefill_ahead=ahead)
        return total


FULL = Law()


class Outcome(NamedTuple):
    """What the law says of one load: seconds, and dimensionless shares.

    `decode_s` follows the first token, `prefill_s` is the request's own, `others` are the requests
    in flight beside it and `others_share` the share of its latency that they cause: at a rate the
    utilization ``x``. `growth` is the relative change of the latency for one of C2: ``x / (1 - x)``
    at a rate, ``B C2 / L`` at a concurrency. `utilization` is ``rate * C2``, 0 at a concurrency.
    """

    e2e_s: Any
    ttft_s: Any
    decode_s: Any
    prefill_s: Any
    c1_s: Any
    c2_s: Any
    others: Any
    others_share: Any
    growth: Any
    utilization: Any

    def mean_s(self, metric: str, output_tokens: Any) -> Any:
        """Mean of "e2e" latency, "ttft", or "tpot" = ``(e2e - ttft) / (g - 1)``."""
        if metric == "tpot":
            return self.decode_s / (output_tokens - 1)
        return self.e2e_s if metric == "e2e" else self.ttft_s


def latency_beside(totals: Totals, sizes: Any, others: Any, k: Any, law: Law = FULL) -> Any:
    """Mean latency beside so many others, s; see `outcome`."""
    tokens = queue.tokens_in_pass(others, k)
    c1 = totals.c1 + queue.coverage(sizes["idle"], tokens) * totals.experts
    if law.tile_tokens > 1:
        c1 = c1 - totals.tile_token * queue.free_tokens(tokens, law.tile_tokens)
    return c1 + others * totals.c2


def queue_s(service_s: Any, utilization: Any, softness: float = 0.0) -> Any:
    """Mean wait for constant service `p` at random arrivals, s: ``W(p) = x p / (2 (1 - x))``."""
    return utilization * service_s / (2 * queue.headroom(utilization, softness))


def outcome(
    stages: Stages,
    queue_cycles: Any,
    sizes: Any,
    workload: Any,
    softness: float = 0.0,
    detach: Any = None,
    law: Law = FULL,
) -> Outcome:
    r"""Mean latency and TTFT of stage costs at a load.

    .. math::
        L &= C_1(\phi(B)) + B\, C_2, \qquad B = \lambda L \text{ or given} \\
        TTFT &= c_{1,prefill} + w\,[c_{1,verify} + k c_{1,draft} + B (c_{2,verify} + k c_{2,draft})]
               + W

    The first token waits for `w` running cycles (`queue_cycles`) and for the prefills ahead of its
    own: of random arrivals as in `queue_s`; where a concurrency is held, answers of one length end
    together and the next prompts come together, so that `s` of the others (`prefills_ahead`) are
    ahead, ``W = s B c2,prefill``. Prefills that come later stall decoding and are in L. A law
    without the part "stalls" charges them to the first token, as ``B c2,prefill``.
    Laws with tiles take ``pass_tokens`` of the workload, where measured, instead of those at the
    fixed point. `softness` as in `headroom`, `detach` as in `in_flight_at_rate`.
    """
    k, passes, rate, closed = (workload[n] for n in ("k", "draft_passes", "rate_rps", "closed"))
    tile = law.tile_tokens
    totals = combine(stages, passes, workload["cycles"])
    measured, measured_law = totals, law
    if tile > 1 and "pass_tokens" in workload:
        # As measured, the tokens paid for are a number, and no fixed point crosses the staircase.
        paid = queue.computed_tokens(workload["pass_tokens"], tile) - k
        c1, c2 = totals.c1 + paid * totals.tile_token, totals.c2 - (k + 1) * totals.tile_token
        measured = Totals(c1, totals.experts, c2)
        measured_law = replace(law, tile_tokens=1.0)
    room = queue.headroom(rate * measured.c2, softness)
    at_rate = queue.in_flight_at_rate(
        measured, sizes, rate, room, k, measured_law.tile_tokens, detach
    )
    others = (1 - closed) * at_rate + closed * workload["others"]
    tokens = queue.tokens_in_pass(others, k)
    phi = queue.coverage(sizes["idle"], tokens)
    c1 = totals.c1 + phi * totals.experts
    e2e = latency_beside(measured, sizes, others, k, measured_law)
    added = others * totals.c2
    pass_s = stages.verify_alone + phi * stages.experts + passes * stages.draft_alone
    cycle_s = pass_s + others * (stages.verify_others + passes * stages.draft_others)
    if tile > 1:
        paid = queue.computed_tokens(workload.get("pass_tokens", tokens), tile)
        cycle_s = cycle_s + stages.tile_token * (paid - (tokens - 1))
        c1 = c1 - totals.tile_token * queue.free_tokens(k + 1.0, tile)
        added = e2e - c1
    if law.stalls:
        prefills = rate * stages.prefill_others
        ahead = (1 - closed) * queue_s(stages.prefill_others, prefills, PREFILL_SOFTNESS)
        ahead = ahead + closed * others * stages.prefill_ahead
    else:
        ahead = others * stages.prefill_others
    ttft = stages.prefill_alone + queue_cycles * cycle_s + ahead
    # At a rate an error of C2 feeds back through the requests in flight; a concurrency is fixed.
    growth = (1 - closed) * added / c1 + closed * added / e2e
    return Outcome(
        e2e_s=e2e,
        ttft_s=ttft,
        decode_s=e2e - ttft,
        prefill_s=stages.prefill_alone,
        c1_s=c1,
        c2_s=totals.c2,
        others=others,
        others_share=added / e2e,
        growth=growth,
        utilization=rate * totals.c2,
    )


class Route(NamedTuple):
    """A request's way through a structure, whatever the rate: see the fields of `Placed`."""

    totals: tuple[Totals, ...]
    away_s: Any = 0.0
    pool_s: Any = 0.0

    @property
    def capacity_rps(self) -> Any:
        """Rate at which the first of the servers saturates, requests/s."""
        return 1 / reduce(np.maximum, [*(t.c2 for t in self.totals), self.pool_s])


def route(placed: Placed, workload: Mapping[str, Any]) -> Route:
    """Sum what is placed over the cycles of a request."""
    cycles = workload["cycles"]
    return Route(
        tuple(combine(way, workload["draft_passes"], cycles) for way in placed.ways),
        placed.before_s + cycles * placed.away_s,
        placed.pool_s,
    )


def take(value: Any, shape: tuple[int, ...], index: np.ndarray) -> Any:
    """Elements `index` of a value broadcast to `shape`; of tuples and mappings, of each value."""
    if isinstance(value, Mapping):
        return {name: take(one, shape, index) for name, one in value.items()}
    if isinstance(value, tuple):
        parts = [take(one, shape, index) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    array = np.asarray(value)
    return value if array.ndim == 0 else np.broadcast_to(array, shape).ravel()[index]


def others_here(own: Route, sizes: Any, others: Any, k: int, law: Law = FULL) -> np.ndarray:
    """How many of so many requests are on the server, where the rest are elsewhere.

    With ``b`` here the rate is ``b / L(b)``, and that rate keeps ``others`` in flight in all. The
    latency beside a number has no jumps, where that at a rate has some (tiles).
    """
    shape = np.broadcast_shapes(np.shape(own.capacity_rps), np.shape(others))

    def missed(b: np.ndarray, index: np.ndarray) -> np.ndarray:
        here, size, n = take((own, sizes, others), shape, index)
        served_s = reduce(np.maximum, [latency_beside(t, size, b, k, law) for t in here.totals])
        rate = b / served_s
        elsewhere_s = here.away_s + queue_s(here.pool_s, rate * here.pool_s)
        return n / (served_s + elsewhere_s) - rate

    high = np.broadcast_to(np.asarray(others, float), shape).ravel()
    return queue.find_roots(missed, np.zeros_like(high), high).reshape(shape)


def placed_outcome(
    placed: Placed, queue_cycles: Any, sizes: Any, workload: Mapping[str, Any], law: Law = FULL
) -> Outcome:
    """As `outcome`, in a structure; of ``c2_s`` the largest, so that ``1 / c2_s`` is capacity."""
    queue_cycles = queue_cycles * placed.waits
    if all(absent(s) for s in (placed.before_s, placed.away_s, placed.pool_s)):
        return _served(placed, queue_cycles, sizes, workload, law)
    own, others = route(placed, workload), workload["others"]
    closed = bool(np.all(workload["closed"]))  # one question has one kind of load
    here = others_here(own, sizes, others, workload["k"], law) if closed else others
    served = _served(placed, queue_cycles, sizes, {**workload, "others": here}, law)
    rate = here / served.e2e_s if closed else workload["rate_rps"]
    busy = rate * own.pool_s
    wait_s = queue_s(own.pool_s, busy)
    e2e = served.e2e_s + own.away_s + wait_s
    # Relative change of the whole for one of the rate, or of what sets capacity.
    at_rate = served.others_share * served.e2e_s / served.c1_s if closed else served.growth
    growth = (at_rate * served.e2e_s + wait_s / queue.headroom(busy)) / e2e
    return Outcome(
        e2e_s=e2e,
        ttft_s=served.ttft_s + placed.before_s + wait_s,
        decode_s=served.decode_s + workload["cycles"] * placed.away_s,
        prefill_s=served.prefill_s + placed.before_s,
        c1_s=served.c1_s + own.away_s,
        c2_s=np.maximum(served.c2_s, own.pool_s),
        others=others if closed else rate * e2e,
        others_share=(served.others_share * served.e2e_s + wait_s) / e2e,
        # With the number in flight fixed, a slower server is asked less often.
        growth=growth / (1 + growth) if closed else growth,
        utilization=0.0 * e2e if closed else np.maximum(served.utilization, busy),
    )


def _served(placed: Placed, queue_cycles: Any, sizes: Any, workload: Any, law: Law) -> Outcome:
    """Outcome on the server, of the slowest way."""
    each = (outcome(way, queue_cycles, sizes, workload, law=law) for way in placed.ways)
    return reduce(_slower, each)


def _slower(one: Outcome, other: Outcome) -> Outcome:
    """The outcome with the longer latency, element by element."""
    # Past the pole the fixed point has no root.
    seconds = [np.where(o.utilization >= 1, np.inf, o.e2e_s) for o in (one, other)]
    first = seconds[0] >= seconds[1]
    both = Outcome(*(np.where(first, a, b) for a, b in zip(one, other, strict=True)))
    return both._replace(c2_s=np.maximum(one.c2_s, other.c2_s))
