"""Runs left out and predicted by exact refits: folds, predictions, their scores, and pairs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from bayes_sd.errors import EvidenceError, one_of
from bayes_sd.model.design import NONE
from bayes_sd.model.sample import Refit, Refitter
from bayes_sd.physics import noise

LEVELS = ("verifier", "drafter", "moe")
BY = (*LEVELS, "run", "fifth", "highest_load", "long_prompts")
SEED = 7  # of the random fifths
LONGEST = 0.25  # of the runs, by prompt length
HIGHEST = 0.15  # of the runs, by their share of the highest load of their server
PROB = 0.9
P95 = 0.95
STATED = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)  # ranges of P(SD beats plain)
Folds = dict[str, tuple[str, ...]]


def folds(table: pd.DataFrame, by: str) -> Folds:
    """Names of what is left out, one at a time, and the run_ids that go with it.

    `table` has all usable runs, those past saturation included (``build_design(runs).table``), so
    that models which keep fewer of them still predict the same runs from the same folds.
    """
    one_of("by", by, BY)
    steady = ~table["saturated"].astype(bool)
    if by == "moe":
        part = table["verifier"].where(table["family"] == by)
    elif by in LEVELS:
        part = table[by].where(table[by] != NONE)
    elif by == "run":
        part = table["run_id"]
    elif by == "fifth":
        fifth = np.random.default_rng(SEED).permutation(len(table)) % 5 + 1
        part = pd.Series(fifth, table.index).map("fifth {}".format)
    elif by == "highest_load":
        load = table["rate_rps"].fillna(table["concurrency"])
        share = load / load.groupby([table["server"], table["loop"]]).transform("max")
        top = share.where(steady).fillna(0.0)
        high = top >= np.quantile(top[steady], 1 - HIGHEST)
        part = high.map({True: "highest loads"})
    else:
        length = table["prompt_tokens"]
        long = (length >= np.quantile(length[steady], 1 - LONGEST)) & (length > length.min())
        part = long.map({True: "long prompts"})
    predicted = steady.groupby(part, sort=by != "run").sum()
    parts = predicted[predicted > 0]
    if by in LEVELS and len(parts) < 2:
        raise EvidenceError(f"Leaving out one {by} at a time needs at least two of them.")
    if parts.empty or (parts == steady.sum()).any():
        raise EvidenceError(f"Leaving out by {by} leaves no run to fit or none to predict.")
    return {str(name): tuple(table["run_id"][part == name]) for name in parts.index}


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Predictions of runs by refits that had not seen them.

    `rows`: a row a run, see :func:`predictions`, with its ``fold``. `folds`: a row a fold, with
    ``runs``, ``rhat_max, ess_bulk_min, ess_tail_min, divergences`` of its refit and ``joint_rank``,
    the rank of the fold's mean log latency among its joint predictions. `pairs`: see :func:`pairs`.
    """

    rows: pd.DataFrame
    folds: pd.DataFrame
    pairs: pd.DataFrame

    @classmethod
    def of(cls, results: Sequence[Mapping]) -> "LeftOut":
        """What :func:`fold` gave of each fold."""
        columns = {k: [pd.DataFrame(r[k]) for r in results] for k in ("rows", "pairs")}
        rows, both = (pd.concat(own, ignore_index=True) for own in columns.values())
        about = pd.DataFrame([r["about"] for r in results])
        return cls(rows.set_index("row").sort_index(), about, both)


def fold(refitter: Refitter, seed: int, name: str, ids: Collection[str], **sampling: Any) -> dict:
    """Columns of ``rows`` and ``pairs`` of one of the :func:`folds` without which was refitted."""
    table = refitter.table
    mask = table["run_id"].isin(ids).to_numpy()
    rows = np.flatnonzero(mask & ~table["saturated"].to_numpy(bool))
    if not len(rows):
        raise EvidenceError(f"Leaving out {name} leaves no steady run of this model to predict.")
    own_seed = crc32(f"{seed} {name}".encode())  # whichever fold comes first
    refit = refitter.refit(mask, seed=own_seed, **sampling)
    left_out = table.iloc[rows]
    mean_s = refit.of_runs("run_mean_e2e", rows)
    t = np.random.default_rng(own_seed).standard_t(noise.NU, mean_s.shape)
    drawn_s = noise.draw_runs(mean_s, _scale(refit, table, rows), t)
    joint = np.log(drawn_s).mean(axis=1) < np.log(left_out["e2e_mean_s"]).mean()
    gate = refit.convergence.summary
    about = {n: gate[n] for n in ("rhat_max", "ess_bulk_min", "ess_tail_min", "divergences")}
    about |= {"fold": name, "runs": len(rows), "joint_rank": float(joint.mean())}
    scored = predictions(refit, table, rows, drawn_s, own_seed).assign(fold=name, row=rows)
    both = pairs(left_out, drawn_s)
    return {"rows": scored.to_dict("list"), "about": about, "pairs": both.to_dict("list")}


