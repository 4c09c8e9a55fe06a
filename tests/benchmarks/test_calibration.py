"""Calibration: ranks of known truths, their tests, and a tiny run of the whole."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from calibration import (
    BINS,
    RANKS,
    calibration,
    calibration_model,
    design_table,
    rank,
    rank_tests,
    ranks_figure,
)


def test_rank_tests_see_skewed_ranks_and_pass_uniform_ones() -> None:
    rng = np.random.default_rng(0)
    even = rng.integers(0, RANKS + 1, 400)
    skewed = (RANKS * rng.beta(2, 1, 400)).astype(int)
    table = rank_tests(pd.DataFrame({"even": even, "skewed": skewed}))
    assert table.index[0] == "skewed" and table["p_holm"].iloc[0] < 1e-6
    assert table.loc["even", "p_holm"] > 0.01
    assert table.filter(like="bin_").sum(axis=1).tolist() == [400, 400] and BINS == 10
    figure = ranks_figure(table.reset_index(names="parameter"))
    assert [ax.get_title().split()[0] for ax in figure.axes[:2]] == ["skewed", "even"]


def test_a_rank_counts_the_draws_below_the_truth() -> None:
    draws = np.arange(200.0).reshape(2, 100)
    names = {"law_term": ["a", "b"], "noise_term": ["c"]}
    dims = ("chain", "draw", "law_term")
    posterior = xr.Dataset(
        {
            "law": (dims, np.stack([draws, draws], axis=-1)),
            "noise": (("chain", "draw", "noise_term"), draws[..., None]),
        },
        coords=names,
    )
    truth = xr.Dataset(
        {"law": ("law_term", [-1.0, 1000.0]), "noise": ("noise_term", [99.5])}, coords=names
    )
    assert rank(truth, posterior) == {"a": 0, "b": RANKS, "c": RANKS // 2}


def test_the_design_is_small_and_its_priors_are_narrow() -> None:
    table = design_table()
    assert len(table) == 36 and table["verifier"].nunique() == 3
    assert max(p.b for p in calibration_model().used if p.kind == "lognormal") <= 0.3


@pytest.mark.sample
def test_a_few_fits_rank_every_parameter() -> None:
    result = calibration(fits=3, seed=1)
    counts = result.table.filter(like="bin_").sum(axis=1)
    assert (counts == 3).all() and len(counts) >= 20
    assert {"read_weights", "queue_cycles", "run_sd"} <= set(result.table["parameter"])
    assert result.passed and "3 fits" in str(result)
