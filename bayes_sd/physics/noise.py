r"""What the law leaves open: scatter of runs, spread of requests, and their likelihoods and draws.

A run's log mean latency scatters about the law by a Student t of scale `run_scale`; log latencies
of its requests have the variance `request_variance`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import scipy

METRICS = ("e2e", "ttft", "tpot")
NU = 5.0  # degrees of freedom of run means: neighbours on shared machines make outliers
T_VARIANCE = NU / (NU - 2)  # of a standard Student t
TINY = 1e-12  # added to a probability, so that its logarithm stays finite
LOG_MAX = 300.0  # bound of a log scatter: a t draw has no bound, a float has one


def run_scale(
    metric: str, noise: Mapping, growth: Any, requests: Any = np.inf, others_share: Any = np.nan
) -> Any:
    r"""Scatter (log scale) of a run's mean, sampling error apart.

    .. math:: \sqrt{\sigma_{run}^2 + (\sigma_{C2}^2 + \sigma_{arrival}^2 / n)\, growth^2}

    A relative error of C2 moves the latency ``growth = x / (1 - x)`` times as much. Who waits for
    whom is the scheduler's affair, of which the law knows little: a TTFT scatters by
    :math:`\sigma_{load}` times `others_share` more, so that it is believed where nobody waits, and
    no mean latency is given up for a wait.
    """
    if metric == "ttft":
        alone = (noise["ttft_sd"] ** 2 + (noise["ttft_load_sd"] * others_share) ** 2) ** 0.5
        growing = noise["ttft_capacity_sd"]
    else:
        alone = noise["run_sd"]
        growing = (noise["capacity_sd"] ** 2 + noise["arrival_sd"] ** 2 / requests) ** 0.5
    return (alone**2 + (growing * growth) ** 2) ** 0.5


def request_variance(metric: str, noise: Mapping[str, Any], outcome: Any, workload: Any) -> Any:
    r"""Variance of the log latency of single requests: ``alone^2 + load^2 crowding + explained``.

    While a request stays for L, a Poisson number of others arrives, each adding C2, so crowding is
    about :math:`x C_2 / C_1` in units of :math:`L^2`. A first token waits for others: ``x^2``.
    """
    share = outcome.others_share
    crowding = share**2 if metric == "ttft" else share * outcome.added_s / outcome.c1_s
    return spread(metric, noise, crowding, explained(metric, outcome, workload))


def run_terms(
    metrics: Iterable[str], noise: Mapping[str, Any], outcome: Any, workload: Any
) -> dict:
    """What likelihoods take of runs: mean (s), `run_scale` and `request_variance`, by metric."""
    requests, share, rows = workload["requests"], outcome.others_share, {}
    for metric in metrics:
        rows[f"run_mean_{metric}"] = outcome.mean_s(metric, workload["output_tokens"])
        rows[f"run_scale_{metric}"] = run_scale(metric, noise, outcome.growth, requests, share)
        rows[f"run_variance_{metric}"] = request_variance(metric, noise, outcome, workload)
    return rows


def spread(metric: str, noise: Mapping[str, Any], crowding: Any, explained: Any) -> Any:
    """Variance of log latencies at a crowding, see `request_variance`."""
    name = "ttft_spread" if metric == "ttft" else "spread"
    return noise[f"{name}_alone"] ** 2 + noise[f"{name}_load"] ** 2 * crowding + explained


def explained(metric: str, outcome: Any, workload: Any) -> Any:
    r"""Variance of the log latency that accepted and requested lengths explain.

    .. math::
        e2e:&\; \Big(\frac{L - c_{1,prefill}}{L}\Big)^2 \Big(\frac{Var(n)}{n^2} + v_g\Big)
              + \Big(\frac{c_{1,prefill}}{L}\Big)^2 v_P, \qquad
        TPOT:\; \frac{Var(n)}{n^2}, \qquad
        TTFT:\; \Big(\frac{c_{1,prefill}}{TTFT}\Big)^2 v_P

    with `n` cycles that take about the same time and `v` the squared coefficients of variation of
    the lengths. `outcome` is the law's: an observed TTFT has its wait in it. The seconds after
    the first token would not do for e2e: where no TTFT was measured, its wait would be fitted to
    spreads, with two modes.
    """
    if metric == "ttft":
        return workload["prompt_cv2"] * (outcome.prefill_s / outcome.ttft_s) ** 2
    cycles = workload["cycles"]
    accepted = workload["cycles_var"] / (cycles + (cycles <= 0)) ** 2
    if metric == "tpot":
        return accepted
    lengths = (accepted + workload["output_cv2"]) * (outcome.e2e_s - outcome.prefill_s) ** 2
    return (lengths + workload["prompt_cv2"] * outcome.prefill_s**2) / outcome.e2e_s**2


def spread_error(n_eff: Any, spread_sd: Any) -> Any:
    """Standard deviation of an observed log variance: of `n_eff` logs, and from run to run."""
    return (2 / (n_eff - 1) + (2 * spread_sd) ** 2) ** 0.5


def observed_scale(scale: Any, variance: Any, requests: Any) -> Any:
    """Scale of an observed run's log mean: its scatter, and the sampling error of its requests."""
    return (scale**2 + variance / requests) ** 0.5


