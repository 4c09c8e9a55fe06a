"""Small data sets as users have them: one verifier, one to three servers with drafting, few loads.

    uv run benchmarks/small.py [--only gb200] [--out small.jsonl]     # 20 minutes of two cores
    uv run benchmarks/small.py --variants default no-ttft queued independent --every 5
    uv run benchmarks/small.py --seeds 10

Cuts data sets from the shipped runs and, where they lie beside the checkout, from the public A100
and GB200 tables; fits each at default settings and predicts the runs of the same servers that were
left out. Prints for each source how many fits pass the gate, their seconds, and how many of the
held-out runs lie inside their 90% intervals: those within the loads of the fit, and all.

`--variants` fits each data set in other ways too: without TTFT, with a TTFT that is up to QUEUED
times as long under load ("queued"), with independent priors or those of the reference, and prints
how far the fitted means move. `--seeds` fits one GB200 and one CPU data set from so many seeds, and
prints how the answers scatter beside their Monte Carlo error. `--out` keeps finished rows and goes
on from them.
"""

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import a100_data
import arviz as az
import machines_data
import numpy as np
import pandas as pd
from common import part

import bayes_sd as bsd
from bayes_sd.errors import ConvergenceError, EvidenceError
from bayes_sd.model.acceptance import same_key
from bayes_sd.model.priors import TOGETHER
from bayes_sd.runs.read import corpus
from bayes_sd.runs.schema import Runs

SERVER = ["drafter", "acceptance_imposed", "draft_tokens"]
PROB = 0.9
SEED = 1
LEAST = 10  # runs of a verifier, from which to cut
CASE = ("source", "verifier", "drafting", "loads", "ttft")
KEY = (*CASE, "variant", "seed")
VARIANTS = ("default", "no-ttft", "queued", "independent", "reference")
QUEUED = 5.0
SEVERAL = ("gb200", "vllm-cpu")  # sources of the data sets of `--seeds`


def shipped(campaign: str) -> Runs:
    """A shipped campaign: open loops on a CPU, held concurrencies on a GPU."""
    return bsd.read(corpus(campaign)).steady


def a100() -> Runs:
    """Sweeps of one request at a time and constant rates; a drafter always loaded."""
    return a100_data.runs(a100_data.table()).steady


def gb200() -> Runs:
    """Fixed batches within captured graphs, a verifier a system: closed loops, without TTFT."""
    runs = machines_data.gb200()
    table = runs.table
    captured = table["concurrency"] * (table["draft_tokens"] + 1) <= table["captured_tokens"]
    gpus = table["environment"].str.split(" / ").str[0]
    named = table.assign(verifier=table["verifier"] + " on " + gpus, environment=gpus)
    return part(Runs(named, runs.set_aside), captured.to_numpy())


def held(loop: str | None = None) -> Runs:
    """The shipped runs at concurrencies, and one rate a server unless of one loop alone."""
    runs = bsd.read(Path(__file__).with_name("closed-loop") / "calibration").steady
    return part(runs, (runs.table["loop"] == loop).to_numpy()) if loop else runs


