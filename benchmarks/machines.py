"""How well does the package's law describe each machine, and carry to models it has not seen?

    uv run benchmarks/machines.py [NAME ...] [--without experts] [--json]     # four minutes

Least squares of the law's own coefficients (`population.py`), machine by machine: median error of
the mean latency of the runs fitted, and of each verifier predicted by a fit of the others (of
GB200 each system, a verifier on so many GPUs, with all its workloads). For GB200 also how often the
left-out sign of speculative decoding (SD) against plain decoding is right where they differ by more
than 5%, and how many cells beyond captured graphs are within 20%. NAME is a part of a machine's
name, `--without` leaves parts of the law out. Tables that are not beside the checkout are skipped.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable

import a100_data
import machines_data
import numpy as np
import pandas as pd
import population
import static_data
from common import part

import bayes_sd as bsd
from bayes_sd.physics.law import DEFAULT, PARTS
from bayes_sd.runs.schema import Runs

CLEAR = 0.05  # SD and plain differ by more
NEAR = 0.2
BATCH = ["environment", "workload", "verifier", "concurrency"]


def sources() -> dict[str, Callable[[], Runs]]:
    """Runs of each machine, by its name; of tables that are there."""
    found: dict[str, Callable[[], Runs]] = {}
    for name in ("eager", "compiled"):
        found[f"CPU {name}"] = lambda name=name: cpu(name == "eager")
    if a100_data.path().is_file():
        found["A100 80GB"] = machines_data.a100
    if machines_data.GB200.is_file():
        found["GB200"] = machines_data.gb200
    if static_data.path().is_file():
        for name in machines_data.NAMES.values():
            found[f"{name}, batches"] = lambda name=name: machines_data.static(name)
    return found


def cpu(eager: bool) -> Runs:
    """The shipped runs without compiled graphs, or with them."""
    runs = machines_data.cpu()
    return part(runs, (runs.table["environment"].str.endswith("eager") == eager).to_numpy())


def groups_of(table: pd.DataFrame, name: str) -> pd.Series:
    """What is left out together: a verifier, of GB200 on so many GPUs."""
    if name != "GB200":
        return table["verifier"]
    return table["verifier"] + " x" + table["environment"].str.split(" x ").str[0]


def percent(error: np.ndarray | pd.Series) -> float:
    """Median absolute error, %."""
    return round(100 * float(np.median(np.abs(error))), 1)


def signs(table: pd.DataFrame, error: np.ndarray) -> str:
    """In how many clear cells the faster of SD and plain is the predicted one."""
    # Seconds of a token: answers of one cell may differ in length.
    measured_s = table["e2e_mean_s"] / table["output_tokens"]
    rows = table.assign(measured_s=measured_s, said_s=measured_s * (1 + error))
    drafts = rows["draft_tokens"] > 0
    both = rows[drafts].merge(rows[~drafts], on=BATCH, suffixes=("", "_plain"))
    ratio = both["measured_s_plain"] / both["measured_s"]
    right = (ratio > 1) == (both["said_s_plain"] > both["said_s"])
    clear = (ratio - 1).abs() > CLEAR
    return f"{right[clear].sum()} of {clear.sum()}"


def study(name: str, runs: Runs, law: bsd.Law) -> dict:
    """Errors of one machine, %, and its coefficients."""
    given = population.inputs(runs)
    table, fitted = given.table, population.fit(given, law)
    inside, groups = fitted.error(given), groups_of(given.table, name)
    held = population.left_out(given, groups, law)
    captured = given.workload["pass_tokens"] <= given.sizes["captured"]
    result = {
        "runs": len(table),
        "in_sample": percent(inside),
        "left_out": percent(held),
        "each_left_out": {each: percent(held[groups == each]) for each in groups.unique()},
    }
    if name == "GB200":
        result["signs_left_out"] = signs(table, held)
        result["signs_left_out_captured"] = signs(table[captured], held[captured])
        for key, error in (("in_sample", inside), ("left_out", held)):
            near = np.abs(error[~captured]) <= NEAR
            result[f"beyond_graphs_{key}"] = f"{near.sum()} of {near.size}"
    return result | {"terms": {term: float(f"{x:.3g}") for term, x in fitted.terms.items()}}


def main() -> None:
    """Print a block a machine, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of machines' names; all by default")
    parser.add_argument("--without", nargs="+", default=[], choices=PARTS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    law = bsd.Law(tuple(name for name in DEFAULT if name not in options.without))
    for path in (a100_data.path(), machines_data.GB200, static_data.path()):
        if not path.is_file():
            print(f"skipped: {path} is absent", file=sys.stderr)
    results = {}
    for name, runs in sources().items():
        if options.names and not any(each in name for each in options.names):
            continue
        results[name] = study(name, runs(), law)
        if not options.json:
            print(name)
            for key, value in results[name].items():
                print(f"  {key}: {value}", flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
