"""The whole law in one place: coefficients, sizes and a workload in; latency, TTFT, shares out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np

from bayes_sd.errors import one_of
from bayes_sd.physics import costs, queue
from bayes_sd.physics.costs import Stages, absent, add, scaled, times
from bayes_sd.physics.roots import find_roots
from bayes_sd.physics.structures import Placed

PARTS = (*costs.ADDED, "knee", "stalls")
OPTIONAL = ("host",)  # not in the default law
DEFAULT = tuple(part for part in PARTS if part not in OPTIONAL)
SOFTNESS = 0.01  # rounding of the pole for measured runs; see headroom


@dataclass(frozen=True)
class Law:
    """A latency law: bytes and arithmetic over what a machine offers, and the parts added to them.

    Parameters
    ----------
    parts : tuple of str
        Any of ``host`` (overheads whatever the model), ``layers`` (overheads grow with layers, more
        with experts and several devices), ``experts`` (a pass reads the experts it touches),
        ``tokens`` (verifying costs ``k + 1`` tokens), ``context`` (keys and values are read),
        ``attention`` (prompts cost their square), ``graphs`` (beyond captured graphs the host sets
        the pace), ``knee`` (computing goes beside reading and overheads; else after them) and
        ``stalls`` (passes compute prompts of others too; without it these delay the first token).
        ``host`` alone is the law of arXiv 2605.15051, with ``L = C1 / (1 - rate C2)``.

    Examples
    --------
    >>> Law(parts=("host",)).terms[:2]
    ('read_weights', 'prefill_token')
    """

    parts: tuple[str, ...] = DEFAULT

    def __post_init__(self) -> None:
        for part in self.parts:
            one_of("parts", part, PARTS)
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
        if "graphs" not in self.parts:
            sizes = {**sizes, "captured": np.inf}
        total = add(*(p.costs(coefficients, sizes, workload) for p in self._costs))
        total = scaled(total, costs.TIMES, coefficients["factor_slowness"])
        total = scaled(total, costs.OTHERS, coefficients["factor_crowding"])
        waits = coefficients["queue_cycles"]
        if not self.stalls:
            return total._replace(waits=waits, ahead=1.0)
        # Of the others, those that wait for their first token are in no pass yet.
        n = workload["cycles"]
        total = scaled(total, costs.DECODING, n / (n + waits))
        return total._replace(waits=waits, ahead=coefficients["prefills_ahead"])


FULL = Law()


class Outcome(NamedTuple):
    """What the law says of one load: seconds, and dimensionless shares.

    `decode_s` follows the first token, `prefill_s` is the request's own, `others` are the requests
    in flight beside it and `others_share` the share of its latency that they cause. `added_s` is
    what one more would add, C2 where that is many. `growth` is the relative change of the latency
    for one of the rate, or of the others where a concurrency is held: ``x / (1 - x)`` and
    ``B C2 / L`` where nothing bends. `utilization` is ``rate * C2``, 0 at a concurrency.
    """

    e2e_s: Any
    ttft_s: Any
    decode_s: Any
    prefill_s: Any
    c1_s: Any
    c2_s: Any
    added_s: Any
    others: Any
    others_share: Any
    growth: Any
    utilization: Any

    def mean_s(self, metric: str, output_tokens: Any) -> Any:
        """Mean of "e2e" latency, "ttft", or "tpot" = ``(e2e - ttft) / (g - 1)``."""
        if metric == "tpot":
            return self.decode_s / (output_tokens - 1)
        return self.e2e_s if metric == "e2e" else self.ttft_s


def stay(stages: Stages, workload: Any, law: Law = FULL) -> Any:
    """Cycles that a request stays: those before its first token, and those that decode."""
    # Without stalls, as in the paper, latency is counted from when the prompt is taken in.
    return workload["cycles"] + stages.waits if law.stalls else workload["cycles"]


def beside(
    stages: Stages,
    sizes: Any,
    workload: Any,
    others: Any,
    law: Law = FULL,
    paced: Any = None,
    about: Any = None,
) -> tuple[Any, Any, Any]:
    """Mean latency beside so many others, and TTFT; s; and what one more adds to the latency.

    `paced` says whether passes lie beyond captured graphs, by default their tokens say it; `about`
    how many others decode beside a prompt, by default all.
    """
    if paced is None:
        paced = queue.tokens_in_pass(others, workload["k"]) > sizes["captured"]
    s, n, knee = stages, stay(stages, workload, law), "knee" in law.parts
    if not law.stalls:
        free = queue.beside(s, sizes, workload, others).cycle(knee)
        cycle_s, slope, _ = free.paced(times(s.pace, paced))
        alone_s, each = s.prefill_alone + s.prompt_alone, s.prefill_others + s.prompt_others
        first = alone_s + others * each
        return first + n * cycle_s, first + s.waits * cycle_s, each + n * slope
    about = others if about is None else about
    cost = queue.prompts(s, sizes, workload, others, paced, knee, n, about)
    cycle_s, slope, _ = cost.cycle
    apart, each = 1 - queue.together(workload), s.prefill_others
    running_s = cycle_s + (cost.others + apart * others * each) / (n + queue.TINY)
    first = s.prefill_alone + cost.first + s.waits * running_s
    first = first + (1 - apart) * s.ahead * others * each
    seconds = s.prefill_alone + cost.own + cost.others + others * each + n * cycle_s
    return seconds, first, each + cost.own_more + cost.others_more + n * slope


def most_added_s(stages: Stages, workload: Any, law: Law = FULL) -> Any:
    """What a request adds where there are many others, C2, s: its inverse is the capacity."""
    s = stages
    each = s.verify_others + s.compute_others + workload["draft_passes"] * s.draft_others
    return s.prefill_others + s.prompt_others + stay(s, workload, law) * each


def queue_s(service_s: Any, utilization: Any) -> Any:
    """Mean wait for constant service `p` at random arrivals, s: ``W(p) = x p / (2 (1 - x))``."""
    return utilization * service_s / (2 * queue.headroom(utilization))


def outcome(
    stages: Stages, sizes: Any, workload: Any, softness: float = 0.0, law: Law = FULL
) -> Outcome:
    r"""Mean latency and TTFT of stage costs at a load.

    .. math::
        TTFT &= c_{1,prefill} + prompt + w\, cycle(B) \\
        L &= TTFT + B\, c_{2,prefill} + n\, cycle(B), \qquad B = \lambda L \text{ or given}

    A request waits for the rest of a running cycle and has a first one of its own, `w` together
    (`waits`), whose pass takes its prompt in; `n` cycles follow. What prompts add to passes, its
    own and those of others, is :func:`bayes_sd.physics.queue.prompts`, and a cycle is
    :class:`bayes_sd.physics.queue.Pass`. Where a concurrency is held, prompts come ``together`` as
    far as answers end so, and `ahead` of the others then come before a first token. A law without
    the part "stalls" charges prompts in full, those of others to the first token, and counts
    latency from the request's first cycle. Of measured runs ``pass_tokens`` of the workload say how
    many requests were in flight, about. `softness` as in `headroom`.
    """
    rate, closed, others = workload["rate_rps"], workload["closed"], workload["others"]
    c2, n = most_added_s(stages, workload, law), stay(stages, workload, law)
    room, knee = queue.headroom(rate * c2, softness), "knee" in law.parts
    measured = "pass_tokens" in workload
    paced = workload["pass_tokens"] > sizes["captured"] if measured else None  # else tokens say it
    c1 = beside(stages, sizes, {**workload, "together": 0.0}, 0.0, law, 0.0)[0]
    about = others
    if not absent(rate):
        near = workload["pass_tokens"] / (workload["k"] + 1) - 1 if measured else None
        # Those of equation (1): an explicit number, so that a load has one answer.
        about = (
            near if measured else (1 - closed) * rate * c1 / (room + queue.TINY) + closed * others
        )
        find = partial(queue.in_flight_at_rate, stages, sizes, workload, room, n)
        find = partial(find, knee=knee, stalls=law.stalls, near=near, about=about)
        if measured or absent(stages.pace):
            at_rate = find(paced=paced if measured else 0.0)
        else:
            # Graphs come first, where both would sustain the rate.
            at_rate = graphs = find(paced=0.0)
            beyond = queue.tokens_in_pass(graphs, workload["k"]) > sizes["captured"]
            if np.any(beyond):
                at_rate = np.where(beyond, find(paced=1.0), graphs)
        others = (1 - closed) * at_rate + closed * others
    e2e, ttft, added = beside(stages, sizes, workload, others, law, paced, about)
    # At a rate an error feeds back through the requests in flight; a concurrency is fixed.
    feedback = room - rate * (added - c2)
    return Outcome(
        e2e_s=e2e,
        ttft_s=ttft,
        decode_s=e2e - ttft,
        prefill_s=stages.prefill_alone + stages.prompt_alone,
        c1_s=c1,
        c2_s=c2,
        added_s=added,
        others=others,
        others_share=(e2e - c1) / e2e,
        growth=others * added / e2e * (closed + (1 - closed) / feedback),
        utilization=rate * c2,
    )


def capacity_rps(placed: Placed, workload: Mapping[str, Any], law: Law = FULL) -> Any:
    """Rate at which the first of a structure's servers saturates, requests/s."""
    added = (most_added_s(way, workload, law) for way in placed.ways)
    return 1 / reduce(np.maximum, [*added, placed.pool_s])


