"""Measuring what matters: runs chosen by value of information against random ones, replayed.

    uv run benchmarks/active.py [--repeats 20] [--first-seed 200] [--server next]    # about an hour

Prints the regret by number of runs chosen, for both ways of choosing, and the runs each needs.
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
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

import bayes_sd as bsd
from bayes_sd.answers.fitted import run_outcome
from bayes_sd.answers.latency import arm_of
from bayes_sd.answers.next_runs import Preposterior
from bayes_sd.answers.schedule import STARTED_ANEW
from bayes_sd.model.design import SERVER
from bayes_sd.model.posterior import Posterior, assemble
from bayes_sd.model.sample import Refitter
from bayes_sd.runs.read import corpus

PROMPT, OUTPUT = 128, 64
SHARES = (0.25, 0.5, 0.75)  # of the highest rate the plain server was measured at
BATCH = 4
STEPS = {"information": 6, "random": 12}  # random choice gets twice the runs
SAMPLING = {"draws": 300, "tune": 250, "chains": 2}
WHOLE = {"draws": 800, "tune": 800, "chains": 4}
CEILING = 5.0  # a choice costs at most this many times the best one

MODEL = bsd.LatencyModel()
Question = tuple[list[bsd.Server], bsd.Load]


@dataclass
class Replay:
    """What every repeat needs; set before the workers are forked, as a compiled model cannot be
    sent to them."""

    refitter: Refitter
    questions: list[Question]
    started_anew: str | None
    truth: np.ndarray

    @property
    def steady(self) -> np.ndarray:
        """Which runs may be chosen."""
        return ~self.refitter.table["saturated"].to_numpy(bool)


REPLAY: Replay


def posterior_of(refitter: Refitter, mask: np.ndarray, seed: int, **how: Any) -> Posterior:
    """Posterior of the runs in `mask`."""
    refit = refitter.refit(~mask, seed=seed, **(SAMPLING | how))
    spec = {
        "priors": [asdict(prior) for prior in MODEL.priors],
        "law": asdict(MODEL.law),
        "pooling": MODEL.pooling,
        "server_effects": list(MODEL.server_effects),
    }
    return assemble(refit.sampled, refitter.design, spec, {}, seed)


def questions_of(refitter: Refitter) -> list[Question]:
    """For every verifier its servers, and the rates at which one has to be chosen."""
    questions: list[Question] = []
    for verifier, table in refitter.table.groupby("verifier"):
        plain = table["arm"] == "plain"
        servers = [bsd.Server(str(verifier))]
        keys = table[~plain][SERVER].drop_duplicates().sort_values(SERVER).to_dict("records")
        servers += [
            bsd.Server(
                str(verifier), row["drafter"], row["draft_tokens"], row["acceptance_imposed"]
            )
            for row in keys
        ]
        rates = np.array(SHARES) * float(table["rate_rps"][plain].max())
        questions.append((servers, bsd.Load(rps=rates, prompt=PROMPT, output=OUTPUT)))
    return questions


def losses(posterior: Posterior, questions: list[Question], started_anew: str | None) -> np.ndarray:
    """Latency of every option of every question over draws: (decisions, options, draws), s."""
    most = max(len(servers) for servers, _ in questions)
    rows = []
    for servers, load in questions:
        arms = [arm_of(posterior, s, load, started_anew=started_anew) for s in servers]
        latency_s = np.stack([arm.outcome()[0].e2e_s.T for arm in arms], axis=1)
        best = latency_s.min(axis=1)  # infinite where every option is saturated: all cost alike
        finite = [row[np.isfinite(row)] for row in best]
        typical = np.array([np.median(row) if len(row) else 1.0 for row in finite])[:, None, None]
        absent = np.full((len(best), most - len(servers), best.shape[-1]), np.inf)
        bounded = np.minimum(latency_s / typical, CEILING)
        rows.append(np.concatenate([bounded, absent], axis=1))
    return np.concatenate(rows)


def regret(posterior: Posterior) -> float:
    """Mean relative cost of a posterior's choices under the fit of all runs."""
    expected = losses(posterior, REPLAY.questions, REPLAY.started_anew).mean(axis=-1)
    truth = REPLAY.truth
    chosen = truth[np.arange(len(truth)), expected.argmin(axis=1)]
    return float((chosen / truth.min(axis=1) - 1).mean())


