"""Checks of a model: what each says, for which model, and of runs that cannot answer."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bayes_sd as bsd
from bayes_sd.checks.leave_out import LeftOut
from bayes_sd.checks.validate import NAMES, CheckResult, judge_fifths, judge_left_out, validate
from bayes_sd.errors import InputError
from bayes_sd.model.sample import Refitter
from bayes_sd.physics.noise import T_VARIANCE, replicate, sample_quantile_s
from bayes_sd.runs.schema import Runs


class Unfit(bsd.LatencyModel):
    """A model that says when it is to be fitted."""

    def design(self, runs: Runs) -> Any:
        raise InputError("fitted: this model")


def left_out(error: float, width: float) -> LeftOut:
    """Forty predictions that are off by so much, with intervals so wide (log)."""
    truth = np.linspace(1, 2, 40)
    low, high = truth * np.exp(error - width / 2), truth * np.exp(error + width / 2)
    inside = (low <= truth) & (truth <= high)
    inside[:4] = False  # nine tenths at best
    rows = pd.DataFrame(
        {
            "fold": np.repeat(["a", "b"], 20),
            "observed_s": truth,
            "predicted_s": truth * np.exp(error),
            "low_s": low,
            "high_s": high,
            "inside": inside,
            "log_score": 0.5,
            "interval_score": width,
            "pit": (np.arange(40) + 0.5) / 40 if error == 0 else 0.01,
        }
    )
    rows = rows.assign(p95_observed_s=truth, p95_predicted_s=truth, p95_inside=inside)
    folds = pd.DataFrame({"fold": ["a", "b"], "joint_rank": 0.5, "rhat_max": 1.0})
    pairs = pd.DataFrame(
        {
            "verifier": "a",
            "plain_s": [2.0, 1.0],
            "sd_s": [1.0, 2.0],
            "faster": [True, False],
            "prob_faster": [0.9, 0.2],
            "call": [1.0, 1.0],
        }
    )
    return LeftOut(rows, folds, pairs)


@pytest.mark.parametrize(("error", "passes"), [(0.0, True), (0.5, False)])
def test_fifths_are_judged_by_coverage_error_and_ranks(error: float, passes: bool) -> None:
    results = {r.name: r for r in judge_fifths(left_out(error, width=0.2))}
    assert list(results) == [
        f"held_out_{n}" for n in ("decisions", "coverage", "p95", "error", "ranks")
    ]
    for name in ("held_out_coverage", "held_out_error", "held_out_ranks"):
        assert results[name].passed == passes
    assert results["held_out_error"].value == pytest.approx(np.exp(error) - 1)
    decisions = results["held_out_decisions"]
    assert decisions.passed and decisions.value == pytest.approx((0.1**2 + 0.2**2) / 2)
    assert "0/1 call 0.500" in decisions.sentence and "the medians 50.0%" in decisions.sentence


def test_levels_are_judged_fold_by_fold() -> None:
    results = judge_left_out(left_out(0.0, 0.2), "verifier")
    assert [r.name for r in results] == [
        f"verifier_{n}" for n in ("decisions", "coverage", "error")
    ]
    assert results[1].table["fold"].tolist() == ["a", "b"]
    assert {"joint_rank", "coverage", "rhat_max"} <= set(results[1].table)
    without = replace(left_out(0.0, 0.2), pairs=pd.DataFrame())
    assert len(judge_left_out(without, "verifier")) == 2


def test_a_result_is_a_sentence_and_json() -> None:
    result = CheckResult("name", False, float("nan"), "evidence", "Nothing to say.")
    assert str(result) == "name: NOT passed. Nothing to say."
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == {
        "name": "name",
        "passed": False,
        "value": None,
        "bound": "evidence",
        "sentence": "Nothing to say.",
    }
    assert result.table.empty


@pytest.mark.parametrize("name", [name for name in NAMES if name != "moe"])  # there is none
def test_every_check_is_made_of_the_model_that_is_given(many: Runs, name: str) -> None:
    with pytest.raises(InputError, match="fitted: this model"):
        validate(many, Unfit(), only=name)


@pytest.mark.parametrize("only", [["colour"], "colour", ["runs", "calibration"]])
def test_unknown_checks_are_refused(few: Runs, only: Any) -> None:
    with pytest.raises(InputError, match=r"No check is called '(colour|calibration)'; known: rec"):
        validate(few, only=only)


def test_runs_that_cannot_answer_do_not_pass_and_say_why(few: Runs, stand_ins: dict) -> None:
    said: list[str] = []
    results = validate(few, only=["drafter", "moe", "verifier"], progress=said.append)
    assert [r.name for r in results[:2]] == ["drafter", "moe"]
    for result in results[:2]:
        assert not result.passed and np.isnan(result.value) and "at least two" in result.sentence
    assert [r.name for r in results[2:]] == [
        f"verifier_{n}" for n in ("decisions", "coverage", "error")
    ]
    assert said == [str(r) for r in results]


def test_checks_of_a_model_share_one_refitter(many: Runs, stand_ins: dict) -> None:
    only = ["runs", "verifier", "drafter", "highest_load", "long_prompts"]
    results = validate(many, bsd.LatencyModel(censored=False), only=only)
    (refitter,) = stand_ins.values()
    assert len(refitter.masks) == 5 + 4 + 2 + 1 + 1
    assert all(r.passed for r in results if r.name.endswith("_error"))


def test_priors_are_widened_and_narrowed(few: Runs, stand_ins: dict) -> None:
    (result,) = validate(few, only="priors")
    widths = [model.priors[0].b for model in stand_ins]
    assert widths == pytest.approx([widths[0], 1.5 * widths[0], widths[0] / 1.5])
    # Stand-ins predict 0.1% and 0.2% higher than the first, with a spread of 2%.
    assert result.passed and result.value == pytest.approx(0.1, abs=0.01)
    assert result.table["priors"].tolist() == ["wider", "narrower"]


def test_replicated_runs_scatter_as_the_likelihood_says() -> None:
    n = 40_000
    run = {f"run_mean_{m}": np.full(n, 2.0) for m in ("e2e", "ttft")}
    run |= {f"run_scale_{m}": np.full(n, 0.03) for m in ("e2e", "ttft")}
    run |= {f"run_variance_{m}": np.full(n, 0.1) for m in ("e2e", "ttft")}
    data = {f"se_{m}": np.full(n, 0.04) for m in ("e2e", "ttft")}
    data |= {f"n_eff_{m}": np.full(n, 51.0) for m in ("e2e", "ttft")}
    cut = np.arange(n // 2)
    made = replicate(run, 0.2, data | {"censored_rows": cut}, np.random.default_rng(0))
    z = (made["log_e2e"][n // 2 :] - np.log(2.0)) / 0.05  # 3, 4, 5: a right triangle
    assert z.var() == pytest.approx(T_VARIANCE, rel=0.05) and abs(z.mean()) < 0.03
    log_var = made["log_var_ttft"]
    assert log_var.std() == pytest.approx(np.sqrt(2 / 50 + 0.4**2), rel=0.02)
    assert log_var.mean() == pytest.approx(np.log(0.1), abs=0.01)
    assert made["log_e2e"][cut].mean() < np.log(2.0) - 0.7  # a run cut short showed less
    assert made["log_ttft"][cut].mean() == pytest.approx(np.log(2.0), abs=0.01)


@pytest.mark.parametrize("requests", [20, 200])
def test_a_percentile_of_a_run_scatters_as_one_of_so_many_requests(requests: int) -> None:
    rng, variance = np.random.default_rng(0), 0.09
    shape = (4000, requests)
    latency_s = 2.0 * np.exp(np.sqrt(variance) * rng.standard_normal(shape) - variance / 2)
    measured_s = np.quantile(latency_s, 0.95, axis=1)
    drawn_s = sample_quantile_s(2.0, variance, 0.95, requests, rng.standard_normal(4000))
    assert np.median(drawn_s) == pytest.approx(np.median(measured_s), rel=0.015)
    assert np.log(drawn_s).std() == pytest.approx(np.log(measured_s).std(), rel=0.25)


@pytest.mark.sample
def test_recovery_and_fifths_of_a_model_that_made_the_data(
    few: Runs, refitter: Refitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bayes_sd.checks.jobs._compiled", {})
    monkeypatch.setattr(bsd.LatencyModel, "refitter", lambda model, runs: refitter)
    how = {"draws": 150, "tune": 200, "chains": 2}
    recovered, *fifths = validate(few, only=["recovery", "runs"], **how)
    assert recovered.name == "recovery" and recovered.value > 0.6  # of few runs and draws
    assert set(recovered.table["parameter"]) >= {"read_weights", "run_sd"}
    by_name = {r.name: r for r in fifths}
    assert by_name["held_out_error"].value < 0.3
    assert by_name["held_out_coverage"].value > 0.7
