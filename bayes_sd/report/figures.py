"""Figures of the page: plots as SVG in the page's colours, and three that no answer has."""

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
from bayes_sd.answers.servers import Server, shared_name
from bayes_sd.errors import shown
from bayes_sd.model.posterior import Posterior
from bayes_sd.runs.load import Load

STAGES = ("own_prefill_s", "verify_s", "draft_s", "others_s")
LONGEST = 44  # characters of a name in a figure
POINTS = 300  # of one scatter, from which it is drawn as pixels


def svg(plot: Callable[[Any], Any], number: int) -> str:
    """A plot as SVG whose text is text, whose colours are the page's, and whose ids are its own.

    It has no title: the page says what it is about.
    """
    import matplotlib
    from matplotlib.text import Text

    ax, file = answer.axes_of(None), StringIO()
    plot(ax).set_title("", loc="left")
    figure: Any = ax.figure
    for text in figure.findobj(Text):
        lines = [shown(line) for line in text.get_text().split("\n")]
        short = [x if len(x) <= LONGEST else f"{x[: LONGEST - 15]} ... {x[-10:]}" for x in lines]
        text.set(text="\n".join(short), parse_math=False)
    for many in ax.collections:
        many.set_rasterized(np.size(many.get_offsets()) > 2 * POINTS)
    style = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bayes_sd"})
    with style, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that its own font lacks
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None}, dpi=150)
    image = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    image = re.sub(r'(\bid="|url\(#|href="#)', rf"\1f{number}-", image[image.index("<svg") :])
    for i, color in enumerate(answer.COLORS):
        image = image.replace(color, f"var(--c{i})")
    return re.sub(r"#(000000|262626|808080)\b", "currentColor", image)


def lines(
    said: Latency | Comparison, columns: Sequence[str], label: str, first: int, ax: "answer.Axes"
) -> "answer.Axes":
    """Three columns of an answer's table against load as a line in a band, for each server."""
    axis, short = said.axis_to_plot(), shared_name(said.servers)[1]
    for number, (name, own) in enumerate(said.table.groupby("server", sort=False), start=first):
        answer.band(ax, own[axis], own[[*columns]].to_numpy().T, number, short[str(name)])
    # A band of no bound is not to make the lines flat.
    middle = said.table[columns[1]]
    middle = middle[np.isfinite(middle) & (middle > 0)]
    if len(middle):
        ax.set_ylim(middle.min() / 3, 3 * middle.max())
    return answer.finish(ax, answer.UNITS[axis], label, log=True)


def fitted(fit: Posterior, ax: "answer.Axes") -> "answer.Axes":
    """Measured over fitted mean latency of every run against its utilization."""
    ax.axhline(1, color="#808080", lw=0.8)
    for i, ((family, arm), own) in enumerate(fit.runs.groupby(["family", "arm"])):
        ratio, label = own["e2e_mean_s"] / own["fitted_e2e_s"], f"{family}, {arm} ({len(own)} runs)"
        answer.points(ax, own["utilization"], ratio, i, label)
    return answer.finish(ax, "share of latency that other requests cause", "measured / fitted")


def stages(fit: Posterior, load: Load, servers: Sequence[Server]) -> pd.DataFrame:
    """Medians of a request's seconds by stage at a low, a middle and a high load of each server."""
    values, rows = np.unique(load.cells[load.axis].values), []
    values = values[np.unique([0, len(values) // 2, 3 * len(values) // 4])]
    for server in servers:
        arm = arm_of(fit, server, load.with_axis(values.tolist()), extrapolate=True)
        said, inputs = arm.outcome()
        draft = inputs["cycles"] * inputs["draft_passes"] * arm.placed(inputs).ways[0].draft_alone
        parts = said.prefill_s, said.c1_s - said.prefill_s - draft, draft, said.e2e_s - said.c1_s
        seconds = [np.median(np.broadcast_to(p, said.e2e_s.shape), axis=0) for p in parts]
        rows += [(v, str(server), *each) for v, *each in zip(values, *seconds, strict=True)]
    table = pd.DataFrame(rows, columns=[load.axis, "server", *STAGES])
    return table.sort_values(str(load.axis), kind="stable", ignore_index=True)
