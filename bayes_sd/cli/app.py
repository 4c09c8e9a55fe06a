"""The commands of ``bayes-sd``, and those about runs, fits and models."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from bayes_sd.cli import ask
from bayes_sd.cli import options as o
from bayes_sd.cli.ask import Asked
from bayes_sd.cli.reference import ask as ask_reference
from bayes_sd.errors import InputError, one_of
from bayes_sd.fit import LatencyModel, usual_prior
from bayes_sd.model.file import writable, write_whole
from bayes_sd.report.page import best_measured
from bayes_sd.runs.read import corpus, read

DEMO_FOLDER = Path("bayes-sd-demo")
DEMO_LENGTHS = (128.0, 64.0)  # prompt and output tokens of the demo's decisions
BEFORE = ("Qwen3-32B", "H100", 2, "eagle3", "0.7", "1,8,64")  # asked before anything is measured
SHARES = {8: 0, 48: 5, 95: 11}  # percent of plain capacity: rows of a comparison
COMPILING = "compiling, ten seconds to a minute, then sampling ..."
DRAWN: dict[str, Any] = {
    "latency": ask.latency,
    "compare": ask.compare,
    "schedule": ask.schedule,
    "next-runs": ask.next_runs,
}
KINDS = (*DRAWN, "collapse")  # of a picture
FORMATS = (".svg", ".png", ".pdf")
CHECKS = "recovery, runs, verifier, drafter, moe, highest_load, long_prompts, priors"


@dataclass(frozen=True)
class Refits:
    """How a check refits: its sampler, and so many at a time on one core each."""

    draws: o.Draws = 500
    tune: o.Tune = 500
    jobs: Annotated[int, o.sampling_option("Refits at a time; 0: one, all cores.", "N")] = 0
    keep: Annotated[o.File, o.option("Keep refits here, and go on from those.", "FOLDER")] = None
    seed: o.Seed = 1

    def how(self) -> dict[str, Any]:
        """As the checks take it."""
        if self.jobs < 0:
            raise typer.BadParameter("--jobs must be at least 0.")
        at_once = {"executor": ThreadPoolExecutor(self.jobs), "cores": 1} if self.jobs else {}
        sampler = {"seed": self.seed, "draws": self.draws, "tune": self.tune}
        return {**sampler, "keep": self.keep, "progress": o.say, **at_once}


def check(source: o.Source) -> o.Reply:
    """Say what result files hold, what was set aside and why, and what is missing."""
    result = source.read().check()
    shown = [o.fill(part) if isinstance(part, str) else part for part in result.parts]
    return o.Reply(result.to_dict(), shown, result.passed)


def fit(
    output: Annotated[Path, o.option("File to write.", "FILE", "-o", "--output")],
    source: o.Source,
    seed: o.Seed = 1,
    draws: o.Draws = 1200,
    tune: o.Tune = 700,
    target_accept: Annotated[float, o.sampling_option("Nearer 1: fewer divergences.", "P")] = 0.9,
    max_minutes: Annotated[float, o.sampling_option("Draw again for so long.", "M")] = 10.0,
    public: Annotated[
        bool | None,
        o.option(
            "Priors from public runs of many machines; default: for one verifier on a known one.",
            None,
            "--reference/--no-reference",
        ),
    ] = None,
) -> o.Reply:
    """Fit the latency model to result files and save it; an unconverged fit is not saved."""
    writable(output)
    runs = source.read()
    if public and runs.table["gb_per_s"].isna().any():
        raise InputError("--reference needs the machine of all runs: --set machine=NAME.")
    prior = usual_prior(runs, public)
    told = "Priors are those of public runs of many machines (--no-reference: wide ones).\n"
    o.say(f"{runs!r}\n{told if prior else ''}{COMPILING}")
    how: dict[str, Any] = {"draws": draws, "tune": tune, "target_accept": target_accept}
    result = LatencyModel(prior=prior).fit(runs, seed=seed, max_minutes=max_minutes, **how)
    result.save(output)
    data = {"file": str(output), "sampling": result.sampling, "accuracy": result.accuracy()}
    return o.Reply(data, [str(result), f"saved to {output}"])


def plan(
    description: Annotated[Path, typer.Argument(help="YAML: what to cover, in how long.")],
    folder: Annotated[o.File, o.option("New folder for the files.", "FOLDER", "-o", "--to")] = None,
) -> o.Reply:
    """Design a campaign and write what `vllm bench sweep serve` runs."""
    from bayes_sd.plan.design import plan_sweep

    made = plan_sweep(description, folder)
    return o.Reply.of(made, "Servers", plan=made.path and str(made.path))


def demo(
    out: Annotated[Path, o.option("Folder for the fit and a page on it.", "FOLDER")] = DEMO_FOLDER,
    seed: o.Seed = 1,
    draws: o.Draws = 1200,
) -> o.Reply:
    """Answer for a public model from data sheets; fit the shipped runs and decide for them."""
    before = ask_reference(*BEFORE)
    o.say(f"Before any measurement. {before.shown[0]}")
    runs = read(corpus("vllm-cpu"))
    o.say(f"{runs!r}\n{COMPILING}")
    result = LatencyModel().fit(runs, seed=seed, draws=draws)
    decisions, accuracy = result.decisions(*DEMO_LENGTHS), result.accuracy()
    rows = [decision(compared, even) for compared, evens in decisions for even in evens]
    out.mkdir(parents=True, exist_ok=True)
    files = {"file": str(result.save(out / "fit.nc"))}
    files["page"] = str(result.report(out / "report.html"))
    told = (
        f"compiled in {result.sampling['seconds_compile']:.0f} s, sampled in "
        f"{result.sampling['seconds_sample']:.0f} s; R^2 of log mean latency "
        f"{accuracy['r2_dense']:.4f} dense, {accuracy['r2_moe']:.4f} MoE; mean error "
        f"{accuracy['mean_error']:.4f}\n"
    )
    title = (
        "P(SD beats plain) in the mean at shares of plain capacity, and the break-even rate "
        "(requests/s), {:.0f} + {:.0f} tokens".format(*DEMO_LENGTHS)
    )
    coefficients = ("Fitted coefficients: median and 90% interval", result.coefficients())
    wrote = "wrote " + ", ".join(files.values())
    shown = [*before.shown, str(result), told, coefficients, (title, pd.DataFrame(rows)), wrote]
    data = {"before": before.data, "sampling": result.sampling, "accuracy": accuracy}
    return o.Reply({**data, "decisions": rows, **files}, shown)


def decision(comparison: Any, even: Any) -> dict[str, Any]:
    """The demo's decision for one server."""
    own = comparison.table.set_index("server").loc[[even.server], "prob_faster"]
    row = even.table.iloc[0]
    return {
        "server": even.server,
        **{f"prob_faster_at_{percent}pct": own.iloc[i] for percent, i in SHARES.items()},
        **row[["p05_rps", "p50_rps", "p95_rps", "prob_never", "prob_always", "support"]].to_dict(),
    }


