"""``bayes-sd latency``, ``compare``, ``schedule``, ``capacity``, ``next-runs``: a fit's methods."""

from pathlib import Path
from typing import Annotated

import typer

from bayes_sd.answers.compare import default_rates
from bayes_sd.cli.options import (
    AsJson,
    AskedLoad,
    AskedServer,
    DraftLengths,
    FitFile,
    answers,
    emit,
    expands,
    give,
    load_option,
    option,
    pairs,
    read_servers,
    say,
    show,
    whole_numbers,
)
from bayes_sd.fit import Fit
from bayes_sd.runs.load import Load


@answers
@expands(AskedLoad)
@expands(AskedServer)
def latency(
    file: FitFile,
    load: AskedLoad,
    server: AskedServer,
    k: DraftLengths = "0",
    metric: Annotated[str, option("e2e, ttft or tpot.", "NAME")] = "e2e",
    as_json: AsJson = False,
) -> None:
    """Predict latency over loads: the mean, one run, request percentiles, P(saturated)."""
    wanted, ks, fit = load.of(), whole_numbers(k), Fit.load(file)
    servers = [server.of(fit, one) for one in ks]
    answer = fit.latency(wanted, servers, metric=metric, extrapolate=server.extrapolate)
    give(answer, as_json, f"{metric} latency, seconds", metric=metric)


@answers
@expands(AskedLoad)
@expands(AskedServer)
def compare(
    file: FitFile,
    load: AskedLoad,
    server: AskedServer,
    k: Annotated[str, option("Draft tokens to compare with plain: 1,3,5.", "LIST", "-k")] = "3",
    of: Annotated[str, option("Latency of the mean, a run or a request.", "NAME")] = "mean",
    as_json: AsJson = False,
) -> None:
    """Say with what probability SD beats plain decoding, and up to which load."""
    ks, fit = whole_numbers(k), Fit.load(file)
    plain = server.of(fit, 0)
    wanted = load.of(lambda lengths: default_rates(fit, plain, lengths))
    rows = []
    for one in ks:
        drafting = server.of(fit, one)
        answer = fit.compare(wanted, drafting, plain, of=of, extrapolate=server.extrapolate)
        even = fit.break_even(wanted, drafting, plain, extrapolate=server.extrapolate)
        if as_json:
            table = {"rows": answer.table.to_dict("records")}
            break_even = {"break_even": even.table.to_dict("records")[0]}
            rows.append(
                {"k": one, "answer": str(answer), "sentence": str(even)} | table | break_even
            )
            continue
        print(answer)
        print(even)
        show(f"P(SD beats plain), {of} latency", answer.table)
    if as_json:
        emit({"compared": of, "comparisons": rows})


