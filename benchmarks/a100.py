"""The public A100 sweeps: five verifiers fitted jointly, against least squares, and left out.

    uv run benchmarks/a100.py [--pooling complete] [--folds 0.6B,1.7B,4B,8B,32B,fifth] [--json]

Prints the in-sample error of each verifier, then that of each fold predicted by a fit of the rest.
A fit takes minutes on 2 cores; `--folds ""` leaves none out. Fits are kept in `--cache`, so a run
that was stopped goes on where it was.

Throughput rows and the two highest rates of each sweep are not used. `--pooling complete` takes
every model exactly as the law has it, and mean latencies without TTFT. Skipped where the table is
absent (see a100_data.path).
"""

import argparse
import json
import warnings
from pathlib import Path

import a100_data
import common
import least_squares
import numpy as np
import pandas as pd

import bayes_sd as bsd
from bayes_sd.runs.schema import Runs

MAX_MINUTES = 60.0  # of a fit: 1,575 rows on a busy machine


def cached(runs: Runs, cache: Path, name: str, model: bsd.LatencyModel) -> bsd.Fit:
    """Fit, or read the fit kept under `name`."""
    path = cache / f"{name}.nc"
    if path.is_file():
        return bsd.Fit.load(path)
    fit = common.fitted(model, runs, seed=1, max_minutes=MAX_MINUTES)
    fit.save(path)
    return fit


def relative_error(predicted_s: np.ndarray, runs: pd.DataFrame) -> pd.Series:
    """Absolute relative error of the mean latency."""
    return (predicted_s / runs["e2e_mean_s"] - 1).abs()


def joint(runs: Runs, cache: Path, model: bsd.LatencyModel) -> tuple[list[dict], dict]:
    """In-sample error per verifier of the joint fit and of least squares on that verifier alone."""
    fit = cached(runs, cache, "joint", model)
    rows = []
    for verifier, table in fit.runs.groupby("verifier"):
        point = least_squares.six_coefficients(table)
        rows.append(
            {
                "verifier": verifier,
                "runs": len(table),
                "joint_mean": relative_error(table["fitted_e2e_s"].to_numpy(), table).mean(),
                "least_squares_mean": relative_error(point.predict(table), table).mean(),
            }
        )
    return rows, fit.sampling | {"converged": common.converged(fit)}


def left_out(runs: Runs, cache: Path, folds: list[str], model: bsd.LatencyModel) -> list[dict]:
    """Each verifier predicted from its size by a fit of the other four; or "fifth", at random."""
    rows = []
    for fold in folds:
        held = runs.table["verifier"] == f"Qwen3-{fold}"
        if fold == "fifth":
            held |= np.random.default_rng(1).random(len(held)) < 0.2
        train, test = common.part(runs, ~held), common.part(runs, held)
        fit = cached(train, cache, f"without-{fold}", model)
        table = fit.predict(test)
        point = least_squares.size_law(train.steady.table)
        rows.append(
            {
                "left_out": fold,
                "runs": len(table),
                "median_error": relative_error(table["predicted_s"].to_numpy(), table).median(),
                "least_squares_median_error": relative_error(point.predict(table), table).median(),
                "inside_90": float(table["inside"].mean()),
                "width": float((table["high_s"] / table["low_s"]).median()),
                "log_score": float(table["log_score"].mean()),
                "converged": common.converged(fit),
            }
        )
    return rows


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pooling", default="partial", choices=("partial", "complete"))
    parser.add_argument("--folds", default="32B,1.7B,4B,0.6B,8B")
    parser.add_argument("--cache", type=Path, default=Path("bayes-sd-demo/a100"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not a100_data.path().is_file():
        print(f"skipped: {a100_data.path()} is absent (set BAYES_SD_A100)")
        return
    warnings.simplefilter("ignore")
    # With models as the law has them servers differ by one factor on all their times.
    complete = {"pooling": "complete", "server_effects": ("slowness",)}
    model = bsd.LatencyModel(**(complete if options.pooling == "complete" else {}))
    cache = options.cache / options.pooling
    cache.mkdir(parents=True, exist_ok=True)
    runs = a100_data.runs(a100_data.table(), ttft=options.pooling == "partial")
    in_sample, sampling = joint(runs, cache, model)
    folds = [fold for fold in options.folds.split(",") if fold]
    out_of_sample = left_out(runs, cache, folds, model)
    if options.json:
        print(json.dumps({"joint": in_sample, "sampling": sampling, "left_out": out_of_sample}))
        return
    print(sampling)
    print(pd.DataFrame(in_sample).round(4).to_string(index=False), flush=True)
    if not folds:
        return
    table = pd.DataFrame(out_of_sample)
    print(table.round(4).to_string(index=False))
    verifiers = table[table["left_out"] != "fifth"]
    if len(verifiers):
        share = np.average(verifiers["inside_90"], weights=verifiers["runs"])
        print(f"over all left-out verifiers: {share:.1%} of rows inside 90%")


if __name__ == "__main__":
    main()
