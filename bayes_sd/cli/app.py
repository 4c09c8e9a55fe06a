"""The commands of ``bayes-sd``, and those about runs, fits and models."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from bayes_sd.cli import ask
from bayes_sd.cli.options import (
    AsJson,
    Draws,
    Paths,
    Seed,
    Source,
    Tune,
    answers,
    emit,
    expands,
    option,
    sampling_option,
    say,
    show,
)
from bayes_sd.errors import InputError

app = typer.Typer(
    help="Is speculative decoding worth it at my load, on my models, with how many draft tokens?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ASK, MEASURE, DOUBT = "Ask a fit", "Measure and fit", "Doubt the model"
DEMO_LENGTHS = (128.0, 64.0)  # prompt and output tokens of the demo's decisions
Jobs = Annotated[int, sampling_option("Refits at a time; 0: one on all cores.", "N")]


@app.command(rich_help_panel=MEASURE)
@answers
@expands(Source)
def check(paths: Paths, source: Source, as_json: AsJson = False) -> None:
    """Say what result files hold, what was set aside and why, and what is missing."""
    result = source.read(paths).check()
    if as_json:
        emit(result.to_dict())
    else:
        print(result)
    if not result.passed:
        raise typer.Exit(3)


@app.command(rich_help_panel=MEASURE)
@answers
@expands(Source)
def fit(
    paths: Paths,
    output: Annotated[Path, option("File to write.", "FILE", "-o", "--output")],
    source: Source,
    seed: Seed = 1,
    draws: Draws = 1200,
    tune: Tune = 1000,
    target_accept: Annotated[
        float, sampling_option("Nearer to 1: smaller steps, fewer divergences.", "P")
    ] = 0.9,
    as_json: AsJson = False,
) -> None:
    """Fit the latency model to result files and save it; an unconverged fit is not saved."""
    from bayes_sd.latency_model import LatencyModel
    from bayes_sd.model.posterior import writable

    writable(output)
    runs = source.read(paths)
    say(repr(runs))
    result = LatencyModel().fit(
        runs, seed=seed, draws=draws, tune=tune, target_accept=target_accept
    )
    result.save(output)
    if as_json:
        emit({"file": str(output), "fit": result.sampling, "accuracy": result.accuracy()})
    else:
        print(result)
        print(f"saved to {output}")


@app.command(rich_help_panel=MEASURE)
@answers
def plan(
    description: Annotated[Path, typer.Argument(help="YAML: what to cover, in how long.")],
    folder: Annotated[
        Path | None, option("New folder for the files.", "FOLDER", "-o", "--to")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Design a campaign and write what `vllm bench sweep serve` runs."""
    from bayes_sd.plan.design import plan_sweep

    made = plan_sweep(description, folder)
    if as_json:
        path = None if made.path is None else str(made.path)
        emit({"answer": str(made), "rows": made.table.to_dict("records"), "path": path})
        return
    print(made)
    show("Servers", made.table)


def decision_row(comparison: Any, even: Any) -> dict[str, Any]:
    """A decision of the demo in one row."""
    probs, row = comparison.table["prob_faster"], even.table.iloc[0]
    return {
        "server": comparison.server,
        **{f"P at {s:.0%}": probs.iloc[i] for s, i in ((0.08, 0), (0.48, 5), (0.95, 11))},
        **{name: row[f"{name}_rps"] for name in ("p05", "p50", "p95")},
        **{f"P({o})": row[f"prob_{o}"] for o in ("never", "always")},
        "support": row["support"],
    }


def save_figures(fit: Any, answers: list[Any], folder: Path) -> list[str]:
    """Figures of the demo, as PNG: the collapse, and P(SD beats plain), a panel a verifier."""
    from matplotlib.figure import Figure

    collapse = Figure(figsize=(5.6, 4.2), layout="constrained")
    fit.plot_collapse(collapse.subplots())
    baselines = list(dict.fromkeys(comparison.baseline for comparison, _ in answers))
    faster = Figure(figsize=(8, 3.4 * max(len(baselines), 1)), layout="constrained")
    panels = faster.subplots(max(len(baselines), 1), squeeze=False).ravel()
    for panel, baseline in zip(panels, baselines, strict=False):
        own = [comparison for comparison, _ in answers if comparison.baseline == baseline]
        for number, comparison in enumerate(own):
            comparison.plot(panel, number)
    paths = [str(folder / name) for name in ("collapse.png", "prob_faster.png")]
    for path, figure in zip(paths, (collapse, faster), strict=True):
        figure.savefig(path, dpi=140)
    return paths


