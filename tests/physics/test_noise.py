"""Scatter and spread: the t in closed form, likelihoods against SciPy, draws that obey them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_inputs import rate_at, says
from scipy.special import stdtr

from bayes_sd.physics import noise
from bayes_sd.physics.law import DEFAULT, Law

modest = settings(max_examples=60, deadline=None)
SCALES = {
    "run_sd": 0.05,
    "capacity_sd": 0.04,
    "arrival_sd": 0.3,
    "ttft_sd": 0.08,
    "ttft_capacity_sd": 0.05,
    "ttft_load_sd": 0.4,
    "spread_alone": 0.1,
    "spread_load": 0.9,
    "ttft_spread_alone": 0.2,
    "ttft_spread_load": 0.6,
}
LENGTHS = {"cycles": 51.0, "cycles_var": 0.0, "prompt_cv2": 0.0, "output_cv2": 0.0}


@modest
@given(z=st.floats(-50, 50))
def test_the_closed_form_belongs_to_nu(z: float) -> None:
    assert noise.t_cdf(z, np.arctan) == pytest.approx(stdtr(noise.NU, z), abs=1e-12)


@modest
@given(z=st.floats(-20, 20), mean=st.floats(-5, 5), scale=st.floats(0.01, 10))
def test_the_log_density_is_that_of_scipys_t(z: float, mean: float, scale: float) -> None:
    from scipy import stats

    density = noise.log_density(mean + scale * z, mean, scale)
    assert density == pytest.approx(stats.t.logpdf(z, noise.NU) - np.log(scale), rel=1e-9)
    assert pytest.approx(stats.t.var(noise.NU)) == noise.T_VARIANCE


@pytest.mark.parametrize(
    ("metric", "growth", "requests", "expected"),
    [
        ("e2e", 0.0, np.inf, 0.05),
        ("e2e", 3.0, np.inf, np.hypot(0.05, 3 * 0.04)),
        ("tpot", 3.0, 100.0, np.sqrt(0.05**2 + 9 * (0.04**2 + 0.3**2 / 100))),
        ("ttft", 0.0, 100.0, np.hypot(0.08, 0.5 * 0.4)),
        ("ttft", 2.0, 100.0, np.sqrt(0.08**2 + 0.2**2 + (2 * 0.05) ** 2)),
    ],
)
def test_scatter_adds_in_squares(
    metric: str, growth: float, requests: float, expected: float
) -> None:
    assert noise.run_scale(metric, SCALES, growth, requests, 0.5) == pytest.approx(expected)


def test_the_spread_of_requests_adds_alone_crowding_and_lengths() -> None:
    linear = Law(tuple(part for part in DEFAULT if part != "knee"))
    none = {"overhead_prefill_others": 0.0}
    rate = rate_at("dense", 0.5, linear, terms=none)
    said = says("dense", linear, terms=none, rate_rps=rate)
    crowding = {"e2e": 0.5 * said.c2_s / said.c1_s, "ttft": 0.25}
    for metric, name in (("e2e", "spread"), ("tpot", "spread"), ("ttft", "ttft_spread")):
        own = SCALES[f"{name}_alone"] ** 2
        own += SCALES[f"{name}_load"] ** 2 * crowding.get(metric, crowding["e2e"])
        lengths = LENGTHS | {"prompt_cv2": 0.4, "output_cv2": 0.3, "cycles_var": 7.0}
        variance = noise.request_variance(metric, SCALES, said, lengths)
        expected = own + noise.explained(metric, said, lengths)
        assert variance == pytest.approx(expected, rel=1e-6), metric


def test_what_lengths_explain_of_a_spread() -> None:
    said = says("dense")
    explained = noise.explained
    assert explained("e2e", said, LENGTHS) == explained("tpot", said, LENGTHS) == 0
    answers = LENGTHS | {"output_cv2": 1.0}
    assert 0 < explained("e2e", said, answers) < 1  # the prefill does not scale with the answer
    assert explained("ttft", said, answers) == 0
    drafted = LENGTHS | {"cycles_var": 9.0}
    assert explained("tpot", said, drafted) == pytest.approx(9 / 51**2)
    assert explained("tpot", said, drafted) > explained("e2e", said, drafted) > 0


def test_a_first_token_that_waits_varies_less_with_its_prompt() -> None:
    """Of prompts with a cv of 1, a prefill of 0.05 s explains 1% of a TTFT of 0.5 s, not all."""
    said = says("dense")._replace(ttft_s=0.5, prefill_s=0.05)
    assert noise.explained("ttft", said, LENGTHS | {"prompt_cv2": 1.0}) == pytest.approx(0.01)


@modest
@given(mean=st.floats(1e-3, 1e3), sd=st.floats(0.01, 1.5), prob=st.floats(0.01, 0.99))
def test_quantiles_and_shares_are_inverse_and_those_of_a_lognormal(
    mean: float, sd: float, prob: float
) -> None:
    from scipy import stats

    seconds = noise.request_quantile_s(mean, sd**2, prob)
    assert noise.share_within(seconds, mean, sd**2) == pytest.approx(prob, abs=1e-9)
    exact = stats.lognorm(sd, scale=mean * np.exp(-(sd**2) / 2))
    assert exact.mean() == pytest.approx(mean)
    assert seconds == pytest.approx(exact.ppf(prob))


def test_drawn_runs_and_requests_have_the_scales_they_are_drawn_with() -> None:
    rng = np.random.default_rng(4)
    run = noise.draw_runs(2.0, 0.1, rng.standard_t(noise.NU, 100_000))
    share = np.mean(run <= 2.0 * np.exp(0.1))
    assert share == pytest.approx(stdtr(noise.NU, 1.0), abs=0.01)
    requests = noise.draw_requests(2.0, 0.25, rng.standard_normal(100_000))
    assert requests.mean() == pytest.approx(2.0, rel=0.01)
    assert np.log(requests).var() == pytest.approx(0.25, rel=0.03)
    assert np.isfinite(noise.draw_runs(1.0, 1e9, np.array([-5.0, 5.0]))).all()
