"""The paper's qualitative findings, held against the shipped runs, with probabilities.

    uv run benchmarks/findings.py [--campaign vllm-cpu] [--json]

For every verifier-drafter pair at its measured acceptance, 128 prompt and 64 output tokens: is C1
of SD below that of plain decoding, is C2 above it, is the draft length that is best for C1 longer
than the one that is best for C2? How far are verifiers from costs linear in size and depth? And
what is expert coverage worth on the lower half of the loads of mixtures of experts?
"""

import argparse
import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

import bayes_sd as bsd
from bayes_sd.corpus import corpus
from bayes_sd.predict.latency import arm_outcome
from bayes_sd.predict.load import grid
from bayes_sd.predict.system import system_of

PROMPT, OUTPUT = 128.0, 64.0
DRAFTS = range(8)
HIGH_ACCEPTANCE = 0.85


def coefficients(fit: bsd.Fit, system: bsd.System, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws of C1 (alone, experts included) and C2 of one arm, s."""
    load = grid(rps=0.0, prompt=PROMPT, output=OUTPUT)
    law = arm_outcome(fit, replace(system, extrapolate=True), k, load, 0)[1]
    return law.c1_s.values.ravel(), law.c2_s.values.ravel()


def pairs(fit: bsd.Fit) -> pd.DataFrame:
    """A row a pair: acceptance, and the probability of each finding."""
    rows, runs = [], fit.runs
    for pair, own in runs[runs["draft_tokens"] > 0].groupby("pair"):
        system = system_of(own.iloc[0])
        measured = int(own["draft_tokens"].iloc[0])
        costs = {k: coefficients(fit, system, k) for k in DRAFTS}
        c1 = np.stack([costs[k][0] for k in DRAFTS])
        c2 = np.stack([costs[k][1] for k in DRAFTS])
        rows.append(
            {
                "pair": pair,
                "acceptance": float(own["acceptance_imposed"].iloc[0]),
                "k": measured,
                "prob_c1_lower": float((c1[measured] < c1[0]).mean()),
                "prob_c2_higher": float((c2[measured] > c2[0]).mean()),
                "best_k_c1": int(np.median(c1.argmin(axis=0))),
                "best_k_c2": int(np.median(c2.argmin(axis=0))),
                "prob_longer_for_c1": float((c1.argmin(axis=0) > c2.argmin(axis=0)).mean()),
                "prob_as_long": float((c1.argmin(axis=0) == c2.argmin(axis=0)).mean()),
            }
        )
    return pd.DataFrame(rows)


def coverage(traces: bsd.Traces, fit: bsd.Fit) -> dict[str, float]:
    """R^2 of the log mean latency of MoE runs below their median utilization, both laws."""
    rest = tuple(p for p in fit.law.parts if p != "experts")
    without = bsd.LatencyModel(law=bsd.Law(rest)).fit(traces, seed=1, progress=False)
    found = {}
    for name, one in (("with", fit), ("without", without)):
        runs = one.runs
        moe = runs[runs["family"] == "moe"]
        low = moe[fit.runs["utilization"][moe.index] <= fit.runs["utilization"][moe.index].median()]
        observed, fitted = np.log(low["e2e_mean_s"]), np.log(low["fitted_e2e_s"])
        found[name] = float(1 - ((observed - fitted) ** 2).sum() / observed.var(ddof=0) / len(low))
    return found | {"runs": len(low)}


def main() -> None:
    """Print the findings, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaign", default="vllm-cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    traces = bsd.read_traces(corpus(options.campaign))
    fit = bsd.LatencyModel().fit(traces, seed=1, progress=False)
    table = pairs(fit)
    high = table["acceptance"] >= HIGH_ACCEPTANCE
    scatter = fit.posterior["tau_verifier"]
    result: dict[str, Any] = {
        "prob_c1_lower": float(table["prob_c1_lower"].mean()),
        "prob_c2_higher": float(table["prob_c2_higher"][~high].mean()),
        "prob_c2_higher_at_high_acceptance": float(table["prob_c2_higher"][high].mean()),
        "prob_longer_for_c1": float(table["prob_longer_for_c1"].mean()),
        "prob_as_long": float(table["prob_as_long"].mean()),
        "scatter_around_size_laws": {
            str(c): np.quantile(scatter.sel(coefficient=c), [0.05, 0.5, 0.95]).round(3).tolist()
            for c in scatter["coefficient"].values
        },
        "moe_low_load_r2": coverage(traces, fit),
    }
    if options.json:
        print(json.dumps(result | {"pairs": table.to_dict("records")}))
        return
    print(table.round(3).to_string(index=False))
    for name, value in result.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
