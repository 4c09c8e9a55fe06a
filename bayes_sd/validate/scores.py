"""What held-out predictions are worth: errors, intervals, log scores, ranks."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from scipy.stats import norm, t

from bayes_sd.inference.refit import Refit
from bayes_sd.physics.law import NU

PROB = 0.9
P95 = 0.95


def log_density(refit: Refit, runs: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """Log density of the log mean latency of `rows`, draw by draw: (draws, rows).

    A run's scatter joins the sampling error that its requests have by the model.
    """
    mean, scale = _law(refit, runs, rows)
    observed = np.log(runs["e2e_mean_s"].to_numpy()[rows])
    return np.asarray(t.logpdf((observed - mean) / scale, NU) - np.log(scale))


def _law(refit: Refit, runs: pd.DataFrame, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    requests = runs["requests"].to_numpy()[rows]
    return (
        np.log(draws_of(refit, "run_mean_e2e", rows)),
        np.sqrt(
            draws_of(refit, "run_scale_e2e", rows) ** 2
            + draws_of(refit, "run_variance_e2e", rows) / requests
        ),
    )


def drawn_means(
    refit: Refit, runs: pd.DataFrame, rows: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Predictive draws of the log mean latency of `rows`: (draws, rows)."""
    mean, scale = _law(refit, runs, rows)
    return np.asarray(mean + scale * rng.standard_t(NU, mean.shape))


def draws_of(refit: Refit, name: str, rows: np.ndarray) -> np.ndarray:
    """Draws of a quantity of runs: (draws, rows)."""
    values = refit.draws[name].values
    return np.asarray(values.reshape(-1, values.shape[-1])[:, rows])


def predictions(refit: Refit, runs: pd.DataFrame, rows: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Predicted mean latency and 95th percentile of `rows`, beside what was observed.

    Parameters
    ----------
    refit : Refit
        Usually one that left `rows` out.
    runs : pandas.DataFrame
        All runs of the refit.
    rows : numpy.ndarray
        Positions of the runs to predict.
    seed : int

    Returns
    -------
    pandas.DataFrame
        A row a run: ``observed_s, predicted_s`` (median), ``low_s, high_s`` (90% equal-tailed),
        ``inside, log_score, interval_score, pit``, and ``p95_*`` for the 95th percentile of its
        requests, NaN where it was not recorded.
    """
    rng = np.random.default_rng(seed)
    drawn = drawn_means(refit, runs, rows, rng)
    own = runs.iloc[rows]
    observed = own["e2e_mean_s"].to_numpy()
    density = log_density(refit, runs, rows)
    table = pd.DataFrame(
        {
            "run_id": own["run_id"].to_numpy(),
            "verifier": own["verifier"].to_numpy(),
            "system": own["system"].to_numpy(),
            **_interval(np.log(observed), drawn),
            "log_score": logsumexp(density, axis=0) - np.log(len(density)),
        },
        index=own.index,
    )
    p95 = own["e2e_p95_s"].to_numpy(float)
    upper = drawn + _percentile_shift(refit, own, rows, rng)
    found = _interval(np.log(p95), upper)
    return table.assign(
        **{f"p95_{name}": np.where(np.isnan(p95), np.nan, v) for name, v in found.items()}
    )


def _percentile_shift(
    refit: Refit, own: pd.DataFrame, rows: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Log of a run's 95th percentile over its mean, with the scatter of a sample's percentile."""
    variance = draws_of(refit, "run_variance_e2e", rows)
    sd, z = np.sqrt(variance), norm.ppf(P95)
    # Of n requests: interpolated between order statistics, which lie lower in small samples.
    n = own["requests"].to_numpy()
    place = norm.ppf(np.clip((P95 * (n - 1) + 1 - 0.375) / (n + 0.25), 1e-3, 1 - 1e-3))
    error = np.sqrt(P95 * (1 - P95) / n) / norm.pdf(z)
    return np.asarray(sd * (place + error * rng.standard_normal(variance.shape)) - variance / 2)


def _interval(observed: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    """Median, interval, its score (on the log scale) and the rank of the observed value."""
    tail = (1 - PROB) / 2
    low, middle, high = np.quantile(drawn, [tail, 0.5, 1 - tail], axis=0)
    missed = np.maximum(low - observed, 0) + np.maximum(observed - high, 0)
    return {
        "observed_s": np.exp(observed),
        "predicted_s": np.exp(middle),
        "low_s": np.exp(low),
        "high_s": np.exp(high),
        "inside": (observed >= low) & (observed <= high),
        "interval_score": (high - low) + 2 / (1 - PROB) * missed,
        "pit": (drawn < observed).mean(axis=0),
    }


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Scores of a table of :func:`predictions`.

    Returns
    -------
    dict
        ``runs``; ``coverage`` and ``width`` (median high/low) of the 90% interval; ``median_error``
        and ``mean_error`` (absolute, relative); ``log_score`` and ``interval_score`` (means, on the
        log scale); ``p95_coverage`` and ``p95_median_error`` over runs that recorded it.
    """
    error = (table["predicted_s"] / table["observed_s"] - 1).abs()
    p95 = table[table["p95_observed_s"].notna()]
    p95_error = (p95["p95_predicted_s"] / p95["p95_observed_s"] - 1).abs()
    return {
        "runs": len(table),
        "coverage": float(table["inside"].mean()),
        "width": float((table["high_s"] / table["low_s"]).median()),
        "median_error": float(error.median()),
        "mean_error": float(error.mean()),
        "log_score": float(table["log_score"].mean()),
        "interval_score": float(table["interval_score"].mean()),
        "p95_coverage": float(p95["p95_inside"].astype(float).mean()) if len(p95) else np.nan,
        "p95_median_error": float(p95_error.median()) if len(p95) else np.nan,
    }
