"""Seconds of a cycle, requests in flight (fixed points), and the queue under a schedule."""

from typing import Any, NamedTuple

import numpy as np

from bayes_sd.errors import InputError
from bayes_sd.physics.costs import Stages, absent, all_captured, beyond_graphs, larger, times
from bayes_sd.physics.roots import MOST_STEPS, ROOT

TINY = 1e-100  # where a structure hides a whole pass it has a slope still; answers of one token
FEW = 1e-8  # prompts a cycle, or tokens, of which none is a question of digits
RARE = 0.01  # share of passes with prompts beyond graphs that is none
NEWTON = 1e-7  # relative length of a last step of Newton's method
STEP_SOFTNESS = 0.05  # of a step whose slope is near 1
NEWTON_STEPS = 7  # one of 512 experts a token, and nothing read beside them: 3e-10


def headroom(utilization: Any, softness: float = 0.0) -> Any:
    """Share of capacity left ``max(1 - x, 0)``, with the corner rounded by `softness`.

    The sampler needs a latency and a slope on both sides of the pole; a softness of 0.01 changes
    the latency by 0.1% at x = 0.7 and 1% at x = 0.9.
    """
    z = 1 - utilization
    if softness == 0:
        return (z + abs(z)) / 2
    # The other root of the same quadratic: z plus the square root loses all digits past the pole.
    return 2 * softness**2 / ((z**2 + 4 * softness**2) ** 0.5 - z)


def tokens_in_pass(others: Any, k: Any) -> Any:
    """Tokens in one pass ``T = (k + 1) (1 + B)``: a request's own and those of `B` others."""
    return (k + 1) * (1 + others)


def coverage(sizes: Any, tokens: Any, uneven: Any = 0.0) -> tuple[Any, Any]:
    r"""Share of experts touched by a pass, equation (4), and its slope a token.

    .. math:: \phi(T) = 1 - (1 - m/M)^T, \qquad
        1 - (1 + t / r)^{-r} \;\text{{with}}\; t = -T \log(1 - m/M)

    for tokens that choose `m` of `M` experts independently, all alike; and where the popularity of
    experts follows a gamma distribution of shape `r` = `uneven`.
    """
    rate = -sizes["log_idle"]
    if absent(uneven):
        idle = sizes["idle"] ** tokens
        return 1 - idle, idle * rate
    spread = 1 + rate * tokens / uneven
    idle = spread**-uneven
    return 1 - idle, idle / spread * rate


def past_graphs(sizes: Any, workload: Any, others: Any) -> Any:
    """Share of passes with a prompt, beside about so many others, that lie beyond captured graphs.

    Beside the prompt they decode: requests in flight vary by the root of their number.
    """
    if all_captured(sizes):
        return 0.0
    # In units of what is captured, which may be infinite or nothing.
    unit, prompt = 1 / (sizes["captured"] + FEW), workload["prompt_tokens"]
    over = (prompt * unit - 1) / (workload["k"] + 1) + (others - 0.5) * unit
    share = (1 + over / (others * unit**2 + over**2 + TINY) ** 0.5) / 2
    return larger(beyond_graphs(prompt, sizes), share * (1.0 * (share > RARE)))


def together(workload: Any) -> Any:
    """Share of others' prompts that come together: all at a concurrency, if nothing is said.

    A plain number where all loads are of one kind, so that the law skips the other one.
    """
    said = workload.get("together", workload["closed"])
    alike = isinstance(said, np.ndarray) and said.size and said.min() == said.max()
    return float(said.flat[0]) if alike else said


class Cycle(NamedTuple):
    """Seconds of a draft-verify cycle; how they grow with the others, and with its arithmetic."""

    seconds: Any
    slope: Any
    by_compute: Any

    def launched(self, launch_s: Any) -> "Cycle":
        """Where the host has to launch it as well: the longer of the two."""
        if absent(launch_s):
            return self
        seconds = (self.seconds**2 + launch_s**2) ** 0.5
        share = self.seconds / seconds
        return Cycle(seconds, share * self.slope, share * self.by_compute)

    def paced(self, pace_s: Any) -> "Cycle":
        """Where each of many cycles takes at least so long."""
        if absent(pace_s):
            return self
        free = 1.0 * (self.seconds >= pace_s)
        seconds = larger(self.seconds, pace_s)
        return Cycle(seconds, self.slope * free, self.by_compute * free)


