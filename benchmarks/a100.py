"""The public A100 sweeps: five verifiers fitted jointly, against least squares, and left out.

    uv run benchmarks/a100.py [--law sizes] [--folds 0.6B,1.7B,4B,8B,32B,fifth] [--json]

Prints the in-sample error of each verifier, then that of each fold predicted by a fit of the rest.
With the default law a fit takes about 10 minutes on 2 cores, with `--law sizes` one; `--folds ""`
leaves none out. Fits are kept in `--cache`, so a run that was stopped goes on where it was.

Throughput rows and the two highest rates of each sweep are not used. `--law tiles` fits arithmetic
in tiles of 128 tokens, without context and attention, which prompts of one length cannot tell.
`--law drafting` also gives the drafter's arithmetic its own price, and verifiers and drafters less
room around the size laws. `--law sizes` is the same law with every model exactly on the size laws
(complete pooling), fitted to mean latencies without TTFT. `--law host` adds overheads that are the
same for all models. Skipped where the table is absent (see a100_data.path).
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

SAMPLING = {"draws": 800, "tune": 900}
FINER = {"draws": 1000, "target_accept": 0.95}  # draft_token_ratio mixes slowly
TILES = ("depth", "tokens", "stalls")
LAWS = {
    "default": bsd.Law(),
    "host": bsd.Law((*bsd.Law().parts, "host")),
    "tiles": bsd.Law(TILES, tile_tokens=128),
    "drafting": bsd.Law((*TILES, "drafting"), tile_tokens=128),
    "sizes": bsd.Law((*TILES, "drafting"), tile_tokens=128),
}
ONE_FAMILY = "one architecture, engine and GPU: sizes differ by 1 to 9%"


def model_of(name: str) -> bsd.LatencyModel:
    """The model of that name; servers differ by one factor on all their times."""
    pooling = "complete" if name == "sizes" else "partial"
    model = bsd.LatencyModel(law=LAWS[name], server_effects=("slowness",), pooling=pooling)
    if name in ("drafting", "sizes"):
        for level in ("scatter_verifier", "scatter_drafter"):
            model = model.with_prior(level, a=0.03, b=0.7, reason=ONE_FAMILY)
    return model


def cached(runs: Runs, cache: Path, name: str, model: bsd.LatencyModel) -> bsd.Fit:
    """Fit, or read the fit kept under `name`."""
    path = cache / f"{name}.nc"
    if path.is_file():
        return bsd.Fit.load(path)
    how = SAMPLING | (FINER if "drafting" in model.law.parts else {})
    fit = common.fitted(model, runs, seed=1, **how)
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
    parser.add_argument("--law", default="default", choices=LAWS)
    parser.add_argument("--folds", default="32B,1.7B,4B,0.6B,8B")
    parser.add_argument("--cache", type=Path, default=Path("bayes-sd-demo/a100"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not a100_data.path().is_file():
        print(f"skipped: {a100_data.path()} is absent (set BAYES_SD_A100)")
        return
    warnings.simplefilter("ignore")
    model = model_of(options.law)
    cache = options.cache / options.law
    cache.mkdir(parents=True, exist_ok=True)
    runs = a100_data.runs(a100_data.table(), ttft=options.law != "sizes")
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
