"""Log-normals fitted to counts of intervals and the sum of all values."""

import math

import numpy as np
import pytest

from bayes_sd.errors import InputError
from bayes_sd.runs.windows import check_steady, fit_lognormal

BOUNDS = np.array([0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, np.inf])


def binned(x: np.ndarray) -> np.ndarray:
    return np.histogram(x, np.concatenate([[0.0], BOUNDS]))[0].astype(float)


@pytest.mark.parametrize(("mean_s", "sd"), [(1.9, 0.1), (3.5, 0.4), (40.0, 0.5)])
def test_a_fit_recovers_a_lognormal_within_its_error(mean_s: float, sd: float) -> None:
    rng = np.random.default_rng(11)
    n, repeats = 200, 30
    mu = math.log(mean_s) - sd**2 / 2
    scores, n_eff = [], []
    for _ in range(repeats):
        x = rng.lognormal(mu, sd, n)
        fit = fit_lognormal(BOUNDS, binned(x), x.sum())
        n_eff.append(fit["log_var_n_eff"])
        scores.append(math.log(fit["log_var"] / sd**2) / math.sqrt(2 / (n_eff[-1] - 1)))
        assert fit["log_mean"] == pytest.approx(mu, abs=5 * sd / math.sqrt(n))
    inside = (np.abs(scores) < 1.645).mean()
    # 90% of them, give or take three standard deviations of that share.
    assert abs(inside - 0.9) < 3 * math.sqrt(0.9 * 0.1 / repeats)
    assert 10 < np.mean(n_eff) <= n


def test_the_sum_tells_what_two_buckets_cannot() -> None:
    # Two counts alone fit any small spread; the known sum leaves one.
    x = np.random.default_rng(3).lognormal(math.log(2.0), 0.06, 300)
    assert (binned(x) > 0).sum() == 2
    fit = fit_lognormal(BOUNDS, binned(x), x.sum())
    assert math.sqrt(fit["log_var"]) == pytest.approx(0.06, rel=0.15)


def test_one_bucket_tells_no_spread() -> None:
    x = np.full(50, 1.2)
    assert fit_lognormal(BOUNDS, binned(x), x.sum()) == {}


def test_latencies_beyond_the_last_bound_count() -> None:
    x = np.random.default_rng(5).lognormal(math.log(60), 0.4, 300)
    fit = fit_lognormal(BOUNDS, binned(x), x.sum())
    assert binned(x)[-1] > 100
    assert fit["log_mean"] == pytest.approx(np.log(x).mean(), abs=0.06)
    assert fit["log_var"] == pytest.approx(0.16, rel=3 * math.sqrt(2 / fit["log_var_n_eff"]))


def test_a_window_in_which_requests_pile_up_is_not_steady() -> None:
    times = np.arange(0.0, 305.0, 5.0)
    finished = np.round(times)  # one a second, from first to last

    check_steady(times, finished, 20 + 6 * np.sin(times))
    with pytest.raises(InputError, match="requests in flight went from 9 to 32"):
        check_steady(times, finished, np.linspace(5, 35, len(times)))


@pytest.mark.parametrize(
    ("times", "finished", "says"),
    [
        (np.arange(0.0, 65.0, 5.0), np.full(13, 7.0), "window of 60 s from 0: no request finished"),
        (np.arange(0.0, 80.0, 20.0), np.arange(4.0), "has 4 readings; a steady load needs 5"),
    ],
)
def test_a_window_with_too_little_in_it_is_refused(
    times: np.ndarray, finished: np.ndarray, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        check_steady(times, finished, np.zeros(len(times)))
