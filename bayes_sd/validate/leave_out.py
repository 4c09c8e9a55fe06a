"""Runs left out and predicted by an exact refit: one system, one run, or a corner at a time."""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from scipy.stats import norm, t

from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.inference.refit import Refit, Refitter
from bayes_sd.model.design import Design
from bayes_sd.physics.law import NU
from bayes_sd.validate.pairs import pairs
from bayes_sd.validate.scores import draws_of, log_density, predictions

BY = ("verifier", "drafter", "moe", "run", "fifth", "highest_load", "long_prompts")
SEED = 7  # of the random fifths
LONGEST = 0.25  # of the runs, by prompt length
HIGHEST = 0.15  # of the runs, by their share of the busiest rate of their server


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Predictions of runs by refits that had not seen them.

    Parameters
    ----------
    by : str
        What was left out at a time.
    rows : pandas.DataFrame
        A row a run, see :func:`bayes_sd.validate.scores.predictions`, with its ``fold``.
    folds : pandas.DataFrame
        A row a fold: ``fold, runs, rhat_max, ess_min, divergences, seconds`` and ``joint_rank``,
        the rank of the fold's mean log latency among its joint predictions.
    pairs : pandas.DataFrame
        Pairs of a plain and an SD run left out together, see :mod:`bayes_sd.validate.pairs`.
    """

    by: str
    rows: pd.DataFrame
    folds: pd.DataFrame
    pairs: pd.DataFrame


def folds(runs: pd.DataFrame, by: str) -> Iterator[tuple[str, np.ndarray]]:
    """Names and masks of what is left out, one at a time.

    Parameters
    ----------
    runs : pandas.DataFrame
        Runs of a refit.
    by : str
        "verifier", "drafter", "moe" (verifiers with experts only), "run", "fifth" (five random
        parts), "highest_load" (runs at the highest rates of their servers), or "long_prompts".

    Raises
    ------
    InputError
        If `by` is unknown.
    EvidenceError
        If nothing would be left to fit or to predict.
    """
    steady = ~runs["saturated"].to_numpy(bool)
    if by in ("verifier", "drafter"):
        names = sorted(set(runs[by]) - {"none"})
        parts = [(str(n), (runs[by] == n).to_numpy()) for n in names]
    elif by == "moe":
        names = sorted(runs["verifier"][runs["family"] == "moe"].unique())
        parts = [(str(n), (runs["verifier"] == n).to_numpy()) for n in names]
    elif by == "run":
        parts = [(str(i), np.arange(len(runs)) == i) for i in np.flatnonzero(steady)]
    elif by == "fifth":
        part = np.random.default_rng(SEED).permutation(len(runs)) % 5
        parts = [(f"fifth {i + 1}", part == i) for i in range(5)]
    elif by == "highest_load":
        share = runs["rate_rps"] / runs.groupby("system")["rate_rps"].transform("max")
        top = share.where(steady).fillna(0.0).to_numpy()
        parts = [("highest loads", top >= np.quantile(top[steady], 1 - HIGHEST))]
    elif by == "long_prompts":
        length = runs["prompt_tokens"].to_numpy()
        limit = np.quantile(length[steady], 1 - LONGEST)
        parts = [("long prompts", (length >= limit) & (length > length.min()))]
    else:
        raise InputError(f"by = {by!r}: must be one of {', '.join(BY)}.")
    kept = [(name, mask) for name, mask in parts if (mask & steady).any()]
    if by in ("verifier", "drafter", "moe") and len(kept) < 2:
        raise EvidenceError(f"Leaving out one {by} at a time needs at least two of them.")
    if not kept or any(not (steady & ~mask).any() for _, mask in kept):
        raise EvidenceError(f"Leaving out by {by} leaves no run to fit or none to predict.")
    return iter(kept)


def leave_out(
    refitter: Refitter,
    by: str,
    *,
    seed: int = 1,
    executor: Executor | None = None,
    **sampling: Any,
) -> LeftOut:
    """Refit without each fold and predict it.

    Parameters
    ----------
    refitter : Refitter
        See :func:`bayes_sd.inference.refit.compile_refits`.
    by : str
        See :func:`folds`.
    seed : int
    executor : concurrent.futures.Executor, optional
        Runs folds side by side (threads suffice: sampling releases the interpreter).
    **sampling
        ``draws``, ``tune``, ``chains``, ``cores``.

    Returns
    -------
    LeftOut
    """
    runs = refitter.runs
    steady = ~runs["saturated"].to_numpy(bool)

    def one(part: tuple[str, np.ndarray]) -> tuple[pd.DataFrame, dict[str, Any], pd.DataFrame]:
        name, mask = part
        refit = refitter.refit(mask, seed=seed, **sampling)
        rows = np.flatnonzero(mask & steady)
        table = predictions(refit, runs, rows, seed).assign(fold=name)
        about = {"fold": name, **_convergence(refit), "joint_rank": _joint(refit, runs, rows)}
        return table, about, pairs(refit, runs, rows, seed)

    parts = list(folds(runs, by))
    found = list(executor.map(one, parts) if executor else map(one, parts))
    rows = pd.concat([table for table, _, _ in found]).sort_index()
    summary = pd.DataFrame([fold for _, fold, _ in found])
    counts = rows.groupby("fold").size().reindex(summary["fold"]).to_numpy()
    together = pd.concat([both for _, _, both in found], ignore_index=True)
    return LeftOut(by, rows, summary.assign(runs=counts), together)


def _convergence(refit: Refit) -> dict[str, Any]:
    c = refit.convergence
    low = min(c.summary["ess_bulk_min"], c.summary["ess_tail_min"])
    return {
        "rhat_max": c.summary["rhat_max"],
        "ess_min": low,
        "divergences": c.divergences,
        "seconds": refit.seconds,
    }


def _joint(refit: Refit, runs: pd.DataFrame, rows: np.ndarray) -> float:
    """Rank of the observed mean log latency of a fold among its predictions, all rows together."""
    drawn = np.log(draws_of(refit, "run_mean_e2e", rows)).mean(axis=1)
    observed = np.log(runs["e2e_mean_s"].to_numpy()[rows]).mean()
    scatter = (draws_of(refit, "run_scale_e2e", rows) ** 2).mean(axis=1) * 5 / 3 / len(rows)
    rng = np.random.default_rng(0)
    drawn = drawn + np.sqrt(scatter) * rng.standard_normal(len(drawn))
    return float((drawn < observed).mean())


def run_log_likelihood(refit: Refit, design: Design, rows: np.ndarray) -> np.ndarray:
    """Log likelihood of everything a steady run contributes, draw by draw: (draws, rows)."""
    data = design.data
    total = np.zeros((refit.draws.sizes["chain"] * refit.draws.sizes["draw"], len(rows)))
    for metric in ("e2e", "ttft"):
        counts = np.isin(rows, data[f"{metric}_rows"])
        sd = np.hypot(draws_of(refit, f"run_scale_{metric}", rows), data[f"se_{metric}"][rows])
        z = (data[f"log_{metric}"][rows] - np.log(draws_of(refit, f"run_mean_{metric}", rows))) / sd
        total += counts * (t.logpdf(z, NU) - np.log(sd))
    noise = refit.parameters["noise"].sel(noise_term="spread_sd").values.reshape(-1, 1)
    for metric in ("e2e", "ttft"):
        counts = np.isin(rows, data[f"{metric}_spread_rows"])
        sd = np.sqrt(2 / (data[f"worth_{metric}"][rows] - 1) + (2 * noise) ** 2)
        log_var = np.log(draws_of(refit, f"run_variance_{metric}", rows))
        total += counts * norm.logpdf(data[f"log_var_{metric}"][rows], log_var, sd)
    return total


def psis(refit: Refit, design: Design) -> pd.DataFrame:
    """Leave-one-run-out log scores by Pareto-smoothed importance sampling, from one full refit.

    Returns
    -------
    pandas.DataFrame
        A row a steady run: ``log_score`` and ``pareto_k``; above 0.7 the score is not to be
        trusted and the run needs an exact refit.
    """
    runs = design.runs
    rows = np.flatnonzero(~runs["saturated"].to_numpy(bool))
    table = smoothed(run_log_likelihood(refit, design, rows), log_density(refit, runs, rows))
    return table.set_index(runs.index[rows])


def smoothed(likelihood: np.ndarray, density: np.ndarray) -> pd.DataFrame:
    """Log of the mean `density` of each run with its `likelihood` taken out: (draws, runs) each."""
    from arviz_stats.base import array_stats

    weights, k = array_stats.psislw(likelihood.T, axis=-1)  # takes their negative itself
    weights = weights - logsumexp(weights, axis=-1, keepdims=True)
    return pd.DataFrame({"log_score": logsumexp(weights + density.T, axis=-1), "pareto_k": k})