class Pass(NamedTuple):
    """A cycle's costs beside so many others, s, and how they grow with them: what its verify pass
    reads (and other time whatever its tokens), what it computes, and all else."""

    read: Any
    read_more: Any
    compute: Any
    compute_more: Any
    rest: Any
    rest_more: Any

    def cycle(self, knee: bool, prompts_s: Any = 0.0, prompts_more: Any = 0.0) -> Cycle:
        """The cycle, if its pass computes prompts for so long too, growing with the others.

        With a `knee` reading and computing go side by side, ``sqrt(read^2 + compute^2)``, a soft
        maximum; else one comes after the other.
        """
        compute, more = self.compute + prompts_s, self.compute_more + prompts_more
        if not knee:
            slope = self.rest_more + self.read_more + more
            return Cycle(self.rest + self.read + compute, slope, 1.0)
        both = (self.read**2 + compute**2 + TINY) ** 0.5
        by_compute = compute / both
        slope = self.rest_more + by_compute * more
        if not absent(self.read_more):
            slope = slope + self.read / both * self.read_more
        return Cycle(self.rest + both, slope, by_compute)


def beside(stages: Stages, sizes: Any, workload: Any, others: Any, covered: Any = None) -> Pass:
    """What a cycle costs beside `others`, whose pass touches such a share of experts."""
    s, k, passes = stages, workload["k"], workload["draft_passes"]
    read, read_more = s.fixed, 0.0
    if not absent(s.experts):
        phi, more = covered or coverage(sizes, tokens_in_pass(others, k), s.uneven)
        read, read_more = s.fixed + s.experts * phi, s.experts * more * (k + 1)
    fixed, each = s.verify_alone + passes * s.draft_alone, s.verify_others + passes * s.draft_others
    compute = s.compute_alone + others * s.compute_others
    return Pass(read, read_more, compute, s.compute_others, fixed + others * each, each)


class Prompts(NamedTuple):
    """What prompts cost beside so many others, and how that grows with each; s.

    `cycle` is one that takes none in. `own` is what a request's own prompt adds to a cycle (where
    prompts come `together`, those of all), `first` the part that comes before its first token,
    `others` what those of others that come at a rate add to a request in all.
    """

    cycle: Cycle
    own: Any
    own_more: Any
    first: Any
    others: Any
    others_more: Any


def prompts(
    stages: Stages,
    sizes: Any,
    workload: Any,
    others: Any,
    paced: Any,
    knee: bool,
    stay: Any,
    about: Any,
    covered: Any = None,
) -> Prompts:
    r"""What the cycles that take in prompts take more than those that do not.

    .. math:: own = cycle(p + x p) - cycle - \frac{others}{N}, \qquad
        others = N (1 - e^{-x}) \Big(cycle\Big(\frac{x p}{1 - e^{-x}}\Big) - cycle\Big), \quad
        x = \frac{B}{N}

    A pass computes prompts beside what it reads, those of one cycle together; prompts longer than
    captured graphs, with what decodes beside them, are launched. At a rate each of `B` others has
    come once within the `N` cycles that a request stays, so that `x` come in one: that of its own
    prompt, and the rest, which are as any. Prompts that come `together` are all in one.
    """
    s, b, t, each = stages, others, together(workload), stages.prompt_others
    loaded = beside(s, sizes, workload, b, covered)

    def taking(past: Any, prompts_s: Any, more: Any = 0.0) -> Cycle:
        found = loaded.cycle(knee, prompts_s, more)
        return found.launched(times(s.pace, larger(past, paced)))

    plain = loaded.cycle(knee).paced(times(s.pace, paced))
    x, apart, apart_more = b / (stay + TINY), 0.0, 0.0
    past = past_graphs(sizes, workload, about)
    mine = taking(past, s.prompt_alone + (1 - t) * x * each, (1 - t) * each / (stay + TINY))
    own, own_more = mine.seconds - plain.seconds, mine.slope - plain.slope
    if not absent(1 - t):
        some_x = x + FEW  # else the last digits of 1 - left are lost
        left = np.exp(-some_x) if isinstance(x, float | np.ndarray) else np.e**-some_x  # symbols
        in_one = some_x / (1 - left)
        share = x / in_one
        some = taking(past, in_one * each)
        added_s, added_slope = some.seconds - plain.seconds, some.slope - plain.slope
        apart_more = left * added_s + stay * share * added_slope
        apart_more = (1 - t) * (apart_more + (1 - in_one * left) * some.by_compute * each)
        apart = (1 - t) * stay * share * added_s
        own, own_more = own - apart / (stay + TINY), own_more - apart_more / (stay + TINY)
    first = own
    if not absent(t):
        past = beyond_graphs(workload["prompt_tokens"] * (1 + b), sizes)
        whole = taking(past, s.prompt_alone + b * each, each)
        ahead = taking(past, s.prompt_alone + s.ahead * b * each)
        first = own + t * (ahead.seconds - mine.seconds)
        own = own + t * (whole.seconds - mine.seconds)
        own_more = own_more + t * (whole.slope - mine.slope)
    return Prompts(plain, own, own_more, first, apart, apart_more)