@app.command(rich_help_panel=MEASURE)
@answers
def demo(
    out: Annotated[Path, option("Folder for figures and the fit.", "FOLDER")] = Path(
        "bayes-sd-demo"
    ),
    campaign: Annotated[str, option("vllm-cpu, vllm-cpu-2, or '' for both.", "NAME")] = "vllm-cpu",
    seed: Seed = 1,
    draws: Draws = 1200,
    as_json: AsJson = False,
) -> None:
    """Fit the shipped vLLM measurements and decide for every server in them."""
    import pandas as pd

    from bayes_sd.latency_model import LatencyModel
    from bayes_sd.runs.read import corpus, read

    runs = read(corpus(campaign))
    say(repr(runs))
    say("compiling and sampling, about a minute ...")
    result = LatencyModel().fit(runs, seed=seed, draws=draws)
    made, accuracy = result.decisions(*DEMO_LENGTHS), result.accuracy()
    rows = [decision_row(*pair) for pair in made]
    out.mkdir(parents=True, exist_ok=True)
    files = [str(result.save(out / "fit.nc")), *save_figures(result, made, out)]
    if as_json:
        emit({"fit": result.sampling, "accuracy": accuracy, "decisions": rows, "files": files})
        return
    seconds = [f"{result.sampling[n]:.0f}" for n in ("seconds_compile", "seconds_sample")]
    print(result)
    print(
        f"compiled in {seconds[0]} s, sampled in {seconds[1]} s; R^2 of log mean latency "
        f"{accuracy['r2_dense']:.4f} dense, {accuracy['r2_moe']:.4f} MoE; mean error "
        f"{accuracy['mean_error']:.4f}\n"
    )
    show("Fitted coefficients: median and 90% interval", result.coefficients())
    prompt, output = DEMO_LENGTHS
    show(
        "P(SD beats plain) in the mean at shares of plain capacity, and the break-even rate "
        f"(requests/s), {prompt:.0f} + {output:.0f} tokens",
        pd.DataFrame(rows),
    )
    print("wrote " + ", ".join(files))


for _command in (ask.latency, ask.compare, ask.schedule, ask.capacity, ask.next_runs):
    app.command(_command.__name__.replace("_", "-"), rich_help_panel=ASK)(_command)


def _executor(jobs: int) -> tuple[ThreadPoolExecutor | None, dict[str, Any]]:
    if jobs < 0:
        raise typer.BadParameter("--jobs must be at least 0.")
    return (None, {}) if jobs == 0 else (ThreadPoolExecutor(jobs), {"cores": 1})


@app.command("compare-models", rich_help_panel=DOUBT)
@answers
@expands(Source)
def compare_models(
    paths: Paths,
    source: Source,
    by: Annotated[
        str, option("What is left out: verifier, drafter, run, fifth ...", "NAME")
    ] = "verifier",
    models: Annotated[str | None, option("Names with commas; else all.", "LIST")] = None,
    draws: Draws = 500,
    tune: Tune = 500,
    jobs: Jobs = 0,
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Compare laws and poolings by how well they predict runs they have not seen."""
    from bayes_sd.checks.compare import compare_models as run
    from bayes_sd.checks.compare import standard_models

    chosen = standard_models()
    if models is not None:
        names = [name.strip() for name in models.split(",")]
        unknown = [name for name in names if name not in chosen]
        if unknown:
            raise InputError(f"No model is called {unknown[0]!r}; known: {', '.join(chosen)}.")
        chosen = {name: chosen[name] for name in names}
    executor, cores = _executor(jobs)
    result = run(
        source.read(paths),
        chosen,
        by=by,
        seed=seed,
        executor=executor,
        progress=say,
        draws=draws,
        tune=tune,
        **cores,
    )
    if as_json:
        emit({"answer": str(result), "by": by, "models": result.table.to_dict("records")})
    else:
        print(result)
        show(f"Leaving out by {by}: log density of left-out mean latencies", result.table)


@app.command(rich_help_panel=DOUBT)
@answers
@expands(Source)
def validate(
    paths: Paths,
    source: Source,
    only: Annotated[
        str | None,
        option(
            "Of recovery, runs, verifier, drafter, moe, highest_load, long_prompts, priors.", "LIST"
        ),
    ] = None,
    draws: Draws = 500,
    tune: Tune = 500,
    jobs: Jobs = 0,
    seed: Seed = 1,
    tables: Annotated[
        Path | None, option("Folder for a CSV of each check's table.", "FOLDER")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the model on result files: recovery, held-out runs and systems, priors."""
    import pandas as pd

    from bayes_sd.checks.validate import validate as run

    executor, cores = _executor(jobs)
    results = run(
        source.read(paths),
        only=None if only is None else [name.strip() for name in only.split(",")],
        seed=seed,
        executor=executor,
        progress=say,
        draws=draws,
        tune=tune,
        **cores,
    )
    if tables is not None:
        tables.mkdir(parents=True, exist_ok=True)
        for one in results:
            one.table.to_csv(tables / f"{one.name}.csv", index=False)
    if as_json:
        emit({"checks": [one.to_dict() for one in results]})
    else:
        show("Checks", pd.DataFrame([one.to_dict() for one in results]))
    if not all(one.passed for one in results):
        raise typer.Exit(3)


def main() -> None:
    """Entry point of ``bayes-sd``."""
    # A warning is for the user, not for whoever looks for its line in the source.
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    app()
