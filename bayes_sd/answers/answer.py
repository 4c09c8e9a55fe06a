"""What answers have in common: draws, tables and plots of one style, and no global state."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLE = ("chain", "draw")
UNITS = {"rate_rps": "requests/s", "concurrency": "requests in flight"}
# Okabe and Ito's colours, told apart by colour-blind readers; line styles tell them apart too.
COLORS = ("#4c5b6b", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "^", "s", "D", "v", "P")
TICKS = np.outer(10.0 ** np.arange(-6, 7), (1, 2, 5)).ravel()


def quantile(draws: xr.DataArray, q: Any) -> xr.DataArray:
    """Quantiles over draws, some of them infinite: observed values, not averages of neighbours."""
    probs = np.atleast_1d(np.asarray(q))
    if probs.dtype.kind not in "iuf" or not ((probs >= 0) & (probs <= 1)).all():
        raise InputError(f"q = {q!r}: must be probabilities in [0, 1].")
    return draws.quantile(probs.astype(float), dim=SAMPLE, method="inverted_cdf")


def tabulate(data: xr.Dataset) -> pd.DataFrame:
    """Flat table of a dataset: a column a coordinate, a row a cell."""
    if not data.dims:
        return pd.DataFrame([{str(n): data[n].item() for n in [*data.coords, *data.data_vars]}])
    return data.to_dataframe().reset_index()


class Answer:
    """What answers have: ``draws``, ``table``, ``plot(ax=None)``, and a sentence as ``str()``."""

    draws: xr.Dataset

    @property
    def table(self) -> pd.DataFrame:
        """The answer in rows, with units in the names of columns."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{self}\n{self.table.to_string(index=False)}"


def axes_of(ax: "Axes | None") -> "Axes":
    """The axes to draw on; new ones of a figure that no interactive window keeps."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(5.6, 3.8), layout="constrained").subplots()


def band(
    ax: "Axes",
    x: Any,
    values: np.ndarray,
    number: int,
    label: str,
    points_x: Any = (),
    points_y: Any = (),
) -> None:
    """A line with its band (low, middle, high), and measured points in the same colour."""
    color, style = COLORS[number % len(COLORS)], STYLES[number % len(STYLES)]
    low, middle, high = (np.where(np.isfinite(v), v, np.nan) for v in values)
    ax.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
    ax.plot(x, middle, color=color, ls=style, lw=1.6, label=label)
    if len(points_x):
        marker = MARKERS[number % len(MARKERS)]
        ax.scatter(points_x, points_y, s=20, color=color, marker=marker, zorder=3)


def finish(ax: "Axes", xlabel: str, ylabel: str, log: bool = False, legend: bool = True) -> None:
    """Labels with units, readable ticks, a legend."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    if log:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        ticks = [t for t in TICKS if low <= t <= high]
        ax.set_yticks(ticks, [f"{t:g}" for t in ticks], minor=False)
        ax.set_yticks([], minor=True)
    if legend:
        ax.legend(frameon=False, fontsize=8)
