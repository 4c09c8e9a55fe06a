"""A lognormal fitted to what a histogram of latencies says: counts of intervals, and their sum.

A count says that so many values lie in an interval, not where: its likelihood is the lognormal's
probability of the interval. The sum is known exactly beside it. Given the counts, values are
draws from the lognormal cut to their intervals, so the sum is about normal, with the mean and
variance of those. Both together are the likelihood; no value is put at the middle of anything.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

STEP = 1e-3
STEPS_MAX = 100
TINY = 1e-300
_erfc = np.vectorize(math.erfc, otypes=[float])


@dataclass(frozen=True)
class LogNormal:
    """Maximum-likelihood moments of the log and what they are worth.

    ``spread_requests`` is the number of single values that would give the log-variance with the
    same standard error.
    """

    log_mean: float
    log_var: float
    log_mean_se: float
    log_var_se: float
    spread_requests: float


def fit_lognormal(bounds: np.ndarray, counts: np.ndarray, total: float) -> LogNormal | None:
    """Fit interval counts and the sum of all values.

    Parameters
    ----------
    bounds : numpy.ndarray
        Upper bounds of the intervals, increasing, the last one infinite; the first begins at 0.
    counts : numpy.ndarray
        Values in each interval.
    total : float
        Sum of the values.

    Returns
    -------
    LogNormal or None
        None where all values lie in one interval: it bounds their spread but does not tell it.
    """
    n = counts.sum()
    if n < 3 or (counts > 0).sum() < 2:
        return None
    used = counts > 0
    upper, lower = bounds[used], np.concatenate([[0.0], bounds[:-1]])[used]
    with np.errstate(divide="ignore"):
        edges = np.log(lower), np.log(upper)
    counts = counts[used].astype(float)

    def log_likelihood(theta: np.ndarray) -> float:
        return _log_likelihood(theta, edges, counts, total)

    theta = max(
        (
            np.array([math.log(total / n) - sd**2 / 2, math.log(sd)])
            for sd in np.geomspace(0.01, 3, 24)
        ),
        key=log_likelihood,
    )
    top = _climb(log_likelihood, theta)
    if top is None:
        return None
    theta, hessian = top
    mean_var, log_sd_var = np.diag(np.linalg.inv(-hessian))
    log_var = math.exp(2 * theta[1])
    return LogNormal(
        log_mean=float(theta[0]),
        log_var=log_var,
        log_mean_se=math.sqrt(mean_var),
        log_var_se=2 * log_var * math.sqrt(log_sd_var),
        # Of n values the log of the variance has the variance 2 / (n - 1).
        spread_requests=float(min(n, 1 + 1 / (2 * log_sd_var))),
    )


def _log_likelihood(
    theta: np.ndarray, edges: tuple[np.ndarray, np.ndarray], counts: np.ndarray, total: float
) -> float:
    mu, sd = theta[0], math.exp(theta[1])
    a, b = ((edge - mu) / sd for edge in edges)
    share = [_between(a - r * sd, b - r * sd) for r in range(3)]
    first = np.exp(mu + sd**2 / 2) * share[1] / share[0]
    second = np.exp(2 * mu + 2 * sd**2) * share[2] / share[0]
    variance = counts @ np.maximum(second - first**2, 1e-12 * first**2)
    off = total - counts @ first
    return float(counts @ np.log(share[0]) - 0.5 * np.log(variance) - 0.5 * off**2 / variance)


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Standard normal probability of (a, b), from the tail that loses no digits."""
    flip = a > 0
    low, high = np.where(flip, -b, a), np.where(flip, -a, b)
    root = math.sqrt(2)
    return np.maximum(0.5 * (_erfc(-high / root) - _erfc(-low / root)), TINY)


def _climb(
    f: Callable[[np.ndarray], float], theta: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Top and its curvature by Newton's method with halved steps; None if it found no top."""
    value = f(theta)
    for _ in range(STEPS_MAX):
        h = STEP * np.array([math.exp(theta[1]), 1.0])
        gradient, hessian = _derivatives(f, theta, h)
        curve = np.linalg.eigvalsh(hessian).max()
        ridge = 0.0 if curve < 0 else curve + 0.1 * np.abs(np.diag(hessian)).max()
        step = np.linalg.solve(ridge * np.eye(2) - hessian, gradient)
        step *= min(1.0, 0.5 / np.abs(step / (1000 * h)).max())
        while (new := f(theta + step)) < value and np.abs(step / h).max() > STEP:
            step = step / 2
        if new >= value:
            theta, value = theta + step, new
        if np.abs(step / h).max() < 0.01:
            hessian = _derivatives(f, theta, h)[1]
            return (theta, hessian) if np.linalg.eigvalsh(hessian).max() < 0 else None
    return None


def _derivatives(
    f: Callable[[np.ndarray], float], x: np.ndarray, h: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    e = np.diag(h)
    at = f(x)
    up, down = ([f(x + s * e[i]) for i in range(2)] for s in (1, -1))
    cross = f(x + e[0] + e[1]) - f(x + e[0] - e[1]) - f(x - e[0] + e[1]) + f(x - e[0] - e[1])
    gradient = np.array([(up[i] - down[i]) / (2 * h[i]) for i in range(2)])
    hessian = np.diag([(up[i] - 2 * at + down[i]) / h[i] ** 2 for i in range(2)])
    hessian[0, 1] = hessian[1, 0] = cross / (4 * h[0] * h[1])
    return gradient, hessian