def report(
    asked: Asked, page: Annotated[Path, o.option("Page to write, HTML.", "FILE", "-o", "--page")]
) -> o.Reply:
    """Write a page that shows a fit: verdict, why, how sure, and other questions to ask it."""
    asks: dict[str, Any] = {"extrapolate": asked.extrapolate}
    about = {*asked.given} - {"extrapolate"}
    if about - ask.LOADS:
        asks |= {"baseline": asked.server(0), "servers": asked.drafting}
    if about & ask.LOADS:
        plain = asks.get("baseline") or best_measured(asked.fit)[1]
        asks["load"] = asked.load(plain)
    path = str(asked.fit.report(page, **asks))
    return o.Reply({"page": path}, [f"wrote {path}"])


def plot(
    asked: Asked,
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")],
    picture: Annotated[Path, o.option("To write: .svg, .png or .pdf.", "FILE", "-o", "--picture")],
) -> o.Reply:
    """Draw an answer, or every run on one curve (collapse)."""
    one_of("kind", kind, KINDS)
    one_of("picture", picture.suffix, FORMATS)
    writable(picture)
    if kind == "collapse":
        o.unused(asked.given, "collapse shows every run of the fit, whatever else is asked")
        reply = o.Reply({"answer": (said := "Every run on one curve.")}, [said])
        axes: Any = asked.fit.plot_collapse()
    else:
        reply = DRAWN[kind](asked)
        axes = reply.answer.plot()
    file = BytesIO()
    axes.figure.savefig(file, format=picture.suffix[1:], dpi=160)
    path = str(write_whole(picture, file.getvalue()))
    return o.Reply(reply.data | {"picture": path}, [reply.shown[0], f"wrote {path}"])


def compare_models(
    source: o.Source,
    refits: Refits,
    by: Annotated[str, o.option("Left out: verifier, drafter, run, fifth.", "NAME")] = "verifier",
    models: Annotated[o.Text, o.option("Names with commas; else all.", "LIST")] = None,
) -> o.Reply:
    """Compare laws and poolings by how well they predict runs they have not seen."""
    from bayes_sd.checks.compare import compare_models as run
    from bayes_sd.checks.compare import standard_models

    known = standard_models()
    names = list(known) if models is None else [name.strip() for name in models.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"No model is called {unknown[0]!r}; known: {', '.join(known)}.")
    chosen = {name: known[name] for name in names}
    result = run(source.read(), chosen, by=by, **refits.how())
    title = f"Leaving out by {by}: log density of left-out mean latencies"
    return o.Reply.of(result, title, by=by)


def validate(
    source: o.Source,
    refits: Refits,
    only: Annotated[o.Text, o.option(f"Of {CHECKS}.", "LIST")] = None,
    tables: Annotated[o.File, o.option("Folder for a CSV of each check.", "FOLDER")] = None,
) -> o.Reply:
    """Check the model on result files: recovery, held-out runs and systems, priors."""
    from bayes_sd.checks.validate import validate as run

    names = None if only is None else [name.strip() for name in only.split(",")]
    results = run(source.read(), only=names, **refits.how())
    if tables is not None:
        tables.mkdir(parents=True, exist_ok=True)
        for result in results:
            result.table.to_csv(tables / f"{result.name}.csv", index=False)
    rows = [result.to_dict() for result in results]
    passed = all(result.passed for result in results)
    table = pd.DataFrame(rows).drop(columns="sentence")  # said already, one after the other
    return o.Reply({"passed": passed, "rows": rows}, [("Checks", table)], passed)


PANELS = {
    "Before measuring": (ask_reference,),
    "Measure and fit": (check, fit, plan, demo),
    "Ask a fit": (ask.latency, ask.compare, ask.schedule, ask.capacity, ask.next_runs),
    "Look at a fit": (report, plot),
    "Doubt the model": (compare_models, validate),
}
app = typer.Typer(
    help="Is speculative decoding worth it at my load, on my models, with how many draft tokens?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"bayes-sd {version('bayes-sd')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and stop.")
    ] = False,
) -> None:
    pass


for _panel, _verbs in PANELS.items():
    for _verb in _verbs:
        _name = _verb.__name__.replace("_", "-")
        app.command(_name, rich_help_panel=_panel)(o.command(_verb))


def main() -> None:
    """Entry point of ``bayes-sd``."""
    # A warning is for the user, not for whoever looks for its line in the source.
    warnings.showwarning = lambda message, *_, **__: o.say(f"warning: {message}")
    app()
