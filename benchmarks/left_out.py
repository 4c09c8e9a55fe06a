"""Verifiers and random fifths left out: the model beside no pooling and the paper's least squares.

    uv run benchmarks/left_out.py [--campaign vllm-cpu] [--jobs 2] [--json]      # about 20 minutes

Every prediction is by an exact refit without the runs predicted. Least squares has the same size
laws (every coefficient a constant plus a slope times the size), and as its interval the spread of
its residuals. Acting on P(SD beats plain) > 1/2 is compared on the left-out pairs with acting on
point estimates, always SD and always plain: the latency each loses to the better server.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from least_squares import size_law
from scipy.stats import norm

import bayes_sd as bsd
from bayes_sd.corpus import corpus
from bayes_sd.inference.refit import compile_refits
from bayes_sd.validate.leave_out import LeftOut, folds, leave_out
from bayes_sd.validate.pairs import brier
from bayes_sd.validate.scores import PROB, summary

SAMPLING = {"draws": 500, "tune": 500}
KEPT = ("runs", "coverage", "width", "median_error", "mean_error", "log_score", "interval_score")


def by_least_squares(runs: pd.DataFrame, by: str) -> dict[str, float]:
    """Scores of the point fit with size laws, of the same runs by the same folds."""
    steady = ~runs["saturated"].to_numpy(bool)
    z = norm.ppf((1 + PROB) / 2)
    parts = []
    for _, mask in folds(runs, by):
        point, test = size_law(runs[steady & ~mask]), runs[steady & mask]
        observed, middle = np.log(test["e2e_mean_s"]), np.log(point.predict(test))
        missed = (np.abs(observed - middle) - z * point.log_sd).clip(lower=0)
        parts.append(
            pd.DataFrame(
                {
                    "error": np.abs(np.expm1(middle - observed)),
                    "inside": missed == 0,
                    "width": np.exp(2 * z * point.log_sd),
                    "log_score": norm.logpdf(observed, middle, point.log_sd),
                    "interval_score": 2 * z * point.log_sd + 2 / (1 - PROB) * missed,
                }
            )
        )
    table = pd.concat(parts)
    scores = {n: float(table[n].mean()) for n in ("log_score", "interval_score")}
    return {
        "runs": len(table),
        "coverage": float(table["inside"].mean()),
        "width": float(table["width"].median()),
        "median_error": float(table["error"].median()),
        "mean_error": float(table["error"].mean()),
        **scores,
    }


def by_model(found: LeftOut) -> dict[str, float]:
    """Scores of a model's refits, and of its decisions."""
    own, pairs = summary(found.rows), brier(found.pairs)
    worst = float(found.folds["rhat_max"].max())
    return {n: own[n] for n in KEPT} | {"p95_coverage": own["p95_coverage"]} | pairs | {
        "rhat_max": worst, "divergences": int(found.folds["divergences"].sum())}  # fmt: skip


def main() -> None:
    """Print a table for each way of leaving out, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaign", default="vllm-cpu", help="'' for all together")
    parser.add_argument("--by", default="fifth,verifier")
    parser.add_argument("--jobs", type=int, default=2, help="refits side by side")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    traces = bsd.read_traces(corpus(options.campaign))
    base = bsd.LatencyModel()
    models = {"model": base, "no pooling": replace(base, pooling="none")}
    compiled = {name: compile_refits(model, traces) for name, model in models.items()}
    result: dict[str, Any] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for by in options.by.split(","):
            result[by] = {
                name: by_model(leave_out(refitter, by, executor=pool, cores=1, **SAMPLING))
                for name, refitter in compiled.items()
            }
            result[by]["least squares, sizes"] = by_least_squares(compiled["model"].runs, by)
    if options.json:
        print(json.dumps(result))
        return
    for by, rows in result.items():
        print(f"left out by {by}")
        print(pd.DataFrame(rows).T.round(3).to_string() + "\n")


if __name__ == "__main__":
    main()
