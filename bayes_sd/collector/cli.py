"""``bayes-sd collect`` and ``bayes-sd testbed``."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bayes_sd.errors import InputError


def register(app: typer.Typer, answers: Any) -> None:
    """Add both commands to the command line; `answers` turns errors into exit codes."""
    app.command("collect")(answers(carry_out))
    app.command("testbed")(answers(write_models))


def carry_out(
    plan: Annotated[Path, typer.Argument(help="The plan, or with --design a description.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the runs; with --design the plan's file."),
    ] = None,
    design: Annotated[bool, typer.Option("--design", help="Write a plan, start nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print it, start nothing.")] = False,
    base_url: Annotated[
        str | None, typer.Option(help="Use the server that runs there, http://HOST:PORT.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this configuration; may be repeated.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed as often as allowed.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
) -> None:
    """Start vLLM servers, run `vllm bench serve` against each, save one file a run.

    Interrupted in whatever way, the same command goes on where it was.
    """
    from bayes_sd.collector import design as designs
    from bayes_sd.collector.plan import read_plan
    from bayes_sd.collector.run import collect

    made = designs.design(designs.read_description(plan)) if design else read_plan(plan)
    if design or dry_run:
        if output is not None and design and not dry_run:
            designs.write_plan(made, output)
        elif design and not dry_run:
            raise typer.BadParameter("--design needs -o FILE, or --dry-run to only look.")
        _show(made, as_json)
        return
    if output is None:
        raise typer.BadParameter("-o FOLDER is needed.")
    try:
        done = collect(
            made, output, base_url=base_url, only=only or None, retry_failed=retry_failed
        )
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here.", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        _emit(
            {
                "folder": str(done.folder),
                "runs": done.runs,
                "new": done.new,
                "missing": done.missing,
                "failures": done.failures,
            }
        )
    else:
        print(f"{done.runs} runs in {done.folder}, {done.new} of them new")
        for name, reason in done.failures.items():
            print(f"missing {name}: {reason}")
    if not done.complete:
        if not as_json:
            print(f"{done.missing} runs are missing; see {done.folder}/*/failures.state")
        raise typer.Exit(1)


def _show(plan: Any, as_json: bool) -> None:
    from bayes_sd.collector import design, load

    rows, minutes = design.table(plan), load.total_s(plan) / 60
    runs = sum(row["runs"] for row in rows)
    if as_json:
        _emit({"servers": rows, "runs": runs, "expected_minutes": round(minutes, 1)})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("server", "arm") else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    (Console() if sys.stdout.isatty() else Console(width=160)).print(table)
    print(f"{len(rows)} servers, {runs} runs, about {minutes:.0f} minutes")


def write_models(
    folder: Annotated[Path, typer.Argument(help="Folder for the checkpoints.")],
    preset: Annotated[str, typer.Option(help="tiny, laptop or full.")] = "tiny",
    verifier: Annotated[
        list[str] | None, typer.Option(help="Shape of a verifier, instead of the preset's.")
    ] = None,
    drafter: Annotated[list[str] | None, typer.Option(help="Shape of a drafter, likewise.")] = None,
    acceptance: Annotated[
        list[float] | None, typer.Option(help="Per-token acceptance of the drafters, likewise.")
    ] = None,
    shapes: Annotated[Path | None, typer.Option(help="YAML with further shapes, by name.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a list.")
    ] = False,
) -> None:
    """Write small checkpoints whose acceptance is known by construction."""
    from bayes_sd.collector.shapes import PRESETS, SHAPES, read_shapes
    from bayes_sd.collector.testbed import write_testbed

    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    verifiers, drafters, acceptances = PRESETS[preset]
    if verifier or drafter:
        verifiers, drafters = tuple(verifier or ()), tuple(drafter or ())
    known = SHAPES | (read_shapes(shapes) if shapes is not None else {})
    paths = write_testbed(
        folder, verifiers, drafters, tuple(acceptance) if acceptance else acceptances, known
    )
    if as_json:
        _emit({"checkpoints": [str(path) for path in paths]})
    else:
        print("\n".join(str(path) for path in paths))


def _emit(data: Any) -> None:
    import json

    print(json.dumps(data, allow_nan=False))
