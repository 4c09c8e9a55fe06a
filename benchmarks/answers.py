"""How long a saved fit takes to answer, in a fresh process that never imports PyMC.

    uv run benchmarks/answers.py [--fit fit.nc] [--json]     # seconds, and a fit if none is given

Prints the CPU seconds of every question, which other work on the machine does not change: `first`
the first time in the process, `again` once more. `latency` and `compare` are asked of 50 rates, the
others as an operator would ask them. Then the seconds of whole commands in a shell, start and
imports included, the shortest of three.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WANTED_S, WANTED_SHELL_S = 1.0, 1.5
START = "from bayes_sd.cli.app import main; "
PAIR = "FIT --verifier dense-60m --drafter draft-3m --acceptance 0.7 --prompt 128 --output 64"
COMMANDS = {
    "imports": "",
    "latency": f"latency {PAIR} --rps 1,2,4",
    "compare": f"compare {PAIR}",
    "schedule": f"schedule {PAIR}",
    "ask": "ask --verifier Qwen3-32B --drafter eagle3 --machine H100 --gpus 2 --acceptance 0.7 "
    "--concurrency 1,8,64 -k 0,1,3,5",
}

ASK = """
import json, sys, time
begun = time.process_time()
import bayes_sd as bsd
fit_class = bsd.Fit
imported = time.process_time()
fit = fit_class.load(sys.argv[1])
loaded = time.process_time()

tokens = dict(prompt=128, output=64)
rates = [0.1 + 0.1 * i for i in range(50)]
many, few = bsd.Load(rps=rates, **tokens), bsd.Load(rps=rates[::4], **tokens)
two, one = bsd.Load(rps=[1, 4], **tokens), bsd.Load(rps=20, **tokens)
plain, moe = bsd.Server("dense-60m"), bsd.Server("moe-e8k2")
sd = [bsd.Server("dense-60m", "draft-3m", k=k, acceptance=0.7) for k in (1, 2, 3, 5)]
far = dict(extrapolate=True)
questions = {
    "latency, 50 rates x 5 servers": lambda: fit.latency(many, [plain, *sd], **far).table,
    "compare, 50 rates": lambda: fit.compare(many, sd[1], plain, **far).table,
    "break_even": lambda: str(fit.break_even(few, sd[1], plain)),
    "schedule, 64 batch sizes x 3 k": lambda: fit.schedule(few, sd[1], k=[0, 2, 5], **far),
    "capacity, 3 servers": lambda: fit.capacity(one, [plain, *sd[1::2]], slo_s=2, **far),
    "capacity, 3 servers, prices": lambda: fit.capacity(
        one, {"plain": plain, "sd": sd[1], "moe": moe}, slo_s=2, price_per_hour=1.0
    ),
    "next_runs, 2 rates x 3 servers": lambda: fit.next_runs(two, [plain, *sd[1::2]], **far),
}
rows = []
for name, ask in questions.items():
    laps = [time.process_time()]
    for _ in range(2):
        ask()
        laps.append(time.process_time())
    rows.append({"question": name, "first_s": laps[1] - laps[0], "again_s": laps[2] - laps[1]})
print(json.dumps({
    "import_s": imported - begun, "load_s": loaded - imported, "answers": rows,
    "draws": fit.draws, "pymc_imported": "pymc" in sys.modules,
}))
"""


def make(path: Path) -> None:
    """A fit of the shipped runs with the default settings."""
    import common

    import bayes_sd as bsd
    from bayes_sd.runs.read import corpus

    common.fitted(bsd.LatencyModel(), bsd.read(corpus("vllm-cpu")), seed=1).save(path)


def measure(path: Path) -> dict:
    """Times of one fresh process."""
    command = [sys.executable, "-c", ASK, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout) | {"bytes": path.stat().st_size}


def shell(path: Path) -> dict[str, float]:
    """Seconds of each command."""
    # Compiled once, as Python keeps its own code if nothing is said.
    env = {name: x for name, x in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    seconds = {}
    for name, words in COMMANDS.items():
        given = words.replace("FIT", str(path)).split()
        command = [sys.executable, "-c", START + ("main()" if given else ""), *given]
        laps = []
        for _ in range(4):  # the first fills caches
            begun = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, env=env, check=True)
            laps.append(time.perf_counter() - begun)
        seconds[name] = min(laps[1:])
    return seconds


def main() -> None:
    """Print a table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", type=Path, help="a saved fit of the shipped runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.fit or Path(folder) / "fit.nc"
        if not path.is_file():
            make(path)
        result = measure(path) | {"shell_s": shell(path)}
    slowest = max(row["first_s"] for row in result["answers"])
    result |= {"wanted_s": WANTED_S, "met": slowest < WANTED_S and not result["pymc_imported"]}
    result["shell_met"] = max(result["shell_s"].values()) < WANTED_SHELL_S
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{result['draws']} draws; import {result['import_s']:.2f} s, load "
        f"{result['load_s']:.2f} s ({result['bytes'] / 1e6:.1f} MB); CPU seconds"
    )
    print(f"{'':<36}{'first, s':>10}{'again, s':>10}")
    for row in result["answers"]:
        print(f"{row['question']:<36}{row['first_s']:>10.2f}{row['again_s']:>10.2f}")
    print(f"PyMC imported: {result['pymc_imported']}")
    for name, seconds in result["shell_s"].items():
        print(f"in a shell: {name:<24}{seconds:>10.2f}")
    print(f"every answer under {WANTED_S:g} s: {'met' if result['met'] else 'MISSED'}")
    print(f"every command under {WANTED_SHELL_S:g} s: {'met' if result['shell_met'] else 'MISSED'}")


if __name__ == "__main__":
    main()
