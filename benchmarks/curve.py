"""The 20-minute curve: how well a machine is predicted from so many runs of its own.

    uv run benchmarks/curve.py [--machines GB200,H100] [--runs 0,4,8] [--cache FOLDER] [--out CSV]

Each machine in turn is left out of the reference (benchmarks/reference.py, whose fits of single
machines are taken from the cache); so many runs of one of its systems are given, and all its other
runs are predicted: with none from data sheets, else by fits of those runs with the priors of the
reference and with the default ones. The runs are spread over draft lengths and loads; on GB200 also
those that `next_runs` proposes, asked of what is known so far (the reference at first), filled up
where it proposes too few. Half an hour of two cores in all.

Last, likewise, all runs of two of its systems (verifiers), at most forty.

Per row: median error; share inside 90% intervals and their width (high over low); how often SD is
rightly called faster or slower than plain where they differ by more than 5%, and how many such
cells; the latency lost, in the mean, by running the draft length predicted to be best.
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import reference
from common import converged, fitted, part

import bayes_sd as bsd
from bayes_sd.errors import EvidenceError
from bayes_sd.runs.schema import Runs

CLEAR = 0.05  # SD and plain differ by more
CELL = ["verifier", "environment", "workload", "concurrency",
        "prompt_tokens", "output_tokens"]  # fmt: skip
SYSTEMS = "2 systems"


def system(table: pd.DataFrame) -> pd.DataFrame:
    """Runs of the first verifier that drafts, or of the first, in one environment."""
    drafting = table[table["draft_tokens"] > 0]
    first = (drafting if len(drafting) else table).iloc[0]
    same = ["verifier", "environment", "workload"]
    return table[(table[same] == first[same]).all(axis=1)]


def spread(own: pd.DataFrame, count: int) -> list[int]:
    """Rows over the least, the middle and the largest draft length, and over loads."""
    ks = sorted(own["draft_tokens"].unique())
    ks = list(dict.fromkeys([ks[0], ks[len(ks) // 2], ks[-1]]))[: max(count // 2, 1)]
    rows: list[int] = []
    for i, k in enumerate(ks):
        server = own[own["draft_tokens"] == k].sort_values("in_flight")
        take = min(count // len(ks) + (i < count % len(ks)), len(server))
        rows += server.index[np.linspace(0, len(server) - 1, take).round().astype(int)].tolist()
    return rows


def two_systems(table: pd.DataFrame) -> list[int]:
    """Rows of the smallest and the largest verifier, spread over each."""
    sizes = table.groupby("verifier")["verifier_params"].first().sort_values()
    rows: list[int] = []
    for name in (sizes.index[0], sizes.index[-1]):
        own = table.index[table["verifier"] == name]
        rows += own[np.linspace(0, len(own) - 1, min(20, len(own))).astype(int)].tolist()
    return rows


def proposed(known: bsd.Fit, own: pd.DataFrame, taken: list[int], count: int) -> list[int]:
    """Rows that `next_runs` proposes, of those not taken yet; filled up by `spread`."""
    first, concurrencies = own.iloc[0], sorted(own["concurrency"].dropna().unique().tolist())
    where: Any = str(first["environment"])
    if where not in known.environments:
        where = bsd.Machine("GB200", gpus=int(first["gpus"]))
        sizes = first[["verifier_params", "verifier_active_params", "experts",
                       "experts_per_token", "verifier_layers", "verifier_kv_bytes",
                       "verifier_queries_per_key"]]  # fmt: skip
        verifier: Any = bsd.Size(*sizes[:2], *map(int, sizes[2:4]), *sizes[4:])
    else:
        verifier = str(first["verifier"])
    rates = own.assign(rate=(own["tokens_per_cycle"] - 1) / own["draft_tokens"])
    servers = []
    for k, rows in rates.groupby("draft_tokens"):
        drafter = bsd.Size(rows["drafter_params"].iloc[0]) if k else None
        rate = float(np.clip(rows["rate"].mean(), 0, 1)) if k else None
        servers.append(bsd.Server(verifier, drafter, int(k), rate, where))
    load = bsd.Load(concurrency=concurrencies, prompt=first["prompt_tokens"],
                    output=first["output_tokens"])  # fmt: skip
    try:
        answer = known.next_runs(load, servers, runs=count + len(taken), extrapolate=True)
        wanted = [(s.k, v["concurrency"]) for s, loads in answer.points() for v in loads]
    except EvidenceError:
        wanted = []
    cells = {(int(r.draft_tokens), r.concurrency): i for i, r in own.iterrows()}
    rows = [cells[at] for at in wanted if at in cells and cells[at] not in taken]
    rows += [i for i in spread(own, len(own)) if i not in (*taken, *rows)]
    return rows[:count]


def cells(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Runs of one load that differ in the draft length."""
    closed = table[table["concurrency"].notna()]
    for _, rows in closed.groupby(CELL, dropna=False):
        if rows["draft_tokens"].nunique() > 1:
            yield rows.drop_duplicates("draft_tokens")


