"""``bayes-sd latency``, ``compare``, ``schedule``, ``capacity``, ``next-runs``: a fit's methods."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from bayes_sd.answers.answer import UNITS
from bayes_sd.answers.compare import default_loads
from bayes_sd.answers.servers import Server
from bayes_sd.cli import options as o
from bayes_sd.errors import InputError
from bayes_sd.fit import Fit
from bayes_sd.runs.load import Load
from bayes_sd.runs.read import load_yaml
from bayes_sd.runs.sizes import Size


def latency(
    file: o.FitFile,
    load: o.AskedLoad,
    server: o.AskedServer,
    k: o.DraftLengths = None,
    metric: Annotated[str, o.option("e2e, ttft or tpot.", "NAME")] = "e2e",
    requests: o.Requests = None,
) -> o.Reply:
    """Predict latency over loads: the mean, one run, request percentiles, P(saturated)."""
    fit = Fit.load(file)
    servers = [server.of(fit, each) for each in server.lengths(fit, k)]
    wanted = load.of(fit, lambda lengths: default_loads(fit, servers[0], lengths))
    how: dict[str, Any] = {"metric": metric, "requests": requests}
    answer = fit.latency(wanted, servers, **how, extrapolate=server.extrapolate)
    of_run = f"one run of {answer.draws['run_s'].attrs['requests']} requests"
    title = f"{metric} latency, seconds: medians and 90% intervals of the mean and of {of_run}"
    return o.Reply.of(answer, title, metric=metric)


def compare(
    file: o.FitFile,
    load: o.AskedLoad,
    server: o.AskedServer,
    k: o.DraftLengths = None,
    of: Annotated[str, o.option("Latency of the mean, a run, a request.", "NAME")] = "mean",
    requests: o.Requests = None,
) -> o.Reply:
    """Say with what probability SD beats plain decoding, and up to which load."""
    fit, far = Fit.load(file), server.extrapolate
    drafting = [server.of(fit, each) for each in server.lengths(fit, k) if each > 0]
    if not drafting:
        raise typer.BadParameter("-k must name a draft length above 0 to compare with plain.")
    plain = server.of(fit, 0)
    wanted = load.of(fit, lambda lengths: default_loads(fit, plain, lengths))
    answer = fit.compare(wanted, drafting, plain, of=of, requests=requests, extrapolate=far)
    evens = [fit.break_even(wanted, each, plain, extrapolate=far) for each in drafting]
    title = (
        f"Against {plain}, {of} latency: faster, slower and both saturated sum to 1; the speedup\n"
        "is plain latency over that with SD (median and 90% interval)"
    )
    if len(drafting) > 1:
        title += "; best: no other k and not plain is faster"
    reply = o.Reply.of(answer, title, compared=of)
    rows = [even.table.to_dict("records")[0] | {"sentence": str(even)} for even in evens]
    first, *shown = reply.shown
    return o.Reply(reply.data | {"break_even": rows}, [first, *map(str, evens), *shown])


def schedule(
    file: o.FitFile,
    load: o.AskedLoad,
    server: o.AskedServer,
    k: o.DraftLengths = None,
    max_batch: Annotated[int | None, o.option("Largest batch; default: measured.", "N")] = None,
    loss: Annotated[str, o.option("mean, or of requests as p95.", "NAME")] = "mean",
    slo: Annotated[float | None, o.option("Instead: minimise P(slower), s.", "S")] = None,
    confidence: Annotated[float, o.option("Evidence that drafting more needs.", "P")] = 0.6,
    method: Annotated[o.Text, o.option("vLLM's: eagle3, mtp, ngram, ...", "NAME")] = None,
    draft_model: Annotated[o.Text, o.option("The drafter as vLLM finds it.", "PATH")] = None,
) -> o.Reply:
    """Choose the draft length for every batch size, as the table that vLLM takes."""
    fit, far = Fit.load(file), server.extrapolate
    ks = server.lengths(fit, k)
    wanted = load.of(fit, lambda at: Load(concurrency=1.0, prompt=at[0], output=at[1]))
    drafting = server.of(fit, max(ks), drafter_loaded=True)
    how: dict[str, Any] = {"loss": loss, "slo_s": slo, "confidence": confidence}
    answer = fit.schedule(wanted, drafting, k=ks, max_batch=max_batch, extrapolate=far, **how)
    keys = {"method": method, "model": draft_model}
    config, line = None, "Serve without --speculative-config."
    if answer.pays:
        config, line = answer.speculative_config(**keys), answer.command_line(**keys)
    table = answer.latency.table
    title = (
        f"Draft tokens by requests in flight, of k = {', '.join(map(str, ks))}; best: no other k\n"
        "is faster; regret: latency expected to be lost to the best k had it been known;\n"
        "faster than plain: than a server with no drafter loaded, at lo and at hi"
    )
    shown = [("Latency under this schedule, seconds", table)] * bool(load.rps or load.concurrency)
    told: dict[str, Any] = {"speculative_config": config, "latency": table.to_dict("records")}
    told["num_speculative_tokens_per_batch_size"] = answer.to_vllm()
    return o.Reply.of(answer, title, *shown, line, **told)


def capacity(
    file: o.FitFile,
    load: o.AskedLoad,
    server: o.AskedServer,
    slo: Annotated[float, o.option("Target of the percentile, s.", "S")],
    k: o.DraftLengths = None,
    servers: Annotated[o.File, o.option("YAML of servers, instead of -k.", "FILE")] = None,
    percentile: Annotated[float, o.option("Of requests' latency.", "P")] = 95.0,
    confidence: Annotated[float, o.option("Chance to keep the target.", "P")] = 0.9,
    replicas: Annotated[int | None, o.option("So many of each, not the fewest.", "N")] = None,
    price: Annotated[float | None, o.option("Of a replica, per hour.", "X")] = None,
    traffic: Annotated[o.File, o.load_option("CSV of windows or requests.", "FILE")] = None,
    window: Annotated[float, o.load_option("Seconds of a window of requests.", "S")] = 60.0,
    columns: Annotated[o.Text, o.load_option("Other headers of it.", "OURS=THEIRS")] = None,
) -> o.Reply:
    """Find the largest load within a latency target, the replicas, the price, who wins."""
    fit, prices = Fit.load(file), None
    if traffic is None:
        wanted = load.of(fit)
    else:
        if load != o.AskedLoad():
            raise typer.BadParameter("a traffic file has its own rates and lengths.")
        wanted = Load.read(traffic, window, o.pairs(columns, "--columns"))
        o.say(str(wanted))
    if servers is not None:
        named, prices = read_servers(servers)
    else:
        named = {str(each): each for each in (server.of(fit, n) for n in server.lengths(fit, k))}
    target: dict[str, Any] = {"slo_s": slo, "percentile": percentile, "confidence": confidence}
    how: dict[str, Any] = {"replicas": replicas, "price_per_hour": prices or price}
    answer = fit.capacity(wanted, named, **target, **how, extrapolate=server.extrapolate)
    beats = [("P(row is faster than column)", answer.beats.reset_index(names=""))]
    told: dict[str, Any] = {"beats": answer.beats.to_dict("index"), "prob_none": answer.prob_none}
    title = (
        f"P({answer.target}) >= {confidence:g}; best and the chance that all saturate "
        f"({answer.prob_none:.2g}) sum to 1"
    )
    return o.Reply.of(answer, title, *beats * (len(named) > 1), **told)


def read_servers(path: Path) -> tuple[dict[str, Server], dict[str, float]]:
    """Named servers of a YAML file, and the prices an hour that it has."""
    servers: dict[str, Server] = {}
    prices: dict[str, float] = {}
    known = [*(field.name for field in fields(Server)), "price_per_hour"]
    for name, given in load_yaml(path).items():
        where = f"{path}: {name}"
        if not isinstance(given, dict) or "verifier" not in given:
            raise InputError(f"{where} must map keys to values, verifier among them.")
        if unknown := [str(key) for key in given if key not in known]:
            raise InputError(f"{where} has the unknown key {unknown[0]!r}; known: {known}.")
        values = dict(given)
        try:
            for model in ("verifier", "drafter"):
                if isinstance(values.get(model), dict):
                    values[model] = o.built(Size, values[model], model)
            values["structure"] = o.structure_of(values.get("structure"))
            if (price := values.pop("price_per_hour", None)) is not None:
                prices[name] = float(price)
            servers[name] = Server(**values)
        except (InputError, typer.BadParameter, TypeError, ValueError) as error:
            raise InputError(f"{where}: {getattr(error, 'message', error)}") from None
    if not servers:
        raise InputError(f"{path}: must map a name to each server, at least one.")
    return servers, prices


def next_runs(
    file: o.FitFile,
    load: o.AskedLoad,
    server: o.AskedServer,
    k: o.DraftLengths = None,
    runs: Annotated[int, o.option("How many runs to propose.", "N")] = 6,
    run_seconds: Annotated[float, o.option("What a run takes.", "S")] = 30.0,
    server_seconds: Annotated[float, o.option("What a server start takes.", "S")] = 60.0,
    choice: Annotated[str, o.option("measured, or next (new starts).", "NAME")] = "measured",
    to: Annotated[o.File, o.option("Write the runs as a plan.", "FOLDER", "-o", "--to")] = None,
) -> o.Reply:
    """Say what choosing now may cost, and which runs would lower that most per minute."""
    from bayes_sd.plan.design import plan_next

    fit, far = Fit.load(file), server.extrapolate
    servers = [server.of(fit, each) for each in server.lengths(fit, k)]
    wanted = load.of(fit, lambda lengths: default_loads(fit, servers[0], lengths))
    takes: dict[str, Any] = {"run_seconds": run_seconds, "server_seconds": server_seconds}
    answer = fit.next_runs(wanted, servers, runs=runs, server=choice, extrapolate=far, **takes)
    path, choices = None, answer.choices.to_dict("records")
    lost = [row for row in choices if row["prob_all_saturated"] > 0.5]
    if to is not None:
        plan = plan_next(answer, fit, to, **takes)
        path = str(plan.path)
        o.say(str(plan))
    full = [
        f"At {row[wanted.axis]:g} {UNITS[wanted.axis]} every server saturates: no choice."
        for row in lost
    ]
    told: dict[str, Any] = {"choices": choices, "regret_ms": answer.regret_ms, "plan": path}
    now = ("Deciding now; best: no other server is faster", answer.choices)
    return o.Reply.of(answer, "Worth measuring next", now, *full, **told)
