"""Draft schedules: what vLLM takes, and that they are the posterior's own choice."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import bayes_sd as bsd
from bayes_sd.cli import app
from bayes_sd.decide.schedule import SERVER, _choose
from bayes_sd.physics.occupancy import mean_in_flight, occupancy
from bayes_sd.predict.latency import arm_outcome

SYSTEM = bsd.System("dense-60m", "draft-3m", 0.7)
LENGTHS = {"prompt": 128, "output": 64}


def vllm_accepts(table: list[list[int]]) -> None:
    """The rules of vLLM's validator (0.32): whole, positive, ordered, no overlap, first is 1."""
    assert table and table[0][0] == 1
    previous = 0
    for low, high, k in table:
        assert all(isinstance(x, int) for x in (low, high, k))
        assert previous < low <= high and k >= 0
        previous = high


def test_rows_cover_every_batch_size_once(fit: bsd.Fit) -> None:
    found = fit.schedule([0, 2, 5], SYSTEM, **LENGTHS, max_batch=48)
    table = found.to_vllm()
    vllm_accepts(table)
    covered = [b for low, high, _ in table for b in range(low, high + 1)]
    assert covered == list(range(1, 49))
    assert all(a[2] != b[2] for a, b in pairwise(table))
    rows = found.rows
    assert ((rows["prob_best"] >= 0) & (rows["prob_best"] <= 1)).all()
    assert (rows["expected_regret_ms"] >= 0).all()
    assert set(rows["support"]) <= {"measured", "interpolated", "extrapolated"}


def test_the_choice_is_that_of_the_latency_at_each_concurrency(fit: bsd.Fit) -> None:
    """The schedule's latencies are those of a server of its own at that concurrency."""
    found = fit.schedule([2, 5], SYSTEM, **LENGTHS, max_batch=32, confidence=0.5)
    load = bsd.grid(concurrency=np.arange(1, 33), **LENGTHS)
    thin = fit.thin(2000)
    two, five = (
        arm_outcome(thin, SYSTEM, k, load, 0, True, SERVER)[1].e2e_s.mean(("chain", "draw"))
        for k in (2, 5)
    )
    best = np.where(two.squeeze() <= five.squeeze(), 2, 5)
    margin = np.abs(two / five - 1).squeeze(drop=True).values
    chosen = np.concatenate([[k] * (high - low + 1) for low, high, k in found.to_vllm()])
    clear = margin > 0.02  # elsewhere a majority of draws and their mean may differ
    assert clear.any()
    np.testing.assert_array_equal(chosen[clear], best[clear])


def test_the_luck_of_a_measured_server_is_not_the_schedules(fit: bsd.Fit) -> None:
    """A k whose server happened to run slowly is not held against it."""
    tree = fit.tree.copy()
    factor = tree["posterior"]["factor_system"].copy()
    slow = [n for n in factor["system"].values if n.startswith("dense-60m + draft-3m")]
    assert slow
    factor.loc[{"system": slow}] = 3.0
    tree["posterior"]["factor_system"] = factor
    asked = {"max_batch": 16, **LENGTHS}
    unlucky = bsd.Fit(tree).schedule([2, 5], SYSTEM, **asked)
    assert unlucky.to_vllm() == fit.schedule([2, 5], SYSTEM, **asked).to_vllm()


# --- what a schedule will do ----------------------------------------------------------------


@given(
    c1=st.floats(0.05, 5),
    ratio=st.floats(0.01, 1),
    x=st.floats(0.05, 0.85),
)
@settings(max_examples=60, deadline=None)
def test_the_linear_law_is_the_mean_of_its_occupancy(c1: float, ratio: float, x: float) -> None:
    """Equation (1) and the variance of a negative binomial of size C1/C2."""
    c2 = c1 * ratio
    rate, n = x / c2, np.arange(3000)
    latency = c1 + c2 * n
    p = occupancy(latency, rate)
    mean = p @ np.arange(3001)
    assert p.sum() == pytest.approx(1)
    assert mean / rate == pytest.approx(c1 / (1 - x), rel=1e-6)
    assert mean_in_flight(p, latency, rate) == pytest.approx(mean, rel=1e-6)
    variance = p @ (np.arange(3001) - mean) ** 2
    assert variance == pytest.approx(x / ratio / (1 - x) ** 2, rel=1e-4)


