"""How the cost of fits and answers grows with runs, systems, loads, servers and draws.

    uv run benchmarks/growth.py [--largest 500] [--plot docs/growth.png] [--json]

Runs are made up: of systems of 1e9 to 70e9 parameters, each plain and with one drafter at three
draft lengths, at held concurrencies, with latencies by the law at the medians of its priors. Models
scatter about it by 8%, their servers by 3% and runs by 3%, about as measured ones do. First five
systems with 50 runs and more, then 25 runs a system and more systems. Printed are seconds (clock)
and exponents fitted to their logs; a gradient is one of sampling. All fits take a quarter of an
hour on two cores.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import population
from common import converged, fitted

import bayes_sd as bsd
from bayes_sd.model.design import build_design
from bayes_sd.model.priors import POPULATION
from bayes_sd.physics.law import FULL
from bayes_sd.runs.schema import Runs

RUNS = (50, 150, 500, 1500, 5000)  # of five systems
SYSTEMS = (5, 20, 60, 200)  # with EACH runs
FEW, EACH = 5, 25
KS = (0, 1, 3, 5)
CONCURRENCIES, PROMPTS = (1, 2, 4, 8, 16, 32), (128, 256, 512, 1024)
SCATTER = {"verifier": 0.08, "server": 0.03, "run": 0.03}  # log-sd
LOADS, SERVERS, DRAWS = (4, 16, 64, 256), (1, 4, 16), (300, 1200, 4800)
USUAL = (16, 4, 1200)  # of answers, where one of the three grows
REPEATS = 3


def made_up(systems: int, runs: int) -> Runs:
    """So many runs of so many systems, by the law and scatter."""
    sizes, each = np.geomspace(1e9, 70e9, systems), len(KS) * len(CONCURRENCIES)
    rows = []
    for i in range(runs):
        system, at = i % systems, i // systems
        k = KS[at % len(KS)]
        rows.append({
            "verifier": f"model-{system}", "verifier_params": sizes[system],
            "drafter": f"head-{system}" if k else "none",
            "drafter_params": sizes[system] / 30 if k else np.nan, "draft_tokens": k,
            "acceptance_imposed": 0.7 if k else np.nan,
            "concurrency": CONCURRENCIES[at // len(KS) % len(CONCURRENCIES)],
            # No two alike: a run that is there twice counts once.
            "prompt_tokens": PROMPTS[at // each % len(PROMPTS)] + at // (each * len(PROMPTS)),
        })  # fmt: skip
    once = {"output_tokens": 256, "loop": "closed", "requests": 200,
            "gb_per_s": 3350.0, "tflops": 989.0, "environment": "made up"}  # fmt: skip
    table = pd.DataFrame(rows).assign(**once, e2e_mean_s=1.0, ttft_mean_s=0.1)
    table["duration_s"] = once["requests"] / table["concurrency"]
    law = population.Fitted(FULL, {p.name: p.a for p in POPULATION if p.name in FULL.terms})
    said = law.outcome(population.inputs(bsd.read(table)))
    rng = np.random.default_rng(1)
    verifiers = pd.factorize(table["verifier"])[0]
    servers = table.groupby(["verifier", "draft_tokens"]).ngroup().to_numpy()
    factor = sum(SCATTER[level] * rng.standard_normal(index.max() + 1)[index]
                 for level, index in (("verifier", verifiers), ("server", servers)))  # fmt: skip
    e2e, ttft = (x * np.exp(factor + SCATTER["run"] * rng.standard_normal(runs))
                 for x in (said.e2e_s, said.ttft_s))  # fmt: skip
    tpot = (e2e - ttft) / (once["output_tokens"] - 1)
    measured = {"duration_s": table["duration_s"] * e2e}
    for name, mean, cv in (("e2e", e2e, 0.2), ("ttft", ttft, 0.3), ("tpot", tpot, 0.2)):
        measured |= {f"{name}_mean_s": mean, f"{name}_std_s": cv * mean}
    return bsd.read(table.assign(**measured))


def of_fit(systems: int, runs: int) -> tuple[dict[str, Any], bsd.Fit]:
    """What one fit takes."""
    data = made_up(systems, runs)
    begun = time.perf_counter()
    build_design(data)
    built_s = time.perf_counter() - begun
    begun = time.perf_counter()
    fit = fitted(bsd.LatencyModel(), data, max_minutes=60.0)
    seconds, s = time.perf_counter() - begun, fit.sampling
    samples = s["samples"]
    # Those of all that was drawn; kept are the last's.
    drawn = sum((x["draws"] + x["tune"]) for x in samples) * s["chains"]
    steps = float(fit.tree["sample_stats"]["n_steps"].mean())
    return {
        "systems": systems,
        "runs": runs,
        "seconds": seconds,
        "design_s": built_s,
        "compile_s": s["seconds_compile"],
        "sample_s": s["seconds_sample"],
        "samples": len(samples),
        "ess_min": min(s["ess_bulk_min"], s["ess_tail_min"]),
        "converged": converged(fit),
        "steps": steps,
        "gradient_ms": 1e3 * s["seconds_sample"] / (drawn * steps),
    }, fit


def of_answers(fit: bsd.Fit) -> pd.DataFrame:
    """What an answer takes for more loads, servers and draws, the best of some."""
    rows = []
    every = [(n, *USUAL[1:]) for n in LOADS] + [(USUAL[0], n, USUAL[2]) for n in SERVERS]
    for loads, servers, draws in [*every, *[(*USUAL[:2], n) for n in DRAWS]]:
        thin = fit.thin(draws)
        load = bsd.Load(concurrency=np.linspace(1, 32, loads).tolist(), prompt=512, output=256)
        asked = [bsd.Server(f"model-{i % FEW}", f"head-{i % FEW}", 1 + i // FEW % 5)
                 for i in range(servers)]  # fmt: skip
        took = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            thin.latency(load, asked, extrapolate=True)
            took.append(time.perf_counter() - begun)
        rows.append({"loads": loads, "servers": servers, "draws": thin.draws, "seconds": min(took)})
    return pd.DataFrame(rows)


def exponent(x: Any, y: Any) -> float:
    """Slope of a line through logs."""
    return float(np.polyfit(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)), 1)[0])


def plot(fits: pd.DataFrame, path: Path) -> None:
    """Seconds of a gradient and of a fit against runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for ax, name, label in zip(figure.subplots(1, 2), ("gradient_ms", "seconds"),
                               ("one gradient, ms", "a whole fit, s"), strict=True):  # fmt: skip
        for series, own in fits.groupby("series"):
            mark = "o-" if series == "runs" else "s--"
            ax.loglog(own["runs"], own[name], mark, label=f"more {series}")
        ax.set(xlabel="runs", ylabel=label)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print both tables and their exponents, or with --json one object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--largest", type=int, default=500, help="most runs of a fit")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    sizes = [("runs", FEW, n) for n in RUNS] + [("systems", n, n * EACH) for n in SYSTEMS]
    rows, first = [], None
    for series, systems, runs in sizes:
        if runs > given.largest:
            continue
        row, fit = of_fit(systems, runs)
        first = first or fit
        rows.append({"series": series, **row})
        print(rows[-1], file=sys.stderr)
    fits = pd.DataFrame(rows)
    assert first is not None
    answers = of_answers(first)
    exponents = {}
    for series, own in fits.groupby("series"):
        for name in ("gradient_ms", "sample_s", "seconds") if len(own) > 1 else ():
            exponents[f"{name}, more {series}"] = exponent(own["runs"], own[name])
    usual = dict(zip(("loads", "servers", "draws"), USUAL, strict=True))
    for name in usual:
        same = [(answers[other] == n) | (other == name) for other, n in usual.items()]
        own = answers[np.all(same, axis=0)].drop_duplicates(name)
        exponents[f"answer, more {name}"] = exponent(own[name], own["seconds"])
    if given.plot:
        plot(fits, given.plot)
    if given.json:
        print(json.dumps({"fits": rows, "answers": answers.to_dict("records")} | exponents))
        return
    print(fits.round(3).to_string(index=False))
    print(answers.round(4).to_string(index=False))
    for name, value in exponents.items():
        print(f"exponent of {name}: {value:.2f}")


if __name__ == "__main__":
    main()
