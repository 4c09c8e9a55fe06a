"""``bayes-sd next``: what deciding now may cost, and the plan of the runs that would tell more."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bayes_sd.cli_options import (
    NONE_NAMED,
    AsJson,
    Asked,
    FitFile,
    Output,
    Prompt,
    arms,
    asks,
    numbers,
)
from bayes_sd.cli_output import emit, say, show


def register(app: typer.Typer, answers: Any) -> None:
    """Add the command to the command line; `answers` turns errors into exit codes."""
    app.command("next")(answers(asks(next_runs)))


def next_runs(
    file: FitFile,
    prompt: Prompt,
    output: Output,
    rps: Annotated[str, typer.Option(help="Requests/s to choose for: START:STOP:COUNT or a list.")],
    k: Annotated[str, typer.Option("-k", help="Arms to choose from, 0 is plain: 0,1,3,5.")],
    asked: Asked = NONE_NAMED,
    runs: Annotated[int, typer.Option(help="How many runs to propose.")] = 6,
    server: Annotated[
        str, typer.Option(help="measured: choose among those servers; next: among others.")
    ] = "measured",
    plan: Annotated[
        Path | None, typer.Option(help="A plan with this system's servers, to take them from.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("-o", "--to", help="Where to write the runs as a plan.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what choosing now may cost, and which runs would lower that most per minute."""
    from bayes_sd.collector.design import write_plan
    from bayes_sd.collector.load import total_s
    from bayes_sd.collector.plan import Plan, read_plan
    from bayes_sd.inference.fit import Fit

    if (plan is None) != (to is None):
        raise typer.BadParameter("a plan is written with both --plan and -o.")
    known = None if plan is None else read_plan(plan)
    ks, rates, loaded = arms(k), numbers(rps, "--rps"), Fit.load(file)
    system = asked.of(loaded, any(ks))
    seconds: dict[str, Any] = {}
    if known is not None:
        seconds = {
            "run_seconds": known.bench.run_seconds + known.expected.run_overhead_s,
            "server_seconds": known.expected.startup_s + known.expected.stop_s,
        }
    found = loaded.worth_measuring(
        ks, system, rps=rates, prompt=prompt, output=output, runs=runs, server=server, **seconds
    )
    made: Plan | None = None
    if known is not None and to is not None:
        made = found.to_plan(known)
        write_plan(made, to)
    if as_json:
        emit(
            {
                "choices": found.choices.to_dict("records"),
                "regret_ms": found.regret_ms,
                "runs": found.runs.to_dict("records"),
                "plan": None if made is None else str(to),
            }
        )
        return
    show("Deciding now", found.choices)
    for row in found.choices.to_dict("records"):
        if row["prob_all_saturated"] > 0.5:
            print(f"At {row['rate_rps']:g} requests/s every arm saturates: there is no choice.")
    print(f"Expected regret {found.regret_ms:.3g} ms a request: what perfect information is worth.")
    if found.runs.empty:
        print("No run would pay.")
    else:
        show("Worth measuring next", found.runs)
    if made is not None:
        say(f"wrote {to}: about {total_s(made) / 60:.0f} minutes; bayes-sd collect {to} -o FOLDER")