def in_flight_at_rate(
    stages: Stages,
    sizes: Any,
    workload: Any,
    room: Any,
    stay: Any,
    paced: Any = 0.0,
    knee: bool = True,
    stalls: bool = True,
    near: Any = None,
    about: Any = 0.0,
) -> Any:
    r"""Mean requests in flight at an offered rate, when the cost of a pass depends on them.

    .. math:: B = \lambda\, L(B), \qquad L(B) = R(B) + B\, C_2

    Where every pass reads as much and prompts cost what they take to compute, the form is closed:
    equation (1), or with the knee the larger root of a quadratic. Else the more are in flight, the
    more experts a pass reads, and the more prompts it computes beside that (if there are `stalls`):
    Newton's method, of numbers between bounds. Where a run was measured, so that the requests in
    flight are `near` a known number, one step from there. `stay` are the cycles of a request,
    `about` how many others are taken to decode beside a prompt (see `past_graphs`), `room` is
    ``1 - rate * C2``, positive.
    """
    s, n, rate, k = stages, stay, workload["rate_rps"], workload["k"]
    own_s = s.prefill_alone + n * (s.verify_alone + workload["draft_passes"] * s.draft_alone)
    busy = rate * n * s.compute_others
    own, wide = (room + busy) * s.compute_alone, room * (room + 2 * busy)
    each = s.verify_others + workload["draft_passes"] * s.draft_others + s.compute_others
    gain, hosted = rate / (room + rate * n * each), not (absent(s.pace) or absent(paced))

    def in_flight(read: Any, prompts_s: Any) -> tuple[Any, Any, Any]:
        """Requests in flight where passes read and prompts cost so much, and their slopes."""
        alone = own_s + prompts_s
        if not knee:
            b, by_read = rate * (alone + n * (s.compute_alone + read)) / room, rate * n / room
            by_alone = rate / room
        else:
            computed = own + rate * s.compute_others * alone
            apart = (computed**2 + wide * read**2 + TINY) ** 0.5
            b = rate * ((room + busy) * alone + n * (busy * s.compute_alone + apart)) / wide
            by_read = rate * n * read / apart
            by_alone = rate * (room + busy + busy * computed / apart) / wide
        if not hosted:
            return b, by_read, by_alone
        at_pace = gain * (s.prefill_alone + prompts_s + n * s.pace) * paced
        slower = 1.0 * (at_pace > b)
        return larger(b, at_pace), by_read * (1 - slower), by_alone + slower * (gain - by_alone)

    def found(b: Any) -> tuple[Any, Any]:
        """Requests in flight where passes read and prompts cost as beside `b`, and the slope."""
        phi, more = (1.0, 0.0)
        if not absent(s.experts):
            phi, more = coverage(sizes, tokens_in_pass(b, k), s.uneven)
        cost = prompts(s, sizes, workload, b, paced, knee, n, about, (phi, more))
        result, by_read, by_prompts = in_flight(
            s.fixed + s.experts * phi, cost.own + cost.others - b * s.prompt_others
        )
        by_b = cost.own_more + cost.others_more - s.prompt_others
        return result, by_read * s.experts * more * (k + 1) + by_prompts * by_b

    def nearer(b: Any) -> Any:
        """A step of Newton's method."""
        result, slope = found(b)
        return b + (result - b) / (1 - slope)

    if near is not None and stalls:
        result, slope = found(near)
        rising = larger(slope, 0.0)
        return near + (result - near) / (headroom(rising, STEP_SOFTNESS) + rising - slope)
    # No cycle takes longer than its parts one after the other.
    most = s.prompt_alone + stalls * (1 + n) * s.pace
    b, _, _ = in_flight(s.fixed + s.experts, most)
    if not stalls:
        return b
    if hasattr(b, "settled"):  # symbols of a language that has loops
        return b.settled(nearer, NEWTON_STEPS)
    low, high = 0.0 * b, b
    settled = ROOT + 2 * np.finfo(float).eps / np.maximum(room, TINY)  # digits that the pole leaves
    enough = np.maximum(NEWTON * room, settled)  # Newton's method squares what is missing
    for _ in range(MOST_STEPS):
        result, slope = found(b)
        low, high = np.where(result < b, low, b), np.where(result < b, b, high)
        before, b = b, b + (result - b) / (1 - slope)
        between = (b >= low) & (b <= high)
        b = np.where(between, b, (low + high) / 2)
        if not np.any(np.abs(b - before) > np.where(between, enough, settled) * np.abs(b)):
            break
    return b