SOURCES = {
    "vllm-cpu": lambda: shipped("vllm-cpu"),
    "vllm-cpu-2": lambda: shipped("vllm-cpu-2"),
    "vllm-h200": lambda: shipped("vllm-h200"),
    "cpu-closed": lambda: held("closed"),
    "cpu-both": held,
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
        several = table["verifier"].nunique() > 1
        for i, (verifier, own) in enumerate(table.groupby("verifier")):
            if len(own) < LEAST:
                continue
            for j, drafting in enumerate((1, 2, 3)):
                loads = ((3, 4, 8), (4, 8, 3), (8, 3, 4))[j][i % 3]
                # Of one verifier both, of several in turn.
                for ttft in (timed and (i + j) % 2 == 0,) if several else (True, False):
                    yield source, verifier, drafting, loads, ttft


def without_ttft(runs: Runs) -> Runs:
    """The same runs, as if nobody had recorded their TTFT."""
    names = [name for name in runs.table if name.startswith(("ttft_", "tpot_"))]
    return Runs(runs.table.assign(**dict.fromkeys(names, np.nan)), runs.set_aside)


def queued(runs: Runs) -> Runs:
    """The same runs with a TTFT up to `QUEUED` times as long, as where prompts wait for a slot."""
    table = without_ttft(runs).table
    load = np.log(table["concurrency"].fillna(runs.table["rate_rps"] * table["e2e_mean_s"]))
    share = (load - load.min()).clip(lower=0) / max(load.max() - load.min(), 1e-9)
    longer = runs.table["ttft_mean_s"] * QUEUED**share
    table["ttft_mean_s"] = np.minimum(longer, 0.9 * table["e2e_mean_s"])
    return Runs(table, runs.set_aside)


def within(predicted: pd.DataFrame, fitted: pd.DataFrame) -> np.ndarray:
    """Which runs have no more and no fewer requests in flight than some run that was fitted."""
    seen = fitted["concurrency"].fillna(fitted["rate_rps"] * fitted["e2e_mean_s"])
    held_out = predicted["concurrency"].fillna(predicted["rate_rps"] * predicted["predicted_s"])
    return held_out.between(seen.min(), seen.max()).to_numpy()


def answers(fit: bsd.Fit) -> dict[str, dict[str, float]]:
    """Speedup and P(SD beats plain) at a middle load, each with its Monte Carlo error."""
    runs = fit.runs
    drafting = runs[runs["draft_tokens"] > 0].iloc[0]
    held = runs["concurrency"].median()
    load = {"rps": runs["rate_rps"].median()} if np.isnan(held) else {"concurrency": held}
    lengths = {"prompt": runs["prompt_tokens"].median(), "output": runs["output_tokens"].median()}
    imposed = drafting["acceptance_imposed"]
    server = bsd.Server(drafting["verifier"], drafting["drafter"], int(drafting["draft_tokens"]),
                        None if np.isnan(imposed) else imposed,
                        workload=drafting["workload"])  # fmt: skip
    plain = bsd.Server(drafting["verifier"], workload=drafting["workload"])
    try:
        draws = fit.compare(bsd.Load(**load, **lengths), server, plain, extrapolate=True).draws
    except EvidenceError:  # no plain server
        return {}
    draws = draws.isel(server=0)
    speedup, faster = (draws[n].values.astype(float) for n in ("speedup", "faster"))
    said = {"P(SD beats plain)": (faster.mean(), az.mcse(faster, method="mean"))}
    for q in (0.05, 0.5, 0.95):
        error = az.mcse(speedup, method="quantile", prob=q)
        said[f"speedup, {q:.0%} quantile"] = np.quantile(speedup, q), error
    return {n: {"value": float(v), "mc_error": float(e)} for n, (v, e) in said.items()}


def one(
    runs: Runs, case: tuple[str, str, int, int, bool], variant: str = "default", seed: int = SEED
) -> dict[str, Any]:
    """Fit one data set and predict what was left out."""
    _, verifier, drafting, loads, timed = case
    used, left_out = cut(runs, verifier, drafting, loads, seed=drafting)
    if variant == "queued":
        used = queued(used)
    elif not timed or variant == "no-ttft":
        used = without_ttft(used)
    begun, problem = time.perf_counter(), ""
    try:
        with mock.patch.dict(TOGETHER, clear=variant == "independent"):
            prior = bsd.reference() if variant == "reference" else None
            fit = bsd.LatencyModel(prior=prior).fit(used, seed=seed, progress=False)
    except ConvergenceError as error:
        fit, problem = error.fit, str(error)
    seconds = time.perf_counter() - begun
    row = {**dict(zip(KEY, (*case, variant, seed), strict=True)), "runs": len(used),
           "passed": not problem, "seconds": seconds,
           **{k: v for k, v in fit.sampling.items()}, "problem": problem}  # fmt: skip
    fitted = fit.runs
    own = (fitted["e2e_mean_s"] / fitted["fitted_e2e_s"] - 1).abs()
    row |= {"error": float(own.median()), "worst": float(own.max()),
            "fitted": fitted["fitted_e2e_s"].tolist(), "answers": answers(fit)}  # fmt: skip
    if len(left_out):
        table = fit.predict(left_out, prob=PROB, seed=1)
        error = (table["predicted_s"] / table["e2e_mean_s"] - 1).abs()
        inside, near = table["inside"].to_numpy(), within(table, fitted)
        missed = table.loc[~inside, ["rate_rps", "concurrency", "prompt_tokens", "pit"]]
        row |= {
            "held_out": len(table),
            "inside": int(inside.sum()),
            "held_out_within": int(near.sum()),
            "inside_within": int(inside[near].sum()),
            "held_out_error": float(error.median()),
            "score": float(table["log_score"].sum()),
            "missed": missed.assign(within=near[~inside]).to_dict("records"),
        }
    return row


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """What the sources have in common, and all together."""
    sources = [*rows.groupby("source"), ("all", rows)] if rows["source"].nunique() > 1 else []
    several = rows["variant"].nunique() > 1
    lines = []
    for name, own in sources or [(rows["source"].iloc[0], rows)]:
        for variant, some in own.groupby("variant"):
            held_out = max(some["held_out"].sum(), 1)
            line = {"source": name} | ({"variant": variant} if several else {}) | {
                "data sets": len(some),
                "passed": some["passed"].sum(),
                "median s": some["seconds"].median(),
                "of it compiling": some["seconds_compile"].median(),
                "longest s": some["seconds"].max(),
                "fitted, median error": some["error"].median(),
                "worst": some["worst"].max(),
                "held out": some["held_out"].sum(),
                "inside 90%": some["inside"].sum() / held_out,
                "within the loads": some["inside_within"].sum()
                / max(some["held_out_within"].sum(), 1),
                "held out, median error": some["held_out_error"].median(),
                "log score": some["score"].sum() / held_out,
            }  # fmt: skip
            if several:
                line |= moved(some, rows)
            lines.append(line)
    return pd.DataFrame(lines)


def moved(some: pd.DataFrame, rows: pd.DataFrame) -> dict[str, float]:
    """How far fitted means lie from those of a fit without TTFT, the farthest of each data set."""
    others = rows[rows["variant"] == "no-ttft"].set_index([*CASE, "seed"])["fitted"]
    own = some.set_index([*CASE, "seed"])["fitted"]
    far = [
        float(np.abs(np.log(np.divide(own[key], others[key]))).max())
        for key in own.index.intersection(others.index)
    ]
    return {"means moved, median": np.median(far), "most": max(far)} if far else {}


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Spread of every answer over seeds, beside the Monte Carlo error that one fit expects."""
    lines = []
    for (source, verifier), own in rows.groupby(["source", "verifier"]):
        for name in own["answers"].iloc[0]:
            values = np.array([a[name]["value"] for a in own["answers"]])
            errors = np.array([a[name]["mc_error"] for a in own["answers"]])
            lines.append(
                {
                    "data set": f"{source}, {verifier}",
                    "accepted": f"{own['passed'].sum()} of {len(own)}",
                    "answer": name,
                    "mean": values.mean(),
                    "sd over seeds": values.std(ddof=1),
                    "Monte Carlo error": np.sqrt((errors**2).mean()),
                }
            )
    return pd.DataFrame(lines)


def main() -> None:
    """Fit all cases and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SOURCES)
    parser.add_argument("--every", type=int, default=1, help="only each n-th data set")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["default"])
    parser.add_argument("--seeds", type=int, default=1, help="fit two data sets from n seeds")
    parser.add_argument("--out", type=Path, help="JSON lines; finished cases are kept")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    kept = options.out and options.out.is_file()
    rows = (
        [json.loads(line) for line in options.out.read_text("utf-8").splitlines()] if kept else []
    )
    done = {tuple(row[name] for name in KEY) for row in rows}
    loaded: dict[str, Runs] = {}
    chosen = [c for c in cases() if options.only in (None, c[0])][:: options.every]
    if set(options.variants) != {"default"}:
        # Without a TTFT there is nothing to leave out, whatever else is compared.
        needs = bool({"no-ttft", "queued"} & set(options.variants))
        chosen = [c for c in chosen if c[-1] or not needs]
    if options.seeds > 1:
        chosen = [next(c for c in chosen if c[0] == s) for s in (options.only,) if s] or [
            next(c for c in chosen if c[0] == s) for s in SEVERAL
        ]
    seeds = range(SEED, SEED + options.seeds)
    for case, variant, seed in itertools.product(chosen, options.variants, seeds):
        if (*case, variant, seed) in done:
            continue
        runs = loaded.setdefault(case[0], SOURCES[case[0]]())
        rows.append(one(runs, case, variant, seed))
        shown = {n: rows[-1][n] for n in (*KEY, "runs", "rhat_max", "ess_bulk_min", "divergences",
                                          "draws", "seconds", "error", "worst")}  # fmt: skip
        print(*(f"{x:.3g}" if isinstance(x, float) else x for x in shown.values()), flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    table = pd.DataFrame(rows)
    print(summary(table).to_string(index=False, float_format="{:.3g}".format))
    if options.seeds > 1:
        print(over_seeds(table).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
