"""``bayes-sd schedule`` and ``bayes-sd capacity``."""

from typing import Annotated, Any

import typer

from bayes_sd.cli_options import (
    Acceptance,
    AsJson,
    Deployment,
    Drafter,
    Extrapolate,
    FitFile,
    NewDrafter,
    NewVerifier,
    Output,
    Prompt,
    Verifier,
    Where,
    arms,
    system_of,
)
from bayes_sd.cli_output import emit, show


def register(app: typer.Typer, answers: Any) -> None:
    """Add both commands to the command line; `answers` turns errors into exit codes."""
    app.command()(answers(schedule))
    app.command()(answers(capacity))


def schedule(
    file: FitFile,
    prompt: Prompt,
    output: Output,
    k: Annotated[str, typer.Option("-k", help="Draft tokens to choose from: 0,1,3,5.")],
    verifier: Verifier = None,
    drafter: Drafter = None,
    acceptance: Acceptance = None,
    new_verifier: NewVerifier = None,
    new_drafter: NewDrafter = None,
    environment: Where = None,
    structure: Deployment = None,
    max_batch: Annotated[int, typer.Option(help="Largest number in flight.")] = 64,
    loss: Annotated[str, typer.Option(help="mean, or a percentile of requests: p95.")] = "mean",
    slo: Annotated[float | None, typer.Option(help="Instead: minimise P(slower), s.")] = None,
    confidence: Annotated[float, typer.Option(help="Evidence that drafting more needs.")] = 0.6,
    extrapolate: Extrapolate = False,
    as_json: AsJson = False,
) -> None:
    """Choose the draft length for every batch size, as the table that vLLM takes."""
    from bayes_sd.inference.fit import Fit

    ks, loaded = arms(k), Fit.load(file)
    system = system_of(
        loaded,
        verifier,
        drafter,
        acceptance,
        new_verifier,
        new_drafter,
        environment,
        True,
        extrapolate,
        structure,
    )
    found = loaded.schedule(
        ks,
        system,
        prompt=prompt,
        output=output,
        max_batch=max_batch,
        loss=loss,
        slo_s=slo,
        confidence=confidence,
        extrapolate=extrapolate,
    )
    drafts = bool(found.rows["k"].max() > 0)
    if as_json:
        emit(
            {
                "num_speculative_tokens_per_batch_size": found.to_vllm(),
                "speculative_config": found.speculative_config() if drafts else None,
                "rows": found.rows.to_dict("records"),
            }
        )
        return
    show(f"Draft tokens by requests in flight, {found.drafter}", found.rows)
    print(found.command_line() if drafts else "Serve plain: no batch size is worth drafting for.")


def capacity(
    file: FitFile,
    prompt: Prompt,
    output: Output,
    slo: Annotated[float, typer.Option(help="Target of the percentile, seconds.")],
    k: Annotated[str, typer.Option("-k", help="Draft tokens, 0 is plain: 0,3,5.")] = "0",
    verifier: Verifier = None,
    drafter: Drafter = None,
    acceptance: Acceptance = None,
    new_verifier: NewVerifier = None,
    new_drafter: NewDrafter = None,
    environment: Where = None,
    structure: Deployment = None,
    extrapolate: Extrapolate = False,
    percentile: Annotated[float, typer.Option(help="Of single requests' latency.")] = 95.0,
    confidence: Annotated[float, typer.Option(help="Chance that the target is kept.")] = 0.9,
    traffic: Annotated[float | None, typer.Option(help="Requests/s to serve.")] = None,
    price: Annotated[float | None, typer.Option(help="Of a replica, per hour.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the largest rate within a latency target, the replicas and the price of tokens."""
    from bayes_sd.inference.fit import Fit

    ks, loaded = arms(k), Fit.load(file)
    system = system_of(
        loaded,
        verifier,
        drafter,
        acceptance,
        new_verifier,
        new_drafter,
        environment,
        any(ks),
        extrapolate,
        structure,
    )
    table = loaded.capacity(
        slo,
        ks,
        system,
        prompt=prompt,
        output=output,
        percentile=percentile,
        confidence=confidence,
        traffic_rps=traffic,
        price_per_hour=price,
    )
    if as_json:
        rows = [{n: None if v != v else v for n, v in r.items()} for r in table.to_dict("records")]
        emit({"slo_s": slo, "percentile": percentile, "confidence": confidence, "rows": rows})
        return
    show(f"Largest rate with P(p{percentile:g} <= {slo:g} s) >= {confidence:g}", table)
    for row in table[table["max_rps"].isna()].to_dict("records"):
        print(
            f"k = {row['k']}: impossible at any load with this confidence: an idle server keeps "
            f"the target with probability {row['prob_possible']:.2f}, its p{percentile:g} is about "
            f"{row['idle_s']:.3g} s."
        )