def test_a_full_server_lets_requests_wait_and_past_capacity_without_end() -> None:
    latency = np.array([1.0, 1.5, 2.0])  # three at a time: 1.5 requests/s at most
    p = occupancy(latency, np.array([1.2, 1.5, 2.0]))
    np.testing.assert_allclose(p.sum(axis=-1), 1)
    found = mean_in_flight(p, latency, np.array([1.2, 1.5, 2.0]))
    # The same chain, written out far beyond the third request.
    n = np.arange(1, 2000)
    steps = np.cumsum(
        np.log(1.2 * np.where(n <= 3, np.append(latency, [2.0] * 1996), 2 * n / 3) / n)
    )
    long = np.append(1.0, np.exp(steps))
    assert found[0] == pytest.approx((long / long.sum()) @ np.arange(2000))
    assert np.isinf(found[1:]).all()
    with pytest.raises(bsd.InputError, match="above 0 s"):
        occupancy(np.array([1.0, 0.0]), 1.0)


def test_a_schedule_of_one_k_is_that_arm(fit: bsd.Fit) -> None:
    one = fit.schedule([5, 2], SYSTEM, **LENGTHS)
    rows = pd.DataFrame({"lo": [1], "hi": [256], "k": [5], "support": ["measured"]})
    far = replace(SYSTEM, extrapolate=True)
    found = fit.scheduled(replace(one, rows=rows), far, rps=[1, 3], **LENGTHS)
    thin = fit.thin(2000)
    load = bsd.grid(rps=[1, 3], **LENGTHS)
    law = arm_outcome(thin, far, 5, load, 0, True, SERVER)[1].e2e_s.squeeze(drop=True)
    drawn = found.draws["mean_s"].squeeze("k", drop=True)
    np.testing.assert_allclose(drawn.transpose(*law.dims), law, rtol=2e-3)
    assert (found.prob_saturated == 0).all()
    request = found.quantile([0.05, 0.5, 0.95])
    assert (request.diff("quantile") > 0).all()
    with pytest.raises(bsd.InputError, match="above 0"):
        fit.scheduled(one, far, rps=[0.0], **LENGTHS)


def test_a_schedule_is_no_worse_than_any_of_its_candidates(fit: bsd.Fit) -> None:
    found = fit.schedule([2, 5], SYSTEM, **LENGTHS, max_batch=64, confidence=0.5)
    far, rates = replace(SYSTEM, extrapolate=True), [0.5, 2, 4]
    mean = fit.scheduled(found, far, rps=rates, **LENGTHS).draws["mean_s"].median(("chain", "draw"))
    for k in (2, 5):
        rows = pd.DataFrame({"lo": [1], "hi": [64], "k": [k], "support": ["measured"]})
        alone = fit.scheduled(replace(found, rows=rows), far, rps=rates, **LENGTHS)
        assert (mean.values <= alone.draws["mean_s"].median(("chain", "draw")).values * 1.01).all()


def test_ties_and_weak_evidence_draft_less() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.05, (2, 4000, 1))
    same = np.ones((2, 4000, 3))
    np.testing.assert_array_equal(_choose(same, 0.6), 0)
    weak = np.concatenate([np.ones((1, 4000, 1)), np.full((1, 4000, 1), 0.995)]) + noise
    strong = np.concatenate([np.ones((1, 4000, 1)), np.full((1, 4000, 1), 0.7)]) + noise
    assert _choose(weak, 0.9)[0] == 0
    assert _choose(strong, 0.9)[0] == 1


def test_an_slo_below_the_latency_alone_is_impossible_with_the_number(fit: bsd.Fit) -> None:
    load, thin = bsd.grid(concurrency=1, **LENGTHS), fit.thin(2000)
    alone = min(
        float(arm_outcome(thin, SYSTEM, k, load, 0, True, SERVER)[1].e2e_s.median()) for k in (2, 5)
    )
    with pytest.raises(bsd.EvidenceError, match="at any load; alone .* about") as caught:
        fit.schedule([2, 5], SYSTEM, **LENGTHS, max_batch=4, slo_s=alone / 100)
    said = float(str(caught.value).split("about ")[1].split(" s")[0])
    assert said == pytest.approx(alone, rel=0.01)


@pytest.mark.parametrize("loss", [{"loss": "p95"}, {"slo_s": 1.0}])
def test_other_losses(fit: bsd.Fit, loss: dict) -> None:
    found = fit.schedule([0, 2, 5], SYSTEM, **LENGTHS, max_batch=16, **loss)
    vllm_accepts(found.to_vllm())
    regret = "expected_regret" if "slo_s" in loss else "expected_regret_ms"
    assert (found.rows[regret] >= 0).all()
    if "slo_s" in loss:
        assert (found.rows[regret] <= 1).all()
        assert found.rows["prob_within_slo"].between(0, 1).all()


