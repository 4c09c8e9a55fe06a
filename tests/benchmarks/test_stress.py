"""Broken assumptions: what holds is said to hold, what does not is said not to."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from stress import arrivals_correction, judge, overview, stress
from stress_cases import (
    ASSUMPTIONS,
    BASE,
    BURSTS,
    BURSTS_MIXED,
    CONSTANT,
    CONSTANT_MIXED,
    Assumption,
    measure,
)


@pytest.fixture(scope="module")
def base() -> pd.DataFrame:
    return measure(BASE, seed=1, requests=1500, replicates=3)


def test_the_law_holds_where_nothing_is_broken(base: pd.DataFrame) -> None:
    result = judge(BASE, base)
    assert result.passed and result.value <= 0.10
    assert "choice of arm stays right" in result.sentence
    assert ((base["low_s"] < base["simulated_s"]) & (base["simulated_s"] < base["high_s"])).all()
    assert (base["p_wrong"] < 0.05).all()
    assert (base["sd_change"] < 0).any() and (base["sd_change"] > 0).any()


def test_storms_are_reported_as_too_much() -> None:
    storm = Assumption("storms", "Storms", gap_shape=0.05)
    result = judge(storm, measure(storm, requests=800, replicates=2))
    assert not result.passed and result.value > 0.3
    assert "too low" in result.sentence


def test_a_wrong_choice_fails_however_near_the_means(base: pd.DataFrame) -> None:
    turned = base.assign(sd_change=-0.2, law_sd_change=0.01, error=0.01)
    result = judge(BASE, turned)
    assert not result.passed and result.value == pytest.approx(0.01)
    assert "choice of arm is wrong" in result.sentence
    assert "**wrong**: memory-bound at 20%" in overview([result])
    near = turned.assign(sd_change=-0.03)  # a tie
    assert judge(BASE, near).passed


def test_acceptance_that_varies_costs_cycles_that_can_be_counted() -> None:
    varying = next(a for a in ASSUMPTIONS if a.acceptance_sd)
    sd = measure(varying, requests=1000, replicates=2).query("arm == 'sd' and share == 0.5")
    assert (sd["error"] < -0.05).all()
    assert (sd["error_counted"].abs() < 0.05).all()


@pytest.mark.process
def test_arrivals_that_are_not_poisson_can_be_corrected_for() -> None:
    cases = (CONSTANT, CONSTANT_MIXED, BURSTS, BURSTS_MIXED)
    result = arrivals_correction({a.name: measure(a, 1, 300, 2) for a in cases})
    assert result.passed and result.value < 0.5
    assert len(result.table) == 48


def test_the_same_seed_gives_the_same_table() -> None:
    first, same, other = (measure(BASE, seed, 100, 2) for seed in (3, 3, 4))
    assert first.equals(same) and not first.equals(other)


@pytest.mark.process
def test_every_assumption_is_answered_for() -> None:
    results = stress(requests=24, replicates=2)
    names = [result.name for result in results]
    assert names == [*(a.name for a in ASSUMPTIONS), "arrivals_correction", "length_insensitivity"]
    for result in results:
        assert json.loads(json.dumps(result.to_dict()))["name"] == result.name
        assert len(result.table) >= 12 and np.isfinite(result.value)
    assert overview(results).count("\n") == len(ASSUMPTIONS) + 1
