"""The laws for static batches and their fits, on made-up batches."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import static_batches as batches
import static_data as data
import static_law as law

THETA = {
    "start": 0.05, "joining": 0.002, "pass": 0.004, "token": 1e-4, "context": 2e-8,
    "experts": 0.0, "kernel": 0.0,
}  # fmt: skip
A100, MIXTRAL, LLAMA = "Nvidia A100 GPU", "mistralai/Mixtral-8x7B-v0.1", "meta-llama/Llama-2-7b-hf"


def rows(theta: dict, form=None, moe: float = 0.0, room: float = 1e9) -> pd.DataFrame:
    form = form or law.Form()
    n, g = np.meshgrid([1.0, 16.0, 32.0, 64.0], [128.0, 256.0, 512.0, 1024.0, 2048.0])
    out = pd.DataFrame({"batch": n.ravel(), "tokens": g.ravel()})
    out = out.assign(moe=moe, idle=0.75, heads=8.0, room_tokens=room, engine="vLLM")
    out = out.assign(hardware=A100, devices=4, model="Mixtral-8x7B-v0.1" if moe else "Llama")
    units = law.columns(form, out)
    return out.assign(latency_s=units @ np.array([theta[name] for name in law.NAMES]))


def table(model: str, latency) -> pd.DataFrame:
    """Rows as the public table has them."""
    return pd.DataFrame(
        [
            {"Hardware": A100, "Num of Hardware": 1, "Framework": "vLLM", "Model": model,
             "Input Output Length": g, "Batch Size": n, "Latency": latency(n, g),
             "Throughput": 0.0}
            for g in (128, 256, 512, 1024, 2048) for n in (1, 16, 32, 64)
        ]
    )  # fmt: skip


def test_one_law_is_the_line_of_the_paper():
    batch = {"batch": 16.0, "tokens": 128.0, "room_tokens": 1e9, "moe": 0.0, "idle": 0.5,
             "heads": 32.0}  # fmt: skip
    c1 = THETA["start"] + 128 * THETA["pass"]
    c2 = THETA["joining"] + 128 * (THETA["token"] + 192 * THETA["context"])
    assert law.batch_latency(THETA, batch, 1, 1.0) == pytest.approx(c1 + 15 * c2)


def test_one_request_reads_the_experts_of_one_token():
    batch = {"batch": 1.0, "tokens": 10.0, "room_tokens": 1e9, "moe": 1.0, "idle": 0.75,
             "heads": 32.0}  # fmt: skip
    only = dict.fromkeys(law.NAMES, 0.0) | {"experts": 1.0}
    assert law.batch_latency(only, batch, 1, 1.0) == pytest.approx(10 * 0.25)


def test_batch_that_does_not_fit_is_served_in_turns():
    batch = {"batch": 32.0, "tokens": 512.0, "moe": 0.0, "idle": 0.5, "heads": 1.0}
    fits = law.batch_latency(THETA, batch | {"batch": 16.0, "room_tokens": 1e9}, 1, 1.0)
    assert law.turns(32.0, 1024.0, 16384.0) == 2.0
    assert law.turns(8.0, 1024.0, 16384.0) == 1.0
    twice = law.batch_latency(THETA, batch | {"room_tokens": 16384.0}, 1, 1.0)
    assert twice == pytest.approx(2 * fits)
    endless = law.batch_latency(THETA, batch | {"room_tokens": 16384.0}, 1, 0.0)
    assert endless < twice


def test_knee_and_kernel_rule():
    assert law.beyond_knee(20.0, 16) == 4.0 and law.beyond_knee(8.0, 16) == 0.0
    # One partition of context, or more blocks of threads than 512: vLLM's own rule.
    assert law.first_kernel(1, 32, 512) and law.first_kernel(17, 32, 4096)
    assert not law.first_kernel(16, 32, 513)


def test_same_for_arrays_and_labels():
    batch = {"batch": np.array([1.0, 64.0]), "tokens": 512.0, "room_tokens": 3e4, "moe": 1.0,
             "idle": 0.75, "heads": 32.0}  # fmt: skip
    theta = THETA | {"experts": 0.003, "kernel": 1e-8}
    expected = law.batch_latency(theta, batch, 8, 1.0)
    labelled = batch | {"batch": xr.DataArray(batch["batch"], dims="run")}
    np.testing.assert_allclose(law.batch_latency(theta, labelled, 8, 1.0).values, expected)


def test_coverage_explains_a_mixture_that_no_line_does():
    study = batches.study(rows(THETA | {"experts": 0.02}, law.Form(coverage=True), moe=1.0))
    assert study["coverage_fit"] < 1e-6 and study["coverage_length"] < 1e-6
    assert study["line_fit"] > 0.05 and study["lines_fit"] > 0.05
    assert study["experts_share"] == pytest.approx(0.02 / 0.024, rel=1e-3)
    assert not study["kernel"] and study["knee"] == 1


def test_dense_model_gains_nothing_from_coverage():
    study = batches.study(rows(THETA))
    assert study["line_fit"] < 1e-9 and study["coverage_fit"] == study["line_fit"]
    assert study["lines_batch"] < 1e-9 and study["line_length"] < 1e-9
    assert not study["kernel"] and study["knee"] == 1  # no coefficient that nothing asks for


@pytest.mark.parametrize(
    ("form", "theta"),
    [
        (law.Form(coverage=True, memory=True), {}),
        (law.Form(coverage=True, memory=True, kernel=True), {"kernel": 4e-8}),
        (law.Form(coverage=True, memory=True, knee=8), {"token": 3e-4}),
    ],
)
def test_each_part_is_chosen_where_it_is(form, theta):
    cells = rows(THETA | theta, form, room=6e4)
    fitted = law.fit("knee", cells)
    assert fitted.form == form
    assert law.errors(fitted, cells).max() < 1e-6
    assert law.errors(law.fit("line", cells), cells).max() > 0.01


def test_held_out_rows_do_not_see_themselves():
    cells = rows(THETA)
    latency_s = cells["latency_s"]
    spoilt = cells.assign(latency_s=latency_s.where(cells["batch"] != 32, latency_s * 2))
    for name in ("lines", "line"):
        error = law.held_out(name, spoilt, "batch")
        # Fitted to the good rows alone, the spoilt ones are missed by their factor of two.
        np.testing.assert_allclose(error[spoilt["batch"] == 32], 0.5, atol=1e-6)
    assert law.held_out("lines", cells, "tokens").isna().all()  # no line for that length


def test_cells_of_the_table():
    same = table(LLAMA, lambda n, g: 1.0 + n)
    again = same.head(1).assign(Latency=4.0)
    short = table("huggyllama/llama-7b", lambda n, g: 1.0)
    few = table(MIXTRAL, lambda n, g: 1.0).query("`Batch Size` < 20")
    cells, aside = data.cells(pd.concat([same, again, short, few], ignore_index=True))
    assert aside == {
        "longer than the model's positions": 4,
        "averaged with another of their cell": 1,
        "too few batch sizes: Mixtral-8x7B-v0.1, Nvidia A100 GPU x1": 10,
    }
    assert len(cells) == 20 + 16
    first = cells[cells["model"] == "Llama-2-7b-hf"].iloc[0]
    assert first["latency_s"] == 3.0 and first["moe"] == 0 and first["heads"] == 32
    # (0.9 x 40 GB - 13.48 GB of weights) over 524,288 bytes a token
    assert first["room_tokens"] == pytest.approx(22.52e9 / 524288)


def test_absent_table_is_said_to_be_absent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BAYES_SD_STATIC", str(tmp_path / "none.csv"))
    monkeypatch.setattr(sys, "argv", ["static_batches.py"])
    batches.main()
    assert capsys.readouterr().out.startswith("skipped: ")


@pytest.mark.process
def test_command(tmp_path, monkeypatch, capsys):
    def latency(n, g):
        return 0.01 * g * (1 + 2 * (1 - 0.75**n)) + 0.0005 * g * n

    both = pd.concat([table(MIXTRAL, latency), table(LLAMA, lambda n, g: 0.01 * g + 0.002 * n)])
    both.to_csv(tmp_path / "runs.csv", index=False)
    monkeypatch.setenv("BAYES_SD_STATIC", str(tmp_path / "runs.csv"))
    study, known = batches.study, {}

    def once(cells):  # the second call prints the same numbers in another form
        name = cells["model"].iloc[0]
        known[name] = known.get(name) or study(cells)
        return known[name]

    monkeypatch.setattr(batches, "study", once)
    monkeypatch.setattr(sys, "argv", ["static_batches.py", "--json"])
    batches.main()
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["vllm"]) == 2 and printed["others"] == []
    assert "met by coverage" in printed["verdicts"][0]
    assert printed["verdicts"][1].endswith("no rows, cannot be tested")
    monkeypatch.setattr(sys, "argv", ["static_batches.py"])
    batches.main()
    assert "met by coverage" in capsys.readouterr().out
