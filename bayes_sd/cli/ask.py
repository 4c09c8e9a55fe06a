"""``bayes-sd latency``, ``compare``, ``schedule``, ``capacity``, ``next-runs``: a fit's methods."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter

from bayes_sd.answers.answer import with_unit
from bayes_sd.answers.compare import default_loads
from bayes_sd.answers.schedule import Schedule
from bayes_sd.answers.servers import Server, of_verifier
from bayes_sd.cli import options as o
from bayes_sd.errors import InputError, one_of
from bayes_sd.fit import Fit
from bayes_sd.physics.structures import NAMES
from bayes_sd.runs.load import Load
from bayes_sd.runs.machine import Machine
from bayes_sd.runs.read import load_yaml
from bayes_sd.runs.sizes import Size
from bayes_sd.runs.table import LENGTHS

LOADS = {"rps", "concurrency", "prompt", "output"}
LENGTHS_ALIKE = 1.1  # longest over shortest, of runs that have one length
SIZE = (
    "Unmeasured: a config.json, a known name (Qwen3-32B), or params=8e9, with commas "
    "active_params, experts, experts_per_token, layers, kv_bytes, queries_per_key."
)
MACHINE = "Machine nobody measured, by its data sheet: H100, or gb_per_s=1000,tflops=200."
STRUCTURE = f"Assume {', '.join(NAMES)}; terms as edge:round_trip_s=0.02..0.05."


@dataclass(frozen=True)
class Asked:
    """The fit, the load and the servers that a command asks about."""

    file: Annotated[Path, Argument(help="A fit saved by `bayes-sd fit`.")]
    rps: Annotated[o.Text, o.load_option("Requests/s: 1,2,4 or START:STOP:COUNT.", "LIST")] = None
    concurrency: Annotated[o.Text, o.load_option("Requests in flight, instead.", "LIST")] = None
    prompt: Annotated[o.Text, o.load_option("Prompt tokens of a request, or several.", "N")] = None
    output: Annotated[o.Text, o.load_option("Output tokens of a request, or several.", "N")] = None
    verifier: Annotated[o.Text, o.server_option("Measured verifier.", "NAME")] = None
    drafter: Annotated[o.Text, o.server_option("Measured drafter.", "NAME")] = None
    acceptance: Annotated[o.Text, o.server_option("If not as measured: 0.7 or 0.8,0.6", "A")] = None
    new_verifier: Annotated[o.Text, o.server_option(SIZE, "SIZE")] = None
    new_drafter: Annotated[o.Text, o.server_option("Unmeasured drafter, likewise.", "SIZE")] = None
    environment: Annotated[o.Text, o.server_option("Where it runs, if several.", "NAME")] = None
    machine: Annotated[o.Text, o.server_option(MACHINE, "NAME")] = None
    gpus: Annotated[int, o.server_option("How many of that machine.", "N")] = 1
    workload: Annotated[o.Text, o.server_option("Data set of its runs, if several.", "NAME")] = None
    structure: Annotated[o.Text, o.server_option(STRUCTURE, "KIND:TERMS")] = None
    extrapolate: Annotated[
        bool, o.server_option("Answer far from what was measured.", None, "--extrapolate")
    ] = False
    k: Annotated[
        o.Text, o.option("Draft tokens, as 0,3; 0 is plain. Default: those measured.", "LIST", "-k")
    ] = None

    def __post_init__(self) -> None:
        several = ["gpus"] * (self.gpus != 1 and self.machine is None)
        o.unused(several, "of which machine is said by --machine")

    @property
    def given(self) -> list[str]:
        """The options that were given, whose values are not those that they have by default."""
        options = [f for f in fields(self) if f.name != "file"]
        return [f.name for f in options if getattr(self, f.name) != f.default]

    @cached_property
    def fit(self) -> Fit:
        """The fit in the file."""
        return Fit.load(self.file)

    def load(self, near: Server | None = None, in_flight: float | None = None) -> Load:
        """The load; without rates or concurrencies what `near` can take, or so many `in_flight`."""
        lengths = self._lengths()
        given = {"rps": self.rps, "concurrency": self.concurrency}
        axis: Any = {n: o.numbers(text, f"--{n}") for n, text in given.items() if text is not None}
        if not axis and near is not None:
            return default_loads(self.fit, near, lengths)
        if not axis and in_flight is not None:
            axis["concurrency"] = in_flight
        if len(axis) != 1:
            raise BadParameter("give exactly one of --rps and --concurrency.")
        return Load(**axis, prompt=lengths[0], output=lengths[1])

    def _lengths(self) -> tuple[Any, Any]:
        """Prompt and output tokens; by default those of all runs, where they are alike."""
        asked = o.amount(self.prompt, "--prompt"), o.amount(self.output, "--output")
        if None not in asked:
            return asked
        measured = self.fit.runs[[*LENGTHS]]
        if (measured.max() > LENGTHS_ALIKE * measured.min()).any():
            known = sorted({f"{prompt:.0f} + {output:.0f}" for prompt, output in measured.values})
            some = ", ".join(known[:6]) + " and others" * (len(known) > 6)
            raise BadParameter(f"give --prompt and --output, in tokens; runs had {some}.")
        usual = [float(value) for value in measured.median().round()]
        prompt, output = (u if x is None else x for x, u in zip(asked, usual, strict=True))
        return prompt, output

    @property
    def draft_lengths(self) -> list[int]:
        """Draft lengths asked about; by default those that this verifier ran with, 0 included."""
        if self.k is not None:
            return o.draft_lengths(self.k)
        verifier, drafter = self._models()
        ran = of_verifier(self.fit.servers, verifier)
        if isinstance(drafter, str):
            ran = ran[(ran["drafter"] == drafter) | (ran["draft_tokens"] == 0)]
        return sorted(map(int, ran["draft_tokens"].unique())) or [0]

    def server(self, k: int, drafter_loaded: bool = False) -> Server:
        """The server with so many draft tokens, plain at 0; the fit's only one if none is named."""
        verifier, drafter = self._models()
        where: str | Machine | None = self.environment
        if self.machine is not None:
            if where:
                raise BadParameter("name a measured --environment or a --machine, not both.")
            where = o.machine_of(self.machine, self.gpus)
        structure = o.structure_of(self.structure)
        plain = Server(verifier, environment=where, structure=structure, workload=self.workload)
        if k == 0 and not drafter_loaded:
            return plain
        if drafter is None:
            runs = self.fit.runs
            known = sorted({*runs["drafter"][runs["verifier"] == verifier]} - {"none"})
            drafter = only("drafter", known, f"of {verifier} the fit knows")
        accepted = o.amount(self.acceptance, "--acceptance")
        return replace(plain, drafter=drafter, k=k, acceptance=accepted)

    @property
    def servers(self) -> list[Server]:
        """A server for each draft length asked about."""
        return [self.server(k) for k in self.draft_lengths]

    @property
    def drafting(self) -> list[Server]:
        """Those that draft, at least one."""
        drafting = [self.server(k) for k in self.draft_lengths if k > 0]
        if not drafting:
            raise BadParameter("-k must name a draft length above 0 to compare with plain.")
        return drafting

    def _models(self) -> tuple[str | Size, str | Size | None]:
        """The verifier, the fit's only one if none is named, and the drafter if one is."""
        if (self.verifier and self.new_verifier) or (self.drafter and self.new_drafter):
            raise BadParameter("name a measured model or give a new one's size, not both.")
        verifier: Any = self.verifier
        if self.new_verifier is not None:
            verifier = o.size_of(self.new_verifier, "--new-verifier")
        verifier = verifier or only("verifier", self.fit.verifiers.index, "the fit knows")
        if self.new_drafter is None:
            return verifier, self.drafter
        of = self.new_verifier or str(verifier)
        return verifier, o.drafter_of(self.new_drafter, "--new-drafter", of)