def occupancy(latency_s: np.ndarray, rate_rps: np.ndarray | float) -> np.ndarray:
    r"""Stationary distribution of the requests in flight, for a latency at every batch size.

    .. math:: \pi_n \propto \prod_{j=1}^{n} \frac{\lambda L_j}{j}

    Requests arrive at random at rate :math:`\lambda`; beside ``j - 1`` others one would take
    :math:`L_j` if they all stayed, so `j` of them leave at the rate :math:`j / L_j`. For the
    linear law, :math:`L_j = C_1 + (j - 1) C_2`, the mean over the rate is equation (1). A schedule,
    which changes :math:`L_j` in steps, needs the sum.

    `latency_s` has 1, 2, ..., N requests in flight on its last axis; `rate_rps` broadcasts against
    the others. Given are probabilities of 0, 1, ..., N - 1 and of N or more in flight, where the
    rest waits; all on the last where the rate is past ``N / L_N``.
    """
    latency_s = np.asarray(latency_s, dtype=float)
    if not (latency_s > 0).all():
        raise InputError("Every latency must be above 0 s.")
    rate = np.asarray(rate_rps, dtype=float)[..., None]
    n = np.arange(1, latency_s.shape[-1] + 1)
    with np.errstate(divide="ignore"):
        steps = np.log(rate * latency_s / n)
    last = np.exp(steps[..., -1:])  # load of a full server: beyond N it falls by this every step
    log_p = np.concatenate([np.zeros_like(last), np.cumsum(steps, axis=-1)], axis=-1)
    p = np.exp(log_p - log_p.max(axis=-1, keepdims=True))
    full = last >= 1
    p[..., -1:] /= np.where(full, 1.0, 1 - last)
    p /= p.sum(axis=-1, keepdims=True)
    return np.where(full, np.arange(p.shape[-1]) == n[-1], p)


def mean_in_flight(probabilities: np.ndarray, latency_s: np.ndarray, rate_rps: Any) -> np.ndarray:
    """Mean requests in flight of an `occupancy`, waiting ones included; inf past capacity."""
    size = latency_s.shape[-1]
    last = np.asarray(rate_rps) * latency_s[..., -1] / size
    full = last >= 1
    waiting = np.where(full, np.inf, last / (1 - np.where(full, 0.0, last)))
    within = (probabilities * np.arange(size + 1)).sum(axis=-1)
    return within + probabilities[..., -1] * waiting
