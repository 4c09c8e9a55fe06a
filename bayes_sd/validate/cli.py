"""``bayes-sd compare`` and ``bayes-sd validate``."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from bayes_sd.cli_options import AsJson, Config, Environment, Paths, Seed
from bayes_sd.cli_output import emit, say, show
from bayes_sd.errors import InputError

Draws = Annotated[int, typer.Option(help="Kept draws of each of 4 chains, for each refit.")]
Tune = Annotated[int, typer.Option(help="Discarded draws of each chain.")]
Jobs = Annotated[int, typer.Option(help="Refits at a time, a core each; 0: one on all cores.")]


def register(app: typer.Typer, answers: Any) -> None:
    """Add both commands to the command line; `answers` turns errors into exit codes."""
    app.command()(answers(compare))
    app.command()(answers(validate))


def _executor(jobs: int) -> tuple[ThreadPoolExecutor | None, dict[str, Any]]:
    if jobs < 0:
        raise typer.BadParameter("--jobs must be at least 0.")
    return (None, {}) if jobs == 0 else (ThreadPoolExecutor(jobs), {"cores": 1})


def compare(
    paths: Paths,
    config: Config = None,
    environment: Environment = None,
    by: Annotated[
        str, typer.Option(help="What is left out at a time: verifier, drafter, run, fifth, ...")
    ] = "verifier",
    models: Annotated[
        str | None, typer.Option(help="Names with commas; all standard models by default.")
    ] = None,
    draws: Draws = 500,
    tune: Tune = 500,
    jobs: Jobs = 0,
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Compare laws, poolings and families by how well they predict runs they have not seen."""
    from bayes_sd.traces import read_traces
    from bayes_sd.validate.compare import compare as run
    from bayes_sd.validate.compare import standard_models

    chosen = standard_models()
    if models is not None:
        names = [name.strip() for name in models.split(",")]
        unknown = [name for name in names if name not in chosen]
        if unknown:
            raise InputError(f"No model is called {unknown[0]!r}; known: {', '.join(chosen)}.")
        chosen = {name: chosen[name] for name in names}
    executor, cores = _executor(jobs)
    found = run(
        read_traces(paths, config=config, environment=environment),
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
        emit(found.to_dict())
    else:
        show(f"Leaving out by {by}: log density of left-out mean latencies", found.table)


def validate(
    paths: Paths,
    config: Config = None,
    environment: Environment = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Of recovery, runs, verifier, drafter, moe, highest_load, long_prompts, priors, "
            "calibration, stress; with commas."
        ),
    ] = None,
    fits: Annotated[int, typer.Option(help="Refits of the calibration.")] = 200,
    draws: Draws = 500,
    tune: Tune = 500,
    jobs: Jobs = 0,
    seed: Seed = 1,
    tables: Annotated[
        Path | None,
        typer.Option(help="Folder for a CSV of each check's table, and for rank plots."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the model on result files: recovery, held-out runs and systems, calibration."""
    import pandas as pd

    from bayes_sd.traces import read_traces
    from bayes_sd.validate.checks import validate_model as run

    executor, cores = _executor(jobs)
    names = None if only is None else [name.strip() for name in only.split(",")]
    found = run(
        read_traces(paths, config=config, environment=environment),
        only=names,
        seed=seed,
        fits=fits,
        executor=executor,
        progress=say,
        draws=draws,
        tune=tune,
        **cores,
    )
    if tables is not None:
        tables.mkdir(parents=True, exist_ok=True)
        for one in found:
            one.table.to_csv(tables / f"{one.name}.csv", index=False)
            if one.name == "calibration":
                from bayes_sd.report.figures import ranks_figure

                ranks_figure(one.table).savefig(tables / "calibration.png", dpi=140)
    if as_json:
        emit({"checks": [one.to_dict() for one in found]})
    else:
        show("Checks", pd.DataFrame([one.to_dict() for one in found]))
    if not all(one.passed for one in found):
        raise typer.Exit(3)
