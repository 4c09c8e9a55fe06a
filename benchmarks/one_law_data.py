"""Rows of every machine that one law is fitted to; the public tables are read where they are.

One row is one cycle: the seconds in which a batch of requests gets its next tokens.
"""

import a100_data
import machines_data
import numpy as np
import pandas as pd
import static_data
from machines_data import SHEETS

from bayes_sd.runs.schema import Runs

# Nobody published a data sheet of the shared CPU: its efficiencies are of 40 GB/s and 1 TFLOP/s.
CPU = {"bandwidth": 40e9, "bf16": 1e12}


def model(params: np.ndarray, active: np.ndarray, used_share: np.ndarray) -> dict[str, np.ndarray]:
    """Bytes of 16-bit weights that every token needs, and of experts."""
    experts = np.where(used_share < 1, (params - active) / np.maximum(1 - used_share, 1e-9), 0.0)
    return {"shared": 2 * (params - experts), "experts": 2 * experts, "idle": 1 - used_share}


def batch_rows(source: str, runs: Runs) -> pd.DataFrame:
    """Rows of runs that hold a number of requests in flight; their environments name machines."""
    table = runs.table
    named = table["environment"].str.extract(r"(\d+) x (.+?) / [^/]+(?: / (.+))?$")
    experts = table["experts"].to_numpy(float)
    share = np.where(experts > 0, table["experts_per_token"] / np.maximum(experts, 1), 1.0)
    params, active = table[["verifier_params", "verifier_active_params"]].to_numpy(float).T
    e, batch = table["tokens_per_cycle"], table["concurrency"]
    return pd.DataFrame(model(params, active, share)).assign(
        source=source, machine=named[1], devices=named[0].astype(int), workload=named[2].fillna(""),
        system=table["verifier"].str.split("/").str[-1] + " x" + named[0], active=active,
        layers=table["verifier_layers"], kv=table["verifier_kv_bytes"], batch=batch,
        k=table["draft_tokens"], committed=e, rate=0.0, drafter=table["drafter_params"].fillna(0.0),
        prompt=table["prompt_tokens"], output=table["output_tokens"],
        joining=batch * e / table["output_tokens"],
        past=batch * (table["draft_tokens"] + 1) > table["captured_tokens"].fillna(np.inf),
        y=table["e2e_mean_s"] * e / table["output_tokens"],
    )  # fmt: skip


def gb200_rows() -> pd.DataFrame:
    """Fixed batches with EAGLE-3; the prompts' lengths are not published, so they are fitted."""
    return batch_rows("GB200", machines_data.gb200()).assign(prompt=np.nan)


def static_rows() -> pd.DataFrame:
    """Static batches on vLLM of 2024; no graph of a batch of theirs is known not to be captured."""
    return batch_rows("static", machines_data.static()).assign(past=False)


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
    """The shipped runs on a CPU with at most so many requests in flight."""
    raw = machines_data.cpu().table
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
    there = {gb200_rows: machines_data.GB200, static_rows: static_data.path(),
             a100_rows: a100_data.path()}  # fmt: skip
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
