"""The candidate law on made-up cycles, and the data sheets that it reads."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import one_law as law
import one_law_data as data

TRUE = {
    "e_mem": 0.7, "e_cmp": 0.4, "o_layer": 1e-4, "o_tp": 1e-4, "o_moe": 2e-5, "o_pass": 1e-3,
    "o_token": 1e-5, "o_draft": 5e-4, "e_kv": 0.6, "e_prefill": 0.3, "uneven": 0.8,
    "openmath": 150.0, "swe_verified": 1500.0,
}  # fmt: skip


def made(noise: float) -> pd.DataFrame:
    """Cycles of four systems, dense and MoE, on one and two H100."""
    grid = pd.MultiIndex.from_product(
        [range(4), [1.0, 4.0, 16.0, 64.0, 256.0], [0, 1, 3, 7], [200.0, 4000.0]]
    ).to_frame(index=False, name=["kind", "batch", "k", "prompt"])
    moe = grid["kind"] >= 2
    active, params = np.where(moe, 3e9, 8e9), np.where(moe, 30e9, 8e9)
    share = np.where(moe, 1 / 16, 1.0)
    rows = pd.DataFrame(data.model(params, active, share)).assign(
        batch=grid["batch"], k=grid["k"], prompt=grid["prompt"], output=256.0, active=active,
        layers=np.array([24.0, 60.0, 24.0, 60.0])[grid["kind"]], kv=1e5, drafter=2e8, rate=0.0,
        joining=grid["batch"] / 256, machine="H100", workload="",
        devices=np.array([1, 2, 2, 1])[grid["kind"]],
    )  # fmt: skip
    rows = data.with_sheets(rows)
    scatter = np.exp(noise * np.random.default_rng(1).standard_normal(len(rows)))
    return rows.assign(y=law.cycle(TRUE, law.arrays(rows), law.LAW) * scatter)


def test_the_law_recovers_what_made_the_data():
    fitted = law.fit(made(0.02), law.LAW)
    known = {"e_mem", "e_cmp", "e_kv", "e_prefill", "o_layer", "o_tp", "o_token", "o_draft"}
    assert known <= set(fitted.known()) and not set(law.UNPUBLISHED) & set(fitted.known())
    for name in known:
        assert abs(np.log(fitted.theta[name] / TRUE[name])) < 0.15, name
    assert fitted.error(made(0.0)).abs().max() < 0.03


def test_one_token_reads_its_own_experts_and_many_read_all():
    rows = made(0.0).iloc[[-1]].assign(k=0, joining=0.0, prompt=0.0, output=0.0)
    only = {name: 1.0 for name in ("e_mem", "e_cmp", "openmath", "swe_verified")}
    form = law.Form(power=np.inf, on=())
    for batch, bytes_read in ((1.0, 2 * 3e9), (1e3, 2 * 30e9)):
        seconds = law.cycle(only, law.arrays(rows.assign(batch=batch)), form)
        assert seconds == pytest.approx(bytes_read / data.SHEETS["H100"]["bandwidth"], rel=0.01)


def test_data_sheets_are_sane_and_leave_out_what_is_unknown():
    precisions = {"fp16", "bf16", "fp8", "fp4", "int8"}
    for name, sheet in data.SHEETS.items():
        assert set(sheet) <= precisions | {"memory_bytes", "bandwidth", "dies", "source"}, name
        assert 1e11 < sheet["bandwidth"] < 1e13 and 1e10 < sheet["memory_bytes"] < 1e12, name
        assert all(5e13 < sheet[p] < 5e16 for p in precisions & set(sheet)), name
        assert sheet.get("fp8", np.inf) >= sheet.get("bf16", 0) and sheet["source"], name
    assert "fp8" not in data.SHEETS["A100 80GB"] and "bf16" not in data.SHEETS["V100"]
    assert len(data.SHEETS) >= 25
