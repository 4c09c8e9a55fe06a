"""Verifiers and random fifths left out: the model beside no pooling and the paper's least squares.

    uv run benchmarks/left_out.py [--by fifth,verifier] [--jobs 2] [--json]      # about 20 minutes

Prints scores of the predictions, every one by an exact refit without the runs predicted. Least
squares has the same size laws (every coefficient a constant plus a slope times the size), and as
its interval the spread of its residuals. On the left-out pairs, acting on P(SD beats plain) > 1/2
is compared with acting on point estimates, always SD and always plain: the latency each loses to
the better server.
"""

import argparse
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from least_squares import size_law
from scipy.stats import norm

import bayes_sd as bsd
from bayes_sd.checks.compare import compare_models
from bayes_sd.checks.leave_out import PROB, Folds, LeftOut, brier, folds, summary
from bayes_sd.model.design import build_design
from bayes_sd.runs.read import corpus

SCORES = ("runs", "coverage", "width", "median_error", "mean_error", "log_score", "interval_score")


def by_least_squares(table: pd.DataFrame, parts: Folds) -> dict[str, float]:
    """Scores of the point fit with size laws, of the same runs by the same folds."""
    steady = table[~table["saturated"].to_numpy(bool)]
    z = norm.ppf((1 + PROB) / 2)
    rows = []
    for ids in parts.values():
        held = steady["run_id"].isin(ids)
        point, test = size_law(steady[~held]), steady[held]
        predicted_s, reach = point.predict(test), np.exp(z * point.log_sd)
        observed, log_mean = np.log(test["e2e_mean_s"]), np.log(predicted_s)
        missed = (np.abs(observed - log_mean) - z * point.log_sd).clip(lower=0)
        columns = {
            "observed_s": test["e2e_mean_s"],
            "predicted_s": predicted_s,
            "low_s": predicted_s / reach,
            "high_s": predicted_s * reach,
            "inside": missed == 0,
            "log_score": norm.logpdf(observed, log_mean, point.log_sd),
            "interval_score": 2 * z * point.log_sd + 2 / (1 - PROB) * missed,
            "p95_observed_s": np.nan,
            "p95_predicted_s": np.nan,
            "p95_inside": np.nan,
        }
        rows.append(pd.DataFrame(columns))
    scores = summary(pd.concat(rows))
    return {name: scores[name] for name in SCORES}


def by_model(left_out: LeftOut) -> dict[str, float]:
    """Scores of a model's refits, and of its decisions."""
    scores = summary(left_out.rows)
    gate = {
        "rhat_max": float(left_out.folds["rhat_max"].max()),
        "divergences": int(left_out.folds["divergences"].sum()),
    }
    kept = {name: scores[name] for name in (*SCORES, "p95_coverage")}
    return kept | brier(left_out.pairs) | gate


def main() -> None:
    """Print a table for each way of leaving out, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaign", default="vllm-cpu", help="'' for all together")
    parser.add_argument("--by", default="fifth,verifier")
    parser.add_argument("--draws", type=int, default=500, help="kept, and as many for tuning")
    parser.add_argument("--jobs", type=int, default=2, help="refits side by side")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    runs = bsd.read(corpus(options.campaign))
    base = bsd.LatencyModel()
    models = {"model": base, "no pooling": replace(base, pooling="none")}
    table = build_design(runs).table
    how = {"draws": options.draws, "tune": options.draws, "cores": 1}
    result: dict[str, Any] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for by in options.by.split(","):
            compared = compare_models(runs, models, by=by, executor=pool, **how)
            result[by] = {name: by_model(own) for name, own in compared.left_out.items()}
            result[by]["least squares, sizes"] = by_least_squares(table, folds(table, by))
    if options.json:
        print(json.dumps(result))
        return
    for by, rows in result.items():
        print(f"left out by {by}\n{pd.DataFrame(rows).T.round(3).to_string()}\n")


if __name__ == "__main__":
    main()
