"""Ten times the requests a run do not change the cost of a fit, only of reading.

    uv run benchmarks/requests.py [--json]

The shipped corpus is fitted as it is and with each run's requests counted ten times, in turn and in
one process; then files whose per-request lists are ten times as long are written and read.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import bayes_sd as bsd
from bayes_sd.corpus import corpus

TIMES = 10
SEEDS = (1, 2, 3)
DRAWS = TUNE = 300
READS = 3
BOUND = 1.2
LISTS = ("input_lens", "output_lens", "ttfts", "latencies", "itls", "queue_times", "errors")
TOTALS = (
    "num_prompts",
    "completed",
    "failed",
    "duration",
    "total_input_tokens",
    "total_output_tokens",
    "spec_decode_num_drafts",
    "spec_decode_draft_tokens",
    "spec_decode_accepted_tokens",
)


def sampling(traces: bsd.Traces, seed: int) -> dict[str, float]:
    """Seconds of one short fit, without compilation, and per gradient after tuning."""
    from bayes_sd.inference.sample import Sampling, sample

    model = bsd.LatencyModel().build(traces)
    tree, used = sample(model, Sampling(draws=DRAWS, tune=TUNE), seed, progress=False)
    steps = float(tree["sample_stats"]["n_steps"].sum())
    return {
        "seconds_compile": float(used["seconds_compile"]),
        "seconds_sample": float(used["seconds_sample"]),
        "gradients_kept": steps,
    }


def longer(data: dict[str, Any]) -> dict[str, Any]:
    """A result whose benchmark went on ten times as long, its requests again and again."""
    more = {name: data[name] * TIMES for name in LISTS if data.get(name)}
    more |= {name: data[name] * TIMES for name in TOTALS if data.get(name)}
    if data.get("start_times"):
        starts = data["start_times"]
        more["start_times"] = [t + i * data["duration"] for i in range(TIMES) for t in starts]
    return data | more


def reading(folder: Path) -> dict[str, float]:
    """Best of several reads."""
    seconds = []
    for _ in range(READS):
        start = time.perf_counter()
        traces = bsd.read_traces(folder)
        seconds.append(time.perf_counter() - start)
    files = list(folder.glob("*.json"))
    return {
        "seconds": min(seconds),
        "runs": len(traces),
        "requests": int(traces.runs["requests"].sum()),
        "megabytes": sum(f.stat().st_size for f in files) / 1e6,
    }


def main() -> None:
    """Print a table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    files = reading(corpus("vllm-cpu"))
    with tempfile.TemporaryDirectory() as folder:
        for file in corpus("vllm-cpu").glob("*.json"):
            text = json.dumps(longer(json.loads(file.read_text())), indent=1)
            (Path(folder) / file.name).write_text(text)
        longer_files = reading(Path(folder))

    # The same steady runs in both: only what the count of requests does is compared.
    once = bsd.read_traces(corpus("vllm-cpu")).steady
    many = bsd.Traces(
        runs=once.runs.assign(requests=once.runs["requests"] * TIMES), set_aside=once.set_aside
    )
    fits: dict[str, list[dict[str, float]]] = {"once": [], "many": []}
    for i, seed in enumerate(SEEDS):
        pair = [("once", once), ("many", many)]
        for name, traces in pair if i % 2 == 0 else pair[::-1]:
            fits[name].append(sampling(traces, seed))

    def middle(name: str, what: str) -> float:
        return median(fit[what] for fit in fits[name])

    result: dict[str, Any] = {
        "times": TIMES,
        "fits": fits,
        "ratio": middle("many", "seconds_sample") / middle("once", "seconds_sample"),
        "ratio_gradients": middle("many", "gradients_kept") / middle("once", "gradients_kept"),
        "bound": BOUND,
        "reading": {"once": files, "many": longer_files},
        "ratio_reading": longer_files["seconds"] / files["seconds"],
    }
    result["met"] = result["ratio"] <= BOUND
    if options.json:
        print(json.dumps(result))
        return
    print(f"{len(once)} steady runs, {DRAWS} + {TUNE} draws, 4 chains, seeds {SEEDS}; seconds")
    print(f"{'requests':<12}{'sampling':>28}{'median':>9}{'compile':>9}{'gradients':>11}")
    for name, label in (("once", "as they are"), ("many", f"x {TIMES}")):
        each = "  ".join(f"{fit['seconds_sample']:.2f}" for fit in fits[name])
        print(
            f"{label:<12}{each:>28}{middle(name, 'seconds_sample'):>9.2f}"
            f"{middle(name, 'seconds_compile'):>9.1f}{middle(name, 'gradients_kept'):>11.0f}"
        )
    print(
        f"sampling, ratio of medians {result['ratio']:.2f}, bound {BOUND}: "
        f"{'met' if result['met'] else 'MISSED'} (gradients after tuning: "
        f"{result['ratio_gradients']:.2f})\n"
    )
    for label, r in (("as they are", files), (f"x {TIMES}", longer_files)):
        print(
            f"reading {label:<12}{r['runs']:>5} runs {r['requests']:>7} requests "
            f"{r['megabytes']:>6.1f} MB {r['seconds']:>7.2f} s"
        )
    print(f"reading, ratio {result['ratio_reading']:.2f}: the only part that sees the requests")


if __name__ == "__main__":
    main()
