"""Rows of every machine that one law is fitted to; the public tables are read where they are.

One row is one cycle: the seconds in which a batch of requests gets its next tokens.
"""

from pathlib import Path

import a100_data
import numpy as np
import pandas as pd
import static_data

import bayes_sd as bsd
from bayes_sd.runs.machine import captured, sheets
from bayes_sd.runs.read import corpus

ROOT = Path(__file__).parents[1]
GB200 = ROOT.parent / "shared" / "traces" / "dynamic-sd-gb200" / "runs.csv"
SHEETS = sheets()
NAMES = {"Nvidia A100 GPU": "A100 40GB", "Nvidia H100 GPU": "H100", "AMD MI250 GPU": "MI250",
         "Nvidia GH200 GPU": "GH200 96GB", "AMD MI300X GPU": "MI300X",
         "Intel PVC GPU": "Max 1550"}  # fmt: skip
# Nobody published a data sheet of the shared CPU: its efficiencies are of 40 GB/s and 1 TFLOP/s.
CPU = {"bandwidth": 40e9, "bf16": 1e12}
HIDDEN = {"Qwen3-235B-A22B": 4096, "Qwen3-30B-A3B": 2048, "Qwen3-32B": 5120}
PRESET = [1, 2, 4, 8, 16, 32, 64]  # captured where the limit is 64: it explains the slow cells
VOCABULARY, DRAFT_VOCABULARY = 151_936, 32_000


def model(params: np.ndarray, active: np.ndarray, used_share: np.ndarray) -> dict[str, np.ndarray]:
    """Bytes of 16-bit weights that every token needs, and of experts."""
    experts = np.where(used_share < 1, (params - active) / np.maximum(1 - used_share, 1e-9), 0.0)
    return {"shared": 2 * (params - experts), "experts": 2 * experts, "idle": 1 - used_share}


def gb200_rows() -> pd.DataFrame:
    """Fixed batches with EAGLE-3; the prompts' lengths are not published, so they are fitted."""
    raw = pd.read_csv(GB200)
    hidden = raw["verifier"].str.split("/").str[-1].map(HIDDEN).to_numpy(float)
    unread = hidden * VOCABULARY  # the input embedding
    share = np.where(raw["experts"] > 0, raw["experts_per_token"] / raw["experts"].clip(lower=1), 1)
    params, active = raw["verifier_params"] - unread, raw["verifier_active_params"] - unread
    e = raw["acceptance_length"].fillna(1.0)
    drafter = 24 * hidden**2 + DRAFT_VOCABULARY * hidden
    most = raw["cudagraph_max_tokens"].astype(int)
    limit = [captured(k, m, PRESET if m == 64 else ()) for k, m in zip(raw["k"], most, strict=True)]
    return pd.DataFrame(model(params.to_numpy(), active.to_numpy(), share)).assign(
        source="GB200", machine="GB200", system=raw["system"], devices=raw["gpus"],
        workload=raw["workload"].str.split().str[0], layers=raw["layers"], active=active,
        kv=raw["kv_bytes_per_token"], batch=raw["batch"], k=raw["k"], committed=e,
        prompt=np.nan, output=raw["output_tokens"], joining=raw["batch"] * e / raw["output_tokens"],
        rate=0.0, drafter=drafter, past=raw["batch"] * (raw["k"] + 1) > limit,
        y=raw["batch"] * e / raw["output_tokens_per_s"],
    )  # fmt: skip


def static_rows() -> pd.DataFrame:
    """Static batches on vLLM of 2024, without those that do not fit into memory at once."""
    cells, _ = static_data.cells(pd.read_csv(static_data.path()))
    fits = 2 * cells["tokens"] * cells["batch"] <= cells["room_tokens"]
    cells = cells[(cells["engine"] == "vLLM") & fits].reset_index(drop=True)
    shapes = [static_data.SHAPES[name] for name in cells["model"]]
    params = np.array([1e9 * shape.params_1e9 for shape in shapes])
    moe = cells["moe"].to_numpy() > 0
    active = np.where(moe, 12.9e9, params)
    share = np.where(moe, 1 - cells["idle"], 1.0)
    machine = cells["hardware"].map(NAMES)
    return pd.DataFrame(model(params, active, share)).assign(
        source="static", machine=machine, devices=cells["devices"], workload="",
        system=cells["model"] + " x" + cells["devices"].astype(str), active=active,
        layers=[shape.layers for shape in shapes], kv=[1e9 * shape.kv_gb for shape in shapes],
        batch=cells["batch"], k=0, committed=1.0, prompt=cells["tokens"], output=cells["tokens"],
        joining=cells["batch"] / cells["tokens"], drafter=0.0, past=False, rate=0.0,
        y=cells["latency_s"] / cells["tokens"],
    )  # fmt: skip


