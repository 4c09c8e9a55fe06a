"""``bayes-sd schedule``, ``bayes-sd capacity`` and ``bayes-sd deploy``."""

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
)
from bayes_sd.cli_output import emit, show
from bayes_sd.decide.deploy_cli import (
    Columns,
    Confidence,
    OwnOutput,
    OwnPrompt,
    Percentile,
    TrafficWindow,
    deploy,
    rate_of,
    records,
    traffic_of,
)


def register(app: typer.Typer, answers: Any) -> None:
    """Add the commands to the command line; `answers` turns errors into exit codes."""
    app.command()(answers(asks(schedule)))
    app.command()(answers(asks(capacity)))
    app.command()(answers(deploy))


def schedule(
    file: FitFile,
    prompt: Prompt,
    output: Output,
    k: Annotated[str, typer.Option("-k", help="Draft tokens to choose from: 0,1,3,5.")],
    asked: Asked = NONE_NAMED,
    max_batch: Annotated[int, typer.Option(help="Largest number in flight.")] = 64,
    loss: Annotated[str, typer.Option(help="mean, or a percentile of requests: p95.")] = "mean",
    slo: Annotated[float | None, typer.Option(help="Instead: minimise P(slower), s.")] = None,
    confidence: Annotated[float, typer.Option(help="Evidence that drafting more needs.")] = 0.6,
    as_json: AsJson = False,
) -> None:
    """Choose the draft length for every batch size, as the table that vLLM takes."""
    from bayes_sd.inference.fit import Fit

    ks, loaded = arms(k), Fit.load(file)
    system = asked.of(loaded, True)
    found = loaded.schedule(
        ks,
        system,
        prompt=prompt,
        output=output,
        max_batch=max_batch,
        loss=loss,
        slo_s=slo,
        confidence=confidence,
        extrapolate=asked.extrapolate,
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
    slo: Annotated[float, typer.Option(help="Target of the percentile, seconds.")],
    prompt: OwnPrompt = None,
    output: OwnOutput = None,
    k: Annotated[str, typer.Option("-k", help="Draft tokens, 0 is plain: 0,3,5.")] = "0",
    asked: Asked = NONE_NAMED,
    percentile: Percentile = 95.0,
    confidence: Confidence = 0.9,
    traffic: Annotated[
        str | None, typer.Option(help="Requests/s to serve, or a CSV of windows or requests.")
    ] = None,
    window: TrafficWindow = 60.0,
    columns: Columns = None,
    price: Annotated[float | None, typer.Option(help="Of a replica, per hour.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the largest rate within a latency target, the replicas and the price of tokens."""
    from bayes_sd.decide.capacity import capacity as answer
    from bayes_sd.decide.capacity import impossible
    from bayes_sd.inference.fit import Fit

    rate = rate_of(traffic)
    served = rate if traffic is None or rate is not None else traffic_of(traffic, window, columns)
    ks, loaded = arms(k), Fit.load(file)
    system = asked.of(loaded, any(ks))
    table = answer(
        loaded, ks, system, slo, prompt, output, percentile, confidence, served, price, seed=0
    )
    never = [
        impossible(f"k = {row['k']}", percentile, slo, row["prob_possible"], row["idle_s"])
        for row in table[table["max_rps"].isna()].to_dict("records")
    ]
    if as_json:
        found = {"slo_s": slo, "percentile": percentile, "confidence": confidence}
        emit(found | {"rows": records(table), "impossible": never})
        return
    show(f"Largest rate with P(p{percentile:g} <= {slo:g} s) >= {confidence:g}", table)
    for sentence in never:
        print(sentence)
