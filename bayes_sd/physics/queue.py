"""Requests in flight: the fixed points of the law, and the queue under a batch-size schedule."""

from typing import Any

import numpy as np

from bayes_sd.errors import InputError
from bayes_sd.physics.costs import Totals, absent

NEWTON_STEPS = 6
STAIRCASE_STEPS = 30  # on a tread one is exact; near a fold of the staircase it takes many
STEEPEST = 0.95  # slope near a fold, where the fixed point jumps and has none
TILE_RAMP = 0.25  # share of a tile over which a step rises: the tokens of a pass fluctuate


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


def coverage(idle: Any, tokens: Any) -> Any:
    """Share of experts touched by a pass, equation (4): ``phi = 1 - idle^T``.

    `idle` = ``1 - m/M`` is the chance that one token leaves an expert idle (`m` of `M` a token).
    """
    return 1 - idle**tokens


def _tile_step(tokens: Any, tile: float) -> tuple[Any, Any]:
    """Whole tiles before the nearest step, and how far up that step is, from 0 to 1."""
    shifted = tokens / tile + 0.5
    beyond = shifted % 1
    up = (beyond - 0.5) / TILE_RAMP + 0.5
    return shifted - beyond, (abs(up) - abs(up - 1) + 1) / 2


def computed_tokens(tokens: Any, tile: float) -> Any:
    """Tokens paid for beyond the first tile: ``tile x (ceil(T / tile) - 1)``, steps rounded."""
    # The first tile hides behind the weights that every pass reads.
    before, rise = _tile_step(tokens, tile)
    return tile * (before > 0) * (before - 1 + rise * rise * (3 - 2 * rise))


def free_tokens(tokens: Any, tile: float) -> Any:
    """Tokens of a pass that cost nothing: ``T - 1`` less `computed_tokens`."""
    return tokens - 1 - computed_tokens(tokens, tile)


def in_flight_at_rate(
    totals: Totals,
    sizes: Any,
    rate_rps: Any,
    room: Any,
    k: Any,
    tile: float = 1.0,
    detach: Any = None,
) -> Any:
    r"""Mean requests in flight at an offered rate, when the cost of a pass depends on them.

    .. math:: B = \lambda\, \frac{C_1 + \phi(T)\, C_{1,experts}}{1 - \lambda C_2}

    by Newton's method from full coverage. The right side is concave and increasing in `B`, so the
    iterates fall monotonically to the only root; six leave a relative error below 1e-6. A dense
    model has the closed form of equation (1). `room` is ``1 - rate * C2``, positive. `detach`
    makes a symbolic value constant: the last step, from the solution, has the exact gradient.
    """
    idle, log_idle = sizes["idle"], sizes["log_idle"]
    alone, experts = totals.c1 * rate_rps / room, totals.experts * rate_rps / room
    b = alone + experts
    # A dense model needs no iteration; whether a symbolic one is dense cannot be asked.
    steps = 0 if absent(totals.experts) or absent(sizes["expert"]) else NEWTON_STEPS
    for step in range(steps):
        if detach is not None and step == steps - 1:
            b = detach(b)
        untouched = idle ** tokens_in_pass(b, k)
        gap = alone + experts * (1 - untouched) - b
        slope = -experts * untouched * log_idle * (k + 1) - 1
        b = b - gap / slope
    if tile == 1:
        return b
    return _down_the_staircase(totals, sizes, rate_rps, room, k, tile, b, detach)


def _down_the_staircase(
    totals: Totals, sizes: Any, rate_rps: Any, room: Any, k: Any, tile: float, b: Any, detach: Any
) -> Any:
    r"""The next root below `b` when arithmetic comes in tiles, at `t` seconds a token and request.

    .. math:: B = \lambda\,
        \frac{C_1 + \phi C_{1,experts} + t\,(computed(T) - k)}{1 - \lambda C_2 + \lambda (k + 1) t}

    The right side grows with `B` and is flat between the steps, so descending ends on the next
    root; the last step is Newton's.
    """
    idle, wide = sizes["idle"], room + rate_rps * (k + 1) * totals.tile_token

    def lower(b: Any) -> Any:
        tokens = tokens_in_pass(b, k)
        paid = totals.tile_token * (computed_tokens(tokens, tile) - k)
        return rate_rps * (totals.c1 + coverage(idle, tokens) * totals.experts + paid) / wide

    for _ in range(STAIRCASE_STEPS):
        b = lower(b)
    if detach is not None:
        b = detach(b)
    tokens = tokens_in_pass(b, k)
    before, rise = _tile_step(tokens, tile)
    slope = totals.tile_token * (before > 0) * 6 * rise * (1 - rise) / TILE_RAMP
    slope = slope - totals.experts * sizes["log_idle"] * idle**tokens
    slope = slope * (k + 1) * rate_rps / wide
    slope = (slope + STEEPEST - abs(slope - STEEPEST)) / 2
    return b + (lower(b) - b) / (1 - slope)


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

    `index` says which elements `x` belongs to: only those not yet solved are asked again.
    """
    from scipy.optimize.elementwise import find_root

    with np.errstate(all="ignore"):
        missed, index = (lambda x, i: function(x, i.astype(int))), (np.arange(low.size),)
        to = {"xrtol": 1e-10, "fatol": 0.0}
        found = find_root(missed, (low, high), args=index, tolerances=to)
    return np.asarray(np.where(found.success, found.x, np.nan))
