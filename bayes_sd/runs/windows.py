"""Windows of steady load in the metrics of one server, and log-normals fitted to histograms."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd

from bayes_sd.errors import InputError, plural

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
# As many must arrive as finish: from the first to the last quarter requests in flight may grow or
# fall by a tenth of the finished, and no more than a steady number does by chance.
GROWTH = 0.1
GROWTH_REQUESTS = 3
STEP = 1e-3  # of the numerical second derivatives, in standard deviations


def series(readings: pd.DataFrame, name: str, label: str = "") -> np.ndarray:
    """A series of readings; NaN where it was not read."""
    return readings.get((name, label), pd.Series(np.nan, readings.index)).to_numpy(float)


def in_flight(readings: pd.DataFrame) -> np.ndarray:
    """Requests running or waiting, at each reading."""
    running, waiting = (series(readings, name) for name in GAUGES)
    return running + waiting


def windows(table: pd.DataFrame, window_s: float) -> Iterator[pd.DataFrame | InputError]:
    """Consecutive windows of readings, and why the rest of them is in none.

    Readings have a row a time, a column a series (name, own label) or NaN.
    """
    lacks = np.isnan(series(table, f"{E2E}_count"))
    if lacks.all():
        yield InputError(f"{E2E}_count is missing; it counts the requests")
        return
    if lacks.any():
        first = f"the first of {table.index[lacks][0]:.3f}"
        yield InputError(f"{plural(int(lacks.sum()), 'scrape')} without {E2E}_count, {first}")
    table = table[~lacks]
    times = table.index.to_numpy(float)
    interval_s = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    # A reading that comes half an interval early still ends a window.
    reach_s = window_s - interval_s / 2
    if reach_s <= (QUARTERS - 1) * interval_s:
        rule = f"readings are {interval_s:.3g} s apart, and a steady load needs {QUARTERS + 1}"
        yield InputError(f"windows of {window_s:g} s are too short: {rule}")
        return
    # A third of a window, and two usual intervals, may pass without a reading.
    breaks = _breaks(table, max(window_s / 3, 2 * interval_s))
    breaks[len(times)] = "the readings end"
    start = 0
    for end, why in sorted(breaks.items()):
        while (reached := times[start:end] - times[start] >= reach_s).any():
            last = start + int(np.argmax(reached))
            yield table.iloc[start : last + 1]
            start = last
        left_s = times[end - 1] - times[start]
        if left_s > 0 or end < len(times):
            rest = f"{left_s:.0f} s from {times[start]:.0f}"
            yield InputError(f"{rest} are no window of {window_s:g} s: {why}")
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
        some, number = present.any(axis=1), present.sum(axis=1)
        changed = (present[1:] != present[:-1]).any(axis=1) & some[1:] & some[:-1]
        for k in np.flatnonzero(changed) + 1:
            change = f"({number[k - 1]} before, {number[k]} after)"
            reasons[int(k)] = f"then the buckets of {name} change {change}"
    back = table.drop(columns=list(GAUGES), level=0, errors="ignore").ffill().diff() < 0
    for k in np.flatnonzero(back.any(axis=1)):
        name = back.columns[int(np.argmax(back.iloc[k]))][0]
        reasons[int(k)] = f"then {name} goes backwards, as after a restart"
    return reasons


def check_steady(times: np.ndarray, count: np.ndarray, in_flight: np.ndarray) -> None:
    """Refuse a window with too few readings, or in which the load or the queue changed."""
    duration_s = times[-1] - times[0]
    where = f"window of {duration_s:.0f} s from {times[0]:.0f}"
    finished = count[-1] - count[0]
    if finished == 0:
        raise InputError(f"{where}: no request finished")
    if len(times) <= QUARTERS:
        raise InputError(f"{where}: has {len(times)} readings; a steady load needs {QUARTERS + 1}")
    cuts = np.linspace(times[0], times[-1], QUARTERS + 1)
    for a, b in pairwise(int(np.argmin(np.abs(times - t))) for t in cuts):
        done, seconds = count[b] - count[a], times[b] - times[a]
        expected = finished * seconds / duration_s
        if abs(done - expected) > DRIFT * expected + CHANCE_SD * expected**0.5:
            rates = f"{done:.0f} requests finished in {seconds:.0f} s, usual are {expected:.0f}"
            raise InputError(f"{where}: the load is not steady, {rates}")
    in_flight = in_flight[~np.isnan(in_flight)]
    parts = np.array_split(in_flight, QUARTERS) if len(in_flight) >= QUARTERS else np.zeros((2, 1))
    first, last, usual = (float(np.mean(x)) for x in (parts[0], parts[-1], np.concatenate(parts)))
    allowed = min(GROWTH * finished, DRIFT * usual + CHANCE_SD * usual**0.5) + GROWTH_REQUESTS
    if abs(last - first) > allowed:
        queue = f"went from {first:.0f} to {last:.0f} while {finished:.0f} finished"
        raise InputError(f"{where}: the load is not steady, requests in flight {queue}")


def fit_lognormal(bounds: np.ndarray, counts: np.ndarray, total: float) -> dict[str, float]:
    """Log-mean, log-variance and its effective number of requests; {} if they tell no spread.

    The log-normal gives the probability of the counts between `bounds` (upper ones, the last
    infinite) and, given the counts, an about normal density of the sum `total`.
    """
    from scipy.optimize import minimize

    n, used = counts.sum(), counts > 0
    if n < 3 or used.sum() < 2:
        return {}
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
        return loss((start + scale * u.T).T)

    options = {"xatol": 1e-6, "fatol": 1e-6, "initial_simplex": [[0, 0], [0.3, 0], [0, 0.1]]}
    top = minimize(scaled, np.zeros(2), method="Nelder-Mead", options=options)
    around = scaled(top.x[:, None, None] + STEP * np.mgrid[-1:2, -1:2]) / STEP**2
    cross = (around[2, 2] - around[2, 0] - around[0, 2] + around[0, 0]) / 4
    (curve_mean,), (curve_sd,) = np.diff(around[:, 1], 2), np.diff(around[1], 2)
    determinant = curve_mean * curve_sd - cross**2
    if not (top.success and curve_mean > 0 and determinant > 0):
        return {}
    log_mean, log_sd = start + scale * top.x
    # The variance of the log of the variance: 2 / (n - 1) of n values, here this.
    n_eff = min(n, 1 + 2 / (4 * curve_mean / determinant))
    return {"log_mean": log_mean, "log_var": math.exp(2 * log_sd), "log_var_n_eff": n_eff}


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
    excess = total - first @ counts
    return share[0] @ counts - 0.5 * np.log(variance) - 0.5 * excess**2 / variance


def _log_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Log of the standard normal probability of (a, b), from the tail that loses no digits."""
    from scipy.special import log_ndtr

    low, high = log_ndtr(np.where(a > 0, -b, a)), log_ndtr(np.where(a > 0, -a, b))
    return high + np.log1p(-np.exp(low - high))
