"""The public A100 sweeps: five verifiers fitted jointly, against least squares, and left out.

    uv run benchmarks/a100.py [--law sizes] [--json] [--folds 0.6B,1.7B,4B,8B,32B,fifth]

Throughput rows and the two highest rates of each sweep are left out. `--law tiles` fits arithmetic
in tiles of 128 tokens, without context and attention, which prompts of one length cannot tell;
`--law drafting` also gives the drafter's arithmetic a price of its own, and verifiers and drafters
less room around the size laws; `--law sizes` fits it as if all obeyed the size laws exactly
(complete pooling), to mean latencies without TTFT; `--law host` adds overheads that are the same
for all models. It is skipped where the table is absent (see a100_data.path). A fit takes minutes;
`--cache` keeps them, so that a run can be resumed.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import a100_data
import least_squares
import numpy as np
import pandas as pd

import bayes_sd as bsd

SAMPLING = {"draws": 800, "tune": 900, "target_accept": 0.9, "adaptation": "low_rank"}
FINER = {"draws": 1000, "target_accept": 0.95}  # r_draft mixes slowly
LAWS = ("default", "host", "tiles", "drafting", "sizes")
ONE_FAMILY = "one architecture, engine and GPU: sizes differ by 1 to 9%"


def model_of(name: str) -> bsd.LatencyModel:
    """The model called so, a speed for each server."""
    laws = {
        "default": bsd.Law(),
        "host": bsd.Law((*bsd.Law().parts, "host")),
        "tiles": bsd.Law(("depth", "tokens", "stalls"), tile_tokens=128),
        "drafting": bsd.Law(("depth", "tokens", "drafting", "stalls"), tile_tokens=128),
    }
    laws["sizes"] = laws["drafting"]
    pooling = "complete" if name == "sizes" else "partial"
    model = bsd.LatencyModel(law=laws[name], server_effects=("speed",), pooling=pooling)
    if name in ("drafting", "sizes"):
        for level in ("tau_verifier", "tau_drafter"):
            model = model.with_prior(level, a=0.03, b=0.7, reason=ONE_FAMILY)
    return model


def fitted(traces: bsd.Traces, cache: Path, name: str, model: bsd.LatencyModel) -> bsd.Fit:
    """Fit, or read the fit kept under `name`; an unconverged one is used and said to be so."""
    path = cache / f"{name}.nc"
    if path.is_file():
        return bsd.Fit.load(path)
    try:
        how = SAMPLING | (FINER if "drafting" in model.law.parts else {})
        fit = model.fit(traces, seed=1, progress=False, **how)
    except bsd.ConvergenceError as error:
        print(f"{name}: {error}", file=sys.stderr)
        fit = error.fit
    fit.save(path)
    return fit


def converged(fit: bsd.Fit) -> bool:
    """Whether the fit passed the gate."""
    s = fit.sampling
    low = min(s["ess_bulk_min"], s["ess_tail_min"])
    return s["rhat_max"] <= 1.01 and low >= 400 and s["divergences"] == 0


def relative(predicted: np.ndarray, runs: pd.DataFrame) -> pd.Series:
    """Absolute relative error of the mean latency."""
    return (predicted / runs["e2e_mean_s"] - 1).abs()


def joint(traces: bsd.Traces, cache: Path, model: bsd.LatencyModel) -> tuple[list[dict], dict]:
    """In-sample error per verifier of the joint fit and of least squares on that verifier alone."""
    fit = fitted(traces, cache, "joint", model)
    runs = fit.runs
    rows = []
    for verifier, own in runs.groupby("verifier"):
        point = least_squares.six_coefficients(own)
        rows.append(
            {
                "verifier": verifier,
                "runs": len(own),
                "joint_mean": relative(own["fitted_e2e_s"].to_numpy(), own).mean(),
                "least_squares_mean": relative(point.predict(own), own).mean(),
            }
        )
    return rows, fit.sampling | {"converged": converged(fit)}


def left_out(
    traces: bsd.Traces, cache: Path, folds: list[str], model: bsd.LatencyModel
) -> list[dict]:
    """Each verifier predicted from its size by a fit of the other four; or "fifth", at random."""
    rows = []
    for fold in folds:
        held = traces.runs["verifier"] == f"Qwen3-{fold}"
        if fold == "fifth":
            held |= np.random.default_rng(1).random(len(held)) < 0.2
        train = bsd.Traces(traces.runs[~held].reset_index(drop=True), traces.set_aside)
        test = bsd.Traces(traces.runs[held].reset_index(drop=True), traces.set_aside)
        fit = fitted(train, cache, f"without-{fold}", model)
        found = bsd.predict_runs(fit, test)
        point = least_squares.size_law(train.steady.runs)
        rows.append(
            {
                "left_out": fold,
                "runs": len(found),
                "median_error": relative(found["predicted_s"].to_numpy(), found).median(),
                "least_squares_median_error": relative(point.predict(found), found).median(),
                "inside_90": float(found["inside"].mean()),
                "width": float((found["high_s"] / found["low_s"]).median()),
                "log_score": float(found["log_score"].mean()),
                "converged": converged(fit),
            }
        )
    return rows


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--law", default="default", choices=LAWS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folds", default="32B,1.7B,4B,0.6B,8B")
    parser.add_argument("--cache", type=Path, default=Path("bayes-sd-demo/a100"))
    arguments = parser.parse_args()
    if not a100_data.path().is_file():
        print(f"skipped: {a100_data.path()} is absent (set BAYES_SD_A100)")
        return
    warnings.simplefilter("ignore")
    model = model_of(arguments.law)
    cache = arguments.cache / arguments.law
    cache.mkdir(parents=True, exist_ok=True)
    traces = a100_data.traces(a100_data.table(), ttft=arguments.law != "sizes")
    inside, sampling = joint(traces, cache, model)
    folds = [fold for fold in arguments.folds.split(",") if fold]
    outside = left_out(traces, cache, folds, model)
    if arguments.json:
        print(json.dumps({"joint": inside, "sampling": sampling, "left_out": outside}))
        return
    print(sampling)
    print(pd.DataFrame(inside).round(4).to_string(index=False))
    table = pd.DataFrame(outside)
    print(table.round(4).to_string(index=False))
    verifiers = table[table["left_out"] != "fifth"] if len(table) else table
    if len(verifiers):
        share = np.average(verifiers["inside_90"], weights=verifiers["runs"])
        print(f"over all left-out verifiers: {share:.1%} of rows inside 90%")


if __name__ == "__main__":
    main()
