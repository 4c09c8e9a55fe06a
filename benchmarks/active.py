"""Measuring what matters: runs chosen by value of information against random ones, replayed.

    uv run benchmarks/active.py [--repeats 20] [--server next] [--jobs 2]       # about an hour

From a random tenth of the shipped runs, further ones are added four at a time: those that value
of information ranks first, or random ones. After each step the model is refitted exactly and acts:
for every verifier and three loads it picks, among the plain server and its measured SD servers,
the one with the lowest expected latency. Its regret is what that choice costs, relative to the
best, under the fit of all runs.

The choice is among the servers that were measured, which runs not yet made would show; or, with
`--server next`, among servers yet to be started, whose luck no run shows: what the fit of all runs
says of those rests on the law, and a server's own runs may lead away from it.
"""

import argparse
import json
import multiprocessing
import warnings
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import bayes_sd as bsd
from bayes_sd.corpus import corpus
from bayes_sd.decide.information import Preposterior
from bayes_sd.decide.schedule import SERVER
from bayes_sd.inference.assemble import assemble
from bayes_sd.inference.refit import Refitter, compile_refits
from bayes_sd.inference.sample import Sampling
from bayes_sd.model.design import NONE
from bayes_sd.predict.latency import arm_outcome
from bayes_sd.predict.runs import run_outcome
from bayes_sd.predict.system import system_of

PROMPT, OUTPUT = 128.0, 64.0
SHARES = (0.25, 0.5, 0.75)  # of the highest rate the plain server was measured at
BATCH = 4
STEPS = {"information": 6, "random": 12}  # random choice gets twice the runs
DRAWS, TUNE, CHAINS = 300, 250, 2
CEILING = 5.0  # a choice costs at most this many times the best one

MODEL = bsd.LatencyModel()
STATE: dict[str, Any] = {}  # set before the workers are forked


def as_fit(refitter: Refitter, mask: np.ndarray, seed: int, **sampling: Any) -> bsd.Fit:
    """The fit of the runs in `mask`."""
    how = {"draws": DRAWS, "tune": TUNE, "chains": CHAINS} | sampling
    refit = refitter.refit(~mask, seed=seed, **how)
    tree = xr.DataTree.from_dict({"posterior": refit.parameters})
    args = (refitter.design, STATE["traces"], MODEL, Sampling(), seed, {}, refit.convergence)
    return assemble(tree, *args)


def questions(runs: pd.DataFrame) -> list[tuple[list[tuple[bsd.System, int]], np.ndarray]]:
    """For every verifier its arms, and the rates at which one has to be chosen."""
    found = []
    for verifier, own in runs.groupby("verifier"):
        plain = own[own["drafter"] == NONE]
        arms = [(bsd.System(str(verifier)), 0)]
        keys = ["drafter", "draft_tokens", "acceptance_imposed"]
        for _, rows in own[own["drafter"] != NONE].groupby(keys):
            one = system_of(rows.iloc[0])
            arms.append((one, int(rows["draft_tokens"].iloc[0])))
        found.append((arms, np.array(SHARES) * float(plain["rate_rps"].max())))
    return found


def losses(fit: bsd.Fit) -> np.ndarray:
    """Latency of every option of every question over draws: (decisions, options, draws), s."""
    asked = STATE["questions"]
    most = max(len(arms) for arms, _ in asked)
    rows = []
    for arms, rates in asked:
        load = bsd.grid(rps=rates, prompt=PROMPT, output=OUTPUT)
        own = []
        for system, k in arms:
            law = arm_outcome(fit, system, k, load, 0, None, STATE["server"])[1].e2e_s
            own.append(law.transpose("rate_rps", "chain", "draw").values.reshape(len(rates), -1))
        one = np.stack(own, axis=1)
        pad = np.full((len(rates), most - len(arms), one.shape[-1]), np.inf)
        best = one.min(axis=1)  # infinite where every option is saturated: all cost alike then
        known = [row[np.isfinite(row)] for row in best]
        typical = np.array([np.median(row) if len(row) else 1.0 for row in known])[:, None, None]
        rows.append(np.concatenate([np.minimum(one / typical, CEILING), pad], axis=1))
    return np.concatenate(rows)


