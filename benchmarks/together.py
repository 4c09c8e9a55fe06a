"""Runs of an A100, of GB200 and of two CPU campaigns in one fit: does it converge, and how soon?

    uv run benchmarks/together.py [--machines a100,gb200,cpu] [--minutes 40]

Prints each sample and why it did not pass, and the median error of the mean latency by environment.
Public tables are read beside the checkout and skipped where absent.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import a100_data
import machines_data
import pandas as pd
from common import converged, fitted

import bayes_sd as bsd
from bayes_sd.runs.read import corpus
from bayes_sd.runs.schema import Runs

MACHINES: dict[str, Callable[[], Runs]] = {
    "a100": lambda: a100_data.runs(a100_data.table()),
    "gb200": machines_data.gb200,
    "cpu": lambda: bsd.read([corpus("vllm-cpu"), corpus("vllm-cpu-2")]),
    "h100": lambda: bsd.read(corpus("vllm-h100")),
    "h200": lambda: bsd.read(corpus("vllm-h200")),
}


def main() -> None:
    """Fit them together."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machines", default="a100,gb200,cpu", help=f"of {', '.join(MACHINES)}")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    parts: list[Runs] = []
    for name in given.machines.split(","):
        try:
            parts.append(MACHINES[name]())
        except FileNotFoundError as error:
            print(f"{name} is skipped: {error.filename} is absent")
    table = pd.concat([part.table for part in parts], ignore_index=True)
    print(f"{len(table)} rows: {table['environment'].value_counts().to_dict()}")
    begun, worked = time.perf_counter(), time.process_time()
    runs = Runs(table, parts[0].set_aside)
    fit = fitted(bsd.LatencyModel(), runs, seed=given.seed, max_minutes=given.minutes)
    seconds = time.perf_counter() - begun, time.process_time() - worked
    print("passed {}, {:.0f} s, {:.0f} s of processors".format(converged(fit), *seconds))
    for sample in fit.sampling["samples"]:
        print(sample)
    print({n: fit.sampling[n] for n in ("rhat_max", "ess_bulk_min", "ess_tail_min")})
    error = (fit.runs["fitted_e2e_s"] / fit.runs["e2e_mean_s"] - 1).abs()
    print(error.groupby(fit.runs["environment"]).median().map("{:.1%}".format).to_string())


if __name__ == "__main__":
    main()
