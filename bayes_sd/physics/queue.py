"""Seconds of a cycle, requests in flight (fixed points), and the queue under a schedule."""

from typing import Any

import numpy as np

from bayes_sd.errors import InputError
from bayes_sd.physics.costs import Stages, absent, beyond_graphs, larger, times

TINY = 1e-100  # where a structure hides a whole pass it has a slope still; answers of one token
ROOT, MOST_STEPS = 1e-10, 200  # relative width of an interval that holds a root
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


def both(read_s: Any, compute_s: Any) -> Any:
    """Seconds of two things that go side by side: ``sqrt(r^2 + c^2)``, a soft maximum."""
    return (read_s**2 + compute_s**2 + TINY) ** 0.5


def launch_s(stages: Stages, sizes: Any, tokens: Any) -> Any:
    """Seconds in which the host launches a pass: `pace` beyond captured graphs."""
    return stages.pace * beyond_graphs(tokens, sizes)


def together(workload: Any) -> Any:
    """1 where prompts of others come together: where a concurrency is held, if nothing is said."""
    return workload.get("together", workload["closed"])


def prefills(cost: Any, stages: Stages, sizes: Any, workload: Any, others: Any) -> tuple[Any, Any]:
    """Seconds of the prefills of `others` at so much each, and how they grow with each.

    Where a concurrency is held they come `together` in a pass, which has to be launched too.
    """
    if absent(stages.pace):
        return others * cost, cost
    some = 1.0 * (others > 0)  # a number: symbols are not multiplied by truth values
    least = launch_s(stages, sizes, workload["prompt_tokens"] * (1 + others))
    each = both(cost, together(workload) * some * least / (others + (1 - some)))
    return others * each, cost**2 / each


def taking_in(others: Any, cycles: Any) -> Any:
    r"""Share of cycles that take in prompts of others which come at a rate, `n` cycles apart.

    .. math:: 1 - e^{-B / n}

    A request in flight has come once within its `n` cycles, so that ``B / n`` come in a cycle.
    """
    x = -others / (cycles + TINY)
    return 1 - (np.exp(x) if isinstance(x, float | np.ndarray) else np.e**x)  # symbols have powers


def cycle(
    stages: Stages, sizes: Any, workload: Any, others: Any, paced: Any, knee: bool
) -> tuple[Any, Any]:
    """Seconds of a draft-verify cycle beside `others`, and how they grow with each.

    `paced` says whether the pass lies beyond the captured graphs; with no `knee` computing comes
    after all else.
    """
    s, k, passes = stages, workload["k"], workload["draft_passes"]
    phi, more = coverage(sizes, tokens_in_pass(others, k), s.uneven)
    read, compute = s.fixed + times(s.experts, phi), s.compute_alone + others * s.compute_others
    read_more = times(s.experts, more * (k + 1))
    fixed, each = s.verify_alone + passes * s.draft_alone, s.verify_others + passes * s.draft_others
    if knee:
        work = both(read, compute)
        slope = (read * read_more + compute * s.compute_others) / work
    else:
        work, slope = read + compute, read_more + s.compute_others
    seconds, slope = fixed + others * each + work, each + slope
    if absent(s.pace):
        return seconds, slope
    pace = s.pace * paced
    return larger(seconds, pace), slope * (seconds >= pace)