def only(what: str, names: Iterable[str], known: str) -> str:
    """The only name there is; of several, or none, one has to be given."""
    names = [str(name) for name in names]
    if len(names) != 1:
        raise InputError(f"Say which {what}: <<{what}>>; {known} {', '.join(names) or 'none'}.")
    return names[0]


def latency(
    asked: Asked,
    metric: Annotated[str, o.option("e2e, ttft or tpot.", "NAME")] = "e2e",
    requests: o.Requests = None,
) -> o.Reply:
    """Predict latency over loads: the mean, one run, request percentiles, P(saturated)."""
    servers, far = asked.servers, asked.extrapolate
    wanted = asked.load(servers[0])
    answer = asked.fit.latency(wanted, servers, metric=metric, requests=requests, extrapolate=far)
    of_run = f"one run of {answer.draws['run_s'].attrs['requests']} requests"
    title = f"{metric} latency, seconds: medians and 90% intervals of the mean and of {of_run}"
    return o.Reply.of(answer, title, metric=metric)


def compare(
    asked: Asked,
    of: Annotated[str, o.option("Latency of the mean, a run, a request.", "NAME")] = "mean",
    requests: o.Requests = None,
) -> o.Reply:
    """Say with what probability SD beats plain decoding, and up to which load."""
    o.unused(["requests"] * (requests is not None and of != "run"), "goes with --of run")
    fit, far, drafting = asked.fit, asked.extrapolate, asked.drafting
    plain = asked.server(0)
    wanted = asked.load(plain)
    answer = fit.compare(wanted, drafting, plain, of=of, requests=requests, extrapolate=far)
    evens = [fit.break_even(wanted, each, plain, extrapolate=far) for each in drafting]
    title = (
        f"Against {plain}, {of} latency: faster, slower and both saturated sum to 1; the speedup "
        "is plain latency over that with SD (median and 90% interval)"
    )
    if len(drafting) > 1:
        title += "; best: no other k and not plain is faster"
    rows = [even.table.to_dict("records")[0] | {"sentence": str(even)} for even in evens]
    reply = o.Reply.of(answer, title, of=of, break_even=rows)
    reply.shown[1:1] = [o.fill(str(even)) for even in evens]
    return reply


