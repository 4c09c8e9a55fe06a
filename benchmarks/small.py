"""Small data sets as users have them: one verifier, one to three servers with drafting, few loads.

    uv run benchmarks/small.py [--only gb200] [--out small.jsonl]     # about an hour of two cores

Cuts data sets from the shipped runs and, where they lie beside the checkout, from the public A100
and GB200 tables; fits each at default settings and predicts the runs of the same servers that were
left out. Prints for each source how many fits pass the gate, their seconds, and how many of the
held-out runs lie inside their 90% intervals. `--out` keeps finished rows and goes on from them.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import a100_data
import numpy as np
import pandas as pd
from common import part

import bayes_sd as bsd
from bayes_sd.errors import ConvergenceError
from bayes_sd.model.design import same_key
from bayes_sd.runs.read import corpus
from bayes_sd.runs.schema import Runs

GB200 = Path(__file__).parents[2] / "shared" / "traces" / "dynamic-sd-gb200" / "runs.csv"
GB200_PROMPT_TOKENS = 200.0  # mathematics problems; their lengths are not published
SERVER = ["drafter", "acceptance_imposed", "draft_tokens"]
PROB = 0.9
SEED = 1
LEAST = 10  # runs of a verifier, from which to cut
CASE = ("source", "verifier", "drafting", "loads", "ttft")


def cpu(campaign: str) -> Runs:
    """A shipped campaign: open loops, several pairs of lengths."""
    return bsd.read(corpus(campaign)).steady


def a100() -> Runs:
    """Sweeps of one request at a time and constant rates; a drafter always loaded."""
    return a100_data.runs(a100_data.table()).steady


def gb200() -> Runs:
    """Fixed batches within the captured sizes: closed loops, without TTFT."""
    path = Path(os.environ.get("BAYES_SD_GB200", GB200))
    rows = pd.read_csv(path)
    rows = rows[rows["batch"] * (rows["k"] + 1) <= rows["cudagraph_max_tokens"]]
    grouped = rows.groupby([*rows.columns.drop(["output_tokens_per_s", "acceptance_length"])],
                           dropna=False, as_index=False).mean(numeric_only=True)  # fmt: skip
    drafted = grouped["drafter"] != "none"
    return bsd.read(
        grouped.assign(
            drafter_params=np.where(drafted, grouped["verifier_active_params"] / grouped["layers"],
                                    np.nan),
            drafter=("EAGLE-3 head of " + grouped["system"]).where(drafted, ""),
            e2e=grouped["batch"] * grouped["output_tokens"] / grouped["output_tokens_per_s"],
            rps=grouped["output_tokens_per_s"] / grouped["output_tokens"],
            requests=2 * grouped["batch"],
            drafts=(cycles := (2 * grouped["batch"] * grouped["output_tokens"]
                    / grouped["acceptance_length"]).round()),
            accepted=(cycles * (grouped["acceptance_length"] - 1)).round(),
        ),
        columns={
            "verifier": "system", "verifier_params": "verifier_params", "family": "family",
            "verifier_active_params": "verifier_active_params", "experts": "experts",
            "experts_per_token": "experts_per_token", "verifier_layers": "layers",
            "verifier_kv_bytes": "kv_bytes_per_token", "drafter": "drafter",
            "drafter_params": "drafter_params", "draft_tokens": "k", "concurrency": "batch",
            "drafts": "drafts", "accepted_tokens": "accepted", "output_tokens": "output_tokens",
            "e2e_mean_s": "e2e", "achieved_rps": "rps", "requests": "requests",
        },
        prompt_tokens=GB200_PROMPT_TOKENS,
        loop="closed",
        environment="GB200 / vLLM",
    )  # fmt: skip


SOURCES = {
    "vllm-cpu": lambda: cpu("vllm-cpu"),
    "vllm-cpu-2": lambda: cpu("vllm-cpu-2"),
    "a100": a100,
    "gb200": gb200,
}


def spread_out(count: int, wanted: int) -> np.ndarray:
    """Places of so many of `count` runs, evenly over their order, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int))


