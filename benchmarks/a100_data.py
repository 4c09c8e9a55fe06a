"""The public Qwen3 sweeps on an A100: rows to runs. Nothing of the data is kept in this project."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

import bayes_sd as bsd
from bayes_sd.runs.schema import Runs

# Non-embedding parameters, layers, query heads to a key-value head: the drafter is one layer of the
# verifier's width.
SHAPES = {"0.6B": (0.44e9, 28, 2), "1.7B": (1.4e9, 28, 2), "4B": (3.6e9, 36, 4),
          "8B": (6.95e9, 36, 4), "32B": (31.2e9, 64, 8)}  # fmt: skip
KV_WIDTH = 8 * 128  # key-value heads times head size, the same in all of them
DEFAULT = Path(__file__).parents[2] / "shared" / "traces" / "qwen3-sd-a100" / "runs.csv"
HIGHEST_DROPPED = 2  # rates of each sweep at which many requests were cut off


def path() -> Path:
    """Where the table is: ``BAYES_SD_A100``, or beside the checkout."""
    return Path(os.environ.get("BAYES_SD_A100", DEFAULT))


def table(steady: bool = True) -> pd.DataFrame:
    """The rows without throughput runs and, if `steady`, without the two highest rates."""
    rows = pd.read_csv(path())
    rows = rows[rows["kind"] != "throughput"].reset_index(drop=True)
    if steady:
        constant = rows[rows["kind"] == "constant"]
        rank = constant.groupby("file")["requests_per_second_mean"].rank(ascending=False)
        rows = rows.drop(index=rank.index[rank <= HIGHEST_DROPPED]).reset_index(drop=True)
    size = rows["verifier"].str.replace("Qwen3-", "")
    return rows.assign(
        params=[SHAPES[s][0] for s in size],
        layers=[float(SHAPES[s][1]) for s in size],
        queries=[float(SHAPES[s][2]) for s in size],
        kv_bytes=[4.0 * KV_WIDTH * SHAPES[s][1] for s in size],
        drafter="one layer of " + size,
        drafter_params=[SHAPES[s][0] / SHAPES[s][1] for s in size],
        loop=np.where(rows["kind"] == "synchronous", "closed", "open"),
        concurrency=np.where(rows["kind"] == "synchronous", 1.0, np.nan),
        k=rows["k"].astype(int),
    )


def runs(rows: pd.DataFrame, ttft: bool = True) -> Runs:
    """Rows as runs, with their TTFT or without."""
    ms = {
        f"{metric}_{stat}_s": (f"{name}_ms_{column}", "ms")
        for metric, name in (("ttft", "time_to_first_token"), ("tpot", "inter_token_latency"))
        if ttft or metric != "ttft"
        for stat, column in (("mean", "mean"), ("std", "std"), ("p50", "median"), ("p90", "p90"),
                             ("p99", "p99"))
    }  # fmt: skip
    return bsd.read(
        rows,
        columns={
            "verifier": "verifier", "verifier_params": "params", "drafter": "drafter",
            "verifier_layers": "layers", "verifier_kv_bytes": "kv_bytes",
            "verifier_queries_per_key": "queries",
            "drafter_params": "drafter_params", "draft_tokens": "k", "acceptance_imposed": "alpha",
            "prompt_tokens": "prompt_token_count_mean", "output_tokens": "output_token_count_mean",
            "loop": "loop", "concurrency": "concurrency", "requests": "n_successful",
            "failed": "n_errored", "achieved_rps": "requests_per_second_mean",
            "e2e_mean_s": "request_latency_mean", "e2e_std_s": "request_latency_std",
            "e2e_p50_s": "request_latency_median", "e2e_p90_s": "request_latency_p90",
            "e2e_p99_s": "request_latency_p99", **ms,
        },
        environment="A100 80 GB / vLLM",
        machine="A100 80GB",
        family="dense",
        duration_s=90.0,
    )  # fmt: skip