def _scale(refit: Refit, table: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """A run's scatter, and the sampling error that its requests have by the model."""
    scale, variance = (refit.of_runs(f"run_{n}_e2e", rows) for n in ("scale", "variance"))
    return np.asarray(noise.observed_scale(scale, variance, table["requests"].to_numpy()[rows]))


def predictions(
    refit: Refit, table: pd.DataFrame, rows: np.ndarray, drawn_s: np.ndarray, seed: int = 0
) -> pd.DataFrame:
    """Predicted mean latency and 95th percentile of `rows`, beside what was observed.

    A row a run: ``observed_s, predicted_s`` (median), ``low_s, high_s`` (90% equal-tailed),
    ``inside, log_score, interval_score, pit``, and ``p95_*`` for the 95th percentile of its
    requests, NaN where it was not recorded.
    """
    own, log_mean = table.iloc[rows], np.log(refit.of_runs("run_mean_e2e", rows))
    observed_s, scale = own["e2e_mean_s"].to_numpy(), _scale(refit, table, rows)
    density = noise.log_density(np.log(observed_s), log_mean, scale)
    variance = refit.of_runs("run_variance_e2e", rows)
    z = np.random.default_rng((seed, 1)).standard_normal(variance.shape)
    drawn_p95_s = noise.sample_quantile_s(drawn_s, variance, P95, own["requests"].to_numpy(), z)
    p95_s = own["e2e_p95_s"].to_numpy(float)
    p95 = {f"p95_{n}": v for n, v in interval(p95_s, drawn_p95_s).items()}
    return own[["run_id", "verifier", "server"]].assign(
        **interval(observed_s, drawn_s),
        log_score=logsumexp(density, axis=0) - np.log(len(density)),
        **{n: np.where(np.isnan(p95_s), np.nan, v) for n, v in p95.items()},
    )


def interval(observed_s: np.ndarray, drawn_s: np.ndarray) -> dict[str, np.ndarray]:
    """Median, interval, its score (on the log scale) and the rank of the observed value."""
    tail = (1 - PROB) / 2
    observed = np.log(observed_s)
    low, middle, high = np.quantile(np.log(drawn_s), [tail, 0.5, 1 - tail], axis=0)
    missed = np.maximum(low - observed, 0) + np.maximum(observed - high, 0)
    return {
        "observed_s": observed_s,
        "predicted_s": np.exp(middle),
        "low_s": np.exp(low),
        "high_s": np.exp(high),
        "inside": (observed >= low) & (observed <= high),
        "interval_score": (high - low) + 2 / (1 - PROB) * missed,
        "pit": (drawn_s < observed_s).mean(axis=0),
    }


def summary(rows: pd.DataFrame) -> dict[str, float]:
    """Scores of a table of :func:`predictions`.

    ``coverage`` and ``width`` (median high/low) of the 90% interval; ``median_error`` and
    ``mean_error`` (absolute, relative); ``log_score`` and ``interval_score`` (means, on the log
    scale); ``p95_coverage`` and ``p95_median_error`` over runs that recorded it.
    """
    error = (rows["predicted_s"] / rows["observed_s"] - 1).abs()
    p95 = rows[rows["p95_observed_s"].notna()]
    p95_error = (p95["p95_predicted_s"] / p95["p95_observed_s"] - 1).abs()
    figures = {
        "coverage": rows["inside"].mean(),
        "width": (rows["high_s"] / rows["low_s"]).median(),
        "median_error": error.median(),
        "mean_error": error.mean(),
        **{name: rows[name].mean() for name in ("log_score", "interval_score")},
        "p95_coverage": p95["p95_inside"].astype(float).mean(),
        "p95_median_error": p95_error.median(),
    }
    return {"runs": len(rows)} | {name: float(value) for name, value in figures.items()}


def pairs(left_out: pd.DataFrame, drawn_s: np.ndarray) -> pd.DataFrame:
    """Every plain and SD run of one verifier, workload and pair of lengths, each at its own load.

    `drawn_s` are predictive draws (draws, runs) of the runs in `left_out`. A row a pair: ``faster``
    (SD was), ``prob_faster``, ``call`` (0 or 1, by the medians), and the mean latencies.
    """
    own = left_out.assign(i=np.arange(len(left_out)), s=left_out["e2e_mean_s"])
    same = ["environment", "verifier", "workload", "prompt_tokens", "output_tokens"]
    plain, drafting = own[own["arm"] == "plain"], own[own["draft_tokens"] > 0]
    both = plain.merge(drafting, on=same, suffixes=("_plain", "_sd"))
    of_plain, of_sd = drawn_s[:, both["i_plain"]], drawn_s[:, both["i_sd"]]
    table = both[["verifier"]].assign(plain_s=both["s_plain"], sd_s=both["s_sd"])
    return table.assign(
        faster=table["sd_s"] < table["plain_s"],
        prob_faster=(of_sd < of_plain).mean(axis=0),
        call=(np.median(of_sd, axis=0) < np.median(of_plain, axis=0)).astype(float),
    )


def brier(table: pd.DataFrame) -> dict[str, float]:
    """Brier score of the probabilities and of the 0/1 call of the medians, and their regrets.

    A regret is the relative latency lost against the faster server of each pair, in the mean: by
    choosing SD where its probability is above one half, by the medians, always and never.
    """
    faster = table["faster"].to_numpy(float)
    best_s = np.minimum(table["plain_s"], table["sd_s"])

    def regret(choose_sd: Any) -> float:
        return float((np.where(choose_sd, table["sd_s"], table["plain_s"]) / best_s - 1).mean())

    return {
        "pairs": len(table),
        "brier": float(((table["prob_faster"] - faster) ** 2).mean()),
        "brier_call": float(((table["call"] - faster) ** 2).mean()),
        "regret": regret(table["prob_faster"] > 0.5),
        "regret_point": regret(table["call"] > 0.5),
        "regret_always_sd": regret(True),
        "regret_always_plain": regret(False),
    }


def reliability(table: pd.DataFrame) -> pd.DataFrame:
    """By ranges of the stated probability: pairs, its mean, the share in which SD was faster."""
    where = pd.cut(table["prob_faster"], STATED, include_lowest=True)
    columns = {"pairs": ("faster", "size"), "stated": ("prob_faster", "mean")}
    parts = table.groupby(where, observed=True).agg(**columns, observed=("faster", "mean"))
    return parts.reset_index(names="range")
