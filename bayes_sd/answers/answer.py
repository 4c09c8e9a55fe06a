"""What answers have in common: draws, tables, plots of one style, and support."""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from bayes_sd.answers.servers import Resolved, name_of, of_verifier
from bayes_sd.errors import LARGEST, SMALLEST, InputError, require, shares
from bayes_sd.model.design import NONE
from bayes_sd.model.posterior import Posterior
from bayes_sd.physics.law import Outcome
from bayes_sd.runs.machine import Machine
from bayes_sd.runs.sizes import Size
from bayes_sd.runs.table import LENGTHS

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes

# From the farthest to the nearest.
LABELS = np.array(
    ["assumed structure", "data sheet", "extrapolated", "interpolated", "measured"], dtype=object
)
FACTOR = 4.0  # beyond the measured range, after which an answer has to be asked for by name
SLACK = 1.001  # of a measured range: rates are rounded in files
WORST = 20.0  # latencies and bills count up to this many times the best: some have no bound
SURE = 0.9  # probability from which a sentence calls one server faster
SAMPLE = ("chain", "draw")
UNITS = {"rate_rps": "requests/s", "concurrency": "requests in flight"}
# Okabe and Ito's colours, told apart by colour-blind readers; line styles tell them apart too.
COLORS = ("#4c5b6b", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "^", "s", "D", "v", "P")
DECADES = 10.0 ** np.arange(-6, 7)
TICKS = np.outer(DECADES, (1, 2, 5)).ravel()
TICKS_MOST = 10  # of an axis, beyond which only powers of ten are labelled
LINE_INCHES = 0.16  # between two names
RIGHT = 0.85  # of the width of axes, from which a line ends at the right
WIDE = 5.0  # ratio of concurrencies from which their axis is logarithmic


def with_unit(value: str, axis: str) -> str:
    """A load as it is said: "2.5 requests/s", "1 request in flight"."""
    unit = UNITS[axis]
    return f"{value} {unit.replace('requests', 'request') if value == '1' else unit}"


def cell(value: Any) -> str:
    """A number in four digits, a whole one in full; what is missing or infinite in words."""
    if not isinstance(value, float):
        return str(value)
    if not np.isfinite(value):
        return "-" if np.isnan(value) else "no limit"
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"


def positive(name: str, value: Any) -> None:
    """Refuse what is not a number above 0, of any size that a quantity can have."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    fits = number and bool(SMALLEST <= value <= LARGEST)
    require(name, value, fits, f"a positive number, {SMALLEST:g} to {LARGEST:g}")


def probability(name: str, value: Any) -> None:
    """Refuse what is not a number between 0 and 1."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    require(name, value, number and bool(0 < value < 1), "between 0 and 1")


def quantile(draws: xr.DataArray, q: Any) -> xr.DataArray:
    """Quantiles over draws, some of them infinite: observed values, not averages of neighbours."""
    probs = np.atleast_1d(shares("q", q, "probabilities in [0, 1]"))
    return draws.quantile(probs, dim=SAMPLE, method="inverted_cdf")


def percentiles(draws: xr.DataArray, probs: Sequence[float], column: str) -> dict[str, Any]:
    """Quantiles over draws by the names of their columns: of "mean_{}_s" as "mean_p05_s"."""
    values = zip(probs, quantile(draws, probs), strict=True)
    return {column.format(f"p{100 * p:02.0f}"): x.drop_vars("quantile") for p, x in values}


