"""Simulation-based calibration: parameters from the prior, data from them, ranks from refits.

    uv run benchmarks/calibration.py [--fits 200] [--seed 1] [--cores N] [--plot calibration.png]

Each fit takes coefficients from the prior, makes data for a small design, refits, and ranks the
truth among 100 thinned draws; a chi-squared test of each parameter's ranks in ten bins, with Holm's
correction over parameters. Talts, Betancourt, Simpson, Vehtari, Gelman (2018). Prints the test of
every parameter; `--plot` writes the rank histograms. About 0.5 s a fit on two quiet cores.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import binom, chi2

import bayes_sd as bsd
from bayes_sd.checks.validate import CheckResult
from bayes_sd.model.sample import Refitter
from bayes_sd.physics.noise import replicate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWS, TUNE, CHAINS = 250, 300, 2
RANKS = 100  # posterior draws a rank is taken among, thinned to be nearly independent
BINS = 10
LEVEL = 0.01
BAND = 0.99  # of the counts of uniform ranks, in the plot
LAW_SD = 0.3  # priors as wide as these: wide ones put nearly all simulated servers past the pole
COLOR = "#4c5b6b"


def design_table() -> pd.DataFrame:
    """Small design: three verifiers, plain and two draft lengths, four loads, two lengths."""
    fixed = {
        "output_tokens": 64,
        "loop": "closed",
        "gb_per_s": 40.0,
        "tflops": 1.0,
        "duration_s": 60.0,
        "requests": 100,
        "e2e_mean_s": 1.0,
        "e2e_std_s": 0.1,
        "ttft_mean_s": 0.1,
        "ttft_std_s": 0.02,
        "tpot_mean_s": 0.9 / 63,
        "tpot_std_s": 0.001,
    }
    rows = [
        {
            "verifier": name,
            "verifier_params": size,
            "drafter": "drafter" if k else "none",
            "drafter_params": 5e6 if k else np.nan,
            "draft_tokens": k,
            "acceptance_imposed": 0.7 if k else np.nan,
            "prompt_tokens": prompt,
            "concurrency": concurrency,
            **fixed,
        }
        for name, size in (("small", 0.05e9), ("middle", 0.1e9), ("large", 0.2e9))
        for k in (0, 2, 5)
        for concurrency, prompt in ((1, 64), (4, 256), (8, 64), (16, 256))
    ]
    return pd.DataFrame(rows)


def calibration_model() -> bsd.LatencyModel:
    """The default model with coefficients known to a factor of about 1.6."""
    model = bsd.LatencyModel(server_effects=("slowness",))
    for prior in model.used:
        if prior.kind == "lognormal" and prior.b > LAW_SD:
            model = model.with_prior(prior.name, b=LAW_SD, reason="calibration")
    return model


def prior_draws(refitter: Refitter, model: bsd.LatencyModel, n: int, seed: int) -> xr.Dataset:
    """Parameters from the prior and what they mean for the runs, dims (draw, ...)."""
    import pymc as pm

    graph = model.graph(refitter.design, keep_runs=True)
    names = [str(v.name) for v in graph.deterministics]
    with graph:
        tree = pm.sample_prior_predictive(draws=n, var_names=names, random_seed=seed)
    return tree["prior"].to_dataset().isel(chain=0)


def calibration(fits: int = 200, seed: int = 1, cores: int | None = None) -> CheckResult:
    """Are the ranks of true parameters among posterior draws uniform?"""
    model = calibration_model()
    refitter = model.refitter(bsd.read(design_table(), environment="simulated"))
    truths = prior_draws(refitter, model, fits, seed)
    rng, ranks, seconds, bad = np.random.default_rng(seed), [], [], 0
    for i in range(fits):
        truth = truths.isel(draw=i)
        run = {name: truth[name].values for name in truth if str(name).startswith("run_")}
        spread_sd = float(truth["noise"].sel(noise_term="spread_sd"))
        made = replicate(run, spread_sd, refitter.design.data, rng)
        begun = time.perf_counter()
        refit = refitter.refit(
            observed=made, seed=seed + i, draws=DRAWS, tune=TUNE, chains=CHAINS, cores=cores
        )
        seconds.append(time.perf_counter() - begun)
        bad += bool(refit.sampled["sample_stats"]["diverging"].any())
        ranks.append(rank(truth, refit.parameters))
        if (i + 1) % 50 == 0:
            print(f"{i + 1} of {fits} fits, {np.median(seconds):.2f} s each", file=sys.stderr)
    table = rank_tests(pd.DataFrame(ranks))
    worst = float(table["p_holm"].min())
    sentence = (
        f"{fits} fits: the least uniform of {len(table)} rank histograms ({table.index[0]}) has "
        f"p = {worst:.3f} after Holm's correction; {np.median(seconds):.2f} s a refit, "
        f"{bad} with a divergence."
    )
    rows = table.reset_index(names="parameter")
    return CheckResult("calibration", worst >= LEVEL, worst, f">= {LEVEL}", sentence, rows)


def rank(truth: xr.Dataset, posterior: xr.Dataset) -> dict[str, int]:
    """Rank of every population coefficient and noise scale among thinned draws, 0 to 100."""
    ranks: dict[str, int] = {}
    for group, dim in (("law", "law_term"), ("noise", "noise_term")):
        values = posterior[group].stack(sample=("chain", "draw"))
        keep = np.linspace(0, values.sizes["sample"] - 1, RANKS).astype(int)
        below = (values.isel(sample=keep) < truth[group]).sum("sample")
        ranks |= dict(zip(below[dim].values.astype(str), below.values.tolist(), strict=True))
    return ranks


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


def ranks_figure(table: pd.DataFrame) -> "Figure":
    """Rank histograms, a panel a parameter, with a band for uniform ranks."""
    from matplotlib.figure import Figure

    counts: Any = table.filter(like="bin_").to_numpy()
    columns = 5
    panels = -(-len(table) // columns)
    figure = Figure(figsize=(2.2 * columns, 1.5 * panels), layout="constrained")
    axes = figure.subplots(panels, columns, squeeze=False).ravel()
    for ax, name, p, own in zip(axes, table["parameter"], table["p_holm"], counts, strict=False):
        ax.axhspan(*binom.interval(BAND, own.sum(), 1 / BINS), color=COLOR, alpha=0.15, lw=0)
        ax.bar(np.arange(BINS), own, width=0.9, color=COLOR)
        ax.set_title(f"{name}  (p = {p:.2f})", fontsize=7)
        ax.set_xticks([])
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    for ax in axes[len(table) :]:
        ax.set_visible(False)
    figure.supxlabel(f"rank of the true value; band: {BAND:.0%} of uniform counts", fontsize=9)
    return figure


def main() -> None:
    """Print the test of every parameter and the sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cores", type=int)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    result = calibration(args.fits, args.seed, args.cores)
    print(result.table.round(3).to_string(index=False))
    print(result)
    if args.plot:
        ranks_figure(result.table).savefig(args.plot, dpi=140)


if __name__ == "__main__":
    main()