def by_information(posterior: Posterior, mask: np.ndarray, seed: int) -> np.ndarray:
    """Runs not yet made, the most telling first, chosen one after the other."""
    possible = np.flatnonzero(REPLAY.steady & ~mask)
    said, scale, _ = run_outcome(posterior, REPLAY.refitter.table.iloc[possible], seed=seed)
    loss = losses(posterior, REPLAY.questions, REPLAY.started_anew)
    known = Preposterior(np.log(loss), np.log(said.e2e_s).T, scale.T)
    chosen: list[int] = []
    for _ in range(min(BATCH, len(possible))):
        worth = known.worth(chosen)
        worth[chosen] = -np.inf
        chosen.append(int(worth.argmax()))
    return possible[chosen]


def replay(seed: int) -> list[dict[str, Any]]:
    """One repeat: the regret of both policies after every step, from the same first runs."""
    rng, refitter = np.random.default_rng(seed), REPLAY.refitter
    steady = np.flatnonzero(REPLAY.steady)
    first = np.zeros(len(REPLAY.steady), bool)
    first[rng.choice(steady, round(0.1 * len(first)), replace=False)] = True
    order = rng.permutation(steady)
    begun = posterior_of(refitter, first, seed, cores=1)
    rows = []
    for policy, steps in STEPS.items():
        mask, posterior = first.copy(), begun
        for step in range(steps + 1):
            if step:
                if policy == "information":
                    mask[by_information(posterior, mask, seed)] = True
                else:
                    mask[[i for i in order if not mask[i]][:BATCH]] = True
                posterior = posterior_of(refitter, mask, seed, cores=1)
            rows.append(
                {
                    "repeat": seed,
                    "policy": policy,
                    "runs": int(mask.sum()),
                    "regret": regret(posterior),
                }
            )
    return rows


def summary(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Regret over repeats by chosen runs and policy, and how many of them each policy needs."""
    table = table.assign(chosen=table["runs"] - table["runs"].min())
    groups = table.groupby(["policy", "chosen"])["regret"]
    spread = groups.quantile([0.1, 0.5, 0.9]).unstack()
    spread.columns = ["p10", "median", "p90"]
    curve = spread.assign(mean=groups.mean())[["mean", "median", "p10", "p90"]]
    needed = {}
    for share in (0.5, 0.25, 0.1):
        goal = float(share * curve["mean"].iloc[0])
        row: dict[str, Any] = {"regret": goal}
        for policy in curve.index.levels[0]:
            reached = curve["mean"].loc[policy] <= goal
            row[policy] = int(reached.idxmax()) if reached.any() else None
        needed[f"{share:g} of the first mean regret"] = row
    return curve.reset_index(), needed


def main() -> None:
    """Replay both policies and print what they needed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="by information, and twice as many at random")
    parser.add_argument("--server", choices=["measured", "next"], default="measured")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", help="CSV for the regrets of every repeat, as they come")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.steps:
        STEPS.update(information=options.steps, random=2 * options.steps)
    refitter = MODEL.refitter(bsd.read(corpus("vllm-cpu")))
    questions = questions_of(refitter)
    anew = STARTED_ANEW if options.server == "next" else None
    whole = posterior_of(refitter, np.ones(len(refitter.table), bool), 1, **WHOLE)
    global REPLAY
    REPLAY = Replay(refitter, questions, anew, losses(whole, questions, anew).mean(axis=-1))
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
