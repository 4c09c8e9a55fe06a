"""GB200, plain and with EAGLE-3: systems fitted together, and each predicted by the others.

    uv run benchmarks/gb200.py [--folds ""] [--cache FOLDER] [--json]      # fifteen minutes

A system is a verifier on so many GPUs, with its data sets (workloads). Prints, in sample and left
out, by system: the median error of a cycle within the captured graphs (that of the mean latency: a
cycle is a share of it that is measured), the share inside 90% intervals and their width; over all
left-out cells how often the sign of SD's effect is right where plain and SD differ by more than 5%,
and a reliability table of P(SD beats plain); and how many cells beyond the graphs are within 20%.
Beside it the least squares of the law (`population.py`) and of a line a system,
``t = a + b B (k + 1) + k (c + d B)`` seconds a cycle of a batch `B`.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import machines_data
import numpy as np
import pandas as pd
import population
from a100 import cached
from common import converged, part

import bayes_sd as bsd
from bayes_sd.answers.fitted import run_outcome
from bayes_sd.physics.law import FULL
from bayes_sd.runs.schema import Runs

CLEAR = 0.05  # SD and plain differ by more
NEAR = 0.2
CELL = ["verifier", "environment", "workload", "concurrency"]
BINS = [0.0, 0.1, 0.3, 0.7, 0.9, 1.0]


def systems(table: pd.DataFrame) -> pd.Series:
    """A verifier on so many GPUs."""
    return table["verifier"].str.split("/").str[-1] + " x" + table["gpus"].astype(int).astype(str)


def captured(table: pd.DataFrame) -> np.ndarray:
    """Whether passes are within the captured graphs."""
    tokens = table["concurrency"] * (table["draft_tokens"] + 1)
    return np.asarray(tokens <= table["captured_tokens"])


def scores(table: pd.DataFrame, system: str) -> dict[str, Any]:
    """Errors and coverage of one system's predictions."""
    error = (table["predicted_s"] / table["e2e_mean_s"] - 1).abs()
    within = captured(table)
    return {
        "system": system, "runs": len(table), "median_error": float(error[within].median()),
        "beyond": f"{(error[~within] <= NEAR).sum()} of {(~within).sum()}",
        "inside_90": float(table["inside"].mean()),
        "width": float((table["high_s"] / table["low_s"]).median()),
    }  # fmt: skip


def chances(fit: bsd.Fit, table: pd.DataFrame) -> pd.DataFrame:
    """Of every drafting cell with a plain one: P(SD beats plain), and the measured ratio."""
    mean_s = run_outcome(fit, table, held_out=True)[0].e2e_s
    measured, rows = table["e2e_mean_s"].to_numpy(), []
    for _, cell in table.groupby(CELL):
        plain = cell.index[cell["draft_tokens"] == 0]
        for i in cell.index[cell["draft_tokens"] > 0] if len(plain) else ():
            # Answers of one cell may differ in length, so latencies a token are compared.
            token = table["output_tokens"][i] / table["output_tokens"][plain[0]]
            ratio = measured[plain[0]] * token / measured[i]
            prob = float((mean_s[:, i] < mean_s[:, plain[0]] * token).mean())
            rows.append({"prob": prob, "ratio": ratio, "captured": captured(table)[i]})
    return pd.DataFrame(rows)


def line_errors(runs: Runs) -> dict[str, float]:
    """Median in-sample error of a line a system and workload, within the graphs."""
    table = runs.table[captured(runs.table)].reset_index(drop=True)
    out: dict[str, list[float]] = {}
    for (system, _), own in table.groupby([systems(table), "workload"]):
        b, k = own["concurrency"].to_numpy(float), own["draft_tokens"].to_numpy(float)
        cycle_s = own["e2e_mean_s"] / own["output_tokens"] * own["tokens_per_cycle"]
        terms = np.stack([np.ones_like(b), b * (k + 1), k, k * b], axis=1)
        scaled = terms / cycle_s.to_numpy()[:, None]
        theta = np.linalg.lstsq(scaled, np.ones(len(own)), rcond=None)[0]
        out.setdefault(str(system), []).extend(np.abs(scaled @ theta - 1))
    return {name: float(np.median(errors)) for name, errors in out.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", help="systems with commas; all by default")
    parser.add_argument("--cache", type=Path, default=Path("bayes-sd-demo/gb200"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not machines_data.GB200.is_file():
        print(f"skipped: {machines_data.GB200} is absent (set BAYES_SD_GB200)")
        return
    warnings.simplefilter("ignore")
    options.cache.mkdir(parents=True, exist_ok=True)
    runs, model = machines_data.gb200(), bsd.LatencyModel()
    names = systems(runs.table)
    folds = sorted(names.unique()) if options.folds is None else options.folds.split(",")
    joint = cached(runs, options.cache, "joint", model)
    table = joint.predict(runs)
    inside = [scores(own, str(name)) for name, own in table.groupby(systems(table))]
    given = population.inputs(runs)
    squares = np.abs(population.fit(given, FULL).error(given))
    lines = line_errors(runs)
    for row in inside:
        own = (names == row["system"]) & captured(runs.table)
        row |= {"least_squares": float(np.median(squares[own])), "line": lines[row["system"]]}
    left, ratios = [], []
    for fold in filter(None, folds):
        held = (names == fold).to_numpy()
        fit = cached(part(runs, ~held), options.cache, f"without-{fold}", model)
        table = fit.predict(part(runs, held)).reset_index(drop=True)
        left.append(scores(table, fold) | {"converged": converged(fit)})
        ratios.append(chances(fit, table))
    result: dict[str, Any] = {"joint": joint.sampling["rhat_max"], "in_sample": inside}
    if left:
        cells = pd.concat(ratios)
        clear = cells[(cells["ratio"] - 1).abs() > CLEAR]
        right = (clear["prob"] > 0.5) == (clear["ratio"] > 1)
        clear = clear.assign(right=right, wins=clear["ratio"] > 1)
        bins = pd.cut(clear["prob"], BINS, include_lowest=True)
        reliability = clear.groupby(bins, observed=True).agg(
            cells=("prob", "size"), mean_prob=("prob", "mean"), wins=("wins", "mean")
        )
        within = clear["captured"].to_numpy(bool)
        result |= {"left_out": left, "signs": f"{right.sum()} of {len(right)}",
                   "signs_captured": f"{right[within].sum()} of {within.sum()}",
                   "reliability": reliability.reset_index().astype(str).to_dict("records")
                   }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(name)
        several = isinstance(value, list)
        print(pd.DataFrame(value).round(3).to_string(index=False) if several else value)


if __name__ == "__main__":
    main()
