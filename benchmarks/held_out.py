"""Runs the fit has not seen, on the shipped corpus: the model against the paper's least squares.

    uv run benchmarks/held_out.py [--splits 3] [--json]

First all steady runs are fitted; then, a split at a time, a random fifth of them is left out, the
rest is fitted, and the left-out mean latencies are predicted.
"""

import argparse
import json
from typing import Any

import numpy as np
import pandas as pd
from least_squares import PointFit, per_verifier, size_law
from scipy.stats import norm

import bayes_sd as bsd
from bayes_sd.corpus import corpus
from bayes_sd.report.tables import collapse

SHARE = 0.2
PROB = 0.9
METHODS = ("model", "least squares, sizes", "least squares, a verifier each")
SAME = "model, on the runs of the last row"
WANTED_R2 = {"dense": 0.97, "moe": 0.95}
WANTED_COVERAGE = (0.80, 0.98)


def fit_model(traces: bsd.Traces, seed: int) -> tuple[bsd.Fit, dict[str, Any]]:
    """A fit and its convergence; one that fails the gate is used all the same, and said so."""
    try:
        fit, refused = bsd.LatencyModel().fit(traces, seed=seed), ""
    except bsd.ConvergenceError as error:
        fit, refused = error.fit, str(error)
    return fit, {**fit.sampling, "refused": refused}


def point_fits(rows: pd.DataFrame) -> dict[str, dict[str, PointFit]]:
    """Both least-squares fits, as one PointFit a verifier."""
    shared = size_law(rows)
    return {
        METHODS[1]: dict.fromkeys(rows["verifier"].unique(), shared),
        METHODS[2]: per_verifier(rows),
    }


def predict_points(fits: dict[str, PointFit], rows: pd.DataFrame) -> pd.DataFrame:
    """Point predictions with their interval: the fit times lognormal residual spread."""
    parts = []
    for verifier, own in rows.groupby("verifier"):
        if str(verifier) not in fits:
            continue
        fit = fits[str(verifier)]
        middle, reach = fit.predict(own), np.exp(norm.ppf((1 + PROB) / 2) * fit.log_sd)
        observed = own["e2e_mean_s"]
        parts.append(
            own.assign(
                predicted_s=middle,
                low_s=middle / reach,
                high_s=middle * reach,
                inside=(observed >= middle / reach) & (observed <= middle * reach),
                log_score=norm.logpdf(np.log(observed), np.log(middle), fit.log_sd),
            )
        )
    return pd.concat(parts).sort_index()


def scores(predicted: pd.DataFrame) -> dict[str, float]:
    """What a table of predictions is worth; the log score is that of the log mean latency."""
    error = np.abs(predicted["predicted_s"] / predicted["e2e_mean_s"] - 1)
    return {
        "runs": len(predicted),
        "coverage": float(predicted["inside"].mean()),
        "width": float((predicted["high_s"] / predicted["low_s"]).median()),
        "median_error": float(error.median()),
        "mean_error": float(error.mean()),
        "log_score": float(predicted["log_score"].mean()),
    }


def in_sample(traces: bsd.Traces, seed: int) -> dict[str, Any]:
    """Fit of all runs: convergence, and the collapse of each method."""
    fit, convergence = fit_model(traces, seed)
    rows = traces.runs
    result = {METHODS[0]: fit.collapse()}
    for name, fits in point_fits(rows).items():
        middle = predict_points(fits, rows)
        result[name] = collapse(middle.assign(fitted_e2e_s=middle["predicted_s"]))
    return {"runs": len(rows), "convergence": convergence, "collapse": result}


def held_out(traces: bsd.Traces, split: int, seed: int) -> tuple[dict[str, Any], dict]:
    """One split: its scores, and the predictions of each method."""
    runs = traces.runs
    chosen = np.random.default_rng(split).permutation(len(runs))[: round(SHARE * len(runs))]
    left_out = np.isin(np.arange(len(runs)), chosen)
    train, test = runs[~left_out].reset_index(drop=True), runs[left_out].reset_index(drop=True)
    fit, convergence = fit_model(bsd.Traces(runs=train, set_aside=traces.set_aside), seed)
    unseen = bsd.Traces(runs=test, set_aside=traces.set_aside)
    predicted = {METHODS[0]: bsd.predict_runs(fit, unseen, PROB)}
    predicted |= {n: predict_points(fits, test) for n, fits in point_fits(train).items()}
    of_last = predicted[METHODS[0]]["run_id"].isin(predicted[METHODS[2]]["run_id"])
    predicted[SAME] = predicted[METHODS[0]][of_last]
    score = {n: scores(p) for n, p in predicted.items()}
    return {"split": split, "convergence": convergence, "scores": score}, predicted


