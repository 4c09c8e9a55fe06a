"""A schedule proven on a real server: fitted, written, served, and driven through a load ramp.

    uv run benchmarks/closed_loop.py measure FOLDER --vllm /path/to/vllm --rounds 2   # about 90 min
    uv run benchmarks/closed_loop.py [FOLDER] [--json]                                # the report

`measure` starts vLLM plain, with every draft length and with a drafter that never drafts,
measures each (`bayes-sd collect`), fits those runs, and takes the schedule from the posterior. Then
every arm and the schedule are served again, in random order and `--rounds` times over, and driven
from near idle to 90% of capacity and back, with the same arrivals for all arms. It goes on where it
was left. The report reads FOLDER (by default benchmarks/closed-loop).
"""

import argparse
import json
import random
import sys
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import bayes_sd as bsd
from bayes_sd.collector.bench import Bench, Job, slim
from bayes_sd.collector.files import write_text
from bayes_sd.collector.plan import ConfigurationPlan, Plan
from bayes_sd.collector.server import serving
from bayes_sd.collector.testbed import write_testbed
from bayes_sd.errors import PriorWarning

VERIFIER, DRAFTER, ALPHA = "dense-60m", "draft-3m", 0.9
PROMPT, OUTPUT = 32, 32
KS = (1, 2, 3, 5)
SERVER_BATCH = 64  # --max-num-seqs
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.7, 0.5, 0.3, 0.1)  # of the capacity of the best fixed arm
SECONDS = {0.9: 36.0}  # of arrivals; 18 where not said
FEWEST = 18
SHIPPED = Path(__file__).with_name("closed-loop")
CALIBRATION = [
    *({"concurrency": n, "prompt": PROMPT, "output": OUTPUT} for n in (1, 4, 12, 28)),
    {"load": 0.6, "prompt": PROMPT, "output": OUTPUT},
]


def plan_of(folder: Path, vllm: str) -> Plan:
    """Servers of the calibration; those of the ramp are made from them."""
    models = folder / "models"
    common = {"model": str(models / VERIFIER), "verifier": VERIFIER, "points": CALIBRATION}
    drafting = common | {
        "drafter_model": str(models / f"{DRAFTER}-a{100 * ALPHA:g}"),
        "drafter": DRAFTER,
        "acceptance": ALPHA,
    }
    arms = [common | {"name": "plain"}]
    arms += [drafting | {"name": f"k{k}", "arm": "sd", "draft_tokens": k} for k in KS]
    arms += [drafting | {"name": "idle-drafter", "arm": "sd_k0", "draft_tokens": max(KS)}]
    env = {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    return Plan.model_validate(
        {
            "environment": {
                "hardware": "2-core Intel Xeon (AVX-512, no BF16)",
                "engine": "vllm-cpu 0.32.0 float32",
            },
            "server": {
                "command": [vllm, "serve"],
                "env": env,
                "args": "--max-model-len 2048 --no-enable-prefix-caching --dtype float32 "
                f"--max-num-seqs {SERVER_BATCH}",
            },
            "bench": {
                "preload": str(Path(vllm).with_name("python")),
                "env": env,
                "run_seconds": 12,
                "max_seconds": 30,
                "min_requests": 16,
                "probe_prompt": PROMPT,
                "probe_output": OUTPUT,
            },
            "configurations": arms,
        }
    )


def fitted(folder: Path, keep: bool = False) -> bsd.Fit:
    """The fit of the calibration runs, which may be kept beside them."""
    path = folder / "fit.nc"
    if path.is_file():
        return bsd.Fit.load(path)
    # One verifier at one pair of lengths: context and attention show nowhere, and an overhead a
    # layer cannot be told from reading the weights, so one of the two stays at its prior.
    model = bsd.LatencyModel(law=bsd.Law(("depth", "tokens", "stalls")))
    model = model.with_prior("o_1v", b=0.1, reason="told from s_pass by nothing here")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PriorWarning)
        traces = bsd.read_traces(folder / "calibration")
        fit = model.fit(traces, seed=1, draws=2500, tune=2000, target_accept=0.95, progress=False)
    if keep:
        fit.save(path)
    return fit


def system() -> bsd.System:
    """The pair that is served."""
    return bsd.System(VERIFIER, DRAFTER, ALPHA)


def schedule_of(fit: bsd.Fit) -> Any:
    """The schedule in question."""
    return fit.schedule([0, *KS], system(), prompt=PROMPT, output=OUTPUT, max_batch=SERVER_BATCH)


