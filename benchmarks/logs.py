"""A log of many requests to runs: seconds, requests/s and peak memory, beside plain pandas.

    uv run benchmarks/logs.py [--requests 1e7] [--folder /tmp]     # about a minute; 1e8 ten times

Makes a Parquet log of so many requests in the folder (25 bytes a request, removed at the end),
reads it in a process of its own by `bayes_sd.read` (all statistics of every window, exact
percentiles, copies of requests found) and, up to 2e7 requests, in another by the same computation
in pandas. Both must give the same numbers. The exit status is 1 if they do not, or if reading takes
more than 1 GB or more than a third of pandas' time.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

RATE_RPS, WINDOW_S, CHUNK = 100.0, 300.0, 1_000_000
PANDAS_MOST = 20_000_000
LEAST_RATIO, MOST_MB = 3.0, 1000.0
SHOWN = ["requests", "prompt_tokens", "e2e_mean_s", "ttft_log_mean", "e2e_log_var", "tpot_p99_s"]


def make(path: Path, requests: int, seed: int = 1) -> None:
    """Write a log of Poisson arrivals, a part at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    rng, time_s, writer = np.random.default_rng(seed), 1.79e9, None
    for start in range(0, requests, CHUNK):
        n = min(CHUNK, requests - start)
        arrived = time_s + np.cumsum(rng.exponential(1 / RATE_RPS, n))
        output, ttft_s = rng.integers(1, 500, n), rng.lognormal(-2, 0.4, n)
        columns = {
            "timestamp": arrived,
            "prompt_tokens": rng.integers(1, 4000, n),
            "output_tokens": output,
            "e2e_s": ttft_s + (output - 1) * rng.lognormal(-4, 0.1, n),
            "ttft_s": ttft_s,
        }
        table, time_s = pa.table(columns), float(arrived[-1])
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def by_bayes_sd(path: Path) -> pd.DataFrame:
    """The run table of the log."""
    import bayes_sd as bsd

    server = {"verifier": "m", "verifier_params": 8e9, "draft_tokens": 0}
    return bsd.read(path, window_s=WINDOW_S, **server).table


def by_pandas(path: Path) -> pd.DataFrame:
    """The same statistics, as one would write them down."""
    log = pd.read_parquet(path)
    if (log["timestamp"].diff() < 0).any():
        raise ValueError("not in order")
    log = log.drop_duplicates()
    first, last, n = log["timestamp"].min(), log["timestamp"].max(), len(log)
    span_s = (last - first) * n / (n - 1)
    count = round(span_s / WINDOW_S)
    at = (log["timestamp"] - first) / (span_s / count)
    log["window"] = np.minimum(at.astype(int), count - 1)
    quarter = ((at - log["window"]) * 4).astype(int).clip(upper=3)
    decode_s = (log["e2e_s"] - log["ttft_s"]).where(log["output_tokens"] > 1)
    log["tpot_s"] = decode_s / (log["output_tokens"] - 1)
    groups = log.groupby("window")
    parts = [groups.size().rename("requests")]
    parts += [groups[["prompt_tokens", "output_tokens"]].mean()]
    parts += [groups[["prompt_tokens", "output_tokens"]].std().add_suffix("_sd")]
    for m in ("e2e", "ttft", "tpot"):
        logs = np.log(log[f"{m}_s"]).groupby(log["window"])
        parts += [groups[f"{m}_s"].mean().rename(f"{m}_mean_s")]
        parts += [logs.mean().rename(f"{m}_log_mean"), logs.var().rename(f"{m}_log_var")]
        q = groups[f"{m}_s"].quantile([0.5, 0.9, 0.95, 0.99]).unstack()
        parts += [q.set_axis([f"{m}_p{x}_s" for x in (50, 90, 95, 99)], axis=1)]
    quarters = log["e2e_s"].groupby([log["window"], quarter])
    parts += [quarters.size().unstack().add_prefix("n_"), quarters.sum().unstack().add_prefix("s_")]
    return pd.concat(parts, axis=1)


BY = {"bayes_sd": by_bayes_sd, "pandas": by_pandas}


def measure(how: str, path: Path) -> dict[str, object]:
    """Seconds of reading in this process and its peak memory, all imports included."""
    start = time.perf_counter()
    table = BY[how](path)
    seconds = time.perf_counter() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    took = {"seconds": seconds, "cpu_seconds": time.process_time(), "peak_mb": peak_mb}
    return {**took, "table": table[SHOWN].to_numpy().tolist()}


def main() -> int:
    """Print the table; 1 if a bound is not kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=float, default=1e7)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--measure", choices=list(BY), help="in this process, the log --folder")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.folder)))
        return 0
    requests = int(given.requests)
    found = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "log.parquet"
        make(path, requests)
        print(f"{requests:.0e} requests, {path.stat().st_size / 1e9:.2f} GB", file=sys.stderr)
        for how in [h for h in BY if h == "bayes_sd" or requests <= PANDAS_MOST]:
            command = [sys.executable, __file__, "--measure", how, "--folder", str(path)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[how] = json.loads(done.stdout)
    tables = [np.array(each.pop("table")) for each in found.values()]
    table = pd.DataFrame(found).T
    table.insert(0, "requests_per_s", requests / table["seconds"])
    print(table.round(1).to_string(), f"\n{len(tables[0])} windows")
    fine = table["peak_mb"]["bayes_sd"] <= MOST_MB
    if "pandas" in table.index:
        ratio = table["seconds"]["pandas"] / table["seconds"]["bayes_sd"]
        same = np.allclose(*tables, rtol=1e-9)
        cpu = table["cpu_seconds"]["pandas"] / table["cpu_seconds"]["bayes_sd"]
        print(f"pandas takes {ratio:.1f} times as long ({cpu:.1f} in CPU); same numbers: {same}")
        fine = fine and same and ratio >= LEAST_RATIO
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