def cut(runs: Runs, verifier: str, drafting: int, loads: int, seed: int) -> tuple[Runs, Runs]:
    """Runs of the plain server and of some that draft, at so many loads; and those left out."""
    table = runs.table
    own = table["verifier"] == verifier
    rng = np.random.default_rng(seed)
    plain = own & (table["drafter"] == "none")
    servers = list(table[own & (table["draft_tokens"] > 0)].groupby(SERVER, dropna=False).groups)
    order = rng.permutation(len(servers))[: drafting + (not plain.any())]
    chosen = [np.flatnonzero(plain)] if plain.any() else []
    for i in order:
        key = dict(zip(SERVER, servers[i], strict=True))
        same = own & same_key(table, SERVER, key)
        chosen.append(np.flatnonzero(same))
    kept = np.zeros(len(table), bool)
    for rows in chosen:
        by_load = table["concurrency"].fillna(table["rate_rps"]).to_numpy()[rows]
        closed = (table["loop"] == "closed").to_numpy()[rows]
        rising = rows[np.lexsort((by_load, ~closed))]
        kept[rising[spread_out(len(rising), loads)]] = True
    everything = np.isin(np.arange(len(table)), np.concatenate(chosen))
    return part(runs, kept), part(runs, everything & ~kept)


def cases() -> Iterator[tuple[str, str, int, int, bool]]:
    """Source, verifier, servers with drafting, loads, and whether TTFT is given."""
    for source in SOURCES:
        try:
            table = SOURCES[source]().table
        except FileNotFoundError:
            continue
        timed = bool(table["ttft_mean_s"].notna().any())
        for i, (verifier, own) in enumerate(table.groupby("verifier")):
            if len(own) < LEAST:
                continue
            for j, drafting in enumerate((1, 2, 3)):
                loads = ((3, 4, 8), (4, 8, 3), (8, 3, 4))[j][i % 3]
                yield source, verifier, drafting, loads, timed and (i + j) % 2 == 0


def one(
    runs: Runs, case: tuple[str, str, int, int, bool], model: bsd.LatencyModel
) -> dict[str, Any]:
    """Fit one data set and predict what was left out."""
    source, verifier, drafting, loads, timed = case
    used, left_out = cut(runs, verifier, drafting, loads, seed=drafting)
    if not timed:
        names = [name for name in used.table if name.startswith(("ttft_", "tpot_"))]
        used = Runs(used.table.assign(**dict.fromkeys(names, np.nan)), used.set_aside)
    begun, problem = time.perf_counter(), ""
    try:
        fit = model.fit(used, seed=SEED, progress=False)
    except ConvergenceError as error:
        fit, problem = error.fit, str(error)
    seconds = time.perf_counter() - begun
    row = {"source": source, "verifier": verifier, "drafting": drafting, "loads": loads,
           "ttft": timed, "runs": len(used), "passed": not problem, "seconds": seconds,
           **{k: v for k, v in fit.sampling.items()}, "problem": problem}  # fmt: skip
    own = (fit.runs["e2e_mean_s"] / fit.runs["fitted_e2e_s"] - 1).abs()
    row |= {"error": float(own.median()), "worst": float(own.max())}
    if len(left_out):
        table = fit.predict(left_out, prob=PROB, seed=1)
        error = (table["predicted_s"] / table["e2e_mean_s"] - 1).abs()
        row |= {"held_out": len(table), "inside": int(table["inside"].sum()),
                "held_out_error": float(error.median())}  # fmt: skip
    return row


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """What the sources have in common, and all together."""
    sources = [*rows.groupby("source"), ("all", rows)]
    return pd.DataFrame(
        [
            {
                "source": name,
                "data sets": len(own),
                "passed": own["passed"].sum(),
                "median s": own["seconds"].median(),
                "longest s": own["seconds"].max(),
                "fitted, median error": own["error"].median(),
                "held out": own["held_out"].sum(),
                "inside 90%": own["inside"].sum() / max(own["held_out"].sum(), 1),
                "held out, median error": own["held_out_error"].median(),
            }
            for name, own in sources
        ]
    )


def main() -> None:
    """Fit all cases and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SOURCES)
    parser.add_argument("--every", type=int, default=1, help="only each n-th data set")
    parser.add_argument("--out", type=Path, help="JSON lines; finished cases are kept")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    kept = options.out and options.out.is_file()
    rows = (
        [json.loads(line) for line in options.out.read_text("utf-8").splitlines()] if kept else []
    )
    done = {tuple(row[name] for name in CASE) for row in rows}
    loaded: dict[str, Runs] = {}
    for case in list(cases())[:: options.every]:
        if case in done or (options.only and case[0] != options.only):
            continue
        runs = loaded.setdefault(case[0], SOURCES[case[0]]())
        rows.append(one(runs, case, bsd.LatencyModel()))
        shown = {n: rows[-1][n] for n in (*CASE, "runs", "rhat_max", "ess_bulk_min", "divergences",
                                          "draws", "seconds", "error")}  # fmt: skip
        print(*(f"{x:.3g}" if isinstance(x, float) else x for x in shown.values()), flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(summary(pd.DataFrame(rows)).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