def regret(fit: bsd.Fit) -> float:
    """Mean relative cost of the fit's choices under the fit of all runs."""
    own = losses(fit).mean(axis=-1).argmin(axis=1)
    truth = STATE["truth"]
    at = np.arange(len(truth))
    return float((truth[at, own] / truth.min(axis=1) - 1).mean())


def by_information(fit: bsd.Fit, mask: np.ndarray, seed: int) -> np.ndarray:
    """Runs not yet made, the most telling first, chosen one after the other."""
    open_ = np.flatnonzero(STATE["steady"] & ~mask)
    about = run_outcome(fit, STATE["refitter"].runs.iloc[open_], seed)
    shown, scale = (about[n].transpose("run", ...).values.reshape(len(open_), -1)
                    for n in ("e2e_s", "scale"))  # fmt: skip
    known = Preposterior(np.log(losses(fit)), np.log(shown), scale)
    chosen: list[int] = []
    for _ in range(min(BATCH, len(open_))):
        worth = known.worth(chosen)
        worth[chosen] = -np.inf
        chosen.append(int(worth.argmax()))
    return open_[chosen]


def replay(seed: int) -> list[dict[str, Any]]:
    """One repeat: the regret of both policies after every step, from the same first runs."""
    rng = np.random.default_rng(seed)
    steady = np.flatnonzero(STATE["steady"])
    first = np.zeros(len(STATE["steady"]), bool)
    first[rng.choice(steady, round(0.1 * len(first)), replace=False)] = True
    order = rng.permutation(steady)
    begun = as_fit(STATE["refitter"], first, seed, cores=1)
    rows = []
    for policy, steps in STEPS.items():
        mask, fit = first.copy(), begun
        for step in range(steps + 1):
            rows.append({"repeat": seed, "policy": policy, "runs": int(mask.sum()),
                         "regret": regret(fit)})  # fmt: skip
            if step == steps:
                break
            if policy == "information":
                new = by_information(fit, mask, seed)
            else:
                new = [i for i in order if not mask[i]][:BATCH]
            mask[new] = True
            fit = as_fit(STATE["refitter"], mask, seed, cores=1)
    return rows


def summary(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Regret over repeats by chosen runs and policy, and how many of them each policy needs."""
    table = table.assign(chosen=table["runs"] - table["runs"].min())
    by = table.groupby(["policy", "chosen"])["regret"]
    spread = by.quantile([0.1, 0.5, 0.9]).unstack()
    spread.columns = ["p10", "median", "p90"]
    curve = spread.assign(mean=by.mean())[["mean", "median", "p10", "p90"]]
    needed = {}
    for share in (0.5, 0.25, 0.1):
        goal = float(share * curve["mean"].iloc[0])
        own = needed[f"{share:g} of the first mean regret"] = {"regret": goal}
        for policy in STEPS:
            reached = curve["mean"].loc[policy] <= goal
            own[policy] = int(reached.idxmax()) if reached.any() else None
    return curve.reset_index(), needed


def main() -> None:
    """Replay both policies and print what they needed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--server", choices=["measured", "next"], default="measured")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", help="CSV for the regrets of every repeat, as they come")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    traces = bsd.read_traces(corpus("vllm-cpu"))
    refitter = compile_refits(MODEL, traces)
    runs = refitter.runs
    steady = ~runs["saturated"].to_numpy(bool)
    server = SERVER if options.server == "next" else None
    STATE.update(traces=traces, refitter=refitter, steady=steady, server=server)
    STATE["questions"] = questions(runs)
    whole = as_fit(refitter, np.ones(len(runs), bool), 1, draws=800, tune=800, chains=4)
    STATE["truth"] = losses(whole).mean(axis=-1)
    rows: list[dict[str, Any]] = []
    seeds = range(options.first_seed, options.first_seed + options.repeats)
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        for part in pool.imap_unordered(replay, seeds):
            rows += part
            if options.table:
                pd.DataFrame(rows).to_csv(options.table, index=False)
    curve, needed = summary(pd.DataFrame(rows))
    if options.json:
        print(json.dumps({"curve": curve.to_dict("records"), "chosen_runs_needed": needed}))
        return
    print(curve.round(4).to_string(index=False))
    for name, value in needed.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