def others_here(placed: Placed, away_s: Any, sizes: Any, workload: Mapping, law: Law) -> np.ndarray:
    """How many requests of a concurrency are on the server, where the rest are elsewhere.

    With ``b`` here the rate is ``b / L(b)``, and that rate keeps all in flight.
    """
    others = workload["others"]
    shape = np.broadcast_shapes(np.shape(capacity_rps(placed, workload, law)), np.shape(others))
    high = np.broadcast_to(np.asarray(others, float), shape).ravel()

    def missed(value: np.ndarray, index: np.ndarray) -> np.ndarray:
        every = np.zeros(high.size)
        every[index] = value
        b = every.reshape(shape)
        served_s = reduce(np.maximum, [beside(w, sizes, workload, b, law)[0] for w in placed.ways])
        rate = b / served_s
        elsewhere_s = away_s + queue_s(placed.pool_s, rate * placed.pool_s)
        return np.ravel(others / (served_s + elsewhere_s) - rate)[index]

    return find_roots(missed, np.zeros_like(high), high).reshape(shape)


def placed_outcome(
    placed: Placed, sizes: Any, workload: Mapping[str, Any], law: Law = FULL
) -> Outcome:
    """As `outcome`, in a structure; of ``c2_s`` the largest, so that ``1 / c2_s`` is capacity."""
    if all(absent(s) for s in (placed.before_s, placed.away_s, placed.pool_s)):
        return _served(placed, sizes, workload, law)
    away_s, pool_s = placed.before_s + workload["cycles"] * placed.away_s, placed.pool_s
    closed = bool(np.all(workload["closed"]))  # one question has one kind of load
    here = others_here(placed, away_s, sizes, workload, law) if closed else workload["others"]
    served = _served(placed, sizes, {**workload, "others": here}, law)
    rate = here / served.e2e_s if closed else workload["rate_rps"]
    busy = rate * pool_s
    wait_s = queue_s(pool_s, busy)
    e2e = served.e2e_s + away_s + wait_s
    # Relative change of the whole for one of the rate, or of what sets capacity.
    at_rate = served.growth / (1 - served.growth) if closed else served.growth
    growth = (at_rate * served.e2e_s + wait_s / queue.headroom(busy)) / e2e
    return Outcome(
        e2e_s=e2e,
        ttft_s=served.ttft_s + placed.before_s + wait_s,
        decode_s=served.decode_s + workload["cycles"] * placed.away_s,
        prefill_s=served.prefill_s + placed.before_s,
        c1_s=served.c1_s + away_s,
        c2_s=np.maximum(served.c2_s, pool_s),
        added_s=served.added_s,
        others=workload["others"] if closed else rate * e2e,
        others_share=(served.others_share * served.e2e_s + wait_s) / e2e,
        # With the number in flight fixed, a slower server is asked less often.
        growth=growth / (1 + growth) if closed else growth,
        utilization=0.0 * e2e if closed else np.maximum(served.utilization, busy),
    )


def _served(placed: Placed, sizes: Any, workload: Any, law: Law) -> Outcome:
    """Outcome on the server, of the slowest way."""
    each = (outcome(way, sizes, workload, law=law) for way in placed.ways)
    return reduce(_slower, each)


def _slower(one: Outcome, other: Outcome) -> Outcome:
    """The outcome with the longer latency, element by element."""
    # Past the pole the fixed point has no root.
    seconds = [np.where(o.utilization >= 1, np.inf, o.e2e_s) for o in (one, other)]
    first = seconds[0] >= seconds[1]
    both = Outcome(*(np.where(first, a, b) for a, b in zip(one, other, strict=True)))
    return both._replace(c2_s=np.maximum(one.c2_s, other.c2_s))
