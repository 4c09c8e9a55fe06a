"""A schedule proven on a real server: fitted, written, served, and driven through a load ramp.

    uv run benchmarks/closed_loop.py [FOLDER] [--json]                          # a fit: minutes
    uv run benchmarks/closed_loop.py measure FOLDER --vllm /path/to/vllm        # about 90 minutes

Prints, for every load level and arm, what was measured beside what was predicted, and how the
schedule did against every fixed arm. FOLDER is by default benchmarks/closed-loop, the runs that
docs/decisions.md is about.

`measure` starts vLLM plain, with every draft length and with a drafter that never drafts, measures
each by `vllm bench sweep serve`, fits those runs, and takes the schedule from the posterior. Then
every arm and the schedule are served again, in random order and `--rounds` times over, and driven
from near idle to 90% of capacity and back, with the same arrivals for all arms. Called again, it
goes on where it was.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import common
import numpy as np
import pandas as pd

import bayes_sd as bsd
from bayes_sd.answers.latency import arm_of, observable, scatter
from bayes_sd.answers.schedule import Schedule
from bayes_sd.plan.sweep import Point, SweepServer, VllmOptions, write_sweep

VERIFIER, DRAFTER, ALPHA = "dense-60m", "draft-3m", 0.9
PROMPT, OUTPUT = 32, 32
KS = (1, 2, 3, 5)
SERVER_BATCH = 64  # --max-num-seqs
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.7, 0.5, 0.3, 0.1)  # of the capacity of the best fixed arm
SECONDS = {0.9: 36.0}  # of arrivals; 18 where not said
FEWEST = 18
SHIPPED = Path(__file__).with_name("closed-loop")
CALIBRATION = [
    *(Point(PROMPT, OUTPUT, max(16, 4 * n), concurrency=n) for n in (1, 4, 12, 28)),
    Point(PROMPT, OUTPUT, 48, rate_rps=4.0),
]
WARM_UP = Point(PROMPT, OUTPUT, SERVER_BATCH, concurrency=SERVER_BATCH)
VLLM = VllmOptions(
    serve_args="--max-model-len 2048 --no-enable-prefix-caching --dtype float32 "
    f"--max-num-seqs {SERVER_BATCH}",
    env={"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"},
)
KEPT = ("completed", "num_prompts", "start_times", "latencies", "ttfts", "mean_e2el_ms")


def fitted(folder: Path) -> bsd.Fit:
    """The fit of the calibration runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bsd.errors.EvidenceWarning)
        runs = bsd.read(folder / "calibration")
        return common.fitted(
            bsd.LatencyModel(), runs, seed=1, draws=2500, tune=2000, target_accept=0.95
        )


def arms(fit: bsd.Fit) -> dict[str, bsd.Server]:
    """The fixed arms: plain, and every draft length."""
    drafter = str(fit.drafters.index[0])
    return {"plain": bsd.Server(VERIFIER)} | {f"k{k}": bsd.Server(VERIFIER, drafter, k) for k in KS}


def schedule_of(fit: bsd.Fit, load: bsd.Load) -> Schedule:
    """The schedule, and what a server that follows it does at a load."""
    server, ks = arms(fit)[f"k{KS[0]}"], [0, *KS]
    return fit.schedule(load, server, k=ks, max_batch=SERVER_BATCH, extrapolate=True)


def capacity_rps(fit: bsd.Fit) -> float:
    """Capacity of the best fixed arm, posterior median: a full batch over its latency."""
    full = bsd.Load(concurrency=SERVER_BATCH, prompt=PROMPT, output=OUTPUT)
    mean_s = fit.latency(full, list(arms(fit).values()), extrapolate=True).draws["mean_s"]
    return float(SERVER_BATCH / mean_s.median(("chain", "draw")).min())


