"""Draft schedules: what vLLM takes, and that they are the posterior's own choice."""

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from typer.testing import CliRunner

import bayes_sd as bsd
from bayes_sd.cli import app
from bayes_sd.decide.schedule import _choose

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
    """At k > 0 the schedule's latencies are those of `Fit.latency` at that concurrency."""
    found = fit.schedule([2, 5], SYSTEM, **LENGTHS, max_batch=32, confidence=0.5)
    load = bsd.grid(concurrency=np.arange(1, 33), **LENGTHS)
    mean = fit.thin(2000).latency(load, [2, 5], SYSTEM).draws["mean_s"].mean(("chain", "draw"))
    best = mean["k"].values[mean.squeeze(drop=True).argmin("k")]
    margin = np.abs(mean.sel(k=2) / mean.sel(k=5) - 1).squeeze(drop=True).values
    chosen = np.concatenate([[k] * (high - low + 1) for low, high, k in found.to_vllm()])
    clear = margin > 0.02  # elsewhere a majority of draws and their mean may differ
    assert clear.any()
    np.testing.assert_array_equal(chosen[clear], best[clear])


def test_ties_and_weak_evidence_draft_less() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.05, (2, 4000, 1))
    same = np.ones((2, 4000, 3))
    np.testing.assert_array_equal(_choose(same, 0.6), 0)
    weak = np.concatenate([np.ones((1, 4000, 1)), np.full((1, 4000, 1), 0.995)]) + noise
    strong = np.concatenate([np.ones((1, 4000, 1)), np.full((1, 4000, 1), 0.7)]) + noise
    assert _choose(weak, 0.9)[0] == 0
    assert _choose(strong, 0.9)[0] == 1


@pytest.mark.parametrize("loss", [{"loss": "p95"}, {"slo_s": 1.0}])
def test_other_losses(fit: bsd.Fit, loss: dict) -> None:
    found = fit.schedule([0, 2, 5], SYSTEM, **LENGTHS, max_batch=16, **loss)
    vllm_accepts(found.to_vllm())
    regret = "expected_regret" if "slo_s" in loss else "expected_regret_ms"
    assert (found.rows[regret] >= 0).all()
    if "slo_s" in loss:
        assert (found.rows[regret] <= 1).all()


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
