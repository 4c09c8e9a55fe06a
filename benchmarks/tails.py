"""Percentiles of single requests, of e2e latency, TTFT and TPOT, predicted beside measured.

    uv run benchmarks/tails.py [--splits 2] [--json]         # random fifths of the shipped runs
    uv run benchmarks/tails.py --fit bayes-sd-demo/a100/tiles/joint.nc       # of a saved fit's runs

The spread of TPOT is that of e2e latency, accepted lengths apart. `tpot, own spread` fits it two
coefficients of its own, by least squares on the log variances of the runs that were not left out:
the choice stands or falls by these two rows.
"""

import argparse
import json
from collections.abc import Iterator

import numpy as np
import pandas as pd
from held_out import SHARE, fit_model
from scipy.optimize import minimize
from scipy.stats import norm

import bayes_sd as bsd
from bayes_sd.corpus import corpus
from bayes_sd.model.design import build_design
from bayes_sd.physics.law import NU
from bayes_sd.predict.runs import run_outcome

PERCENTILES = (50, 90, 95, 99)
PROB = 0.9
OWN = "tpot, own spread"
LEAST = 20  # requests of a run whose percentiles are looked at


def place(percent: float, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normal score of a sample's percentile, and its standard error: it lies lower in small ones.

    Interpolated between order statistics, of `n` requests.
    """
    p = percent / 100
    score = norm.ppf(np.clip((p * (n - 1) + 1 - 0.375) / (n + 0.25), 1e-3, 1 - 1e-3))
    return score, np.sqrt(p * (1 - p) / n) / norm.pdf(norm.ppf(p))


def about(fit: bsd.Fit, runs: pd.DataFrame, metric: str) -> dict[str, np.ndarray]:
    """Draws of a run's mean, its scatter and the variance of its requests: (runs, draws)."""
    found = run_outcome(fit, runs, metric=metric)
    return {
        name: found[name].transpose("run", ...).values.reshape(len(runs), -1)
        for name in ("mean_s", "scale", "variance")
    }


def predicted(
    known: dict[str, np.ndarray], runs: pd.DataFrame, metric: str, name: str, seed: int
) -> pd.DataFrame:
    """A row a run and percentile: predicted, observed, and whether inside its interval."""
    rng = np.random.default_rng(seed)
    log_mean, variance = np.log(known["mean_s"]), known["variance"]
    log_mean = log_mean + known["scale"] * rng.standard_t(NU, log_mean.shape)
    n = runs["requests"].to_numpy(float)
    rows = []
    for percent in PERCENTILES:
        score, error = place(percent, n)
        noise = error[:, None] * rng.standard_normal(log_mean.shape)
        drawn = log_mean + np.sqrt(variance) * (score[:, None] + noise) - variance / 2
        low, middle, high = np.quantile(drawn, [(1 - PROB) / 2, 0.5, (1 + PROB) / 2], axis=1)
        with np.errstate(invalid="ignore"):
            observed = np.log(runs[f"{metric}_p{percent}_s"].to_numpy(float))
        kept = np.isfinite(observed) & (n >= LEAST)
        table = {"of": name, "percentile": f"p{percent}", "log_error": middle - observed,
                 "inside": (observed >= low) & (observed <= high)}  # fmt: skip
        rows.append(pd.DataFrame(table)[kept])
    return pd.concat(rows)


def own_spread(fit: bsd.Fit, train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """Variance of log TPOT from coefficients of its own, fitted to the runs in `train`."""

    def parts(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        law = run_outcome(fit, runs, metric="tpot").median(("chain", "draw"))
        load = (law["share"] * law["c2_s"] / law["c1_s"]).values
        accepted = (runs["cycles_var"] / runs["cycles"] ** 2).to_numpy(float)
        return load, accepted

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
    parts = []
    for metric in ("e2e", "ttft", "tpot"):
        known = about(fit, test, metric)
        parts.append(predicted(known, test, metric, metric, seed))
    own = own_spread(fit, train, test)[:, None] + 0 * known["variance"]
    parts.append(predicted(known | {"variance": own}, test, "tpot", OWN, seed))
    return pd.concat(parts)


def held_out(splits: int) -> Iterator[pd.DataFrame]:
    """Random fifths of the shipped steady runs, each predicted by a fit of the rest."""
    steady = bsd.read_traces(corpus("vllm-cpu")).steady
    for split in range(1, splits + 1):
        order = np.random.default_rng(split).permutation(len(steady.runs))
        out = np.isin(np.arange(len(order)), order[: round(SHARE * len(order))])
        train, test = (
            bsd.Traces(steady.runs[which].reset_index(drop=True), steady.set_aside)
            for which in (~out, out)
        )
        fit, _ = fit_model(train, 1)
        yield scored(fit, fit.runs, build_design(test, censored=False).runs, split)


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
