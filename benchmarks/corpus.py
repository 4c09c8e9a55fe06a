"""What the shipped traces are worth: Little's law, acceptance, run-to-run scatter.

    uv run benchmarks/corpus.py [--campaign vllm-cpu-2] [--json]

Little's law: offered rate times mean latency against the mean number in flight that the engine's
own gauges showed about once a second. Acceptance: imposed against accepted, position by position.
Scatter: runs of one server and one point measured twice, beside what the fitted model expects.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import beta, chi2

import bayes_sd as bsd
from bayes_sd.corpus import corpus
from bayes_sd.model.design import build_design
from bayes_sd.predict.runs import run_outcome

PROB = 0.9
ENGINE = ("engine_in_flight_mean", "engine_samples", "engine_e2e_s_sum", "duration", "probe_rps",
          "engine_decode_time_s_sum", "engine_queue_time_s_sum")  # fmt: skip
FEW_SAMPLES = 8  # of the gauges, below which their mean is mostly chance


def table(folder: Path) -> pd.DataFrame:
    """The run table with what only the raw files hold."""
    runs = bsd.read_traces(folder).runs
    raw = [json.loads(Path(source).read_text(encoding="utf-8")) for source in runs["source"]]
    for name in (*ENGINE, "configuration", "utilization_target", "replicate"):
        runs[name] = [one.get(name) for one in raw]
    return runs


def littles_law(runs: pd.DataFrame) -> dict:
    """Relative error of rate x latency against the gauges, steady open-loop runs."""
    rows = runs[~runs["saturated"] & (runs["loop"] == "open")].dropna(subset=["engine_samples"])
    by_latency = rows["rate_rps"] * rows["e2e_mean_s"]
    gauge = rows["engine_in_flight_mean"].astype(float)
    counted = rows["engine_e2e_s_sum"].astype(float) / rows["duration"].astype(float)
    # The gauges show a request only once its first pass has ended: time decoding or queueing.
    decoding = rows["engine_decode_time_s_sum"].astype(float)
    decoding = decoding + rows["engine_queue_time_s_sum"].astype(float)
    shown = (gauge * rows["duration"].astype(float)).sum() / decoding.sum()
    error = (by_latency / gauge.where(gauge > 0) - 1).abs()
    enough = rows["engine_samples"] >= FEW_SAMPLES
    busy = enough & (by_latency >= 1)
    # Realised arrivals differ from the offered rate by about 1 / sqrt(n) over so short a run.
    worst = rows.assign(error=error, by_latency=by_latency, gauge=gauge)
    worst = worst[enough].nlargest(5, "error")
    return {
        "runs": len(rows),
        "median_error": float(error[enough].median()),
        "median_error_one_or_more_in_flight": float(error[busy].median()),
        "gauges_over_time_decoding_or_queueing": float(shown),
        "median_error_engine_counters": float((by_latency / counted - 1).abs().median()),
        "worst": worst[
            ["configuration", "requests", "rate_rps", "achieved_rps", "by_latency", "gauge",
             "engine_samples", "error"]
        ].to_dict("records"),
    }  # fmt: skip


def acceptance(runs: pd.DataFrame) -> list[dict]:
    """Imposed against measured acceptance given that all before it were accepted, by position."""
    rows = runs[(runs["draft_tokens"] > 0) & runs["acceptance_imposed"].notna()]
    result = []
    for wanted, own in rows.groupby("acceptance_imposed"):
        tried = own["drafts"]
        for j in range(1, int(own["draft_tokens"].max()) + 1):
            drafted = own["draft_tokens"] >= j
            n, hits = tried[drafted].sum(), own.loc[drafted, f"accepted_{j}"].sum()
            low, high = beta.ppf([(1 - PROB) / 2, (1 + PROB) / 2], 0.5 + hits, 0.5 + n - hits)
            result.append(
                {"wanted": wanted, "position": j, "tried": int(n), "measured": hits / n,
                 "low": low, "high": high, "inside": bool(low <= wanted <= high)}
            )  # fmt: skip
            tried = own[f"accepted_{j}"].where(drafted, 0.0)
    return result


def scatter(runs: pd.DataFrame, fit: bsd.Fit | None) -> dict:
    """Log sd between runs of one cell, with a 90% interval, and what the model expects there."""
    rows = runs[~runs["saturated"]].dropna(subset=["configuration"])
    key = ["configuration", "utilization_target", "prompt_tokens", "output_tokens"]
    cells = rows.groupby(key).filter(lambda own: len(own) > 1)
    logs = np.log(cells["e2e_mean_s"])
    within = logs - logs.groupby([cells[k] for k in key]).transform("mean")
    freedom = len(cells) - cells.groupby(key).ngroups
    if freedom == 0:
        return {"cells": 0}
    total = float((within**2).sum())
    result = {
        "cells": cells.groupby(key).ngroups,
        "runs": len(cells),
        "sd": float(np.sqrt(total / freedom)),
        "low": float(np.sqrt(total / chi2.ppf((1 + PROB) / 2, freedom))),
        "high": float(np.sqrt(total / chi2.ppf((1 - PROB) / 2, freedom))),
    }
    if fit is not None:
        known = build_design(bsd.Traces(cells.reset_index(drop=True), cells.iloc[:0]))
        scale = run_outcome(fit, known.runs)["scale"].median(("chain", "draw")).to_numpy()
        result["model_sd"] = float(np.sqrt(np.mean(scale**2)))
        # Of standardized differences; t with 5 degrees of freedom has a variance of 5/3.
        z = within.to_numpy() / scale
        result["standardized_sd"] = float(np.sqrt((z**2).sum() / freedom))
    return result


def main() -> None:
    """Print the three tables, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaign", default="vllm-cpu-2")
    parser.add_argument("--no-fit", action="store_true", help="skip the model's expectation")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = corpus(options.campaign)
    runs = table(folder)
    fit = None if options.no_fit else bsd.LatencyModel().fit(bsd.read_traces(corpus()), seed=1)
    result = {
        "campaign": options.campaign,
        "runs": len(runs),
        "saturated": int(runs["saturated"].sum()),
        "littles_law": littles_law(runs),
        "acceptance": acceptance(runs),
        "scatter": scatter(runs, fit),
    }
    if options.json:
        print(json.dumps(result))
        return
    law = result["littles_law"]
    print(f"{options.campaign}: {result['runs']} runs, {result['saturated']} saturated")
    print({k: v for k, v in law.items() if k != "worst"})
    print(pd.DataFrame(law["worst"]).to_string(index=False, float_format="{:.3g}".format))
    found = pd.DataFrame(result["acceptance"])
    print(found.to_string(index=False, float_format="{:.3f}".format))
    print(
        f"{found['inside'].mean():.0%} of {len(found)} intervals ({PROB:.0%}) hold the wanted rate"
    )
    print(result["scatter"])


if __name__ == "__main__":
    main()