@answers
@expands(AskedLoad)
@expands(AskedServer)
def schedule(
    file: FitFile,
    load: AskedLoad,
    server: AskedServer,
    k: Annotated[str, option("Draft tokens to choose from: 0,1,3,5.", "LIST", "-k")],
    max_batch: Annotated[int | None, option("Largest batch; by default 64.", "N")] = None,
    loss: Annotated[str, option("mean, or a percentile of requests: p95.", "NAME")] = "mean",
    slo: Annotated[float | None, option("Instead: minimise P(slower), s.", "S")] = None,
    confidence: Annotated[float, option("Evidence that drafting more needs.", "P")] = 0.6,
    method: Annotated[str | None, option("vLLM's method: eagle3, mtp, ngram, ...", "NAME")] = None,
    draft_model: Annotated[str | None, option("The drafter as vLLM finds it.", "PATH")] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the draft length for every batch size, as the table that vLLM takes."""
    ks, fit = whole_numbers(k), Fit.load(file)
    wanted = load.of(lambda lengths: Load(concurrency=1.0, prompt=lengths[0], output=lengths[1]))
    answer = fit.schedule(
        wanted,
        server.of(fit, max(ks), drafter_loaded=True),
        k=ks,
        max_batch=max_batch,
        loss=loss,
        slo_s=slo,
        confidence=confidence,
        extrapolate=server.extrapolate,
    )
    drafts = bool(answer.table["k"].max() > 0)
    keys = {"method": method, "model": draft_model}
    config = answer.speculative_config(**keys) if drafts else None
    give(
        answer,
        as_json,
        f"Draft tokens by requests in flight, {answer.drafter}",
        num_speculative_tokens_per_batch_size=answer.to_vllm(),
        speculative_config=config,
        latency=answer.latency.table.to_dict("records"),
    )
    if as_json:
        return
    if load.rps or load.concurrency:
        show("Latency under this schedule, seconds", answer.latency.table)
    print(
        answer.command_line(**keys)
        if drafts
        else "Serve plain: no batch size is worth drafting for."
    )


@answers
@expands(AskedLoad)
@expands(AskedServer)
def capacity(
    file: FitFile,
    load: AskedLoad,
    server: AskedServer,
    slo: Annotated[float, option("Target of the percentile, seconds.", "S")],
    k: DraftLengths = "0",
    servers: Annotated[Path | None, option("YAML of named servers, instead of -k.", "FILE")] = None,
    percentile: Annotated[float, option("Of single requests' latency.", "P")] = 95.0,
    confidence: Annotated[float, option("Chance that the target is kept.", "P")] = 0.9,
    replicas: Annotated[int | None, option("So many of each, not the fewest.", "N")] = None,
    price: Annotated[float | None, option("Of a replica, per hour.", "X")] = None,
    traffic: Annotated[
        Path | None, load_option("CSV of windows or requests, instead.", "FILE")
    ] = None,
    window: Annotated[float, load_option("Seconds of a request log a window.", "S")] = 60.0,
    columns: Annotated[
        str | None, load_option("Other headers of the traffic.", "OURS=THEIRS")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the largest load within a latency target, the replicas, the price, who wins."""
    if traffic is None:
        wanted = load.of()
    else:
        if any(v is not None for v in (load.rps, load.concurrency, load.prompt, load.output)):
            raise typer.BadParameter("a traffic file has its own rates and lengths.")
        wanted = Load.read(traffic, window, pairs(columns, "--columns"))
        say(str(wanted))
    fit, prices = Fit.load(file), None
    if servers is not None:
        named, prices = read_servers(servers)
    else:
        named = {str(one): one for one in (server.of(fit, n) for n in whole_numbers(k))}
    answer = fit.capacity(
        wanted,
        named,
        slo_s=slo,
        percentile=percentile,
        confidence=confidence,
        replicas=replicas,
        price_per_hour=price if prices is None else prices,
        extrapolate=server.extrapolate,
    )
    give(
        answer,
        as_json,
        f"P({answer.target}) >= {confidence:g}",
        impossible=answer.impossible,
        beats=answer.beats.to_dict("index"),
        prob_none=answer.prob_none,
    )
    if not as_json and len(named) > 1:
        show("P(row is faster than column)", answer.beats.reset_index(names=""))


@answers
@expands(AskedLoad)
@expands(AskedServer)
def next_runs(
    file: FitFile,
    load: AskedLoad,
    server: AskedServer,
    k: Annotated[str, option("Draft tokens to choose from, 0 is plain: 0,3.", "LIST", "-k")],
    runs: Annotated[int, option("How many runs to propose.", "N")] = 6,
    run_seconds: Annotated[float, option("What a run takes.", "S")] = 30.0,
    server_seconds: Annotated[float, option("What a server start takes.", "S")] = 60.0,
    choice: Annotated[str, option("For the servers measured, or next ones.", "NAME")] = "measured",
    output_folder: Annotated[
        Path | None, option("Write the runs as a plan.", "FOLDER", "-o", "--to")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what choosing now may cost, and which runs would lower that most per minute."""
    from bayes_sd.plan.design import plan_next

    wanted, ks, fit = load.of(), whole_numbers(k), Fit.load(file)
    answer = fit.next_runs(
        wanted,
        [server.of(fit, one) for one in ks],
        runs=runs,
        run_seconds=run_seconds,
        server_seconds=server_seconds,
        server=choice,
        extrapolate=server.extrapolate,
    )
    written = None
    if output_folder is not None:
        written = plan_next(answer, fit, output_folder, run_seconds, server_seconds)
    choices = answer.choices.to_dict("records")
    path = None if written is None else str(written.path)
    give(
        answer,
        as_json,
        "Worth measuring next",
        choices=choices,
        regret_ms=answer.regret_ms,
        plan=path,
    )
    if as_json:
        return
    show("Deciding now", answer.choices)
    for row in choices:
        if row["prob_all_saturated"] > 0.5:
            print(f"At {row['rate_rps']:g} requests/s every server saturates: there is no choice.")
    if written is not None:
        say(str(written))