def schedule(
    asked: Asked,
    max_batch: Annotated[int | None, o.option("Largest batch; default: measured.", "N")] = None,
    loss: Annotated[str, o.option("mean, or of requests as p95.", "NAME")] = "mean",
    slo: Annotated[float | None, o.option("Instead: minimise P(slower), s.", "S")] = None,
    confidence: Annotated[float, o.option("Evidence that drafting more needs.", "P")] = 0.6,
    method: Annotated[o.Text, o.option("vLLM's: eagle3, mtp, ngram, ...", "NAME")] = None,
    draft_model: Annotated[o.Text, o.option("The drafter as vLLM finds it.", "PATH")] = None,
) -> o.Reply:
    """Choose the draft length for every batch size, as the table that vLLM takes."""
    ks = asked.draft_lengths
    wanted = asked.load(in_flight=1.0)
    how: dict[str, Any] = {"loss": loss, "slo_s": slo, "confidence": confidence}
    how |= {"max_batch": max_batch, "extrapolate": asked.extrapolate}
    keys = {"method": method, "model": draft_model}
    server = asked.server(max(ks), drafter_loaded=True)
    if any(wanted.cells[name].size > 1 for name in LENGTHS):
        several = asked.fit.contexts(wanted, server, k=ks, **how)
        each = dict(zip(several.loses, several.schedules.values(), strict=True))
        paste = {at: pasted(one, **keys)[1] for at, one in each.items()}
        lines = [f"{at} tokens: {line}" for at, line in paste.items()]
        title = "Draft tokens by lengths and requests in flight"
        told: dict[str, Any] = {"loses": several.loses.to_dict("index"), "paste": paste}
        return o.Reply.of(several, title, *lines, **told)
    answer = asked.fit.schedule(wanted, server, k=ks, **how)
    config, line = pasted(answer, **keys)
    table = answer.latency.table
    title = (
        f"Draft tokens by requests in flight, of k = {', '.join(map(str, ks))}; best: no other k "
        "is faster; regret: latency expected to be lost to the best k had it been known; "
        "faster than plain: than a server with no drafter loaded, at lo and at hi"
    )
    shown = [("Latency under this schedule, seconds", table)] * bool(asked.rps or asked.concurrency)
    told = {"speculative_config": config, "latency": table.to_dict("records")}
    return o.Reply.of(answer, title, *shown, line, **told)


def pasted(answer: Schedule, **keys: Any) -> tuple[dict[str, Any] | None, str]:
    """What vLLM takes of a schedule, and how that is written behind ``vllm serve``."""
    if not answer.pays:
        return None, "Serve without --speculative-config."
    return answer.speculative_config(**keys), answer.command_line(**keys)


