"""The paper's qualitative findings, held against the shipped runs, with probabilities.

    uv run benchmarks/findings.py [--campaign vllm-cpu] [--fit fit.nc] [--json]      # two fits

Prints, for every verifier-drafter pair at its measured acceptance, 128 prompt and 64 output tokens:
is C1 of SD below that of plain decoding, is C2 above it, is the draft length that is best for C1
longer than the one that is best for C2? Then how far verifiers are from costs linear in size and
depth, and how much better mixtures of experts at low loads are fitted with expert coverage than
without it. A saved fit of the campaign takes the place of the first of the two fits.
"""

import argparse
import json
import warnings
from typing import Any

import common
import numpy as np
import pandas as pd

import bayes_sd as bsd
from bayes_sd.answers.latency import arm_of
from bayes_sd.model.design import PAIR
from bayes_sd.runs.read import corpus
from bayes_sd.runs.schema import Runs

ALONE = bsd.Load(rps=0.0, prompt=128, output=64)
MOST_DRAFTED = 7
HIGH_ACCEPTANCE = 0.85


def pairs(fit: bsd.Fit) -> pd.DataFrame:
    """A row a pair: acceptance, and the probability of each finding."""
    rows, servers = [], fit.servers
    for (verifier, drafter, alpha), group in servers[servers["draft_tokens"] > 0].groupby(PAIR):
        k = int(group["draft_tokens"].iloc[0])
        server = bsd.Server(verifier, drafter, acceptance=alpha)
        arms = [bsd.Server(verifier), *(server.with_k(n) for n in range(1, MOST_DRAFTED + 1))]
        said = [arm_of(fit, arm, ALONE, extrapolate=True).outcome()[0] for arm in arms]
        c1, c2 = (
            np.stack([np.broadcast_to(x, (fit.draws, 1))[:, 0] for x in cost])
            for cost in ([law.c1_s for law in said], [law.c2_s for law in said])
        )
        rows.append(
            {
                "verifier": verifier,
                "drafter": drafter,
                "acceptance": alpha,
                "k": k,
                "prob_c1_lower": float((c1[k] < c1[0]).mean()),
                "prob_c2_higher": float((c2[k] > c2[0]).mean()),
                "best_k_c1": int(np.median(c1.argmin(axis=0))),
                "best_k_c2": int(np.median(c2.argmin(axis=0))),
                "prob_longer_for_c1": float((c1.argmin(axis=0) > c2.argmin(axis=0)).mean()),
                "prob_as_long": float((c1.argmin(axis=0) == c2.argmin(axis=0)).mean()),
            }
        )
    return pd.DataFrame(rows)


def coverage(runs: Runs, fit: bsd.Fit) -> dict[str, float]:
    """R^2 of the log mean latency of MoE runs below their median utilization, both laws."""
    law = bsd.Law(tuple(part for part in fit.law.parts if part != "experts"))
    without = common.fitted(bsd.LatencyModel(law=law), runs, seed=1)
    moe = fit.runs["family"] == "moe"
    low = moe & (fit.runs["utilization"] <= fit.runs["utilization"][moe].median())
    result = {"runs": int(low.sum())}
    for name, table in (("with", fit.runs[low]), ("without", without.runs[low])):
        observed, said = np.log(table["e2e_mean_s"]), np.log(table["fitted_e2e_s"])
        result[name] = float(1 - ((observed - said) ** 2).mean() / observed.var(ddof=0))
    return result


def main() -> None:
    """Print the findings, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaign", default="vllm-cpu")
    parser.add_argument("--fit", help="a saved fit of the campaign")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    runs = bsd.read(corpus(options.campaign))
    saved = options.fit
    fit = bsd.Fit.load(saved) if saved else common.fitted(bsd.LatencyModel(), runs, seed=1)
    table = pairs(fit)
    high = table["acceptance"] >= HIGH_ACCEPTANCE
    scatter = fit.posterior["scatter_verifier"]
    result: dict[str, Any] = {
        "prob_c1_lower": float(table["prob_c1_lower"].mean()),
        "prob_c2_higher": float(table["prob_c2_higher"][~high].mean()),
        "prob_c2_higher_at_high_acceptance": float(table["prob_c2_higher"][high].mean()),
        "prob_longer_for_c1": float(table["prob_longer_for_c1"].mean()),
        "prob_as_long": float(table["prob_as_long"].mean()),
        "scatter_around_size_laws": {
            str(cost): np.quantile(scatter.sel(verifier_cost=cost), [0.05, 0.5, 0.95])
            .round(3)
            .tolist()
            for cost in scatter["verifier_cost"].values
        },
        "moe_low_load_r2": coverage(runs, fit),
    }
    if options.json:
        print(json.dumps(result | {"pairs": table.to_dict("records")}))
        return
    print(table.round(3).to_string(index=False))
    for name, value in result.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