def t_cdf(z: Any, arctan: Any) -> Any:
    r"""P(T <= z) of Student's t with `NU` = 5 degrees of freedom, in closed form.

    .. math:: \frac12 + \frac1\pi \Big(\theta + \sin\theta\cos\theta\,
        (1 + \tfrac23 \cos^2\theta)\Big), \qquad \theta = \arctan(z / \sqrt\nu)

    `arctan` is NumPy's or PyTensor's.
    """
    tangent = z / NU**0.5
    square = 1 / (1 + tangent**2)  # of the cosine
    return 0.5 + (arctan(tangent) + tangent * square * (1 + 2 / 3 * square)) / np.pi


def log_density(observed_log: Any, log_mean: Any, scale: Any) -> np.ndarray:
    """Log density of an observed log mean under the t of this scale."""
    z = (observed_log - log_mean) / scale
    gammaln = scipy.special.gammaln
    constant = gammaln((NU + 1) / 2) - gammaln(NU / 2) - 0.5 * np.log(NU * np.pi)
    return np.asarray(constant - (NU + 1) / 2 * np.log1p(z**2 / NU) - np.log(scale))


def draw_runs(mean_s: Any, scale: Any, t_draws: np.ndarray) -> np.ndarray:
    """Means of runs that would be measured, s: the law's mean times the exponent of its scatter."""
    with np.errstate(invalid="ignore"):
        shift = np.clip(np.nan_to_num(scale * t_draws), -LOG_MAX, LOG_MAX)
        return np.asarray(mean_s * np.exp(shift))


def draw_requests(run_s: Any, variance: Any, z: Any) -> Any:
    """Single requests `z` standard deviations out, s: log-normal with the run's mean."""
    return run_s * np.exp(variance**0.5 * z - variance / 2)


def request_quantile_s(mean_s: Any, variance: Any, prob: float) -> Any:
    """Quantile of single requests' latency, s."""
    return draw_requests(mean_s, variance, float(scipy.special.ndtri(prob)))


def share_within(seconds: Any, mean_s: Any, variance: Any) -> np.ndarray:
    """Share of requests served within so many seconds; 0 where the mean is infinite."""
    with np.errstate(divide="ignore"):
        z = (np.log(seconds) - np.log(mean_s) + variance / 2) / variance**0.5
    return np.asarray(scipy.special.ndtr(z))


def sample_quantile_s(mean_s: Any, variance: Any, prob: float, requests: Any, z: Any) -> np.ndarray:
    """Quantile of the latencies of so many requests, s: `z` of its errors off that of all."""
    # Interpolated between order statistics (Blom), which in small samples lie lower.
    position = (prob * (requests - 1) + 1 - 0.375) / (requests + 0.25)
    place = scipy.special.ndtri(np.clip(position, 1e-3, 1 - 1e-3))
    density = np.exp(-(float(scipy.special.ndtri(prob)) ** 2) / 2) / np.sqrt(2 * np.pi)
    error = np.sqrt(prob * (1 - prob) / requests) / density
    return draw_requests(mean_s, variance, place + error * z)


def replicate(run: Mapping, spread_sd: Any, data: Mapping, rng: Any) -> dict[str, np.ndarray]:
    """Observed values that draws (..., runs) of the model would give, as refits take them."""
    made = {}
    for metric in ("e2e", "ttft"):
        sd = np.hypot(run[f"run_scale_{metric}"], data[f"se_{metric}"])
        runs_s = draw_runs(run[f"run_mean_{metric}"], sd, rng.standard_t(NU, sd.shape))
        error = spread_error(data[f"n_eff_{metric}"], spread_sd)
        made[f"log_{metric}"] = np.log(runs_s)
        log_var = np.log(run[f"run_variance_{metric}"])
        made[f"log_var_{metric}"] = log_var + error * rng.standard_normal(sd.shape)
    # A run that was cut short showed at most what it would have come to.
    cut = data["censored_rows"]
    short = made["log_e2e"][..., cut]
    made["log_e2e"][..., cut] = short - np.abs(rng.standard_normal(short.shape))
    return made