def steps(capacity: float) -> dict[str, Point]:
    """Every step of a ramp by name; the same requests at the same times for all arms."""
    points: dict[str, Point] = {}
    for i, level in enumerate(LEVELS):
        rate = float(f"{level * capacity:.3g}")
        requests = max(FEWEST, round(rate * SECONDS.get(level, 18.0)))
        again = LEVELS[:i].count(level)
        point = Point(PROMPT, OUTPUT, requests, rate_rps=rate, replicate=again)
        points[f"{i}_load{level:g}"] = point
    return points


def servers(models: Path) -> dict[str, SweepServer]:
    """Servers of the calibration; those of the ramp are among them."""
    model, path = str(models / VERIFIER), str(models / f"{DRAFTER}-a{100 * ALPHA:g}")
    drafting = {f"k{k}": k for k in KS} | {"idle-drafter": 0}
    return {"plain": SweepServer("plain", model)} | {
        name: SweepServer(name, model, DRAFTER, path, "draft_model", k)
        for name, k in drafting.items()
    }


def run(sweep: Path, vllm: str) -> None:
    """Run a sweep; SystemExit if runs are missing, which calling again makes."""
    if subprocess.run([sweep / "run.sh"], env={**os.environ, "VLLM": vllm}).returncode:
        sys.exit(f"{sweep}: runs are missing; see its sweep.log, and call again to go on")


