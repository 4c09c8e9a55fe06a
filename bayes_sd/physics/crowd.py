"""Mean requests in flight when the cost of a pass depends on them: the fixed point."""

from typing import Any

from bayes_sd.physics.experts import coverage, in_flight_with_experts, tokens_in_pass
from bayes_sd.physics.tiles import computed_slope, computed_tokens

DESCENTS = 30  # on a tread one is exact; near a fold of the staircase it takes many
STEEP = 0.95  # of a fold, where the fixed point jumps and has no slope


def in_flight_with_tiles(
    cycle: Any,
    rate_rps: Any,
    room: Any,
    idle: Any,
    log_idle: Any,
    k: Any,
    tile: float,
    start: Any,
    detach: Any = None,
) -> Any:
    r"""Mean requests in flight when arithmetic comes in tiles.

    .. math:: B = \lambda\,
        \frac{C_1 + \phi C_{1,experts} + t\,(computed(T) - k)}{1 - \lambda C_2 + \lambda (k + 1) t},
        \qquad T = (k + 1)(1 + B)

    with `t` the cost of a token over a request. The right side grows with `B` and is flat between
    the steps, so descending from the number in flight without free tokens ends on the next root
    below; the last step is Newton's and has the root's gradient.

    Parameters
    ----------
    cycle : Cycle
    rate_rps, room, idle, log_idle, k, detach
        See :func:`bayes_sd.physics.in_flight_with_experts`.
    tile : float
        Tokens of a tile, above 1.
    start : array_like
        Requests in flight if every token were paid for.

    Returns
    -------
    array_like
        Mean requests in flight.
    """
    wide = room + rate_rps * (k + 1) * cycle.token

    def lower(b: Any) -> Any:
        tokens = tokens_in_pass(b, k)
        phi = coverage(idle, tokens)
        paid = cycle.token * (computed_tokens(tokens, tile) - k)
        return rate_rps * (cycle.c1 + phi * cycle.c1_experts + paid) / wide

    b = start
    for _ in range(DESCENTS):
        b = lower(b)
    if detach is not None:
        b = detach(b)
    tokens = tokens_in_pass(b, k)
    slope = cycle.token * computed_slope(tokens, tile)
    slope = slope - cycle.c1_experts * log_idle * idle**tokens
    slope = slope * (k + 1) * rate_rps / wide
    slope = (slope + STEEP - abs(slope - STEEP)) / 2
    return b + (lower(b) - b) / (1 - slope)


def in_flight_open(
    cycle: Any,
    system: Any,
    rate_rps: Any,
    room: Any,
    k: Any,
    tile: float = 1.0,
    iterations: int = 6,
    detach: Any = None,
) -> Any:
    """Mean requests in flight at a rate, for any law.

    Parameters
    ----------
    cycle : Cycle
    system : mapping
        ``expert``, ``idle``, ``log_idle``.
    rate_rps, room, k, iterations, detach
        See :func:`bayes_sd.physics.in_flight_with_experts`.
    tile : float
        Tokens of a tile; 1 for none.
    """
    idle, log_idle = system["idle"], system["log_idle"]
    # A dense model needs no iteration; whether a symbolic one is dense cannot be asked.
    dense = any(isinstance(c, float) and c == 0.0 for c in (cycle.c1_experts, system["expert"]))
    steps = 0 if dense else iterations
    b = in_flight_with_experts(cycle, rate_rps, room, idle, log_idle, k, steps, detach)
    if tile == 1:
        return b
    return in_flight_with_tiles(cycle, rate_rps, room, idle, log_idle, k, tile, b, detach)
