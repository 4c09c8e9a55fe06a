"""How many runs a new machine needs: predictions of it from the reference of the others.

    uv run benchmarks/curve.py [--machines GB200,H100] [--runs 0,4,8] [--cache FOLDER]

Each machine in turn is left out of the reference (benchmarks/reference.py, whose fits of single
machines are taken from the cache), so many of its runs are measured, and all its other runs are
predicted: with none by the data sheet, else by a fit of those runs, with the reference and with the
default priors. The runs are of one system, plain and with drafts where there are any, at loads
spread evenly; a quarter of an hour of two cores a machine.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import reference
from common import fitted

import bayes_sd as bsd
from bayes_sd.runs.schema import Runs

TEST = 150  # runs predicted, spread over the table
CLEAR = 0.05  # SD and plain differ by more


def some(table: pd.DataFrame, count: int) -> np.ndarray:
    """Rows of the first system, spread over its servers and loads."""
    drafting = table[table["draft_tokens"] > 0]
    name = (drafting if len(drafting) else table)["verifier"].iloc[0]
    own = table[(table["verifier"] == name) & (table["environment"] == table.loc[
        table["verifier"] == name, "environment"].iloc[0])]  # fmt: skip
    ks = sorted(own["draft_tokens"].unique())
    ks = [ks[0], *ks[len(ks) // 2 : len(ks) // 2 + 1]] if len(ks) > 1 else ks
    rows: list[int] = []
    for i, k in enumerate(ks):
        server = own[own["draft_tokens"] == k].sort_values("in_flight")
        take = count // len(ks) + (i < count % len(ks))
        at = np.linspace(0, len(server) - 1, min(take, len(server))).round().astype(int)
        rows += server.index[at].tolist()
    return np.array(sorted(set(rows)), int)


def signs(table: pd.DataFrame) -> tuple[float, int]:
    """Share of cells in which SD is rightly called faster or slower, and how many are clear."""
    same = ["verifier", "environment", "concurrency", "prompt_tokens", "output_tokens"]
    plain, sd = table[table["draft_tokens"] == 0], table[table["draft_tokens"] > 0]
    both = sd.merge(plain, on=same, suffixes=("", "_plain"))
    ratio = both["e2e_mean_s_plain"] / both["e2e_mean_s"]
    said = both["predicted_s_plain"] / both["predicted_s"]
    clear = (ratio - 1).abs() > CLEAR
    return float(((ratio > 1) == (said > 1))[clear].mean()), int(clear.sum())


def judged(fit: bsd.Fit, runs: Runs, rows: np.ndarray) -> dict[str, float]:
    """Scores of the predictions of a machine's other runs."""
    rest = runs.table.drop(index=rows).reset_index(drop=True)
    every = np.linspace(0, len(rest) - 1, min(TEST, len(rest))).astype(int)
    rest = rest.iloc[every].reset_index(drop=True)
    table = fit.predict(Runs(rest, runs.set_aside))
    sign, clear = signs(table)
    return {
        "error": float((table["predicted_s"] / table["e2e_mean_s"] - 1).abs().median()),
        "inside": float(table["inside"].mean()),
        "width": float((table["high_s"] / table["low_s"]).median()),
        "sign": sign, "clear": clear, "log_score": float(table["log_score"].mean()),
    }  # fmt: skip


def main() -> None:
    """Print a row a machine, number of runs and prior."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = [name for name in reference.SOURCES if not name.startswith("CPU")]
    parser.add_argument("--machines", default=",".join(known))
    parser.add_argument("--runs", default="0,2,4,8,16")
    parser.add_argument("--cache", type=Path, default=Path("bayes-sd-demo/reference"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    done = []
    for name in given.machines.split(","):
        others = [n for n in reference.SOURCES if n != name]
        prior, runs = reference.build(others, given.cache), reference.runs_of(name)
        for count in map(int, given.runs.split(",")):
            rows = some(runs.table, count)
            few = Runs(runs.table.loc[rows].reset_index(drop=True), runs.set_aside)
            models = {"reference": bsd.LatencyModel(prior=prior), "default": bsd.LatencyModel()}
            fits = {n: fitted(m, few, seed=1) for n, m in models.items()} if count else {
                "reference": prior}  # fmt: skip
            for which, fit in fits.items():
                row = {"machine": name, "runs": count, "prior": which, **judged(fit, runs, rows)}
                done.append(row)
                print(json.dumps(row), flush=True)
    table = pd.DataFrame(done)
    print(table.round(3).to_string(index=False))
    if given.out:
        table.to_csv(given.out, index=False)


if __name__ == "__main__":
    main()
