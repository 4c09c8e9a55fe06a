"""Windows of steady load in the metrics of one server, and log-normals fitted to histograms."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from bayes_sd.errors import InputError

HISTOGRAMS = {
    "e2e": "vllm:e2e_request_latency_seconds",
    "ttft": "vllm:time_to_first_token_seconds",
    "tpot": "vllm:request_time_per_output_token_seconds",
}
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting")
E2E = HISTOGRAMS["e2e"]
# In each quarter of a window as many requests must finish as in the others, but for a quarter
# more or less and three standard deviations of a Poisson count.
QUARTERS = 4
DRIFT = 0.25
CHANCE_SD = 3.0
# As many must arrive as finish: requests in flight may grow or fall by a tenth of the finished.
GROWTH = 0.1
GROWTH_REQUESTS = 3
STEP = 1e-3  # of the numerical second derivatives, in standard deviations


@dataclass(frozen=True)
class Window:
    """Readings from the start to the end of a window, both included.

    One row a time (seconds since 1970), a column a series: its name and its own label (the bound
    of a bucket, a position, a reason, or nothing). NaN where there is no reading.
    """

    table: pd.DataFrame

    @property
    def times(self) -> np.ndarray:
        """When it was read, seconds since 1970."""
        return self.table.index.to_numpy(float)

    @property
    def duration_s(self) -> float:
        """From the first reading to the last."""
        return float(self.times[-1] - self.times[0])

    def gain(self, name: str, label: str = "") -> float:
        """By how much a counter grew; NaN if it was not read at both ends."""
        if (name, label) not in self.table:
            return math.nan
        values = self.table[name, label]
        return float(values.iloc[-1] - values.iloc[0])

    def in_flight(self) -> pd.Series:
        """Requests running or waiting, at each reading."""
        known = [self.table[name, ""] for name in GAUGES if (name, "") in self.table]
        if len(known) < len(GAUGES):
            return pd.Series(np.nan, index=self.table.index)
        return known[0] + known[1]


def windows(table: pd.DataFrame, window_s: float) -> Iterator[Window | InputError]:
    """Consecutive windows, and why the rest of the readings is in none.

    No window goes over a restart (a counter went backwards), a change of buckets, or a third of
    a window (and two usual intervals) without a reading.
    """
    if (f"{E2E}_count", "") not in table:
        yield InputError(f"{E2E}_count is missing; it counts the requests")
        return
    table = table[table[f"{E2E}_count", ""].notna()]
    times = table.index.to_numpy(float)
    interval_s = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    breaks = _breaks(table, max(window_s / 3, 2 * interval_s))
    breaks[len(times)] = "the readings end"
    start = 0
    for end, why in sorted(breaks.items()):
        # A reading that comes half an interval early still ends a window.
        while (reach := times[start:end] - times[start] >= window_s - interval_s / 2).any():
            last = start + int(np.argmax(reach))
            yield Window(table.iloc[start : last + 1])
            start = last
        left_s = times[end - 1] - times[start]
        if left_s > 0 or end < len(times):
            yield InputError(
                f"{left_s:.0f} s from {times[start]:.0f} are no window of {window_s:g} s: {why}"
            )
        start = end


def _breaks(table: pd.DataFrame, longest_gap_s: float) -> dict[int, str]:
    """Rows that no window may include together with the one before, and why."""
    reasons: dict[int, str] = {}
    gaps_s = np.diff(table.index.to_numpy(float))
    for k in np.flatnonzero(gaps_s > longest_gap_s):
        reasons[int(k) + 1] = f"then comes a gap of {gaps_s[k]:.0f} s without a reading"
    for name in HISTOGRAMS.values():
        if f"{name}_bucket" not in table:
            continue
        present = table[f"{name}_bucket"].notna().to_numpy()
        some = present.any(axis=1)
        changed = (present[1:] != present[:-1]).any(axis=1) & some[1:] & some[:-1]
        for k in np.flatnonzero(changed) + 1:
            n, m = present[k - 1].sum(), present[k].sum()
            reasons[int(k)] = f"then the buckets of {name} change ({n} before, {m} after)"
    counters = [c for c in table.columns if c[0] not in GAUGES]
    back = table[counters].ffill().diff() < 0
    for k in np.flatnonzero(back.any(axis=1)):
        name = back.columns[int(np.argmax(back.iloc[k]))][0]
        reasons[int(k)] = f"then {name} goes backwards, as after a restart"
    return reasons


def check_steady(window: Window) -> None:
    """Refuse a window with too few readings, or in which the load or the queue changed."""
    times, count = window.times, window.table[f"{E2E}_count", ""].to_numpy(float)
    where = f"window of {window.duration_s:.0f} s from {times[0]:.0f}"
    finished = count[-1] - count[0]
    if finished == 0:
        raise InputError(f"{where}: no request finished")
    if len(times) <= QUARTERS:
        raise InputError(
            f"{where}: has {len(times)} readings; {QUARTERS + 1} or more tell whether it is steady"
        )
    cuts = np.linspace(times[0], times[-1], QUARTERS + 1)
    for a, b in pairwise(int(np.argmin(np.abs(times - t))) for t in cuts):
        expected = finished * (times[b] - times[a]) / window.duration_s
        off = abs(count[b] - count[a] - expected)
        if off > DRIFT * expected + CHANCE_SD * expected**0.5:
            raise InputError(
                f"{where}: the load is not steady, {count[b] - count[a]:.0f} requests finished in "
                f"{times[b] - times[a]:.0f} s where {expected:.0f} would at the mean rate"
            )
    in_flight = window.in_flight().dropna()
    growth = in_flight.iloc[-1] - in_flight.iloc[0] if len(in_flight) else 0.0
    if abs(growth) > GROWTH * finished + GROWTH_REQUESTS:
        raise InputError(
            f"{where}: requests in flight went from {in_flight.iloc[0]:.0f} to "
            f"{in_flight.iloc[-1]:.0f} while {finished:.0f} finished, so the load is not steady"
        )


@dataclass(frozen=True)
class LogNormal:
    """Maximum-likelihood moments of the log, their standard errors, and the effective number.

    ``n_eff`` is the number of single values that would give the log-variance as exactly.
    """

    log_mean: float
    log_var: float
    log_mean_se: float
    log_var_se: float
    n_eff: float


def fit_lognormal(bounds: np.ndarray, counts: np.ndarray, total: float) -> LogNormal | None:
    """Fit the counts of intervals and the sum of all values; None if they tell no spread.

    `bounds` are the upper bounds of the intervals, the last infinite; the first begins at 0. A
    count says that so many values lie in an interval, not where: its likelihood is the
    log-normal's probability of the interval. Given the counts, values are draws from the
    log-normal cut to their intervals, so the sum is about normal, with the moments of those.
    """
    from scipy.optimize import minimize

    n, used = counts.sum(), counts > 0
    if n < 3 or used.sum() < 2:
        return None
    with np.errstate(divide="ignore"):
        lower, upper = np.log(np.concatenate([[0.0], bounds[:-1]])[used]), np.log(bounds[used])
    counts = counts[used].astype(float)

    def loss(theta: np.ndarray) -> np.ndarray:
        return -_log_likelihood(theta, lower, upper, counts, total)

    sds = np.geomspace(0.01, 3, 24)
    grid = np.array([math.log(total / n) - sds**2 / 2, np.log(sds)])
    start = grid[:, np.argmin(loss(grid))]
    # In steps of about one standard deviation of the log.
    scale = np.array([math.exp(start[1]), 1.0])

    def scaled(u: np.ndarray) -> np.ndarray:
        axes = (2,) + (1,) * (u.ndim - 1)
        return loss(start.reshape(axes) + scale.reshape(axes) * u)

    options = {"xatol": 1e-6, "fatol": 1e-6, "initial_simplex": [[0, 0], [0.3, 0], [0, 0.1]]}
    top = minimize(scaled, np.zeros(2), method="Nelder-Mead", options=options)
    around = scaled(top.x[:, None, None] + STEP * np.mgrid[-1:2, -1:2]) / STEP**2
    cross = (around[2, 2] - around[2, 0] - around[0, 2] + around[0, 0]) / 4
    (curve_mean,), (curve_sd,) = np.diff(around[:, 1], 2), np.diff(around[1], 2)
    curvature = np.array([[curve_mean, cross], [cross, curve_sd]])
    if not (top.success and (np.linalg.eigvalsh(curvature) > 0).all()):
        return None
    mean_var, log_sd_var = np.diag(np.linalg.inv(curvature)) * scale**2
    log_mean, log_sd = start + scale * top.x
    log_var = math.exp(2 * log_sd)
    return LogNormal(
        log_mean=float(log_mean),
        log_var=log_var,
        log_mean_se=math.sqrt(mean_var),
        log_var_se=2 * log_var * math.sqrt(log_sd_var),
        # Of n values the log of the variance has the variance 2 / (n - 1).
        n_eff=float(min(n, 1 + 1 / (2 * log_sd_var))),
    )


def _log_likelihood(
    theta: np.ndarray, lower: np.ndarray, upper: np.ndarray, counts: np.ndarray, total: float
) -> np.ndarray:
    """Of mean and log of the sd of the log, along the first axis of theta."""
    mu, sd = theta[0][..., None], np.exp(theta[1])[..., None]
    a, b = (lower - mu) / sd, (upper - mu) / sd
    share = [_log_between(a - r * sd, b - r * sd) for r in range(3)]
    first = np.exp(mu + sd**2 / 2 + share[1] - share[0])
    second = np.exp(2 * mu + 2 * sd**2 + share[2] - share[0])
    variance = np.maximum(second - first**2, 1e-12 * first**2) @ counts
    return (
        share[0] @ counts - 0.5 * np.log(variance) - 0.5 * (total - first @ counts) ** 2 / variance
    )


def _log_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Log of the standard normal probability of (a, b), from the tail that loses no digits."""
    from scipy.special import log_ndtr

    low, high = log_ndtr(np.where(a > 0, -b, a)), log_ndtr(np.where(a > 0, -a, b))
    return high + np.log1p(-np.exp(low - high))