def scores(table: pd.DataFrame) -> dict[str, float]:
    """What a row of the curve says of predictions."""
    right, lost = [], []
    for rows in cells(table):
        lost.append(rows["e2e_mean_s"][rows["predicted_s"].idxmin()] / rows["e2e_mean_s"].min() - 1)
        plain = rows[rows["draft_tokens"] == 0]
        for _, sd in rows[rows["draft_tokens"] > 0].iterrows() if len(plain) else ():
            ratio = plain["e2e_mean_s"].iloc[0] / sd["e2e_mean_s"]
            if abs(ratio - 1) > CLEAR:
                said = plain["predicted_s"].iloc[0] / sd["predicted_s"]
                right.append((ratio > 1) == (said > 1))
    return {
        "error": float((table["predicted_s"] / table["e2e_mean_s"] - 1).abs().median()),
        "inside": float(table["inside"].mean()),
        "width": float((table["high_s"] / table["low_s"]).median()),
        "sign": float(np.mean(right)) if right else np.nan, "clear": len(right),
        "regret": float(np.mean(lost)) if lost else np.nan,
    }  # fmt: skip


def rows_of(name: str, counts: list[Any], cache: Path) -> Iterator[dict[str, Any]]:
    """A row a number of runs and prior."""
    runs = reference.runs_of(name)
    others = [n for n in reference.SOURCES if n.partition(" ")[0] != name.partition(" ")[0]]
    prior = reference.build(others, cache, old=name in reference.STATIC)
    models = {"reference": bsd.LatencyModel(prior=prior), "default": bsd.LatencyModel()}
    own, sheet = system(runs.table), runs.table["gb_per_s"].notna().all()
    arms = [("reference", "next_runs")] * (name == "GB200")
    arms += [(which, "spread") for which in models]
    for which, chosen in arms:
        model = models[which]
        known, taken = prior, list[int]()
        for count in (*counts, SYSTEMS):
            row = {"machine": name, "runs": count, "prior": which, "chosen": chosen}
            if count:
                if chosen == "next_runs" and count == SYSTEMS:
                    continue
                if chosen == "next_runs":
                    taken += proposed(known, own, taken, count - len(taken))
                else:
                    taken = two_systems(runs.table) if count == SYSTEMS else spread(own, count)
                few = Runs(runs.table.loc[taken].reset_index(drop=True), runs.set_aside)
                known = fitted(model, few, seed=1)
                row["converged"] = converged(known)
            elif (which, chosen) != ("reference", "spread") or not sheet:
                continue
            rest = part(runs, ~runs.table.index.isin(taken))
            if not len(rest):
                continue
            if count and not sheet:  # nothing says how another environment differs
                here = rest.table["environment"].isin(known.environments)
                rest = part(rest, here)
            yield {**row, **scores(known.predict(rest))}


def main() -> None:
    """Print a row a machine, number of runs and prior."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machines", default=",".join(reference.SOURCES))
    parser.add_argument("--runs", default="0,2,4,8,16")
    parser.add_argument("--cache", type=Path, default=Path("bayes-sd-demo/reference"))
    parser.add_argument("--out", type=Path, help="CSV")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    done, counts = [], sorted(map(int, given.runs.split(",")))
    for name in given.machines.split(","):
        for row in rows_of(name, counts, given.cache):
            done.append(row)
            print(json.dumps(row), flush=True)
            if given.out:
                pd.DataFrame(done).to_csv(given.out, index=False)
    print(pd.DataFrame(done).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
