"""The package's law by least squares on made-up runs, and the cells of the public static table."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bayes_sd as bsd

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import machines
import population
import static_data

A100 = "Nvidia A100 GPU"
TRUE = {"read_weights": 1.6, "overhead_draft_alone": 2e-3, "pace_dense": 2e-3}


def made() -> population.Inputs:
    """Runs whose mean latency is the law's, with some coefficients off the medians of priors."""
    grid = pd.MultiIndex.from_product(
        [["small", "middle", "large"], [0, 1, 5], [1, 4, 16, 64, 256], [200.0, 4000.0]],
        names=["verifier", "draft_tokens", "concurrency", "prompt_tokens"],
    ).to_frame(index=False)
    drafts = grid["draft_tokens"] > 0
    params = grid["verifier"].map({"small": 2e9, "middle": 8e9, "large": 30e9})
    table = grid.assign(
        verifier_params=params, verifier_layers=params.map({2e9: 48, 8e9: 24, 30e9: 60}),
        drafter=np.where(drafts, "drafter", "none"), drafter_params=np.where(drafts, 3e8, np.nan),
        acceptance_imposed=np.where(drafts, 0.7, np.nan), output_tokens=256, loop="closed",
        requests=512, e2e_mean_s=1.0, captured_tokens=8,
    )  # fmt: skip
    given = population.inputs(bsd.read(table, machine="H100", environment="made up"))
    terms = {p.name: p.a for p in population.population(population.FULL)} | TRUE
    e2e_s = population.Fitted(population.FULL, terms).outcome(given).e2e_s
    return population.replace(given, table=given.table.assign(e2e_mean_s=e2e_s))


def test_least_squares_recovers_the_coefficients_that_made_the_runs():
    given = made()
    fitted = population.fit(given)
    assert np.abs(fitted.error(given)).max() < 0.01
    for name, value in TRUE.items():
        assert fitted.terms[name] == pytest.approx(value, rel=0.05), name
    assert fitted.terms["pace_experts"] == 0.0  # no mixture of experts is there


def test_a_group_left_out_does_not_see_itself():
    given = made()
    held = (given.table["verifier"] == "large").to_numpy()
    twice = given.table["e2e_mean_s"].where(~held, 2 * given.table["e2e_mean_s"])
    spoilt = population.replace(given, table=given.table.assign(e2e_mean_s=twice))
    groups = pd.Series(np.where(held, "large", "others"))
    error = population.left_out(spoilt, groups)
    assert np.median(error[held]) == pytest.approx(-0.5, abs=0.03)


def test_the_sign_is_counted_where_sd_and_plain_differ_clearly():
    rows = pd.DataFrame(
        {"environment": "here", "workload": "", "verifier": "v", "concurrency": [1, 1, 2, 2, 3, 3],
         "draft_tokens": [0, 1] * 3, "output_tokens": 100.0,
         "e2e_mean_s": [1.0, 0.5, 1.0, 1.02, 1.0, 2.0]}
    )  # fmt: skip
    right = np.zeros(6)
    assert machines.signs(rows, right) == "2 of 2"
    assert machines.signs(rows, np.array([0, 0, 0, 0, 0, -0.6])) == "1 of 2"


def table(model: str, engine: str = "vLLM") -> pd.DataFrame:
    """Rows as the public table has them."""
    return pd.DataFrame(
        [
            {"Hardware": A100, "Num of Hardware": 1, "Framework": engine, "Model": model,
             "Input Output Length": g, "Batch Size": n, "Latency": 1.0 + n}
            for g in (128, 256, 512, 1024, 2048) for n in (1, 16, 32, 64)
        ]
    )  # fmt: skip


def test_cells_of_the_static_table():
    same = table("meta-llama/Llama-2-7b-hf")
    again = same.head(1).assign(Latency=4.0)
    short = table("huggyllama/llama-7b")
    few = table("mistralai/Mixtral-8x7B-v0.1").query("`Batch Size` < 20")
    other = table("mistralai/Mixtral-8x7B-v0.1", "TensorRT-LLM")
    rows = pd.concat([same, again, short, few, other], ignore_index=True)
    cells, aside = static_data.cells(rows)
    assert aside == {
        "longer than the model's positions": 4,
        "averaged with another of their cell": 1,
        "too few batch sizes: Mixtral-8x7B-v0.1, Nvidia A100 GPU x1": 10,
    }
    assert len(cells) == 20 + 16
    first = cells[cells["model"] == "Llama-2-7b-hf"].iloc[0]
    assert first["latency_s"] == 3.0 and first["moe"] == 0
    # (0.9 x 40 GB - 13.48 GB of weights) over 524,288 bytes a token
    assert first["room_tokens"] == pytest.approx(22.52e9 / 524288)
