"""A refit of a model that is compiled once, against a cold fit and against fits made anew.

    uv run benchmarks/refits.py [--verifier dense-60m] [--refits 3] [--json]      # minutes

Cold: a new process that finds no compiled code on disk. Anew: a new process a fold that finds what
the cold one left, as a loop over ``LatencyModel.fit`` would. Once: one process that compiles
``LatencyModel.refitter`` and then only samples. All leave out the same random fifths, and draw as
much. CPU seconds are beside those of the clock, as they hold on a machine that others work on too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any

BOUND = 0.05
DRAWS = {"draws": 1200, "tune": 700}
QUICK = {"draws": 500, "tune": 500}


def spent() -> dict[str, float]:
    """Seconds of the processors and of the clock since some moment."""
    return {"cpu_s": time.process_time(), "wall_s": time.perf_counter()}


def since(begun: dict[str, float]) -> dict[str, float]:
    """Seconds since then."""
    return {name: now - begun[name] for name, now in spent().items()}


def part(verifier: str, split: int | None) -> Any:
    """The shipped runs, of one verifier if named, and which of them are left out in a split."""
    import common
    import numpy as np

    import bayes_sd as bsd
    from bayes_sd.runs.read import corpus

    runs = bsd.read(corpus("vllm-cpu"))
    runs = runs.select(verifier=verifier) if verifier else runs
    out = np.zeros(len(runs), bool) if split is None else common.random_fifth(len(runs), split)
    return runs, out


def fit(verifier: str, split: int | None) -> list[dict[str, Any]]:
    """One fit from the start of this process."""
    begun = {"cpu_s": 0.0, "wall_s": time.perf_counter()}
    import common

    import bayes_sd as bsd

    runs, out = part(verifier, split)
    made = common.fitted(bsd.LatencyModel(), common.part(runs, ~out), max_minutes=0.0, **DRAWS)
    at = {name: made.sampling[name] for name in ("seconds_compile", "seconds_sample")}
    gate = {name: made.sampling[name] for name in ("ess_bulk_min", "rhat_max", "divergences")}
    return [since(begun) | at | gate]


def refits(verifier: str, count: int) -> list[dict[str, Any]]:
    """Compiled once, then sampled; the first row is the compilation."""
    begun = {"cpu_s": 0.0, "wall_s": time.perf_counter()}
    import bayes_sd as bsd

    runs, _ = part(verifier, None)
    refitter = bsd.LatencyModel().refitter(runs)
    rows: list[dict[str, Any]] = [since(begun) | {"what": "compile"}]
    for split in range(count):
        ids = runs.table["run_id"][part(verifier, split)[1]]
        mask = refitter.table["run_id"].isin(ids).to_numpy()
        for what, how in (("refit", DRAWS), ("quick refit", QUICK)):
            begun = spent()
            refit = refitter.refit(mask, **how)
            took = since(begun)
            steps = refit.sampled["sample_stats"]["n_steps"].to_numpy()
            gate = {n: refit.convergence.summary[n] for n in ("ess_bulk_min", "rhat_max")}
            rows.append(took | {"what": what, "steps_per_draw": float(steps.mean())} | gate)
    return rows


def child(*arguments: str, cache: str) -> Any:
    """What a new process measures, with compiled code in a folder of its own."""
    flags = {"PYTENSOR_FLAGS": f"base_compiledir={cache}", "NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-W", "ignore", __file__, "--child", *arguments]
    done = subprocess.run(command, env=os.environ | flags, check=True, stdout=subprocess.PIPE)
    rows = json.loads(done.stdout)
    for row in rows:
        print(arguments[0], row, file=sys.stderr)
    return rows


def main() -> None:
    """Print a table and the ratios, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verifier", default="", help="only its runs; '' for all")
    parser.add_argument("--refits", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "SPLIT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        warnings.simplefilter("ignore")
        what, number = options.child[0], int(options.child[1])
        if what == "refits":
            rows = refits(options.verifier, number)
        else:
            rows = fit(options.verifier, None if number < 0 else number)
        print(json.dumps(rows))
        return

    import pandas as pd

    more = ("--verifier", options.verifier)
    with tempfile.TemporaryDirectory() as cache:
        (cold,) = child("cold", "-1", *more, cache=cache)
        splits = map(str, range(options.refits))
        anew = pd.DataFrame([child("anew", i, *more, cache=cache)[0] for i in splits])
        once = pd.DataFrame(child("refits", str(options.refits), *more, cache=cache))
    by = once.groupby("what").mean()
    rows = {"cold fit": cold, "anew": anew.mean().to_dict(), **by.T.to_dict()}
    ratios = {
        f"{name} / {other} ({unit[:-2]})": rows[name][unit] / rows[other][unit]
        for name in ("refit", "quick refit")
        for other in ("cold fit", "anew")
        for unit in ("cpu_s", "wall_s")
    }
    folds = options.refits
    for unit in ("cpu_s", "wall_s"):
        compiled_once = rows["compile"][unit] + folds * rows["refit"][unit]
        ratios[f"{folds} anew / {folds} once ({unit[:-2]})"] = (
            folds * rows["anew"][unit] / compiled_once
        )
    met = ratios["refit / cold fit (wall)"] <= BOUND
    if options.json:
        print(json.dumps({"rows": rows, "ratios": ratios, "met": met}))
        return
    print(pd.DataFrame(rows).T.round(3).to_string())
    for name, value in ratios.items():
        print(f"{name}: {value:.3f}")
    print(f"refit at most {BOUND:.0%} of a cold fit: {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    main()
