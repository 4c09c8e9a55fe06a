"""How long a loaded fit takes to answer, in a fresh process without PyMC.

    uv run benchmarks/answers.py [--fit fit.nc] [--json]

The arms are plain decoding and four draft lengths of one measured pair.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ARMS = (0, 1, 2, 3, 5)
LOADS = 50
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
import xarray as xr
rates = [0.1 + 0.1 * i for i in range({LOADS})]
load = bsd.grid(rps=rates, prompt=128, output=64)
system = bsd.System("dense-60m", "draft-3m", acceptance=0.7)

def ask(fit):
    begin = time.perf_counter()
    faster = fit.prob_faster(load, k={list(ARMS[1:])}, system=system)
    between = time.perf_counter()
    latency = fit.latency(load, k={list(ARMS)}, system=system)
    end = time.perf_counter()
    latency.quantile([0.5, 0.95, 0.99])
    sizes = latency.draws.sizes
    return {{
        "draws": sizes["chain"] * sizes["draw"], "loads": sizes["rate_rps"], "arms": sizes["k"],
        "seconds_prob_faster": between - begin, "seconds_latency": end - between,
        "seconds_quantiles": time.perf_counter() - end,
        "support": sorted(set(faster["support"].values.ravel().tolist())),
    }}

chains = fit.posterior.sizes["chain"]
groups = {{name: node.to_dataset() for name, node in fit.tree.children.items()}}
fewer = Fit(xr.DataTree.from_dict({{
    name: data.isel(draw=slice({DRAWS} // chains), missing_dims="ignore")
    for name, data in groups.items()
}}))
first = ask(fewer)  # the first question of the process
print(json.dumps({{
    "seconds_import": imported - start, "seconds_load": loaded - imported,
    "answers": [first, ask(fewer), ask(fit)],
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
    first = result["answers"][0]
    slowest = max(first["seconds_prob_faster"], first["seconds_latency"])
    result |= {"wanted": WANTED_S, "met": slowest < WANTED_S and not result["pymc_imported"]}
    if options.json:
        print(json.dumps(result))
        return
    megabytes = result["bytes"] / 1e6
    print(f"{first['loads']} loads x {first['arms']} arms, {', '.join(first['support'])}; seconds")
    print(f"import {result['seconds_import']:.2f}, load {result['seconds_load']:.2f}", end=" ")
    print(f"({megabytes:.1f} MB)")
    print(f"{'':<20}{'draws':>7}{'prob_faster':>13}{'latency':>9}{'both':>7}{'quantiles':>11}")
    for label, one in zip(
        ("first question", "asked again", "all draws"), result["answers"], strict=True
    ):
        a, b = one["seconds_prob_faster"], one["seconds_latency"]
        print(
            f"{label:<20}{one['draws']:>7}{a:>13.3f}{b:>9.3f}{a + b:>7.3f}"
            f"{one['seconds_quantiles']:>11.3f}"
        )
    print(f"PyMC imported: {result['pymc_imported']}")
    print(
        f"either answer over {first['draws']} draws under {WANTED_S:g} s, without PyMC: "
        + ("met" if result["met"] else "MISSED")
    )


if __name__ == "__main__":
    main()
