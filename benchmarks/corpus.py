"""How good the shipped runs are: Little's law, acceptance, run-to-run scatter.

    uv run benchmarks/corpus.py [--campaign vllm-cpu-2] [--fit fit.nc] [--json]

Prints three tables, in seconds; a fit of all shipped runs for the last one takes minutes, unless a
saved one is given (`--no-fit`: without).

Little's law: offered rate times mean latency against the mean number in flight that the engine's
own gauges showed about once a second. Acceptance: imposed against accepted, position by position.
Scatter: runs of one server and one point measured twice, beside what the fitted model expects.
"""

import argparse
import json
import warnings
from pathlib import Path

import machines_data
import numpy as np
import pandas as pd
from scipy.stats import beta, chi2

import bayes_sd as bsd
from bayes_sd.answers.fitted import run_outcome
from bayes_sd.physics.noise import T_VARIANCE
from bayes_sd.runs.read import corpus

PROB = 0.9
ENGINE = ("engine_in_flight_mean", "engine_samples", "engine_e2e_s_sum", "duration", "probe_rps",
          "engine_decode_time_s_sum", "engine_queue_time_s_sum")  # fmt: skip
FEW_SAMPLES = 8  # of the gauges, below which their mean is mostly chance


def with_raw(folder: Path) -> pd.DataFrame:
    """The run table with what only the raw files hold."""
    runs = bsd.read(folder).table
    results = [json.loads(Path(source).read_text(encoding="utf-8")) for source in runs["source"]]
    names = (*ENGINE, "configuration", "utilization_target", "replicate")
    return runs.assign(**{name: [result.get(name) for result in results] for name in names})


def littles_law(runs: pd.DataFrame) -> dict:
    """Relative error of rate x latency against the gauges, steady open-loop runs."""
    rows = runs[~runs["saturated"] & (runs["loop"] == "open")].dropna(subset=["engine_samples"])
    if rows.empty:
        return {"runs": 0}
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
    for imposed, group in rows.groupby("acceptance_imposed"):
        tried = group["drafts"]
        for j in range(1, int(group["draft_tokens"].max()) + 1):
            drafted = group["draft_tokens"] >= j
            n, hits = tried[drafted].sum(), group.loc[drafted, f"accepted_{j}"].sum()
            low, high = beta.ppf([(1 - PROB) / 2, (1 + PROB) / 2], 0.5 + hits, 0.5 + n - hits)
            result.append(
                {"imposed": imposed, "position": j, "tried": int(n), "measured": hits / n,
                 "low": low, "high": high, "inside": bool(low <= imposed <= high)}
            )  # fmt: skip
            tried = group[f"accepted_{j}"].where(drafted, 0.0)
    return result


def scatter(runs: pd.DataFrame, fit: bsd.Fit | None) -> dict:
    """Log sd between runs of one cell, with a 90% interval, and what the model expects there."""
    rows = runs[~runs["saturated"]].dropna(subset=["configuration"])
    key = ["configuration", "utilization_target", "prompt_tokens", "output_tokens"]
    if rows.empty:
        return {"cells": 0}
    cells = rows.groupby(key).filter(lambda cell: len(cell) > 1)
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
        scale = np.median(run_outcome(fit, cells)[1], axis=0)
        result["model_sd"] = float(np.sqrt(np.mean(scale**2)))
        z = within.to_numpy() / scale
        result["standardized_sd"] = float(np.sqrt((z**2).sum() / freedom))
        result["standardized_sd_expected"] = float(np.sqrt(T_VARIANCE))
    return result


def main() -> None:
    """Print the three tables, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaign", default="vllm-cpu-2")
    parser.add_argument("--fit", help="a saved fit of all shipped runs; made here if absent")
    parser.add_argument("--no-fit", action="store_true", help="skip the model's expectation")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = corpus(options.campaign)
    runs = with_raw(folder)
    fit = None
    if options.fit:
        fit = bsd.Fit.load(options.fit)
    elif not options.no_fit:
        fit = bsd.LatencyModel().fit(machines_data.cpu(), seed=1, draws=2000)
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
    print(pd.DataFrame(law.get("worst", [])).to_string(index=False, float_format="{:.3g}".format))
    table = pd.DataFrame(result["acceptance"])
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(f"{table['inside'].sum()} of {len(table)} {PROB:.0%} intervals hold the imposed rate")
    print(result["scatter"])


if __name__ == "__main__":
    main()