def served_rows(source: str, machine: str | np.ndarray, table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a server at a rate: time between tokens, among the prefills of other requests."""
    return table.assign(source=source, machine=machine, devices=1, workload="", past=False,
                        joining=0.0)  # fmt: skip


def expected(acceptance: pd.Series, k: pd.Series) -> np.ndarray:
    """Tokens a cycle commits at a constant acceptance."""
    return np.array([sum(a**i for i in range(n + 1)) for a, n in zip(acceptance, k, strict=True)])


def a100_rows(most: float = 16.0) -> pd.DataFrame:
    """One request at a time and rates with at most so many in flight."""
    raw = a100_data.table()
    raw = raw[raw["request_concurrency_mean"] <= most].reset_index(drop=True)
    e = expected(raw["alpha"], raw["k"])
    params = raw["params"].to_numpy()
    rows = pd.DataFrame(model(params, params, np.ones(len(raw)))).assign(
        system=raw["verifier"], layers=raw["layers"], active=params, kv=raw["kv_bytes"],
        batch=raw["request_concurrency_mean"].clip(lower=1.0), k=raw["k"], committed=e,
        prompt=raw["prompt_token_count_mean"], output=raw["output_token_count_mean"],
        rate=np.where(raw["kind"] == "synchronous", 0.0, raw["requests_per_second_mean"]),
        drafter=raw["drafter_params"], y=e * raw["inter_token_latency_ms_mean"] / 1e3,
    )  # fmt: skip
    return served_rows("A100", "A100 80GB", rows)


def cpu_rows(most: float = 4.0) -> pd.DataFrame:
    """The shipped runs with at most so many requests in flight."""
    raw = bsd.read(corpus()).table
    known = raw["acceptance_imposed"].notna() | (raw["draft_tokens"] == 0)
    few = (raw["in_flight"] <= most) & raw["tpot_mean_s"].notna()
    raw = raw[known & few].reset_index(drop=True)
    # The first campaign did not record shapes; the second has the same models.
    shape = raw.groupby("verifier")[["verifier_layers", "verifier_kv_bytes"]].transform("max")
    raw = raw.assign(**shape)[shape.notna().all(axis=1)].reset_index(drop=True)
    e = expected(raw["acceptance_imposed"].fillna(0.0), raw["draft_tokens"])
    moe = raw["experts"].fillna(0).to_numpy(float) > 0
    share = np.where(moe, raw["experts_per_token"] / raw["experts"].clip(lower=1), 1.0)
    params = raw["verifier_params"].to_numpy(float)
    active = np.where(moe, raw["verifier_active_params"], params)
    rows = pd.DataFrame(model(params, active, share)).assign(
        system=raw["verifier"], layers=raw["verifier_layers"], active=active,
        kv=raw["verifier_kv_bytes"], rate=raw["achieved_rps"],
        batch=(raw["in_flight"] * (1 - raw["ttft_mean_s"] / raw["e2e_mean_s"])).clip(lower=1.0),
        k=raw["draft_tokens"], committed=e, prompt=raw["prompt_tokens"],
        output=raw["output_tokens"], drafter=raw["drafter_params"].fillna(0.0),
        y=e * raw["tpot_mean_s"],
    )  # fmt: skip
    # The two campaigns differ by 1.6 times: with and without compiled graphs.
    eager = raw["environment"].str.endswith("eager")
    return served_rows("CPU", np.where(eager, "CPU eager", "CPU compiled"), rows)


def every_row() -> pd.DataFrame:
    """All rows whose tables are there."""
    there = {gb200_rows: GB200, static_rows: static_data.path(), a100_rows: a100_data.path()}
    read = [cpu_rows(), *(rows() for rows, path in there.items() if path.exists())]
    return with_sheets(pd.concat(read, ignore_index=True))


def with_sheets(rows: pd.DataFrame) -> pd.DataFrame:
    """Bandwidth, arithmetic and dies of the accelerators of each row together."""
    sheets = [SHEETS.get(name, CPU) for name in rows["machine"]]
    return rows.assign(
        bw=rows["devices"] * [sheet["bandwidth"] for sheet in sheets],
        flops=rows["devices"] * [sheet["bf16"] for sheet in sheets],
        dies=rows["devices"] * [sheet.get("dies", 1) for sheet in sheets],
    )
