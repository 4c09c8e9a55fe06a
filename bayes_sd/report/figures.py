"""Figures of the page: answers' own plots as SVG in the page's colours, and three more."""

import re
import warnings
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.answers import answer
from bayes_sd.answers.compare import Comparison
from bayes_sd.answers.latency import Latency, arm_of
from bayes_sd.answers.servers import Server
from bayes_sd.errors import shown
from bayes_sd.model.posterior import Posterior
from bayes_sd.runs.load import Load

STAGES = ("own prefill", "verify", "draft", "waiting for others")
LONGEST = 44  # characters of a name in a figure
POINTS = 1500  # of one scatter, from which it is drawn as pixels
Plot = Callable[["answer.Axes"], Any]


def short(text: str) -> str:
    """A name that fits a figure, its control characters escaped."""
    text = shown(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 15]} ... {text[-10:]}"


def svg(plot: Plot, number: int) -> str:
    """A plot as SVG whose text is text, whose colours are the page's, and whose ids are its own."""
    import matplotlib
    from matplotlib.text import Text

    ax, file = answer.axes_of(None), StringIO()
    plot(ax)
    figure: Any = ax.figure
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(short(text.get_text()))
    for many in ax.collections:
        many.set_rasterized(len(many.get_offsets()) > POINTS)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bayes_sd"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # letters that its own font lacks
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None}, dpi=150)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r' height="[^"]*pt"', "", text, 1))
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1f{number}-", text)
    for i, color in enumerate(answer.COLORS):
        text = text.replace(color, f"var(--c{i})")
    return re.sub(r"#(000000|262626|808080)\b", "currentColor", text)


def speedup(compared: Comparison, ax: "answer.Axes") -> None:
    """Speedup against load with 90% bands, a line a server."""
    axis = compared.axis_to_plot()
    for number, (name, own) in enumerate(compared.table.groupby("server", sort=False), start=1):
        values = own[["speedup_p05", "speedup_p50", "speedup_p95"]].to_numpy().T
        answer.band(ax, own[axis], values, number, str(name))
    ax.axhline(1, color="#808080", lw=0.8)
    answer.finish(ax, answer.UNITS[axis], "speedup over plain", log=True)


def tails(latency: Latency, ax: "answer.Axes") -> None:
    """What 95% of requests are served within against load, banded by the median and the 99%."""
    axis, table = latency.axis_to_plot(), latency.table
    for number, (name, own) in enumerate(table.groupby("server", sort=False)):
        values = own[["request_p50_s", "request_p95_s", "request_p99_s"]].to_numpy().T
        answer.band(ax, own[axis], values, number, str(name))
    answer.finish(ax, answer.UNITS[axis], "latency of a request, s", log=True)


def stages(fit: Posterior, load: Load, servers: Sequence[Server]) -> pd.DataFrame:
    """Medians of the seconds of a request by stage, at a low, a middle and a high load."""
    values = np.unique(load.cells[load.axis].values)
    at = load.with_axis(
        values[np.unique([0, len(values) // 2, -(-3 * len(values) // 4) - 1])].tolist()
    )
    rows = []
    for server in servers:
        arm = arm_of(fit, server, at, extrapolate=True)
        said, inputs = arm.outcome()
        draft = inputs["cycles"] * inputs["draft_passes"] * arm.placed(inputs).ways[0].draft_alone
        parts = said.prefill_s, said.c1_s - said.prefill_s - draft, draft, said.e2e_s - said.c1_s
        shape = np.shape(said.e2e_s)
        seconds = [np.median(np.broadcast_to(part, shape), axis=0) for part in parts]
        for i, value in enumerate(np.ravel(at.cells[at.axis].values)):
            row = {at.axis: value, "server": str(server)}
            rows.append(row | {f"{n}, s": s[i] for n, s in zip(STAGES, seconds, strict=True)})
    return pd.DataFrame(rows).sort_values(load.axis, kind="stable").reset_index(drop=True)


def bars(table: pd.DataFrame, ax: "answer.Axes") -> None:
    """The stages of :func:`stages` side by side, a bar a server and load."""
    left, axis = np.zeros(len(table)), table.columns[0]
    y = np.arange(len(table)) + 0.6 * table[axis].rank(method="dense").to_numpy()
    for i, (name, hatch) in enumerate(zip(STAGES, ("", "", "//", ".."), strict=True)):
        values = table[f"{name}, s"].to_numpy()
        color = answer.COLORS[(2, 0, 1, 5)[i]]
        style = {"color": color, "alpha": 0.85, "hatch": hatch, "edgecolor": "#808080", "lw": 0.3}
        ax.barh(y, np.where(np.isfinite(values), values, 0), left=left, label=name, **style)
        left = left + np.where(np.isfinite(values), values, 0)
    names = [short(n.rpartition(", ")[2]) for n in table["server"]]
    ax.set_yticks(y, [f"{n} at {v:.3g}" for n, v in zip(names, table[axis], strict=True)])
    ax.invert_yaxis()
    answer.finish(ax, "seconds of a request", "")
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def fitted(fit: Posterior, ax: "answer.Axes") -> None:
    """Measured over fitted mean latency of every run against its utilization."""
    runs = fit.runs
    ax.axhline(1, color="#808080", lw=0.8)
    for i, ((family, arm), own) in enumerate(runs.groupby(["family", "arm"])):
        ratio = own["e2e_mean_s"] / own["fitted_e2e_s"]
        answer.points(ax, own["utilization"], ratio, i, f"{family}, {arm} ({len(own)} runs)")
    answer.finish(ax, "share of latency that other requests cause", "measured / fitted")
