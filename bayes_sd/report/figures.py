"""Figures of a fit. They draw what the fit answers and compute nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayes_sd.predict.load import grid
from bayes_sd.predict.system import NONE, System, system_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from bayes_sd.inference.fit import Fit

PLAIN, SD, MOE, INK = "#4c5b6b", "#d1495b", "#2e7d6b", "#222222"
RATES = 40
PANELS = 6


def _figure(rows: int, columns: int, height: float = 2.9, width: float = 3.7) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, axes


def collapse_figure(fit: "Fit") -> "Figure":
    """Every run on one curve: latency over C1 against utilization, and 1 / (1 - x)."""
    figure, (ax,) = _figure(1, 1, height=4.2, width=5.6)
    runs = fit.runs
    x = np.linspace(0, 0.97, 300)
    ax.plot(x, 1 / (1 - x), color=INK, lw=1.2, label="1 / (1 - x)")
    for family, arm, color, marker in (
        ("dense", "plain", PLAIN, "o"),
        ("dense", "sd", SD, "o"),
        ("moe", "plain", PLAIN, "^"),
        ("moe", "sd", MOE, "^"),
    ):
        own = runs[(runs["family"] == family) & (runs["arm"] == arm)]
        if len(own):
            ax.scatter(
                own["utilization"],
                own["e2e_mean_s"] / own["fitted_c1_s"],
                s=18,
                color=color,
                marker=marker,
                alpha=0.75,
                lw=0,
                label=f"{family}, {arm} ({len(own)} runs)",
            )
    ax.set(
        yscale="log",
        xlabel="utilization  x = rate x C2",
        ylabel="mean latency / C1",
        title="Measured runs collapse onto one curve",
    )
    ax.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    ax.legend(frameon=False, fontsize=8)
    return figure


def _panels(fit: "Fit") -> list[tuple[str, float, float, System, int]]:
    """Per verifier: the workload measured most often, and the SD arm measured there most often."""
    runs = fit.runs
    panels = []
    for (_, verifier), own in runs.groupby(["environment", "verifier"]):
        drafted = own[(own["drafter"] != NONE) & (own["draft_tokens"] > 0)]
        if drafted.empty or (own["arm"] == "plain").sum() == 0:
            continue
        keys = ["prompt_tokens", "output_tokens"]
        counts = own.groupby(keys)["arm"].agg(["size", "nunique"])
        prompt, output = counts.sort_values(["nunique", "size"]).index[-1]
        here = drafted[(drafted["prompt_tokens"] == prompt) & (drafted["output_tokens"] == output)]
        arm = (here if len(here) else drafted).iloc[0]
        panels.append((str(verifier), prompt, output, system_of(arm), int(arm["draft_tokens"])))
    return panels[:PANELS]


def latency_figure(fit: "Fit") -> "Figure | None":
    """Mean latency against load, plain and SD, with 90% bands and the measured runs."""
    panels = _panels(fit)
    if not panels:
        return None
    columns = min(3, len(panels))
    figure, axes = _figure(-(-len(panels) // columns), columns)
    runs = fit.runs
    for ax, (verifier, prompt, output, system, k) in zip(axes, panels, strict=False):
        own = runs[
            (runs["verifier"] == verifier)
            & (runs["environment"] == system.environment)
            & (runs["prompt_tokens"] == prompt)
            & (runs["output_tokens"] == output)
        ]
        at_rest = fit.latency(grid(rps=0.0, prompt=prompt, output=output), 0, system).draws
        top = max(own["rate_rps"].max() * 1.25, 1e-3)
        rates = np.linspace(top / RATES, top, RATES).tolist()
        answer = fit.latency(grid(rps=rates, prompt=prompt, output=output), [0, k], system)
        ceiling = 25 * float(at_rest["mean_s"].median())
        band = answer.quantile([0.05, 0.5, 0.95], of="run").clip(max=10 * ceiling)
        for arm, color, label in ((0, PLAIN, "plain"), (k, SD, f"SD, k = {k}")):
            low, middle, high = (
                band.sel(k=arm).isel(quantile=i).transpose("rate_rps") for i in range(3)
            )
            shown = middle < ceiling  # above it only "saturated" is to be said
            ax.fill_between(rates, low, high, where=shown, color=color, alpha=0.18, lw=0)
            ax.plot(rates, middle.where(shown), color=color, lw=1.4, label=label)
            points = (
                own[own["arm"] == "plain"]
                if arm == 0
                else own[
                    (own["drafter"] == system.drafter)
                    & (own["draft_tokens"] == k)
                    & (own["acceptance_imposed"].fillna(-1) == (system.acceptance or -1))
                ]
            )
            ax.scatter(points["rate_rps"], points["e2e_mean_s"], s=18, color=color, zorder=3)
        low_edge = 0.6 * min(float(band.isel(quantile=0).min()), own["e2e_mean_s"].min())
        ax.set(yscale="log", ylim=(low_edge, ceiling), xlim=(0, top))
        ax.set_title(
            f"{verifier} + {system.drafter}\n{prompt:.0f} + {output:.0f} tokens", fontsize=9
        )
        ax.legend(frameon=False, fontsize=7, loc="upper left")
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    figure.supxlabel("offered rate, requests/s", fontsize=9)
    figure.supylabel("mean latency of a run, s (90% predictive band)", fontsize=9)
    return figure


def prob_figure(decisions: list[dict[str, Any]]) -> "Figure | None":
    """P(SD beats plain) in the mean against load, a line a system."""
    if not decisions:
        return None
    several = len({d["environment"] for d in decisions}) > 1
    titles = {
        (d["environment"], d["verifier"]): d["verifier"]
        + (f"\n{d['environment']}" if several else "")
        for d in decisions
    }
    columns = min(3, len(titles))
    figure, axes = _figure(-(-len(titles) // columns), columns, height=2.6)
    shades = (SD, PLAIN, MOE, "#edae49", "#7b5ea7", "#00798c")
    for ax, (place, title) in zip(axes, titles.items(), strict=False):
        own = [d for d in decisions if (d["environment"], d["verifier"]) == place]
        for d, color in zip(own, shades * len(own), strict=False):
            label = f"{d['drafter']}, k = {d['k']}, {d['acceptance']:.2f}"
            ax.plot(d["rates_rps"], d["prob_faster"], color=color, lw=1.5, label=label)
        ax.axhline(0.5, color=INK, lw=0.6, ls=":")
        ax.set(ylim=(-0.03, 1.03), xlim=(0, None))
        ax.set_title(title, fontsize=8 if several else 9)
        ax.legend(frameon=False, fontsize=6.5, title="drafter, k, acceptance", title_fontsize=6.5)
    for ax in axes[len(titles) :]:
        ax.set_visible(False)
    d = decisions[0]
    figure.supxlabel(
        f"offered rate, requests/s ({d['prompt_tokens']:.0f} + {d['output_tokens']:.0f} tokens)",
        fontsize=9,
    )
    figure.supylabel("P(SD beats plain), mean latency", fontsize=9)
    return figure


def ranks_figure(table: "pd.DataFrame", level: float = 0.99) -> "Figure":
    """Rank histograms of a calibration, a panel a parameter, with a band for uniform ranks.

    Parameters
    ----------
    table : pandas.DataFrame
        Of :func:`bayes_sd.validate.calibration.calibration`.
    level : float
        Probability that a bin's count lies in the band where ranks are uniform.
    """
    from scipy.stats import binom

    counts = table.filter(like="bin_")
    columns, bins = 5, counts.shape[1]
    figure, axes = _figure(-(-len(table) // columns), columns, height=1.5, width=2.0)
    for ax, name, p, own in zip(
        axes, table["parameter"], table["p_holm"], counts.to_numpy(), strict=False
    ):
        low, high = binom.interval(level, own.sum(), 1 / bins)
        ax.axhspan(low, high, color=PLAIN, alpha=0.15, lw=0)
        ax.bar(np.arange(bins), own, width=0.9, color=PLAIN)
        ax.set_title(f"{name}  (p = {p:.2f})", fontsize=8)
        ax.set_xticks([])
    for ax in axes[len(table) :]:
        ax.set_visible(False)
    figure.supxlabel(f"rank of the true value; band: {level:.0%} of uniform counts", fontsize=9)
    return figure


def save_figures(fit: "Fit", decisions: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write the figures as PNG into `folder` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in (
        ("collapse", collapse_figure(fit)),
        ("latency", latency_figure(fit)),
        ("prob_faster", prob_figure(decisions)),
    ):
        if figure is not None:
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=140)
            files.append(path)
    return files