def measure(folder: Path, vllm: str, rounds: int) -> None:
    """Calibrate, fit, and drive every arm up and down; what is measured stays."""
    import testbed

    testbed.write_testbed(folder / "models", [VERIFIER], [DRAFTER], [ALPHA])
    named, calibration = servers(folder / "models"), folder / "calibration"
    if not calibration.exists():
        points = [CALIBRATION] * len(named)
        write_sweep(calibration, list(named.values()), points, options=VLLM)
    run(calibration, vllm)
    kept = folder / "fit.nc"
    if not kept.is_file():
        fitted(folder).save(kept)
    fit = bsd.Fit.load(kept)
    schedule = schedule_of(fit, bsd.Load(rps=1.0, prompt=PROMPT, output=OUTPUT))
    capacity = capacity_rps(fit)
    about = {"schedule": schedule.to_vllm(), "capacity_rps": capacity}
    (folder / "ramp.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    longest = named[f"k{max(KS)}"]
    config = schedule.speculative_config(method="draft_model", model=longest.drafter_path)
    for turn in range(rounds):
        order = ["plain", *(f"k{k}" for k in KS), "schedule"]
        random.Random(turn).shuffle(order)
        for arm in order:
            sweep = folder / "ramp-sweeps" / f"round{turn}" / arm
            points = steps(capacity)
            if not sweep.exists():
                server, runs = named.get(arm, longest), [WARM_UP, *points.values()]
                write_sweep(sweep, [server], [runs], options=VLLM, seed=1 + 100 * turn)
                if arm == "schedule":
                    params = {server.name: {"speculative_config": config}}
                    (sweep / server.name / "serve_params.json").write_text(json.dumps(params))
            run(sweep, vllm)
            keep(sweep, folder / "ramp" / f"round{turn}" / arm, points, arm, turn)


def keep(sweep: Path, target: Path, points: dict[str, Point], arm: str, turn: int) -> None:
    """Write what the report needs of every step of a sweep."""
    target.mkdir(parents=True, exist_ok=True)
    for step, point in points.items():
        (file,) = sweep.glob(f"*/runs/*BENCH--{point.name}/run=0.json")
        result = json.loads(file.read_text(encoding="utf-8"))
        slim = {name: result[name] for name in KEPT if name in result}
        slim |= {"arm": arm, "round": turn, "offered_rps": point.rate_rps}
        (target / f"{step}.json").write_text(json.dumps(slim) + "\n", encoding="utf-8")


def measured(folder: Path) -> pd.DataFrame:
    """A row a request of the ramp: arm, round, step, level, latency."""
    rows = []
    for path in sorted((folder / "ramp").glob("round*/*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        step, level = path.stem.split("_load")
        about = result["arm"], result["round"], int(step), float(level), result["offered_rps"]
        rows += [(*about, latency) for latency in result["latencies"]]
    names = ["arm", "round", "step", "level", "rate_rps", "latency_s"]
    return pd.DataFrame(rows, columns=names)


def predicted(fit: bsd.Fit, rates: list[float]) -> pd.DataFrame:
    """Mean of one run and p95 of requests of every arm at every rate, with 90% intervals.

    Every arm was started anew for the ramp: the effects of the calibrated servers are not its own.
    """
    load = bsd.Load(rps=rates, prompt=PROMPT, output=OUTPUT)
    draws = {"schedule": schedule_of(fit, load).draws}
    for name, server in arms(fit).items():
        arm = arm_of(fit, server, load, 0, True, started_anew=f"{name}, restarted")
        said, inputs = arm.outcome()
        drawn = (said.e2e_s, said.utilization >= 1, *scatter(fit, said, inputs, "e2e"))
        draws[name] = observable(fit, load, name, drawn, arm.support(said), fit.run_requests, 0)
    parts = []
    for name, values in draws.items():
        flat = values.isel(server=0).stack(sample=("chain", "draw")).transpose("sample", ...)
        run_s, request_s = flat["run_s"].values, flat["request_s"].values
        # Observed values, not averages of neighbours: some are infinite.
        low, middle, high = np.quantile(run_s, [0.05, 0.5, 0.95], axis=0, method="inverted_cdf")
        columns = {"arm": name, "rate_rps": rates, "predicted_s": middle, "low_s": low}
        tail = np.quantile(request_s, 0.95, axis=0, method="inverted_cdf")
        parts.append(pd.DataFrame(columns | {"high_s": high, "predicted_p95_s": tail}))
    return pd.concat(parts)


def by_level(requests: pd.DataFrame) -> pd.DataFrame:
    """Mean and p95 of every arm and level, and how the mean scatters over its replicates."""
    runs = requests.groupby(["arm", "level", "rate_rps", "round", "step"])["latency_s"]
    runs = runs.agg(mean_s="mean", p95_s=lambda x: x.quantile(0.95), requests="size")
    levels = runs.groupby(["arm", "level", "rate_rps"]).agg(
        mean_s=("mean_s", "mean"),
        scatter=("mean_s", "std"),
        p95_s=("p95_s", "mean"),
        replicates=("mean_s", "size"),
        requests=("requests", "sum"),
    )
    return levels.reset_index()


def contrasts(requests: pd.DataFrame, draws: int = 4000) -> pd.DataFrame:
    """The schedule over every other arm: ratio of mean latencies, by level and over the ramp.

    The interval resamples whole steps (one arrival sequence each), the same ones for both arms.
    """
    rng = np.random.default_rng(1)
    cells = requests.groupby(["arm", "level", "round", "step"])["latency_s"].agg(["sum", "size"])
    rows = []
    for arm in sorted(set(requests["arm"]) - {"schedule"}):
        for level in (*sorted(set(requests["level"])), "all"):
            schedule, fixed = (
                cells.loc[name] if level == "all" else cells.loc[name].xs(level, level="level")
                for name in ("schedule", arm)
            )
            both = schedule.merge(fixed, left_index=True, right_index=True).to_numpy()
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
    requests, saved = measured(folder), folder / "fit.nc"
    fit = bsd.Fit.load(saved) if saved.is_file() else fitted(folder)
    about = json.loads((folder / "ramp.json").read_text(encoding="utf-8"))
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
    print(repr(fit))
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
    parser.add_argument("words", nargs="*", metavar="[measure] [FOLDER]")
    parser.add_argument("--vllm", default="vllm", help="the command to measure with")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    words = list(options.words)
    measures = words[:1] == ["measure"]
    folder = Path((words[1:] if measures else words or [SHIPPED])[0]).resolve()
    if measures:
        measure(folder, options.vllm, options.rounds)
    report(folder, options.json)


if __name__ == "__main__":
    main()