def gate(c: dict[str, Any]) -> str:
    """Convergence in one line."""
    return (
        f"R-hat {c['rhat_max']:.3f}, ESS {c['ess_bulk_min']:.0f} bulk and {c['ess_tail_min']:.0f} "
        f"tail, {c['divergences']} divergences, {c['chains']} x {c['draws']} draws, "
        f"{c['seconds_compile']:.0f} + {c['seconds_sample']:.0f} s"
        + (f"\n  REFUSED: {c['refused']}" if c["refused"] else "")
    )


def show(result: dict[str, Any]) -> None:
    """The result as plain tables."""
    full = result["in_sample"]
    print(f"All {full['runs']} steady runs, seed {result['seed']}: {gate(full['convergence'])}\n")
    print(f"{'fitted to all runs':<40}{'R2 dense':>10}{'R2 MoE':>10}{'MAPE':>9}")
    for name, c in full["collapse"].items():
        print(f"{name:<40}{c['r2_dense']:>10.4f}{c['r2_moe']:>10.4f}{c['mape']:>9.1%}")
    print(f"wanted of the model: at least {WANTED_R2['dense']} dense, {WANTED_R2['moe']} MoE\n")
    for one in result["splits"]:
        print(f"split {one['split']}: {gate(one['convergence'])}")
        print_scores(one["scores"])
    if len(result["splits"]) > 1:
        print("all splits together")
        print_scores(result["together"])
    print(
        "width: median high/low of the 90% interval; log score: mean log density of the log mean;\n"
        "least squares has an interval of residual spread only, and no fit where runs are too few."
    )
    for name, ok in result["met"].items():
        print(f"{name}: {'met' if ok else 'MISSED'}")


def print_scores(table: dict[str, dict[str, float]]) -> None:
    """Scores of the methods, one row each."""
    head = ("runs", "inside", "width", "median err", "mean err", "log score")
    print(f"{'':<40}" + "".join(f"{h:>11}" for h in head))
    for name, s in table.items():
        print(
            f"{name:<40}{s['runs']:>11d}{s['coverage']:>11.1%}{s['width']:>11.3f}"
            f"{s['median_error']:>11.1%}{s['mean_error']:>11.1%}{s['log_score']:>11.3f}"
        )
    print()


def main() -> None:
    """Print a table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=1, help="splits, NumPy seeds 1, 2, ...")
    parser.add_argument("--seed", type=int, default=1, help="of the sampler")
    parser.add_argument("--campaign", default="vllm-cpu", help="'' for all together")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    steady = bsd.read_traces(corpus(options.campaign)).steady
    traces = bsd.Traces(runs=steady.runs.reset_index(drop=True), set_aside=steady.set_aside)
    result: dict[str, Any] = {"seed": options.seed, "in_sample": in_sample(traces, options.seed)}
    pairs = [held_out(traces, i + 1, options.seed) for i in range(options.splits)]
    result["splits"] = [one for one, _ in pairs]
    result["together"] = {
        name: scores(pd.concat([predicted[name] for _, predicted in pairs]))
        for name in (*METHODS, SAME)
    }
    mine = result["in_sample"]["collapse"]["model"]
    low, high = WANTED_COVERAGE
    result["met"] = {
        "convergence": not any(
            c["refused"]
            for c in [x["convergence"] for x in (result["in_sample"], *result["splits"])]
        ),
        "R2 dense": mine["r2_dense"] >= WANTED_R2["dense"],
        "R2 MoE": mine["r2_moe"] >= WANTED_R2["moe"],
        "coverage": bool(low <= result["together"]["model"]["coverage"] <= high),
    }
    print(json.dumps(result)) if options.json else show(result)


if __name__ == "__main__":
    main()
