"""Ten times the requests a run do not change the cost of a fit, only of reading.

    uv run benchmarks/many_requests.py [--json]        # six short fits, minutes

Prints the seconds and gradients of fits of the shipped runs as they are and with each run's
requests counted ten times, in turn and in one process; then those of reading files whose lists of
requests are ten times as long.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

import bayes_sd as bsd
from bayes_sd.model.sample import Sampling, sample
from bayes_sd.runs.read import corpus
from bayes_sd.runs.schema import Runs

TIMES = 10
SEEDS = (1, 2, 3)
SAMPLING = Sampling(draws=300, tune=300)
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


def sampling(runs: Runs, seed: int) -> dict[str, float]:
    """Seconds of one short fit, and its gradients after tuning."""
    graph = bsd.LatencyModel().build(runs)
    tree, _, used = sample(graph, SAMPLING, seed, progress=False)
    gradients = float(tree["sample_stats"]["n_steps"].sum())
    seconds = {name: float(used[name]) for name in ("seconds_compile", "seconds_sample")}
    return {"requests": int(runs.table["requests"].sum())} | seconds | {"gradients": gradients}


def longer(data: dict[str, Any]) -> dict[str, Any]:
    """A result whose benchmark went on ten times as long, its requests again and again."""
    more = {name: data[name] * TIMES for name in (*LISTS, *TOTALS) if data.get(name)}
    if data.get("start_times"):
        starts = data["start_times"]
        more["start_times"] = [t + i * data["duration"] for i in range(TIMES) for t in starts]
    return data | more


def reading(folder: Path) -> dict[str, float]:
    """Best of several reads."""
    seconds = []
    for _ in range(READS):
        begun = time.perf_counter()
        runs = bsd.read(folder)
        seconds.append(time.perf_counter() - begun)
    return {
        "runs": len(runs),
        "requests": int(runs.table["requests"].sum()),
        "megabytes": sum(f.stat().st_size for f in folder.glob("*.json")) / 1e6,
        "seconds": min(seconds),
    }


def main() -> None:
    """Print tables, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    files = [reading(corpus("vllm-cpu"))]
    with tempfile.TemporaryDirectory() as folder:
        for file in corpus("vllm-cpu").glob("*.json"):
            text = json.dumps(longer(json.loads(file.read_text(encoding="utf-8"))), indent=1)
            (Path(folder) / file.name).write_text(text, encoding="utf-8")
        files.append(reading(Path(folder)))

    # The same steady runs in both: only what the count of requests does is compared.
    once = bsd.read(corpus("vllm-cpu")).steady
    many = Runs(once.table.assign(requests=once.table["requests"] * TIMES), once.set_aside)
    fits = []
    for i, seed in enumerate(SEEDS):
        for runs in (once, many) if i % 2 == 0 else (many, once):
            fits.append(sampling(runs, seed))
    middle = pd.DataFrame(fits).groupby("requests").median()
    ratio = float(middle["seconds_sample"].iloc[1] / middle["seconds_sample"].iloc[0])
    result: dict[str, Any] = {
        "fits": fits,
        "ratio": ratio,
        "ratio_gradients": float(middle["gradients"].iloc[1] / middle["gradients"].iloc[0]),
        "bound": BOUND,
        "met": ratio <= BOUND,
        "reading": files,
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{len(once)} steady runs, medians over seeds {SEEDS}")
    print(middle.round(2).to_string())
    print(
        f"sampling, ratio {ratio:.2f}, bound {BOUND}: {'met' if result['met'] else 'MISSED'} "
        f"(gradients {result['ratio_gradients']:.2f})\n"
    )
    print("reading\n" + pd.DataFrame(files).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