def best_of(losses: np.ndarray, able: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """P(best), ties shared, and expected regret of each; the chance that all are infinite."""
    prob, regret = np.where(able, 0.0, np.nan), np.full(len(losses), np.nan)
    if not able.any():
        return prob, regret, np.nan
    own = losses[able]
    best = own.min(axis=0)
    finite = np.isfinite(best)
    ties = (own == best) & finite
    prob[able] = (ties / np.maximum(ties.sum(axis=0), 1)).mean(axis=1)
    if finite.any():
        own, best = own[:, finite], best[finite]
        regret[able] = (np.minimum(own, WORST * best) - best).mean(axis=1)
    return prob, regret, float(1 - finite.mean())


class Answer:
    """What answers have: ``draws``, ``table``, ``plot(ax=None)``, and a sentence as ``str()``."""

    draws: xr.Dataset
    rows: pd.DataFrame  # where they are not made of the draws

    @property
    def table(self) -> pd.DataFrame:
        """The answer in rows, with units in the names of columns."""
        return self.rows

    @property
    def axis(self) -> str | None:
        """``rate_rps`` or ``concurrency``, whichever has several values; None if neither has."""
        return next((a for a in UNITS if a in self.draws.dims), None)

    def axis_to_plot(self) -> str:
        """The axis, without which there is nothing to plot."""
        if self.axis is None or self.draws.sizes[self.axis] < 2:
            raise InputError("A plot needs several rates or concurrencies.")
        return self.axis

    def __repr__(self) -> str:
        return f"{self}\n{self.table.to_string(index=False)}"


def axes_of(ax: "Axes | None") -> "Axes":
    """The axes to draw on; new ones of a figure that no interactive window keeps."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(5.6, 3.8), layout="constrained").subplots()


def line_style(number: int) -> dict[str, Any]:
    """Colour, dashes and width of the line of this number."""
    color, dashes = COLORS[number % len(COLORS)], STYLES[number % len(STYLES)]
    return {"color": color, "ls": dashes, "lw": 1.6}


def band(ax: "Axes", x: Any, values: np.ndarray, number: int, label: str) -> None:
    """A line with its band (low, middle, high), in the style of this number."""
    low, middle, high = (np.where(np.isfinite(v), v, np.nan) for v in values)
    (line,) = ax.plot(x, middle, label=label, **line_style(number))
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, lw=0)


def points(ax: "Axes", x: Any, y: Any, number: int, label: str | None = None) -> None:
    """Measured points, in the style of this number."""
    color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
    ax.scatter(x, y, s=20, color=color, marker=marker, alpha=0.8, zorder=3, label=label)


def finish(ax: "Axes", xlabel: str, ylabel: str, log: bool = False, title: str = "") -> "Axes":
    """Labels with units, readable ticks, a name at each line, a legend of points."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, fontsize=10, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    low, high = ax.dataLim.intervalx
    wide = xlabel.startswith(UNITS["concurrency"]) and 0 < low < high / WIDE
    for axis, name in [(ax.xaxis, "x")] * bool(wide) + [(ax.yaxis, "y")] * log:
        getattr(ax, f"set_{name}scale")("log")
        low, high = getattr(ax, f"get_{name}lim")()
        ticks = [t for t in TICKS if low <= t <= high]
        if len(ticks) > TICKS_MOST:
            ticks = [t for t in DECADES if low <= t <= high]
        axis.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
        axis.set_ticks([], minor=True)
    _name_lines(ax)
    if scatters := [c for c in ax.collections if not str(c.get_label()).startswith("_")]:
        ax.legend(handles=scatters, frameon=False, fontsize=8)
    return ax


def _name_lines(ax: "Axes") -> None:
    """Names at the right, tied to the ends of lines; beside the end where a line ends before."""
    for old in [text for text in ax.texts if text.get_gid() == "line"]:
        old.remove()
    (low, high), ends = ax.get_ylim(), []
    how: dict[str, Any] = {"va": "center", "fontsize": 8, "gid": "line", "annotation_clip": False}
    for line in ax.lines:
        x, y = (np.asarray(v, float) for v in line.get_data())
        seen = np.flatnonzero((low <= y) & (y <= high))
        name = str(line.get_label())
        if name.startswith("_"):
            continue
        tie: dict[str, Any] = {"color": line.get_color(), "ls": line.get_linestyle(), "lw": 1.2}
        if not seen.size:
            seen, y, name, tie = np.array([-1]), np.array([high]), f"{name}: saturated", {"lw": 0}
        end = x[seen[-1]], y[seen[-1]]
        across, height = ax.transAxes.inverted().transform(ax.transData.transform(end))
        if across > RIGHT:
            ends.append((float(height), end, name, tie))
        else:
            ax.annotate(name, end, (5, 0), textcoords="offset points", **how)
    ends.sort(key=lambda one: one[0])
    steps = np.arange(len(ends)) * LINE_INCHES * ax.figure.dpi / ax.get_window_extent().height
    if len(ends):
        near = scipy.optimize.isotonic_regression(
            np.array([height for height, *_ in ends]) - steps
        ).x
        steps = steps + np.clip(near, 0, max(1 - steps[-1], 0))
    for height, (_, end, name, tie) in zip(steps, ends, strict=True):
        tie |= {"arrowstyle": "-", "shrinkB": 0, "relpos": (0, 0.5)}
        ax.annotate(name, end, (1.04, height), textcoords="axes fraction", arrowprops=tie, **how)


def far_outside(fit: Posterior, resolved: Resolved, cells: Any) -> str:
    """Why a question lies far outside of what was measured, "" if it does not, see `Fit`.

    A rate has no such bound: past capacity it saturates.
    """
    runs, sizes, server = fit.runs, resolved.sizes, resolved.server
    checks = [(name.replace("_", " "), cells[name], runs[name]) for name in LENGTHS]
    if "concurrency" in cells:
        most = runs["in_flight"].max()
        checks.append(("concurrency", np.maximum(cells["concurrency"], most), runs["in_flight"]))
    if isinstance(server.verifier, Size):
        known = fit.verifiers
        total, measured = sizes["shared"] + sizes["expert"], known["shared"] + known["expert"]
        checks.append(("active verifier parameters (1e9)", sizes["active"], known["active"]))
        checks.append(("total verifier parameters (1e9)", total, measured))
    if isinstance(server.drafter, Size):
        measured = fit.drafters["drafter_params"]
        checks.append(("drafter parameters (1e9)", sizes["drafter"], measured[measured > 0]))
        checks.append(("drafter layers", sizes["drafter_layers"], fit.drafters["drafter_layers"]))
    for name, asked, measured in checks:
        low, high = float(np.min(asked)), float(np.max(asked))
        least, most = np.nanmin(measured, initial=np.inf), np.nanmax(measured, initial=-np.inf)
        if most > 0 and (low < least / FACTOR or high > most * FACTOR):
            value = low if low < least / FACTOR else high
            return (
                f"{name} {value:.4g} is more than {FACTOR:g} times outside the measured "
                f"{least:.4g} to {most:.4g}; to extrapolate all the same say <<extrapolate>>."
            )
    table = fit.servers
    here = table["environment"] == resolved.environment
    here |= isinstance(server.environment, Machine)
    undrafted = of_verifier(table[(table["draft_tokens"] == 0) & here], server.verifier)
    own = isinstance(server.drafter, str)
    drafting = table[table["drafter"] == server.drafter] if own else table
    lengths = sorted(drafting["draft_tokens"][drafting["draft_tokens"] > 0].unique())
    # Between no drafting and the shortest draft length that ran is between two measured ones.
    lengths = [0] * bool(len(undrafted)) + lengths if lengths else []
    if server.k > 0 and lengths and not lengths[0] <= server.k <= lengths[-1]:
        return (
            f"k = {server.k} is outside the draft lengths measured here "
            f"({', '.join(map(str, lengths))}); to extrapolate all the same say <<extrapolate>>."
        )
    if server.drafter is None:
        undrafted = undrafted[undrafted["drafter"] == NONE]
    if server.k > 0 or len(undrafted):
        return ""
    what = "plain" if server.drafter is None else "with its drafter idle or plain"
    return (
        f"No run of {name_of(server.verifier)} {what} was fitted, so nothing stands behind "
        "k = 0, nor behind P(SD beats plain): measure it, or say <<extrapolate>>."
    )


def support(fit: Posterior, resolved: Resolved, cells: Any, said: Outcome, far: Any) -> np.ndarray:
    """Label of every cell of a load.

    Measured: this very server ran, at rates, lengths and utilizations that bracket the cell.
    Interpolated: k, the positions of its acceptance, both sizes, the lengths and the median
    utilization lie inside what the fit has seen, and it is not `far_outside`. Extrapolated: all
    else, past every measured utilization included. Data sheet: a machine that nobody measured.
    Assumed structure: what a structure changes.
    """
    needed = ["server", *LENGTHS, *UNITS, "utilization", "draft_tokens"]
    runs = fit.runs[needed]  # fewer columns are filtered sooner

    def inside(rows: pd.DataFrame, *columns: str) -> Any:
        ranges = [(cells[n], rows[n].min() / SLACK, rows[n].max() * SLACK) for n in columns]
        return np.all([(low <= cell) & (cell <= high) for cell, low, high in ranges], axis=0)

    share = np.where(np.isfinite(said.others_share), said.others_share, 1.0)
    share = np.median(np.minimum(share, 1.0), axis=0)
    own = runs.iloc[:0]
    if resolved.measured.any():
        own = runs[runs["server"] == fit.servers["server"][resolved.measured].iloc[0]]
    bracketed = inside(own, *(n for n in cells if n in runs))
    measured = bracketed & (share <= own["utilization"].max() * 1.05)
    k, positions = resolved.server.k, resolved.positions
    known = k <= min(runs["draft_tokens"].max(), k if positions is None else positions)
    known = known and _size_inside(fit, resolved)
    near = (share <= runs["utilization"].max()) & inside(runs, *LENGTHS) & ~far & known
    elsewhere = isinstance(resolved.server.environment, Machine)
    cases = [resolved.place is not None, elsewhere, measured, near]
    reach = np.select(np.broadcast_arrays(*cases), [0, 1, 4, 3], 2)
    return np.broadcast_to(LABELS[reach], np.shape(cells["prompt_tokens"]))


def farthest(labels: Iterable[Any]) -> str:
    """The label of what is farthest from the data."""
    return str(min((str(label) for label in labels), key=LABELS.tolist().index))


def _size_inside(fit: Posterior, resolved: Resolved) -> bool:
    """Whether sizes of new models lie between measured ones, a verifier's of its family."""
    sizes, server, known = resolved.sizes, resolved.server, list[pd.DataFrame]()
    if isinstance(server.verifier, Size):
        family = fit.verifiers[fit.verifiers["moe"] == sizes["moe"]]
        known.append(family[["active", "shared", "expert"]])
    if isinstance(server.drafter, Size):
        known.append(fit.drafters.rename(columns={"drafter_params": "drafter"}))
    return all(own.min() <= sizes[str(n)] <= own.max() for each in known for n, own in each.items())
