"""Mixture of experts: how much of a model one pass touches, equation (4)."""

from typing import Any


def tokens_in_pass(others: Any, k: Any) -> Any:
    """Tokens routed in one pass: ``(k + 1) (1 + B)``, a request's own and those of `B` others.

    Examples
    --------
    >>> tokens_in_pass(3, 1)
    8
    """
    return (k + 1) * (1 + others)


def coverage(idle: Any, tokens: Any) -> Any:
    r"""Share of experts touched by a pass.

    .. math:: \phi(T) = 1 - (1 - m/M)^T

    Parameters
    ----------
    idle : array_like
        ``1 - m/M``: the chance that one token leaves an expert idle (`m` of `M` experts a token).
    tokens : array_like
        Tokens routed in the pass `T`.

    Examples
    --------
    >>> round(coverage(1 - 2 / 8, 4), 3)
    0.684
    """
    return 1 - idle**tokens


def in_flight_with_experts(
    cycle: Any,
    rate_rps: Any,
    room: Any,
    idle: Any,
    log_idle: Any,
    k: Any,
    iterations: int = 6,
    detach: Any = None,
) -> Any:
    r"""Mean requests in flight when the cost of a pass depends on them.

    Solves the fixed point

    .. math:: B = \lambda\, \frac{C_1 + \phi((k+1)(1+B))\, C_{1,experts}}{1 - \lambda C_2}

    by Newton's method from full coverage. The right side is concave and increasing in `B`, so the
    iterates fall monotonically to the only root; six leave a relative error below 1e-6. A dense
    model (``C_{1,experts} = 0``) is solved by the first step.

    Parameters
    ----------
    cycle : Cycle
        Latency coefficients in seconds.
    rate_rps : array_like
        Offered rate in requests/s.
    room : array_like
        ``1 - rate * C2``, positive.
    idle, log_idle : array_like
        ``1 - m/M`` and its logarithm (0.5 and its log for a dense model, where they do not matter).
    k : array_like
        Draft tokens per cycle.
    iterations : int
        Newton steps.
    detach : callable, optional
        Makes a symbolic value constant for differentiation. The last step, taken from the
        solution, has the solution's exact gradient, so the steps before it need none.

    Returns
    -------
    array_like
        Mean requests in flight.

    Examples
    --------
    >>> from bayes_sd.physics.costs import Cycle
    >>> round(in_flight_with_experts(Cycle(0.5, 0.5, 0.1), 2.0, 0.8, 0.75, -0.28768207, 0), 4)
    1.9206
    """
    alone, shared = cycle.c1 * rate_rps / room, cycle.c1_experts * rate_rps / room
    b = alone + shared
    for step in range(iterations):
        if detach is not None and step == iterations - 1:
            b = detach(b)
        untouched = idle ** tokens_in_pass(b, k)
        gap = alone + shared * (1 - untouched) - b
        slope = -shared * untouched * log_idle * (k + 1) - 1
        b = b - gap / slope
    return b
