"""How long a loaded fit takes to answer, in a fresh process without PyMC.

    uv run benchmarks/answers.py [--fit fit.nc] [--json]

`prob_faster` and `latency` are asked of 50 loads and 5 arms over 4,000 draws, the others as an
operator would: one workload, the measured arms of one pair. `first` is the first question of its
kind in the process, `again` the same once more.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DRAWS = 4000
WANTED_S = 1.0

ASK = f"""
import json, sys, time
start = time.perf_counter()
import bayes_sd as bsd
from bayes_sd.inference.fit import Fit
imported = time.perf_counter()
fit = Fit.load(sys.argv[1])
loaded = time.perf_counter()
import numpy as np
from bayes_sd.decide.deploy import deployments
from bayes_sd.report.decisions import decide

fewer = fit.thin({DRAWS})
keep = {DRAWS} // fewer.posterior.sizes["chain"]
tree = fewer.tree.copy()
for name in ("posterior", "acceptance"):
    tree[name] = type(tree)(tree[name].to_dataset().isel(draw=slice(keep)))
fewer = Fit(tree)
tokens = dict(prompt=128, output=64)
many = bsd.grid(rps=(0.1 + 0.1 * np.arange(50)).tolist(), **tokens)
pair = bsd.System("dense-60m", "draft-3m", acceptance=0.7)
plain = bsd.System("dense-60m")
moe = bsd.System("moe-e8k2")
ks = [0, 2, 5]
asked = {{
    "prob_faster, 50 loads x 4 arms": lambda: fewer.prob_faster(many, [1, 2, 3, 5], pair),
    "latency, 50 loads x 5 arms": lambda: fewer.latency(many, [0, 1, 2, 3, 5], pair),
    "decide, 12 loads": lambda: decide(fit, pair, 5, 128, 64),
    "schedule, 64 batch sizes x 3 arms": lambda: fit.schedule(ks, pair, **tokens),
    "capacity, 3 arms": lambda: fit.capacity(2.0, ks, pair, **tokens),
    "next runs, 2 loads x 3 arms": lambda: fit.worth_measuring(ks, pair, rps=[1, 4], **tokens),
    "deploy, 3 candidates": lambda: deployments(
        fit, {{"plain": (plain, 0), "sd": (pair, 5), "moe": (moe, 0)}},
        bsd.Traffic.constant(20.0, 128, 64), slo_s=2.0,
    ),
}}
rows = []
for name, ask in asked.items():
    laps = [time.perf_counter()]
    for _ in range(2):
        ask()
        laps.append(time.perf_counter())
    rows.append({{"question": name, "first_s": laps[1] - laps[0], "again_s": laps[2] - laps[1]}})
print(json.dumps({{
    "seconds_import": imported - start, "seconds_load": loaded - imported, "answers": rows,
    "draws": int(np.prod([fewer.posterior.sizes[d] for d in ("chain", "draw")])),
    "draws_of_fit": int(np.prod([fit.posterior.sizes[d] for d in ("chain", "draw")])),
    "pymc_imported": "pymc" in sys.modules, "pytensor_imported": "pytensor" in sys.modules,
}}))
"""


def make(path: Path) -> None:
    """A fit of the shipped corpus with the default settings."""
    import bayes_sd as bsd
    from bayes_sd.corpus import corpus

    try:
        fit = bsd.LatencyModel().fit(bsd.read_traces(corpus("vllm-cpu")), seed=1)
    except bsd.ConvergenceError as error:
        fit = error.fit
    fit.save(path)


def measure(path: Path) -> dict:
    """Times of one fresh process."""
    command = [sys.executable, "-c", ASK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout) | {"bytes": path.stat().st_size}


def main() -> None:
    """Print a table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", type=Path, help="a saved fit; made here if absent")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.fit or Path(folder) / "fit.nc"
        if not path.is_file():
            make(path)
        result = measure(path)
    slowest = max(row["first_s"] for row in result["answers"])
    result |= {"wanted_s": WANTED_S, "met": slowest < WANTED_S and not result["pymc_imported"]}
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{result['draws']} draws for the first two, {result['draws_of_fit']} for the others; "
        f"import {result['seconds_import']:.2f} s, load {result['seconds_load']:.2f} s "
        f"({result['bytes'] / 1e6:.1f} MB)"
    )
    print(f"{'':<36}{'first, s':>10}{'again, s':>10}")
    for row in result["answers"]:
        print(f"{row['question']:<36}{row['first_s']:>10.2f}{row['again_s']:>10.2f}")
    print(f"PyMC imported: {result['pymc_imported']}")
    print(f"every answer under {WANTED_S:g} s: {'met' if result['met'] else 'MISSED'}")


if __name__ == "__main__":
    main()
