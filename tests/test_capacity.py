"""The largest rate within a latency target."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

import bayes_sd as bsd
from bayes_sd.cli import app

SYSTEM = bsd.System("dense-60m", "draft-3m", 0.7)
LENGTHS = {"prompt": 128, "output": 64}
SAMPLE = ("chain", "draw")


def test_the_rate_found_keeps_the_target_as_often_as_asked(fit: bsd.Fit) -> None:
    """Checked against the posterior predictive of single requests, which knows no bisection."""
    found = fit.capacity(1.5, [0, 2], SYSTEM, **LENGTHS, confidence=0.8)
    for row in found.itertuples():
        load = bsd.grid(rps=[0.98 * row.max_rps, 1.02 * row.max_rps], **LENGTHS)
        draws = fit.thin(2000).latency(load, int(row.k), SYSTEM).draws.isel(k=0)
        assert draws["mean_s"].isel(rate_rps=0).median() < 1.5
        near = fit.latency(bsd.grid(rps=row.max_rps, **LENGTHS), int(row.k), SYSTEM).draws
        over = float((near["request_s"] > 1.5).mean())
        assert 0.005 < over < 0.1  # p95 held in 80% of draws


def test_looser_targets_and_less_confidence_allow_more(fit: bsd.Fit) -> None:
    def rate(slo: float, confidence: float = 0.9, percentile: float = 95.0) -> float:
        table = fit.capacity(
            slo, 0, SYSTEM, **LENGTHS, confidence=confidence, percentile=percentile
        )
        return float(table["max_rps"].iloc[0])

    assert rate(1.0) < rate(2.0) < rate(10.0)
    assert rate(1.5, 0.95) < rate(1.5, 0.6)
    assert rate(1.5, 0.9, 99.0) < rate(1.5, 0.9, 90.0)


def test_an_endless_target_is_bound_by_the_pole(fit: bsd.Fit) -> None:
    found = fit.capacity(1e9, 0, SYSTEM, **LENGTHS, confidence=0.5).iloc[0]
    law = fit.thin(2000).latency(bsd.grid(rps=found.max_rps * 1.01, **LENGTHS), 0, SYSTEM)
    assert float(law.prob_saturated.squeeze()) == pytest.approx(0.5, abs=0.15)


def test_below_the_idle_latency_nothing_is_possible(fit: bsd.Fit) -> None:
    row = fit.capacity(0.01, 0, SYSTEM, **LENGTHS, traffic=5.0, price_per_hour=2.0).iloc[0]
    assert math.isnan(row.max_rps) and row.prob_possible == 0 and row.idle_s > 0.01
    assert math.isnan(row.replicas) and math.isnan(row.price_per_million_tokens)


def test_replicas_and_price_follow_from_the_rate(fit: bsd.Fit) -> None:
    row = fit.capacity(2.0, 0, SYSTEM, **LENGTHS, traffic=40.0, price_per_hour=3.0).iloc[0]
    assert row.replicas == math.ceil(40 / row.max_rps)
    per_hour = row.max_rps * 64 * 3600
    assert row.price_per_million_tokens == pytest.approx(3.0 / per_hour * 1e6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"slo_s": 0.0}, "slo_s"),
        ({"slo_s": np.nan}, "slo_s"),
        ({"percentile": 100.0}, "percentile"),
        ({"confidence": 1.0}, "confidence"),
        ({"traffic": -1.0}, "traffic"),
        ({"price_per_hour": np.inf}, "price_per_hour"),
    ],
)
def test_bad_input_is_one_sentence(fit: bsd.Fit, arguments: dict, says: str) -> None:
    with pytest.raises(bsd.InputError, match=says):
        fit.capacity(**({"slo_s": 1.0, "k": 0, "system": SYSTEM} | arguments), **LENGTHS)


def test_the_command_line(fit_path: object) -> None:
    words = ["capacity", str(fit_path), "-k", "0,2", "--prompt", "128", "--output", "64"]
    words += ["--verifier", "dense-60m", "--drafter", "draft-3m", "--acceptance", "0.7"]
    answered = CliRunner().invoke(app, [*words, "--slo", "1.5", "--traffic", "20", "--json"])
    assert answered.exit_code == 0, answered.stderr
    found = json.loads(answered.stdout)
    assert [r["k"] for r in found["rows"]] == [0, 2] and found["impossible"] == []
    refused = CliRunner().invoke(app, [*words, "--slo", "0.01"])
    assert refused.exit_code == 0 and refused.stdout.count("impossible at any load") == 2
    refused = CliRunner().invoke(app, [*words, "--slo", "0.01", "--json"])
    assert all("impossible at any load" in s for s in json.loads(refused.stdout)["impossible"])
    many = CliRunner().invoke(app, [*words, "--slo", "1.5", "--traffic", "100000"])
    assert many.exit_code == 0 and "e+" not in many.stdout  # replicas are counted