def capacity_rps(fit: bsd.Fit) -> float:
    """Capacity of the best fixed arm, posterior median: a full batch over its latency."""
    load = bsd.grid(concurrency=SERVER_BATCH, prompt=PROMPT, output=OUTPUT)
    far = replace(system(), extrapolate=True)
    mean_s = fit.latency(load, [0, *KS], far).draws["mean_s"]
    return float(SERVER_BATCH / mean_s.median(("chain", "draw")).min())


def jobs(capacity: float, turn: int) -> list[tuple[str, float, int, int]]:
    """Name, rate (1/s), requests and seed of every step of a ramp; the same for all arms."""
    found = []
    for i, level in enumerate(LEVELS):
        rate = float(f"{level * capacity:.3g}")
        requests = max(FEWEST, round(rate * SECONDS.get(level, 18.0)))
        found.append((f"{i}_load{level:g}", rate, requests, zlib.crc32(f"{turn} {i}".encode())))
    return found


def ramp(folder: Path, plan: Plan, rounds: int) -> None:
    """Serve every arm and drive it up and down, `rounds` times; finished steps stay."""
    fit = fitted(folder, keep=True)
    schedule = schedule_of(fit)
    capacity = capacity_rps(fit)
    arms = [c for c in plan.configurations if c.name != "idle-drafter"]
    table = {"num_speculative_tokens_per_batch_size": schedule.to_vllm()}
    longest = next(c for c in arms if c.name == f"k{max(KS)}")
    arms.append(longest.model_copy(update={"name": "schedule", "speculative": table}))
    about = {"schedule": schedule.to_vllm(), "capacity_rps": capacity}
    write_text(folder / "ramp.json", json.dumps(about) + "\n")
    bench = Bench(plan.bench, folder / ".ramp", folder / "ramp.log")
    try:
        for turn in range(rounds):
            order = list(arms)
            random.Random(turn).shuffle(order)
            for c in order:
                _drive(folder, plan, c, bench, capacity, turn)
    finally:
        bench.close()


def _drive(
    folder: Path, plan: Plan, c: ConfigurationPlan, bench: Bench, capacity: float, turn: int
) -> None:
    own = folder / "ramp" / f"round{turn}" / c.name
    todo = [job for job in jobs(capacity, turn) if not (own / f"{job[0]}.json").is_file()]
    if not todo:
        return
    own.mkdir(parents=True, exist_ok=True)
    with serving(plan.server, c, folder / ".ramp", folder / f"ramp-{c.name}.log") as server:

        def job(requests: int, rate: float, seed: int) -> Job:
            names = (server.base_url, server.served_name, c.model, PROMPT, OUTPUT)
            return Job(*names, requests, rate, None, seed)

        bench.run(job(16, 4.0, 1))
        bench.run(job(SERVER_BATCH, float("inf"), 2))
        for name, rate, requests, seed in todo:
            result = slim(bench.run(job(requests, rate, seed)))
            result |= {"arm": c.name, "round": turn, "offered_rps": rate}
            write_text(own / f"{name}.json", json.dumps(result) + "\n")
            print(f"round {turn} {c.name} {name}: {rate:g}/s mean {result['mean_e2el_ms']:.0f} ms",
                  file=sys.stderr)  # fmt: skip


def measured(folder: Path) -> pd.DataFrame:
    """A row a request of the ramp: arm, round, step, level, latency."""
    rows = []
    for path in sorted((folder / "ramp").glob("round*/*/*.json")):
        run = json.loads(path.read_text())
        step, level = path.stem.split("_load")
        for latency in run["latencies"]:
            rows.append((run["arm"], run["round"], int(step), float(level), run["offered_rps"],
                         latency))  # fmt: skip
    names = ["arm", "round", "step", "level", "rate_rps", "latency_s"]
    return pd.DataFrame(rows, columns=names)


def predicted(fit: bsd.Fit, rates: list[float]) -> pd.DataFrame:
    """Mean of one run and p95 of requests of every arm at every rate, with 90% intervals."""
    load = bsd.grid(rps=rates, prompt=PROMPT, output=OUTPUT)
    far = replace(system(), extrapolate=True)
    answers = {f"k{k}" if k else "plain": fit.latency(load, k, far) for k in (0, *KS)}
    answers["schedule"] = fit.scheduled(
        schedule_of(fit), far, rps=rates, prompt=PROMPT, output=OUTPUT
    )
    rows = []
    for arm, answer in answers.items():
        low, middle, high = answer.quantile([0.05, 0.5, 0.95], of="run").values
        tail = answer.quantile(0.95).values
        for i, rate in enumerate(rates):
            at = {"arm": arm, "rate_rps": rate, "predicted_s": middle.ravel()[i]}
            rows.append(at | {"low_s": low.ravel()[i], "high_s": high.ravel()[i],
                              "predicted_p95_s": tail.ravel()[i]})  # fmt: skip
    return pd.DataFrame(rows)


