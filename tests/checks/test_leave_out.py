"""Folds, predictions of left-out runs and their scores, pairs of servers."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import ndtri

from bayes_sd.checks.leave_out import (
    BY,
    Folds,
    LeftOut,
    brier,
    fold,
    folds,
    interval,
    pairs,
    predictions,
    reliability,
    summary,
)
from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.model.design import build_design
from bayes_sd.model.sample import MASKED_SD, Refitter
from bayes_sd.physics import noise
from bayes_sd.runs.read import corpus, read
from bayes_sd.runs.schema import Runs

QUICK = {"draws": 150, "tune": 200, "chains": 2}


def leave_out(refitter: Any, parts: Folds, **sampling: Any) -> LeftOut:
    """All folds, one after the other."""
    return LeftOut.of([fold(refitter, 1, *part, **sampling) for part in parts.items()])


@pytest.fixture(scope="module")
def shipped() -> pd.DataFrame:
    """All usable runs of the shipped campaign, 13 of them past saturation."""
    return build_design(read(corpus("vllm-cpu"))).table


@pytest.mark.parametrize(
    ("by", "count"), [("verifier", 6), ("drafter", 2), ("moe", 2), ("run", 131), ("fifth", 5)]
)
def test_folds_leave_something_to_fit_and_to_predict(
    shipped: pd.DataFrame, by: str, count: int
) -> None:
    parts = folds(shipped, by)
    steady = set(shipped["run_id"][~shipped["saturated"]])
    assert len(parts) == count
    assert all(steady & {*ids} and steady - {*ids} for ids in parts.values())


def test_fifths_share_the_runs_out(shipped: pd.DataFrame) -> None:
    parts = folds(shipped, "fifth")
    assert sum(len(ids) for ids in parts.values()) == len(shipped)
    assert set().union(*parts.values()) == set(shipped["run_id"])


def test_a_verifier_goes_with_its_runs_past_saturation(shipped: pd.DataFrame) -> None:
    censored = shipped[shipped["saturated"]]
    assert len(censored) == 13
    for name, ids in folds(shipped, "verifier").items():
        assert set(censored["run_id"][censored["verifier"] == name]) <= {*ids}


def test_corners_are_corners(shipped: pd.DataFrame) -> None:
    (long,) = folds(shipped, "long_prompts").values()
    out = shipped["run_id"].isin(long)
    assert shipped["prompt_tokens"][out].min() > shipped["prompt_tokens"][~out].min()
    (high,) = folds(shipped, "highest_load").values()
    out = shipped["run_id"].isin(high) & ~shipped["saturated"]
    assert 15 <= out.sum() <= 25
    share = shipped["rate_rps"] / shipped.groupby("server")["rate_rps"].transform("max")
    assert share[out].min() > share[~out & ~shipped["saturated"]].median()


def test_highest_loads_of_closed_loop_runs_are_their_concurrencies(shipped: pd.DataFrame) -> None:
    steady = shipped[~shipped["saturated"]]
    closed = steady.assign(loop="closed", concurrency=steady["rate_rps"], rate_rps=np.nan)
    assert folds(closed, "highest_load") == folds(steady, "highest_load")


def test_what_cannot_be_left_out_is_refused(shipped: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="by = 'colour'.*verifier, drafter"):
        folds(shipped, "colour")
    with pytest.raises(EvidenceError, match="one drafter at a time needs at least two"):
        folds(shipped[shipped["drafter"] != "draft-3m"], "drafter")
    with pytest.raises(EvidenceError, match="at least two"):
        folds(shipped[shipped["family"] == "dense"], "moe")


@pytest.mark.parametrize("by", [by for by in BY if by not in ("moe", "run")])
def test_models_with_fewer_runs_predict_the_same_runs_from_the_same_folds(
    many: Runs, stand_in: Any, by: str
) -> None:
    parts = folds(build_design(many).table, by)
    results = [
        leave_out(stand_in(build_design(many, censored)), parts) for censored in (True, False)
    ]
    assert len(build_design(many).table) > len(build_design(many, False).table)
    whole, fewer = (r.rows.set_index("run_id")["fold"] for r in results)
    assert len(whole) and whole.sort_index().equals(fewer.sort_index())


def test_folds_by_position_would_differ_between_models(many: Runs) -> None:
    ids = [folds(build_design(many, censored).table, "fifth") for censored in (True, False)]
    steady = set(ids[1]["fifth 1"])
    assert steady != set(ids[0]["fifth 1"]) & set(build_design(many, False).table["run_id"])


@pytest.mark.parametrize("censored", [True, False])
def test_a_fold_without_a_steady_run_is_refused_before_its_refit(
    many: Runs, stand_in: Any, censored: bool
) -> None:
    refitter, table = stand_in(build_design(many, censored)), build_design(many).table
    with pytest.raises(EvidenceError, match=r"^Leaving out mine leaves no steady run of this"):
        fold(refitter, 1, "mine", table["run_id"][table["saturated"]])
    assert refitter.masks == []


def test_a_fold_is_reported_with_its_refit(few: Runs, stand_in: Any) -> None:
    table = build_design(few).table
    refitter = stand_in(build_design(few), factor=1.5)
    result = leave_out(refitter, folds(table, "verifier"))
    assert [mask.sum() for mask in refitter.masks] == [8, 8]
    assert result.rows["fold"].tolist() == result.rows["verifier"].tolist()
    assert result.folds["runs"].tolist() == [8, 8]
    assert result.folds["ess_tail_min"].tolist() == [450, 450]
    assert (result.folds["joint_rank"] < 0.01).all()  # predictions are 50% too high
    assert len(result.pairs) == 2 * 4 * 4


def test_predictions_say_what_a_predictive_distribution_says(few: Runs, stand_in: Any) -> None:
    refit = stand_in(build_design(few), factor=1.1)
    rows = np.arange(16)
    rng = np.random.default_rng(0)
    drawn_s = refit.of_runs("run_mean_e2e", rows) * np.exp(0.05 * rng.standard_normal((400, 16)))
    table = predictions(refit, refit.table, rows, drawn_s)
    np.testing.assert_allclose(table["predicted_s"] / table["observed_s"], 1.1, rtol=0.02)
    assert (table["low_s"] < table["predicted_s"]).all()
    log_mean = np.log(refit.of_runs("run_mean_e2e", rows))
    scale = np.sqrt(0.02**2 + 0.02 / refit.table["requests"].to_numpy())
    density = stats.t(noise.NU, log_mean, scale).logpdf(np.log(refit.table["e2e_mean_s"]))
    np.testing.assert_allclose(table["log_score"], np.log(np.exp(density).mean(axis=0)))
    # Observed values lie 1.28 / 1.1 times as high as the predicted mean, whose spread is 14%.
    assert table["p95_observed_s"].notna().all()
    assert table["p95_predicted_s"].between(table["predicted_s"], 1.4 * table["predicted_s"]).all()


def test_percentiles_that_were_not_recorded_stay_unknown(few: Runs, stand_in: Any) -> None:
    refit = stand_in(build_design(few))
    unknown = refit.table.assign(e2e_p95_s=np.nan)
    rows = np.arange(3)
    table = predictions(refit, unknown, rows, refit.of_runs("run_mean_e2e", rows))
    assert table.filter(like="p95_").isna().all(axis=None)
    assert np.isnan(summary(table)["p95_coverage"])
    assert summary(table)["runs"] == 3


def test_an_interval_is_scored_by_its_width_and_by_what_it_misses() -> None:
    drawn = np.exp(ndtri((np.arange(20000) + 0.5) / 20000))[:, None]
    width = 2 * ndtri(0.95)
    scored = interval(np.array([1.0]), drawn)
    assert scored["interval_score"][0] == pytest.approx(width, rel=1e-3)
    assert scored["pit"][0] == pytest.approx(0.5) and scored["inside"][0]
    far = interval(np.exp([3.0]), drawn)
    missed = 3.0 - width / 2
    assert far["interval_score"][0] == pytest.approx(width + 20 * missed, rel=1e-3)
    assert not far["inside"][0]


def two_pairs() -> pd.DataFrame:
    """Runs of two verifiers: SD faster for one and slower for the other."""
    return pd.DataFrame(
        {
            "environment": "here",
            "workload": "",
            "verifier": ["a", "a", "b", "b", "b"],
            "prompt_tokens": [64, 64, 64, 64, 128],
            "output_tokens": 64,
            "arm": ["plain", "sd", "plain", "sd", "sd"],
            "draft_tokens": [0, 3, 0, 3, 3],
            "e2e_mean_s": [2.0, 1.0, 1.0, 3.0, 0.1],
        }
    )


def test_pairs_are_of_one_verifier_and_one_workload() -> None:
    drawn = np.array([[2.0, 1.0, 1.0, 3.0, 0.1]] * 3 + [[1.0, 2.0, 1.0, 3.0, 0.1]])
    table = pairs(two_pairs(), drawn)
    assert table["verifier"].tolist() == ["a", "b"]  # the run with other lengths has no partner
    assert table["faster"].tolist() == [True, False]
    assert table["prob_faster"].tolist() == [0.75, 0.0]
    assert table["call"].tolist() == [1.0, 0.0]
    elsewhere = two_pairs().assign(environment=["here", "there"] * 2 + ["here"])
    assert pairs(elsewhere, drawn).empty
    other = two_pairs().assign(workload=["chat", "code"] * 2 + ["chat"])
    assert pairs(other, drawn).empty


def test_brier_scores_and_regrets_by_hand() -> None:
    table = pairs(two_pairs(), np.array([[2.0, 1.0, 1.0, 3.0, 0.1]] * 3 + [[1.0, 2.0, 1, 3, 1]]))
    b = brier(table)
    assert b["pairs"] == 2
    assert b["brier"] == pytest.approx((0.25**2 + 0) / 2) and b["brier_call"] == 0
    assert b["regret"] == b["regret_point"] == 0
    assert b["regret_always_sd"] == pytest.approx((0 + 2.0) / 2)
    assert b["regret_always_plain"] == pytest.approx((1.0 + 0) / 2)
    flipped = table.assign(prob_faster=1 - table["prob_faster"])
    assert brier(flipped)["brier"] > 0.5


def test_reliability_counts_every_pair_once() -> None:
    prob = np.array([0.0, 0.03, 0.5, 0.97, 1.0])
    table = pd.DataFrame({"prob_faster": prob, "faster": [False, False, True, True, True]})
    ranges = reliability(table)
    assert ranges["pairs"].tolist() == [2, 1, 2]
    assert ranges["observed"].tolist() == [0.0, 1.0, 1.0]
    assert ranges["stated"].tolist() == pytest.approx([0.015, 0.5, 0.985])


@pytest.mark.sample
def test_runs_left_out_do_not_matter_and_runs_kept_do(refitter: Refitter) -> None:
    large = (refitter.table["verifier"] == "large").to_numpy()
    wrong = refitter.design.data["log_e2e"] + 1.0 * large

    def typical(**how: Any) -> np.ndarray:
        draws = refitter.refit(**how, **QUICK | {"draws": 600, "tune": 500}).draws["run_mean_e2e"]
        return np.asarray(np.log(draws).median(("chain", "draw")))

    out, absurd = typical(left_out=large), typical(left_out=large, observed={"log_e2e": wrong})
    np.testing.assert_allclose(absurd[~large], out[~large], atol=0.03)
    assert np.abs(absurd[large] - out[large]).mean() < 0.3
    kept = typical(observed={"log_e2e": wrong})
    assert (kept - refitter.design.data["log_e2e"])[large].mean() == pytest.approx(1.0, abs=0.15)
    assert MASKED_SD > 1e3


@pytest.mark.sample
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"observed": {"log_e2e": np.zeros(3)}}, "16 runs"),
        ({"observed": {"rate_rps": np.zeros(16)}}, "cannot be replaced"),
        ({"left_out": np.zeros(4, bool)}, "16 runs"),
        ({"draws": 0}, "draws"),
    ],
)
def test_arrays_of_another_size_never_reach_the_compiled_code(
    refitter: Refitter, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        refitter.refit(**arguments)


@pytest.mark.sample
def test_left_out_verifiers_are_predicted_wider(refitter: Refitter) -> None:
    rows = np.arange(len(refitter.table))
    result = leave_out(refitter, folds(refitter.table, "verifier"), **QUICK)
    assert len(result.rows) == len(rows) == result.folds["runs"].sum()
    refit = refitter.refit(**QUICK)
    inside = predictions(refit, refitter.table, rows, refit.of_runs("run_mean_e2e", rows))
    assert summary(result.rows)["width"] > 1.2 * summary(inside)["width"]
    assert summary(result.rows)["log_score"] < summary(inside)["log_score"]
    assert result.folds["joint_rank"].between(0, 1).all()
    assert brier(result.pairs)["regret"] <= brier(result.pairs)["regret_always_plain"]
