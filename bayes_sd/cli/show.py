"""``bayes-sd report`` and ``bayes-sd plot``: a fit to look at."""

from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

from typer import Argument

from bayes_sd.cli import ask
from bayes_sd.cli import options as o
from bayes_sd.cli.ask import Asked
from bayes_sd.errors import one_of
from bayes_sd.model.file import writable, write_whole
from bayes_sd.report.page import best_measured

FORMATS = (".svg", ".png", ".pdf")


def report(
    asked: Asked, page: Annotated[Path, o.option("Page to write, HTML.", "FILE", "-o", "--page")]
) -> o.Reply:
    """Write a page that shows a fit: verdict, why, how sure, and other questions to ask it."""
    asks: dict[str, Any] = {"extrapolate": asked.extrapolate}
    about = {f.name for f in fields(Asked) if getattr(asked, f.name) is not None}
    loads = {"rps", "concurrency", "prompt", "output"}
    if about - loads - {"file", "gpus", "extrapolate"}:
        drafting = [asked.server(k) for k in asked.draft_lengths if k > 0]
        asks |= {"baseline": asked.server(0), "servers": drafting}
    if about & loads:
        plain = asks.get("baseline") or best_measured(asked.fit)[1]
        asks["load"] = asked.load_near(plain) if plain else asked.load()
    path = str(asked.fit.report(page, **asks))
    return o.Reply({"page": path}, [f"wrote {path}"])


DRAWN: dict[str, Any] = {
    "latency": ask.latency,
    "compare": ask.compare,
    "schedule": ask.schedule,
    "next-runs": ask.next_runs,
}
KINDS = (*DRAWN, "collapse")


def plot(
    asked: Asked,
    kind: Annotated[str, Argument(help=f"One of {', '.join(KINDS)}.")],
    picture: Annotated[Path, o.option("To write: .svg, .png or .pdf.", "FILE", "-o", "--picture")],
) -> o.Reply:
    """Draw an answer, or every run on one curve (collapse)."""
    one_of("kind", kind, KINDS)
    one_of("picture", picture.suffix, FORMATS)
    writable(picture)
    if kind == "collapse":
        reply = o.Reply({"answer": (said := "Every run on one curve.")}, [said])
        axes: Any = asked.fit.plot_collapse()
    else:
        reply = DRAWN[kind](asked)
        axes = reply.answer.plot()
    file = BytesIO()
    axes.figure.savefig(file, format=picture.suffix[1:], dpi=160)
    path = str(write_whole(picture, file.getvalue()))
    return o.Reply(reply.data | {"picture": path}, [reply.shown[0], f"wrote {path}"])