def by_level(requests: pd.DataFrame) -> pd.DataFrame:
    """Mean and p95 of every arm and level, and the mean's 90% interval over its replicates."""
    runs = requests.groupby(["arm", "level", "rate_rps", "round", "step"])["latency_s"]
    runs = runs.agg(mean_s="mean", p95_s=lambda x: x.quantile(0.95), requests="size")
    found = runs.groupby(["arm", "level", "rate_rps"]).agg(
        mean_s=("mean_s", "mean"), scatter=("mean_s", "std"), p95_s=("p95_s", "mean"),
        replicates=("mean_s", "size"), requests=("requests", "sum"),
    )  # fmt: skip
    return found.reset_index()


def contrasts(requests: pd.DataFrame, draws: int = 4000) -> pd.DataFrame:
    """The schedule over every other arm: ratio of mean latencies, by level and over the ramp.

    The interval resamples whole steps (one arrival sequence each), the same ones for both arms.
    """
    rng = np.random.default_rng(1)
    cells = requests.groupby(["arm", "level", "round", "step"])["latency_s"].agg(["sum", "size"])
    rows = []
    for arm in sorted(set(requests["arm"]) - {"schedule"}):
        for level in (*sorted(set(requests["level"])), "all"):
            one, other = (
                cells.loc[name] if level == "all" else cells.loc[name].xs(level, level="level")
                for name in ("schedule", arm)
            )
            both = one.merge(other, left_index=True, right_index=True, suffixes=("_s", "_o"))
            both = both.to_numpy()
            pick = rng.integers(len(both), size=(draws, len(both)))
            total = both[pick].sum(axis=1)
            ratio = (total[:, 0] / total[:, 1]) / (total[:, 2] / total[:, 3])
            whole = both.sum(axis=0)
            rows.append(
                {
                    "against": arm,
                    "level": level,
                    "ratio": (whole[0] / whole[1]) / (whole[2] / whole[3]),
                    "low": np.quantile(ratio, 0.05),
                    "high": np.quantile(ratio, 0.95),
                    "steps": len(both),
                }
            )
    return pd.DataFrame(rows)


def report(folder: Path, as_json: bool) -> None:
    """Print what was predicted beside what was measured, and how the schedule did."""
    requests, fit = measured(folder), fitted(folder)
    about = json.loads((folder / "ramp.json").read_text())
    table = by_level(requests)
    rates = sorted(table["rate_rps"].unique())
    table = table.merge(predicted(fit, rates), on=["arm", "rate_rps"])
    inside = (table["mean_s"] >= table["low_s"]) & (table["mean_s"] <= table["high_s"])
    against = contrasts(requests)
    levels = against[against["level"] != "all"]
    worst = levels.loc[levels.groupby("level")["ratio"].idxmax()]
    whole = against[against["level"] == "all"]
    result = {
        "schedule": about["schedule"],
        "capacity_rps": about["capacity_rps"],
        "means_inside_90": float(inside.mean()),
        "median_error": float((table["predicted_s"] / table["mean_s"] - 1).abs().median()),
        "p95_median_error": float((table["predicted_p95_s"] / table["p95_s"] - 1).abs().median()),
        "against_the_best_arm_by_level": worst.to_dict("records"),
        "against_every_arm_over_the_ramp": whole.to_dict("records"),
    }
    if as_json:
        print(json.dumps(result | {"levels": table.to_dict("records")}))
        return
    print(fit)
    print(f"schedule {about['schedule']}, capacity {about['capacity_rps']:.2f} requests/s")
    print(table.round(3).to_string(index=False))
    print("\nschedule over the best fixed arm at each level (below 1 is better)")
    print(worst.round(3).to_string(index=False))
    print("\nschedule over every arm, all requests of the ramp")
    print(whole.round(3).to_string(index=False))
    print(f"\nmeans inside their 90% interval: {result['means_inside_90']:.0%}; median error "
          f"{result['median_error']:.1%}, of p95 {result['p95_median_error']:.1%}")  # fmt: skip


def main() -> None:
    """Measure, or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="[measure] [FOLDER]")
    parser.add_argument("--vllm", default="vllm")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    words = list(options.words)
    measure = bool(words) and words[0] == "measure"
    folder = Path((words[1:] if measure else words or [SHIPPED])[0])
    if measure:
        plan = plan_of(folder.resolve(), options.vllm)
        write_testbed(folder / "models", [VERIFIER], [DRAFTER], [ALPHA])
        done = bsd.collect(plan, folder / "calibration")
        if not done.complete:
            sys.exit(f"the calibration lacks {done.missing} runs: {done.failures}")
        ramp(folder.resolve(), plan, options.rounds)
    report(folder, options.json)


if __name__ == "__main__":
    main()