def in_flight_at_rate(
    stages: Stages,
    sizes: Any,
    workload: Any,
    room: Any,
    paced: Any = 0.0,
    knee: bool = True,
    detach: Any = None,
    taken: Any = None,
) -> Any:
    r"""Mean requests in flight at an offered rate, when the cost of a pass depends on them.

    .. math:: B = \lambda\, L(B), \qquad L(B) = R(B) + B\, C_2

    Where every pass reads as much and as many take in prompts, the form is closed: equation (1), or
    with the knee the larger root of a quadratic. Else the more are in flight, the more experts a
    pass reads, and the more passes take in prompts: Newton's method from the `B` where all do,
    which lies above the only root. `taken` is the share of passes that take in prompts, where it
    is known; `room` is ``1 - rate * C2``, positive. `detach` makes a symbolic value constant: the
    last step, from the solution, has the exact gradient.
    """
    s, n, rate, k = stages, workload["cycles"], workload["rate_rps"], workload["k"]
    own_s = s.prefill_alone + n * (s.verify_alone + workload["draft_passes"] * s.draft_alone)
    busy = rate * n * s.compute_others
    own, wide = (room + busy) * s.compute_alone, room * (room + 2 * busy)

    def beside(read: Any, alone: Any) -> tuple[Any, Any, Any]:
        """Requests in flight where passes read for so long, and their slopes."""
        if not knee:
            return (
                rate * (alone + n * (s.compute_alone + read)) / room,
                rate * n / room,
                rate / room,
            )
        computed = own + rate * s.compute_others * alone
        apart = both(computed, wide**0.5 * read)
        b = rate * ((room + busy) * alone + n * (busy * s.compute_alone + apart)) / wide
        by_alone = rate * (room + busy + busy * computed / apart) / wide
        return b, rate * n * read / apart, by_alone

    def nearer(b: Any) -> Any:
        """A step of Newton's method."""
        phi, more = coverage(sizes, tokens_in_pass(b, k), s.uneven) if experts else (1.0, 0.0)
        share = taking_in(b, n) if taken is None else taken
        alone = own_s + n * share * s.prefill_pass
        found, by_read, by_alone = beside(s.fixed + s.experts * phi, alone)
        slope = by_read * s.experts * more * (k + 1)
        slope = slope + joining * by_alone * s.prefill_pass * (1 - share)
        return b + (found - b) / (1 - slope)

    def settled(b: Any, nearer: Any) -> Any:
        """Where steps from `b` end."""
        if hasattr(b, "settled"):  # symbols of a language that has loops
            return b.settled(nearer, NEWTON_STEPS)
        for step in range(NEWTON_STEPS):
            last = detach is not None and step == NEWTON_STEPS - 1
            before, b = b, nearer(detach(b) if last else b)
            numbers = isinstance(b, float | np.ndarray)
            if numbers and not np.any(np.abs(b - before) > ROOT * np.abs(b)):
                break
        return b

    experts = not (absent(s.experts) or absent(sizes["expert"]))
    joining = float(taken is None and not absent(s.prefill_pass))
    most = n * s.prefill_pass * (1.0 if taken is None else taken)
    b, _, _ = beside(s.fixed + s.experts, own_s + most)
    b = settled(b, nearer) if experts or joining else b
    if absent(s.pace) or absent(paced):
        return b
    each = s.verify_others + workload["draft_passes"] * s.draft_others + s.compute_others
    gain = rate / (room + rate * n * each)
    waiting = gain * (s.prefill_alone + n * s.pace + most)
    if joining:
        gain, least = gain * s.prefill_pass, waiting - gain * most

        def waits(b: Any) -> Any:
            """A step of Newton's method, where the host sets the pace."""
            share = taking_in(b, n)
            return b + (least + gain * n * share - b) / (1 - gain * (1 - share))

        waiting = settled(waiting, waits)
    return larger(b, waiting * paced)


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


def find_roots(function: Any, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where ``function(x, index)`` changes sign between `low` and `high`; NaN where it does not.

    `index` says which elements `x` belongs to: only those not yet solved are asked again. By the
    method of Chandrupatla (Adv. Eng. Software 28, 1997): through three points where that is safe,
    else in the middle. Importing a library's takes longer than the answers that need it.
    """
    index = np.arange(low.size)
    with np.errstate(all="ignore"):
        a, b = np.array(low, float), np.array(high, float)
        f_a, f_b = (np.array(function(x, index), float) for x in (a, b))
        found = np.where(f_a == 0, a, np.where(f_b == 0, b, np.nan))
        index = np.flatnonzero(np.sign(f_a) * np.sign(f_b) < 0)
        a, b, f_a, f_b = (x[index] for x in (a, b, f_a, f_b))
        share, step = np.full(index.size, 0.5), 0
        while index.size:
            step += 1
            x = a + share * (b - a)
            f = np.asarray(function(x, index), float)
            same = np.sign(f) == np.sign(f_a)
            c, f_c = np.where(same, a, b), np.where(same, f_a, f_b)
            b, f_b = np.where(same, b, a), np.where(same, f_b, f_a)
            a, f_a = x, f
            best = np.where(abs(f_a) < abs(f_b), a, b)
            least = ROOT / 2 * abs(best) / abs(b - a)  # as a share of the interval
            done = (least >= 0.5) | (f == 0) | (step == MOST_STEPS)
            found[index[done]] = np.where(np.isnan(f), np.nan, best)[done]
            across, down = (a - b) / (c - b), (f_a - f_b) / (f_c - f_b)
            safe = (down**2 < across) & ((1 - down) ** 2 < 1 - across)
            bent = f_a / (f_b - f_a) * f_c / (f_b - f_c)
            bent += (c - a) / (b - a) * f_a / (f_c - f_a) * f_b / (f_c - f_b)
            share = np.clip(np.where(safe, bent, 0.5), least, 1 - least)
            index, a, b, f_a, f_b, share = (y[~done] for y in (index, a, b, f_a, f_b, share))
    return found