def capacity(
    asked: Asked,
    slo: Annotated[float, o.option("Target of the percentile, s.", "S")],
    servers: Annotated[o.File, o.option("YAML of servers, instead of -k.", "FILE")] = None,
    percentile: Annotated[float, o.option("Of requests' latency.", "P")] = 95.0,
    confidence: Annotated[float, o.option("Chance to keep the target.", "P")] = 0.9,
    replicas: Annotated[int | None, o.option("So many of each, not the fewest.", "N")] = None,
    price: Annotated[float | None, o.option("Of a replica, per hour.", "X")] = None,
    traffic: Annotated[o.File, o.load_option("CSV of windows or requests.", "FILE")] = None,
    window: Annotated[float | None, o.load_option("Seconds of its windows; 60.", "S")] = None,
    columns: Annotated[o.Text, o.load_option("Other headers of it.", "OURS=THEIRS")] = None,
) -> o.Reply:
    """Find the largest load within a latency target, the replicas, the price, who wins."""
    fit = asked.fit  # a file that is no fit is said first
    if traffic is None:
        of_file = {"window": window, "columns": columns}
        o.unused((n for n, x in of_file.items() if x is not None), "goes with --traffic")
        wanted = asked.load()
    else:
        own = [name for name in asked.given if name in LOADS]
        o.unused(own, "a traffic file has its own rates and lengths")
        seconds = 60.0 if window is None else window
        wanted = Load.read(traffic, seconds, o.pairs(columns, "--columns"))
        o.say(str(wanted))
    if servers is not None:
        own = [name for name in asked.given if name not in {*LOADS, "extrapolate"}]
        o.unused(own, "the servers are those of the --servers file")
        named, prices = read_servers(servers)
        o.unused(["price"] * bool(prices and price is not None), "the --servers file has prices")
    else:
        named, prices = {str(each): each for each in asked.servers}, {}
    how: dict[str, Any] = {"slo_s": slo, "percentile": percentile, "confidence": confidence}
    how |= {"replicas": replicas, "price_per_hour": prices or price}
    answer = fit.capacity(wanted, named, **how, extrapolate=asked.extrapolate)
    beats = [("P(row is faster than column)", answer.beats.reset_index(names=""))]
    told: dict[str, Any] = {"beats": answer.beats.to_dict("index")}
    told["prob_all_saturated"] = answer.prob_all_saturated
    title, full = f"P({answer.target}) >= {confidence:g}", answer.prob_all_saturated
    if full >= 0:  # and not unknown, as where no server keeps the target
        title += f"; best and the chance that all saturate ({full:.2g}) sum to 1"
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
        except (InputError, BadParameter, TypeError, ValueError) as error:
            raise InputError(f"{where}: {getattr(error, 'message', error)}") from None
    if not servers:
        raise InputError(f"{path}: must map a name to each server, at least one.")
    return servers, prices


def next_runs(
    asked: Asked,
    runs: Annotated[int, o.option("How many runs to propose.", "N")] = 6,
    run_seconds: Annotated[float, o.option("What a run takes.", "S")] = 30.0,
    server_seconds: Annotated[float, o.option("What a server start takes.", "S")] = 60.0,
    choice: Annotated[str, o.option("measured, or next (new starts).", "NAME")] = "measured",
    to: Annotated[o.File, o.option("Write the runs as a plan.", "FOLDER", "-o", "--to")] = None,
) -> o.Reply:
    """Say what choosing now may cost, and which runs would lower that most per minute."""
    from bayes_sd.plan.design import plan_next

    one_of("choice", choice, ("measured", "next"))
    servers, far = asked.servers, asked.extrapolate
    if len({*servers}) < 2:
        raise BadParameter("-k must name at least two draft lengths to choose from, 0 for plain.")
    load = asked.load(servers[0])
    takes: dict[str, Any] = {"run_seconds": run_seconds, "server_seconds": server_seconds}
    answer = asked.fit.next_runs(load, servers, runs=runs, server=choice, extrapolate=far, **takes)
    path, choices = None, answer.choices.to_dict("records")
    if to is not None:
        plan = plan_next(answer, asked.fit, to, **takes)
        path = str(plan.path)
        o.say(str(plan))
    axis = str(load.axis)
    full = [with_unit(f"{x[axis]:g}", axis) for x in choices if x["prob_all_saturated"] > 0.5]
    no_choice = [f"At {at} every server saturates: no choice." for at in full]
    told: dict[str, Any] = {"choices": choices, "regret_ms": answer.regret_ms, "plan": path}
    now = ("Deciding now; best: no other server is faster", answer.choices)
    return o.Reply.of(answer, "Worth measuring next", now, *no_choice, **told)
