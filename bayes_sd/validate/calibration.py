"""Simulation-based calibration: parameters from the prior, data from them, ranks from refits."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import chi2

from bayes_sd.inference.refit import Refitter, compile_refits
from bayes_sd.model.latency_model import LatencyModel
from bayes_sd.traces import Traces, read_table
from bayes_sd.validate.result import CheckResult
from bayes_sd.validate.simulate import replicate

DRAWS, TUNE, CHAINS = 250, 300, 2
RANKS = 100  # posterior draws a rank is taken among, thinned to be nearly independent
BINS = 10
LEVEL = 0.01
LAW_SD = 0.3  # priors as wide as these: wide ones put nearly all simulated servers past the pole


def design_table() -> pd.DataFrame:
    """Small design: three verifiers, plain and two draft lengths, four loads, two lengths."""
    rows = []
    for name, size in (("small", 0.05e9), ("middle", 0.1e9), ("large", 0.2e9)):
        for k in (0, 2, 5):
            for concurrency, prompt in ((1, 64), (4, 256), (8, 64), (16, 256)):
                rows.append(
                    {
                        "verifier": name,
                        "verifier_params": size,
                        "drafter": "drafter" if k else "none",
                        "drafter_params": 5e6 if k else np.nan,
                        "draft_tokens": k,
                        "acceptance_imposed": 0.7 if k else np.nan,
                        "prompt_tokens": prompt,
                        "output_tokens": 64,
                        "loop": "closed",
                        "concurrency": concurrency,
                        "duration_s": 60.0,
                        "requests": 100,
                        "e2e_mean_s": 1.0,
                        "e2e_std_s": 0.1,
                        "ttft_mean_s": 0.1,
                        "ttft_std_s": 0.02,
                        "tpot_mean_s": 0.9 / 63,
                        "tpot_std_s": 0.001,
                    }
                )
    return pd.DataFrame(rows)


def calibration_model() -> LatencyModel:
    """The default model with coefficients known to a factor of about 1.6."""
    model = LatencyModel(server_effects=("speed",))
    for prior in model.used:
        if prior.kind == "lognormal" and prior.b > LAW_SD:
            model = model.with_prior(prior.name, b=LAW_SD, reason="calibration")
    return model


def prior_draws(refitter: Refitter, model: LatencyModel, n: int, seed: int) -> xr.Dataset:
    """Parameters from the prior and what they mean for the runs, dims (draw, ...)."""
    import pymc as pm

    graph = model.graph(refitter.design, keep_runs=True)
    names = [str(v.name) for v in graph.deterministics]
    with graph:
        tree = pm.sample_prior_predictive(draws=n, var_names=names, random_seed=seed)
    return tree["prior"].to_dataset().isel(chain=0)


def calibration(
    fits: int = 200,
    seed: int = 1,
    *,
    cores: int | None = None,
    progress: Callable[[str], Any] | None = None,
) -> CheckResult:
    r"""Are the ranks of true parameters among posterior draws uniform?

    Each fit takes coefficients from the prior, makes data for a small design, refits, and ranks
    the truth among 100 thinned draws. A chi-squared test of each parameter's ranks in ten bins,
    Holm's correction over parameters.

    Parameters
    ----------
    fits : int
    seed : int
    cores : int, optional
    progress : callable, optional

    Returns
    -------
    CheckResult
        ``table``: a row a parameter with ``p``, ``p_holm`` and the ten counts.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari, Gelman (2018).
    """
    model = calibration_model()
    refitter = compile_refits(model, Traces(read_table(design_table()).runs, pd.DataFrame()))
    truths = prior_draws(refitter, model, fits, seed)
    rng, ranks, seconds, bad = np.random.default_rng(seed), [], [], 0
    for i in range(fits):
        truth = {str(n): v.isel(draw=i).values for n, v in truths.data_vars.items()}
        truth["noise_names"] = truths["noise_term"].values
        made = replicate(truth, refitter.design, rng)
        begun = time.perf_counter()
        refit = refitter.refit(
            observed=made, seed=seed + i, draws=DRAWS, tune=TUNE, chains=CHAINS, cores=cores
        )
        seconds.append(time.perf_counter() - begun)
        bad += refit.divergences > 0
        ranks.append(rank(truth, refit.parameters))
        if progress is not None and (i + 1) % 50 == 0:
            progress(f"calibration: {i + 1} of {fits} fits, {np.mean(seconds):.2f} s each")
    table = rank_tests(pd.DataFrame(ranks))
    worst = float(table["p_holm"].min())
    return CheckResult(
        "calibration",
        worst >= LEVEL,
        worst,
        f">= {LEVEL}",
        f"{fits} fits: the least uniform of {len(table)} rank histograms ({table.index[0]}) has "
        f"p = {worst:.3f} after Holm's correction; {np.median(seconds):.2f} s a refit, "
        f"{bad} with a divergence.",
        table.reset_index(names="parameter"),
    )


def rank(truth: dict[str, Any], posterior: xr.Dataset) -> dict[str, int]:
    """Rank of every population coefficient and noise scale among thinned draws, 0 to 100."""
    found: dict[str, int] = {}
    for group, dim in (("law", "law_term"), ("noise", "noise_term")):
        values = posterior[group].stack(sample=("chain", "draw"))
        keep = np.linspace(0, values.sizes["sample"] - 1, RANKS).astype(int)
        below = values.isel(sample=keep).transpose(dim, "sample").values < truth[group][:, None]
        names = posterior[dim].values
        found |= {str(n): int(b) for n, b in zip(names, below.sum(axis=1), strict=True)}
    return found


def rank_tests(ranks: pd.DataFrame) -> pd.DataFrame:
    """Chi-squared test of uniform ranks for each column, Holm-corrected, worst first."""
    rows = {}
    for name in ranks.columns:
        counts = np.histogram(ranks[name], bins=np.linspace(0, RANKS + 1, BINS + 1))[0]
        expected = len(ranks) / BINS
        statistic = float(((counts - expected) ** 2 / expected).sum())
        rows[name] = [float(chi2.sf(statistic, BINS - 1)), *counts]
    columns = ["p", *(f"bin_{i + 1}" for i in range(BINS))]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).sort_values("p")
    steps = (len(table) - np.arange(len(table))) * table["p"].to_numpy()
    table.insert(1, "p_holm", np.minimum(np.maximum.accumulate(steps), 1.0))
    return table
