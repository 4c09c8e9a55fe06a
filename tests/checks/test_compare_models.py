"""Ranking of models and of fits: the same runs, differences with their errors, weights."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

import bayes_sd as bsd
from bayes_sd.checks.compare import Comparison, compare_models, ranking, stacking, standard_models
from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.runs.schema import Runs

MODELS = {
    "full": bsd.LatencyModel(),
    "uncensored": bsd.LatencyModel(censored=False),
    "apart": bsd.LatencyModel(pooling="none"),
}


def test_stacking_recovers_the_mixture_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    x = np.where(rng.random(1500) < 0.7, rng.normal(0, 1, 1500), rng.normal(4, 1, 1500))
    scores = np.stack([-((x - m) ** 2) / 2 - np.log(2 * np.pi) / 2 for m in (0, 4, 9)], axis=1)
    np.testing.assert_allclose(stacking(scores), [0.7, 0.3, 0.0], atol=0.04)


def test_differences_have_the_errors_of_sums_over_folds() -> None:
    scores = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [1.0, 1.0, 3.0, 1.0]})
    table = ranking(scores, pd.Series(["x", "x", "y", "y"]))
    assert table.index.tolist() == ["a", "b"]
    assert table["elpd"].tolist() == [10.0, 6.0]
    assert table["elpd_diff"].tolist() == [0.0, -4.0]
    # By fold a has 3 and 7, and b is 1 and 3 lower.
    assert table["elpd_se"]["a"] == pytest.approx(np.sqrt(2) * np.std([3, 7], ddof=1))
    assert table["diff_se"].tolist() == pytest.approx([0.0, np.sqrt(2) * np.std([1, 3], ddof=1)])


def test_standard_models_differ_in_one_thing_each() -> None:
    models = standard_models()
    full = models["full"].law.parts
    assert models["paper's law"].law.parts == ("host",)
    assert models["no experts"].law.parts == tuple(p for p in full if p != "experts")
    assert models["complete pooling"].pooling == "complete"
    assert len({repr(m) for m in models.values()}) == len(models) - 1  # censoring is not a prior
    assert not models["no censoring"].censored


@pytest.mark.parametrize("by", ["verifier", "drafter", "fifth"])
def test_all_models_predict_the_same_runs_from_the_same_folds(
    many: Runs, stand_ins: dict[bsd.LatencyModel, Any], by: str
) -> None:
    result = compare_models(many, MODELS, by=by)
    assert len(stand_ins[MODELS["full"]].table) > len(stand_ins[MODELS["uncensored"]].table)
    folds = [
        left_out.rows.set_index("run_id")["fold"].sort_index()
        for left_out in result.left_out.values()
    ]
    assert len(folds[0]) == (16 if by == "drafter" else 32)  # plain runs have no drafter
    assert all(fold.equals(folds[0]) for fold in folds)
    sets = [
        [frozenset(refitter.table["run_id"][mask]) for mask in refitter.masks]
        for refitter in (stand_ins[m] for m in MODELS.values())
    ]
    assert all(few < many or few == many for many, few in zip(sets[0], sets[1], strict=True))
    assert sets[0] == sets[2]


@pytest.fixture
def compared(many: Runs, stand_ins: dict[bsd.LatencyModel, Any]) -> Comparison:
    """Three models of which each predicts 0.1% worse than the one before."""
    return compare_models(many, MODELS)


def test_a_comparison_says_who_predicts_best(compared: Comparison) -> None:
    table = compared.table
    assert table["name"].tolist() == ["full", "uncensored", "apart"]
    assert table["elpd_diff"].is_monotonic_decreasing and table["elpd_diff"][0] == 0
    assert table["weight"].sum() == pytest.approx(1)
    assert (table["divergences"] == 0).all() and (table["rhat_max"] == 1).all()
    lower = -table["elpd_diff"][1]
    assert str(compared).startswith("'full' predicts the 32 runs left out by verifier best (ELPD")
    assert f"'uncensored' lies {lower:.1f} lower (error" in str(compared)


def test_progress_is_told_after_each_model(many: Runs, stand_ins: dict) -> None:
    said: list[str] = []
    compare_models(many, MODELS, progress=said.append)
    assert [line.split(":")[0] for line in said] == list(MODELS)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"models": {"one": bsd.LatencyModel()}}, InputError, "at least two models"),
        ({"by": "colour"}, InputError, "by = 'colour'"),
        ({"by": "drafter"}, EvidenceError, "at least two"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    few: Runs, arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        compare_models(few, **arguments)
