"""Steady state: the pole, latency at a rate or a concurrency, speedup, break-even."""

from typing import Any

import numpy as np


def _array(value: Any) -> Any:
    """Let plain numbers divide by zero as arrays do: to infinity, not to an exception."""
    return np.float64(value) if isinstance(value, int | float) else value


def utilization(c2: Any, rate_rps: Any) -> Any:
    """Share of capacity in use ``x = rate * C2``, dimensionless; 1 at the pole.

    Examples
    --------
    >>> utilization(0.1, 5.0)
    0.5
    """
    return rate_rps * c2


def pole(c2: Any) -> Any:
    """Capacity ``1 / C2`` in requests/s: the rate at which the latency diverges.

    Examples
    --------
    >>> pole(0.25)
    4.0
    """
    return 1 / c2


def headroom(x: Any, softness: float = 0.0) -> Any:
    """Share of capacity left ``max(1 - x, 0)``, with the corner rounded by `softness`.

    The sampler needs a latency and a slope on both sides of the pole; a softness of 0.01 changes
    the latency by 0.1% at x = 0.7 and 1% at x = 0.9.

    Examples
    --------
    >>> float(headroom(0.75))
    0.25
    """
    z = 1 - x
    if softness == 0:
        return (z + abs(z)) / 2
    # The other root of the same quadratic: the sum of z and the square root is 0 far past the pole.
    return 2 * softness**2 / ((z**2 + 4 * softness**2) ** 0.5 - z)


def latency_open(c1: Any, c2: Any, rate_rps: Any) -> Any:
    r"""Mean latency at an offered rate, equation (1); infinite at and past the pole.

    .. math:: L = \frac{C_1}{1 - \lambda C_2}

    Parameters
    ----------
    c1 : array_like
        Latency of a request alone, s.
    c2 : array_like
        Added by each other request in flight, s.
    rate_rps : array_like
        Offered rate, requests/s.

    Returns
    -------
    array_like
        Mean latency, s.

    References
    ----------
    arXiv 2605.15051, with Little's law B = rate * L.

    Examples
    --------
    >>> float(latency_open(1.0, 0.1, 5.0))
    2.0
    """
    with np.errstate(divide="ignore"):
        return c1 / _array(headroom(utilization(c2, rate_rps)))


def latency_closed(c1: Any, c2: Any, others: Any) -> Any:
    """Mean latency beside `others` requests: ``L = C1 + B C2``, s.

    With a fixed concurrency `n`, a request has ``n - 1`` others beside it.

    Examples
    --------
    >>> latency_closed(1.0, 0.1, 10)
    2.0
    """
    return c1 + others * c2


def in_flight(latency_s: Any, rate_rps: Any) -> Any:
    """Little's law: mean requests in flight ``B = rate * L``.

    Examples
    --------
    >>> in_flight(2.0, 5.0)
    10.0
    """
    return rate_rps * latency_s


def speedup(c1_ratio: Any, c2_ratio: Any, r: Any) -> Any:
    r"""Plain latency over SD latency, equation (3).

    .. math:: \frac{L_{plain}}{L_{SD}} = \frac{1}{C_{1R}} \cdot \frac{1 - r C_{2R}}{1 - r}

    Parameters
    ----------
    c1_ratio, c2_ratio : array_like
        ``C1R = C1,sd / C1,plain`` and ``C2R = C2,sd / C2,plain``.
    r : array_like
        ``rate * C2,plain``: the share of plain capacity in use, below 1 and below ``1 / C2R``.

    Examples
    --------
    >>> speedup(0.5, 1.0, 0.3)
    2.0
    """
    return (1 - r * c2_ratio) / (1 - r) / c1_ratio


def break_even_rate(c1_plain: Any, c2_plain: Any, c1_sd: Any, c2_sd: Any) -> Any:
    r"""Rate at which plain and SD latencies are equal, requests/s.

    .. math:: \lambda^* = \frac{1 - C_{1R}}{C_{2R} - C_{1R}} \cdot \frac{1}{C_{2,plain}}

    Written without ratios of ratios: ``(C1p - C1s) / (C1p C2s - C1s C2p)``. The two hyperbolas
    cross once at most. The rate means something when it is positive and below both poles, which is
    the case when exactly one of C1R, C2R is below 1.

    Examples
    --------
    >>> break_even_rate(1.0, 0.1, 0.5, 0.15)
    5.0
    """
    return (c1_plain - c1_sd) / (c1_plain * c2_sd - c1_sd * c2_plain)
