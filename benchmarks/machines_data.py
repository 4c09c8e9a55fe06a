"""Runs of every machine with public data, for one law; what is not beside the checkout is skipped.

The public tables are read where they are; nothing of them is kept in this project. GB200 and static
batches hold a number of requests in flight: their mean latency is Little's.
"""

import os
from pathlib import Path

import a100_data
import numpy as np
import pandas as pd
import static_data

import bayes_sd as bsd
from bayes_sd.runs.machine import captured, sheets
from bayes_sd.runs.read import corpus
from bayes_sd.runs.schema import Runs

TRACES = Path(__file__).parents[2] / "shared" / "traces"
GB200 = Path(os.environ.get("BAYES_SD_GB200", TRACES / "dynamic-sd-gb200" / "runs.csv"))
SHEETS = sheets()
NAMES = {"Nvidia A100 GPU": "A100 40GB", "Nvidia H100 GPU": "H100", "AMD MI250 GPU": "MI250",
         "Nvidia GH200 GPU": "GH200 96GB", "AMD MI300X GPU": "MI300X",
         "Intel PVC GPU": "Max 1550"}  # fmt: skip
PRESET = [1, 2, 4, 8, 16, 32, 64]  # captured where the limit is 64: it explains the slow cells
UNPUBLISHED = {"openmath": 150.0, "swe_verified": 800.0}  # prompt tokens; guessed
VOCABULARY, DRAFT_VOCABULARY = 151_936, 32_000
QUERIES = {"Qwen3-235B-A22B": 16.0, "Qwen3-30B-A3B": 8.0, "Qwen3-32B": 8.0}
HIDDEN = {"Qwen3-235B-A22B": 4096, "Qwen3-30B-A3B": 2048, "Qwen3-32B": 5120}
COMMON = ("verifier", "drafter", "drafter_params", "draft_tokens", "acceptance_imposed", "loop",
          "verifier_params", "verifier_active_params", "verifier_layers", "verifier_kv_bytes",
          "verifier_queries_per_key",
          "experts", "experts_per_token", "family", "workload", "concurrency", "prompt_tokens",
          "output_tokens", "requests", "e2e_mean_s", "environment", "gb_per_s", "tflops", "dies",
          "captured_tokens", "acceptance_length")  # fmt: skip


def sheet(machines: pd.Series, devices: pd.Series) -> dict[str, pd.Series]:
    """What the data sheets say of so many devices."""
    sheets = [SHEETS[name] for name in machines]
    return {
        "gb_per_s": devices * [x["bandwidth"] / 1e9 for x in sheets],
        "tflops": devices * [x.get("bf16", x.get("fp16")) / 1e12 for x in sheets],
        "dies": devices * [x.get("dies", 1) for x in sheets],
    }


def read(table: pd.DataFrame) -> Runs:
    """A table under our own names as runs."""
    return bsd.read(table[[name for name in COMMON if name in table]])


def gb200(workload: str = "") -> Runs:
    """Fixed batches with EAGLE-3 on GB200."""
    raw = pd.read_csv(GB200)
    raw = raw[raw["workload"].str.startswith(workload)].reset_index(drop=True)
    names = raw["verifier"].str.split("/").str[-1]
    hidden = names.map(HIDDEN).to_numpy(float)
    plain = raw["k"] == 0
    limits = zip(raw["k"], raw["cudagraph_max_tokens"].astype(int), strict=True)
    unread = hidden * VOCABULARY  # the input embedding
    lengths = raw["workload"].str.split().str[0]
    table = raw.assign(
        verifier_params=raw["verifier_params"] - unread,
        verifier_active_params=raw["verifier_active_params"] - unread,
        verifier_layers=raw["layers"], verifier_kv_bytes=raw["kv_bytes_per_token"],
        verifier_queries_per_key=names.map(QUERIES),
        drafter=np.where(plain, "none", "EAGLE-3 of " + names),
        drafter_params=np.where(plain, np.nan, 24 * hidden**2 + DRAFT_VOCABULARY * hidden),
        draft_tokens=raw["k"],
        loop="closed", concurrency=raw["batch"], prompt_tokens=lengths.map(UNPUBLISHED),
        requests=raw["batch"],
        e2e_mean_s=raw["batch"] * raw["output_tokens"] / raw["output_tokens_per_s"],
        environment=raw["gpus"].astype(str) + " x GB200 / vLLM 0.24", workload=lengths,
        captured_tokens=[captured(k, m, PRESET if m == 64 else ()) for k, m in limits],
        experts=raw["experts"].fillna(0), experts_per_token=raw["experts_per_token"].fillna(0),
        **sheet(pd.Series(["GB200"] * len(raw)), raw["gpus"]),
    )  # fmt: skip
    return read(table)


def static(machine: str = "") -> Runs:
    """Static batches on vLLM of 2024, without those that do not fit into memory at once."""
    cells, _ = static_data.cells(pd.read_csv(static_data.path()))
    fits = 2 * cells["tokens"] * cells["batch"] <= cells["room_tokens"]
    names = cells["hardware"].map(NAMES)
    cells = cells[fits & names.str.startswith(machine)]
    cells = cells.reset_index(drop=True)
    names = cells["hardware"].map(NAMES)
    shapes = [static_data.SHAPES[name] for name in cells["model"]]
    moe = cells["moe"].to_numpy() > 0
    params = np.array([1e9 * shape.params_1e9 for shape in shapes])
    table = cells.assign(
        verifier=cells["model"], verifier_params=params,
        verifier_active_params=np.where(moe, 12.9e9, params),
        verifier_layers=[shape.layers for shape in shapes],
        verifier_kv_bytes=[1e9 * shape.kv_gb for shape in shapes],
        verifier_queries_per_key=[shape.query_width / shape.kv_width for shape in shapes],
        experts=8 * moe, experts_per_token=2 * moe, family=np.where(moe, "moe", "dense"),
        drafter="none", draft_tokens=0, loop="closed", concurrency=cells["batch"],
        prompt_tokens=cells["tokens"], output_tokens=cells["tokens"], requests=cells["batch"],
        e2e_mean_s=cells["latency_s"],
        environment=cells["devices"].astype(str) + " x " + names + " / vLLM 2024",
        **sheet(names, cells["devices"]),
    )  # fmt: skip
    return read(table)


def a100(most: float = np.inf, ttft: bool = True) -> Runs:
    """The A100 sweeps with at most so many requests in flight."""
    rows = a100_data.table()
    rows = rows[rows["request_concurrency_mean"] <= most].reset_index(drop=True)
    return a100_data.runs(rows, ttft)


def cpu() -> Runs:
    """The shipped runs on a CPU."""
    return bsd.read([corpus("vllm-cpu"), corpus("vllm-cpu-2")])