def test_the_line_to_paste(fit: bsd.Fit) -> None:
    found = fit.schedule([2, 5], SYSTEM, **LENGTHS, max_batch=8)
    line = found.command_line(model="models/draft-3m")
    start, quoted = line.split(" ", 1)
    config = json.loads(quoted.strip("'"))
    assert start == "--speculative-config"
    assert config["model"] == "models/draft-3m" and config["method"] == "draft_model"
    assert config["num_speculative_tokens_per_batch_size"] == found.to_vllm()
    assert config["num_speculative_tokens"] == max(k for *_, k in found.to_vllm())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"k": [1]}, "at least two"),
        ({"k": []}, "whole numbers"),
        ({"k": [2, 5], "max_batch": 0}, "max_batch"),
        ({"k": [2, 5], "confidence": 1.0}, "confidence"),
        ({"k": [2, 5], "confidence": 0.3}, "confidence"),
        ({"k": [2, 5], "loss": "median"}, "loss"),
        ({"k": [2, 5], "loss": "p100"}, "loss"),
        ({"k": [2, 5], "slo_s": -1.0}, "slo_s"),
        ({"k": [2, 5], "loss": "p95", "slo_s": 1.0}, "give one of the two"),
        ({"k": [2, 5], "loss": 95}, "loss = 95"),
        ({"k": [2, 5000]}, "at most 1024"),
        ({"k": [2, 4]}, "k = 4 was never measured"),
        ({"k": [2, 5], "system": bsd.System("dense-60m")}, "with a drafter"),
    ],
)
def test_bad_input_is_one_sentence(fit: bsd.Fit, arguments: dict, says: str) -> None:
    with pytest.raises(bsd.InputError, match=says):
        fit.schedule(**({"system": SYSTEM} | arguments | LENGTHS))


def test_one_batch_size_and_a_k_asked_for_by_name(fit: bsd.Fit) -> None:
    found = fit.schedule([2, 4], SYSTEM, **LENGTHS, max_batch=1, extrapolate=True)
    assert len(found.to_vllm()) == 1 and found.candidates == (2, 4)


def test_never_drafting_has_no_speculative_config(fit: bsd.Fit) -> None:
    found = fit.schedule([0, 2], SYSTEM, **LENGTHS, max_batch=4)
    found.rows["k"] = 0
    with pytest.raises(bsd.EvidenceError, match="without a speculative config"):
        found.speculative_config()


def test_the_command_line(fit_path: object) -> None:
    words = ["schedule", str(fit_path), "-k", "0,2,5", "--prompt", "128", "--output", "64"]
    words += ["--verifier", "dense-60m", "--drafter", "draft-3m", "--acceptance", "0.7"]
    words += ["--max-batch", "16"]
    answered = CliRunner().invoke(app, [*words, "--json"])
    assert answered.exit_code == 0, answered.stderr
    found = json.loads(answered.stdout)
    vllm_accepts(found["num_speculative_tokens_per_batch_size"])
    assert {"lo", "hi", "k", "prob_best", "expected_regret_ms", "support"} == set(found["rows"][0])
    assert (
        found["speculative_config"] is None
        or "num_speculative_tokens" in (found["speculative_config"])
    )
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0 and "prob_best" in shown.stdout


def test_a_schedule_needs_no_pymc(fit_path: object) -> None:
    code = (
        "import sys, bayes_sd as bsd\n"
        f"fit = bsd.Fit.load({str(fit_path)!r})\n"
        "system = bsd.System('dense-60m', 'draft-3m', 0.7)\n"
        "fit.schedule([2, 5], system, prompt=128, output=64).to_vllm()\n"
        "assert 'pymc' not in sys.modules and 'pytensor' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_without_a_run_that_does_not_draft_plain_is_no_candidate(fit: bsd.Fit) -> None:
    tree = fit.tree.copy()
    drafting = tree["runs"].to_dataset()
    drafting = drafting.isel(run=(drafting["draft_tokens"] > 0).values)
    tree["runs"] = xr.DataTree(drafting)
    deaf = bsd.Fit(tree)
    with pytest.raises(bsd.EvidenceError, match="measure the plain server"):
        deaf.schedule([0, 2], SYSTEM, **LENGTHS)
    assert deaf.schedule([2, 5], SYSTEM, **LENGTHS).rows["k"].isin([2, 5]).all()
