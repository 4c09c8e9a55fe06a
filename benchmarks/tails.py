"""Percentiles of single requests, of e2e latency, TTFT and TPOT, predicted beside measured.

    uv run benchmarks/tails.py [--splits 2] [--json]          # random fifths; two fits, minutes
    uv run benchmarks/tails.py --fit bayes-sd-demo/a100/partial/joint.nc     # of a saved fit's runs

Prints, for every metric and percentile, the median error and how many runs lie inside their 90%
interval. The spread of TPOT is that of e2e latency, accepted lengths apart. `tpot, own spread` fits
it two coefficients of its own, by least squares on the log variances of the runs that were not left
out: the choice stands or falls by these two rows.
"""

import argparse
import json
from collections.abc import Iterator

import common
import numpy as np
import pandas as pd
from scipy.optimize import minimize

import bayes_sd as bsd
from bayes_sd.answers.fitted import run_outcome
from bayes_sd.model.design import run_workload
from bayes_sd.physics.noise import METRICS, NU, draw_runs, explained, sample_quantile_s
from bayes_sd.runs.read import corpus

PERCENTILES = (50, 90, 95, 99)
PROB = 0.9
SEPARATE = "tpot, own spread"
FEWEST = 20  # requests of a run whose percentiles are looked at


def about(fit: bsd.Fit, table: pd.DataFrame, metric: str) -> dict[str, np.ndarray]:
    """Draws of a run's mean, its scatter and the variance of its requests: (draws, runs)."""
    said, scale, variance = run_outcome(fit, table, metric)
    mean_s = said.mean_s(metric, table["output_tokens"].to_numpy(float))
    return {"mean_s": mean_s, "scale": scale, "variance": variance}


def predicted(
    draws: dict[str, np.ndarray], table: pd.DataFrame, metric: str, name: str, seed: int
) -> pd.DataFrame:
    """A row a run and percentile: error of the prediction, and whether inside its interval."""
    rng = np.random.default_rng(seed)
    shape, requests = draws["mean_s"].shape, table["requests"].to_numpy(float)
    run_s = draw_runs(draws["mean_s"], draws["scale"], rng.standard_t(NU, shape))
    rows = []
    for percent in PERCENTILES:
        z = rng.standard_normal(shape)
        drawn_s = sample_quantile_s(run_s, draws["variance"], percent / 100, requests, z)
        low, middle, high = np.quantile(drawn_s, [(1 - PROB) / 2, 0.5, (1 + PROB) / 2], axis=0)
        observed = table[f"{metric}_p{percent}_s"].to_numpy(float)
        columns = {
            "of": name,
            "percentile": f"p{percent}",
            "log_error": np.log(middle / observed),
            "inside": (observed >= low) & (observed <= high),
        }
        rows.append(pd.DataFrame(columns)[np.isfinite(observed) & (requests >= FEWEST)])
    return pd.concat(rows)


def own_spread(fit: bsd.Fit, train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """Variance of log TPOT from coefficients of its own, fitted to the runs in `train`."""

    def parts(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        said, _, _ = run_outcome(fit, table)
        crowding = [np.median(x, axis=0) for x in (said.others_share, said.c2_s, said.c1_s)]
        return crowding[0] * crowding[1] / crowding[2], explained("tpot", said, run_workload(table))

    train = train[train["tpot_log_var"] > 0]
    (load, accepted), observed = parts(train), np.log(train["tpot_log_var"].to_numpy(float))
    weight = 1 / (2 / (train["requests"].to_numpy(float) - 1) + 0.5)

    def misfit(log_sd: np.ndarray) -> float:
        alone, shared = np.exp(2 * log_sd)
        variance = np.log(alone + shared * load + accepted)
        return float((weight * (variance - observed) ** 2).sum())

    alone, shared = np.exp(2 * minimize(misfit, np.log([0.1, 0.5]), method="Nelder-Mead").x)
    load, accepted = parts(test)
    return np.asarray(alone + shared * load + accepted)


def scored(fit: bsd.Fit, train: pd.DataFrame, test: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Predictions of every metric's percentiles."""
    draws = {metric: about(fit, test, metric) for metric in METRICS}
    rows = [predicted(draws[metric], test, metric, metric, seed) for metric in METRICS]
    variance = np.broadcast_to(own_spread(fit, train, test), draws["tpot"]["mean_s"].shape)
    separate = draws["tpot"] | {"variance": variance}
    return pd.concat([*rows, predicted(separate, test, "tpot", SEPARATE, seed)])


def held_out(splits: int) -> Iterator[pd.DataFrame]:
    """Random fifths of the shipped steady runs, each predicted by a fit of the rest."""
    steady = bsd.read(corpus("vllm-cpu")).steady
    for split in range(1, splits + 1):
        out = common.random_fifth(len(steady), split)
        fit = common.fitted(bsd.LatencyModel(), common.part(steady, ~out), seed=1)
        yield scored(fit, fit.runs, common.part(steady, out).table, split)


def main() -> None:
    """Print a row a metric and percentile, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--fit", help="a saved fit: its own runs, nothing left out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.fit:
        fit = bsd.Fit.load(options.fit).thin(1000)
        tables = [scored(fit, fit.runs, fit.runs, 1)]
    else:
        tables = list(held_out(options.splits))
    grouped = pd.concat(tables).groupby(["of", "percentile"], sort=False)
    table = grouped.agg(
        runs=("inside", "size"),
        median_error=("log_error", lambda e: float(np.expm1(e).abs().median())),
        bias=("log_error", lambda e: float(np.expm1(e.median()))),
        inside_90=("inside", "mean"),
    ).reset_index()
    print(json.dumps(table.to_dict("records")) if options.json else table.round(3).to_string())


if __name__ == "__main__":
    main()
