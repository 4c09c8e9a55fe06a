"""Runs the fit has not seen, on the shipped runs: the model against the paper's least squares.

    uv run benchmarks/held_out.py [--splits 2] [--json]       # a fit more than splits: minutes

Prints how well all steady runs are fitted; then, over random fifths of them, how well those are
predicted by a fit of the rest. Least squares has an interval of residual spread only, and one
verifier each no fit where runs are too few.
"""

import argparse
import json
from typing import Any

import common
import numpy as np
import pandas as pd
from least_squares import PointFit, per_verifier, size_law
from scipy.stats import norm

import bayes_sd as bsd
from bayes_sd.runs.read import corpus
from bayes_sd.runs.schema import Runs

PROB = 0.9
SIZES, EACH = "least squares, sizes", "least squares, a verifier each"
SAME = "model, on the runs of the last row"
WANTED_R2 = {"r2_dense": 0.97, "r2_moe": 0.95}
WANTED_COVERAGE = (0.80, 0.98)
GATE = ("rhat_max", "ess_bulk_min", "ess_tail_min", "divergences", "chains", "draws",
        "seconds_compile", "seconds_sample")  # fmt: skip
Predictions = dict[str, pd.DataFrame]


def by_points(train: pd.DataFrame, test: pd.DataFrame) -> Predictions:
    """Predictions of both least-squares fits: lognormal residual spread around the fit."""
    shared = size_law(train)
    return {
        SIZES: predict_points(dict.fromkeys(test["verifier"].unique(), shared), test),
        EACH: predict_points(per_verifier(train), test),
    }


def predict_points(fits: dict[str, PointFit], table: pd.DataFrame) -> pd.DataFrame:
    """Predictions of the verifiers that have a fit."""
    parts = []
    for verifier, rows in table.groupby("verifier"):
        if str(verifier) not in fits:
            continue
        fit = fits[str(verifier)]
        middle, reach = fit.predict(rows), np.exp(norm.ppf((1 + PROB) / 2) * fit.log_sd)
        observed = rows["e2e_mean_s"]
        parts.append(
            rows.assign(
                predicted_s=middle,
                low_s=middle / reach,
                high_s=middle * reach,
                inside=(observed >= middle / reach) & (observed <= middle * reach),
                log_score=norm.logpdf(np.log(observed), np.log(middle), fit.log_sd),
            )
        )
    return pd.concat(parts).sort_index()


def scores(predicted: pd.DataFrame) -> dict[str, float]:
    """How good predictions are; the log score is that of the log mean latency."""
    error = np.abs(predicted["predicted_s"] / predicted["e2e_mean_s"] - 1)
    return {
        "runs": len(predicted),
        "inside_90": float(predicted["inside"].mean()),
        "width": float((predicted["high_s"] / predicted["low_s"]).median()),
        "median_error": float(error.median()),
        "mean_error": float(error.mean()),
        "log_score": float(predicted["log_score"].mean()),
    }


def gate(fit: bsd.Fit) -> dict[str, Any]:
    """Convergence of a fit."""
    return {"converged": common.converged(fit)} | {name: fit.sampling[name] for name in GATE}


def in_sample(runs: Runs, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit of all runs: its convergence, and R^2 and error of each method."""
    fit = common.fitted(bsd.LatencyModel(), runs, seed=seed)
    points = by_points(runs.table, runs.table)
    fitted = {"model": accuracy(fit.runs, fit.runs["fitted_e2e_s"])}
    return gate(fit), fitted | {n: accuracy(t, t["predicted_s"]) for n, t in points.items()}


def accuracy(table: pd.DataFrame, fitted_s: pd.Series) -> dict[str, float]:
    """R^2 of the log mean latency by family, and the mean relative error."""
    observed, result = np.log(table["e2e_mean_s"]), {}
    for family in ("dense", "moe"):
        rows = table["family"] == family
        misfit = ((observed - np.log(fitted_s))[rows] ** 2).mean()
        result[f"r2_{family}"] = float(1 - misfit / observed[rows].var(ddof=0))
    return result | {"mean_error": float((fitted_s / table["e2e_mean_s"] - 1).abs().mean())}


def held_out(runs: Runs, split: int, seed: int) -> tuple[dict[str, Any], Predictions]:
    """One split: convergence, and the predictions of each method."""
    out = common.random_fifth(len(runs), split)
    train, test = common.part(runs, ~out), common.part(runs, out)
    fit = common.fitted(bsd.LatencyModel(), train, seed=seed)
    predicted = {"model": fit.predict(test, prob=PROB)} | by_points(train.table, test.table)
    in_last = predicted["model"]["run_id"].isin(predicted[EACH]["run_id"])
    return gate(fit), predicted | {SAME: predicted["model"][in_last]}


def main() -> None:
    """Print tables, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=1, help="splits, NumPy seeds 1, 2, ...")
    parser.add_argument("--seed", type=int, default=1, help="of the sampler")
    parser.add_argument("--campaign", default="vllm-cpu", help="'' for all together")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = bsd.read(corpus(options.campaign)).steady
    whole, fitted = in_sample(runs, options.seed)
    splits = [held_out(runs, i + 1, options.seed) for i in range(options.splits)]
    low, high = WANTED_COVERAGE
    methods = list(splits[0][1]) if splits else []
    together = {
        name: scores(pd.concat([predicted[name] for _, predicted in splits])) for name in methods
    }
    result: dict[str, Any] = {
        "runs": len(runs),
        "convergence": [whole, *(about for about, _ in splits)],
        "fitted": fitted,
        "held_out": together,
        "met": {name: bool(fitted["model"][name] >= wanted) for name, wanted in WANTED_R2.items()},
    }
    if splits:
        result["met"]["inside_90"] = bool(low <= together["model"]["inside_90"] <= high)
    if options.json:
        print(json.dumps(result))
        return
    print(pd.DataFrame(result["convergence"]).round(3).to_string(index=False))
    for title, table in (("fitted to all", fitted), ("held out, all splits", together)):
        print(f"\n{title}\n{pd.DataFrame(table).T.round(4).to_string()}")
    print(
        "\nwidth: median high/low of the 90% interval; log score: mean log density of the log mean"
    )
    for name, ok in result["met"].items():
        print(f"{name}: {'met' if ok else 'MISSED'}")


if __name__ == "__main__":
    main()
