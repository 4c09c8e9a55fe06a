"""Which servers to measure at which loads, spread evenly within a time budget."""

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from statistics import median_low
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from bayes_sd.answers.next_runs import NextRuns
from bayes_sd.answers.servers import name_of
from bayes_sd.errors import InputError
from bayes_sd.model.posterior import Posterior
from bayes_sd.plan.sweep import Described, Plan, Point, SweepServer, VllmOptions, write_sweep
from bayes_sd.runs.config import Fraction, NonNegative, Positive, PositiveCount, Text, record
from bayes_sd.runs.read import load_yaml
from bayes_sd.runs.vllm import short_name

ACCEPTANCE_STEP = 0.05
DEFAULT_CONCURRENCY = 32
TOWARDS_IDLE = 1.4  # above 1, shares of the capacity are denser where servers are usually run
PROMPT_WEIGHT = 0.25  # cost of a prompt token in output tokens
HALF_FULL = 8  # a closed loop of B reaches about B / (B + this) of the capacity
FEWEST_REQUESTS = 16
ROUNDS = 4  # a closed loop answers at least so many requests a place
Name = Annotated[Text, Field(min_length=1)]
Many = Annotated[int, Field(ge=0, le=1000)]
Share = Annotated[float, Field(gt=0, le=2)]  # of the capacity; far beyond it all runs are alike


class Drafter(Described):
    """A drafter; ``{percent}`` in `model` stands for 100 x acceptance, a checkpoint for each."""

    name: Name
    model: str = ""
    method: str = ""

    @model_validator(mode="after")
    def _startable(self) -> "Drafter":
        if not (self.model or self.method):
            raise ValueError(f"of {self.name!r} needs a model or a method, as ngram or mtp")
        return self


class Description(Described):
    """What to cover; pairs are lowest and highest. A lone request takes ``token_s`` a token."""

    verifiers: tuple[Name, ...] = Field(min_length=1)
    drafters: tuple[Drafter, ...] = ()
    k: tuple[Many, Many] = (1, 5)
    acceptance: tuple[Fraction, Fraction] | None = None
    synthetic_acceptance: bool = False
    sd_servers_per_verifier: Many = 3
    idle_drafter_servers: Many = 0
    runs_per_server: tuple[Many, Many] = (4, 8)
    replicated_cells: Many = 0
    max_concurrency: int | None = Field(default=None, ge=1, le=1_000_000)
    rates_rps: tuple[Positive, ...] = ()
    capacity_rps: Positive | None = None
    loads: tuple[Share, Share] = (0.05, 1.2)
    prompts: tuple[PositiveCount, ...] = Field(default=(128, 512), min_length=1)
    outputs: tuple[PositiveCount, ...] = Field(default=(64, 256), min_length=1)
    run_seconds: Positive = 20
    min_requests: PositiveCount = FEWEST_REQUESTS
    time_budget_minutes: Positive = 60
    seed: int = 1
    environment: str = ""
    vllm: VllmOptions = VllmOptions()
    token_s: Positive = 0.01
    startup_s: NonNegative = 90
    run_overhead_s: NonNegative = 15

    @field_validator("k", "acceptance", "runs_per_server", "loads", mode="wrap")
    @classmethod
    def _two(cls, value: Any, checked: Callable[[Any], Any]) -> Any:
        if value is not None and not (isinstance(value, list | tuple) and len(value) == 2):
            got = str(value)[:40]
            raise ValueError(f"must be [lowest, highest], which may be equal, got {got}")
        ends = checked(value)
        if ends is not None and not 0 < ends[0] <= ends[1]:
            raise ValueError(f"must be [lowest, highest], both above 0, got {ends}")
        return ends

    @model_validator(mode="after")
    def _possible(self) -> "Description":
        for names in ([*map(short_name, self.verifiers)], [x.name for x in self.drafters]):
            if len(set(names)) < len(names):
                raise ValueError(f"names of verifiers and drafters must differ, got {names}")
        if self.rates_rps and self.capacity_rps is not None:
            raise ValueError("rates_rps and capacity_rps are both given; give one of them")
        if (self.sd_servers_per_verifier or self.idle_drafter_servers) and not self.drafters:
            raise ValueError("drafters are missing; give some, or sd_servers_per_verifier 0")
        for_each = any("{percent}" in drafter.model for drafter in self.drafters)
        if (for_each or self.synthetic_acceptance) and self.acceptance is None:
            raise ValueError("acceptance is missing; synthetic_acceptance and {percent} need it")
        return self


def plan_sweep(description: str | Path | Mapping, folder: str | Path | None = None) -> Plan:
    """Design a campaign and write what ``vllm bench sweep serve`` runs.

    Every verifier is measured plain and with several SD servers; draft tokens, acceptances and
    drafters are spread evenly over those, loads and lengths over the runs of each server. There
    are as many runs a server as the time budget allows.

    Parameters
    ----------
    description : path or mapping
        What to cover, in YAML: ``verifiers``, ``drafters``, ``k``, ... as in docs/plan.md.
    folder : path, optional
        New folder for the files; without it the plan is only made.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        If the description has an unknown key or an impossible value, or does not fit its budget.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> ngram = {"name": "ngram", "method": "ngram"}
    >>> print(bsd.plan_sweep({"verifiers": ["org/llama-8b"], "drafters": [ngram], "k": [1, 3]}))
    4 servers, 32 runs, about 30 minutes
    """
    if isinstance(description, Mapping):
        data, where, base = description, "description", Path()
    else:
        data, where, base = load_yaml(description), str(description), Path(description).parent
    d = record(Description, data, f"{where}: ")
    fewest, runs = d.runs_per_server
    while (plan := _design(d, runs, base, where)).minutes > d.time_budget_minutes:
        if runs == fewest:
            raise InputError(
                f"{where}: {len(plan.servers)} servers with {fewest} runs each take "
                f"{plan.minutes:.0f} minutes; time_budget_minutes is {d.time_budget_minutes:g}, so "
                "take fewer verifiers or sd_servers_per_verifier"
            )
        # Starting servers takes time too, so no number between these fits.
        fits = int(runs * d.time_budget_minutes / plan.minutes) + 1
        runs = max(fewest, min(runs - 1, fits))
    if folder is None:
        return plan
    files = write_sweep(folder, plan.servers, plan.points, d.vllm, d.environment, d.seed)
    return replace(plan, path=files)


def plan_next(
    answer: NextRuns, fit: Posterior, folder: str | Path, run_seconds: float, server_seconds: float
) -> Plan:
    """Write the runs that `answer` proposes; a model's path that no run states is left open."""
    servers, points, minutes = [], [], []
    for server, loads in answer.points():
        drafter = "" if server.drafter is None else name_of(server.drafter)
        known = fit.runs[fit.runs["drafter"] == drafter]
        stated = [set(known.get(f"drafter_{x}", [])) - {""} for x in ("path", "method")]
        path, method = (values.pop() if len(values) == 1 else "" for values in stated)
        name = f"{name_of(server.verifier)}_" + (f"{drafter}_k{server.k}" if drafter else "plain")
        servers.append(SweepServer(name, "", drafter, path, method, server.k))
        mean_s = answer.draws["mean_s"].sel(server=str(server)).median(("chain", "draw"))
        runs: dict[str, Point] = {}
        for load in loads:
            value = at_once = load[answer.load.axis]
            axis: dict[str, Any] = {"concurrency": max(round(value), 1)}
            served_rps = value / float(mean_s.sel({answer.load.axis: value}))
            if answer.load.axis == "rate_rps":
                axis, at_once, served_rps = {"rate_rps": value}, 1.0, value
            wanted = max(served_rps * run_seconds, ROUNDS * at_once, FEWEST_REQUESTS)
            _add(runs, Point(load["prompt"], load["output"], round(wanted), **axis))
        points.append(list(runs.values()))
        minutes.append((server_seconds + run_seconds * len(runs)) / 60)
    return Plan(servers, points, minutes, write_sweep(folder, servers, points))


def _design(d: Description, runs: int, base: Path, where: str) -> Plan:
    rng = random.Random(d.seed)
    servers = _servers(d, rng, base, where)
    n, most = len(servers), runs // 2
    if d.replicated_cells > n * most:
        possible = f"{n} servers can have {n * most}"
        raise InputError(f"{where}: replicated_cells is {d.replicated_cells}; {possible}")
    ends = [d.replicated_cells * i // n for i in range(n + 1)]
    points = [_points(d, runs, high - low, rng) for low, high in pairwise(ends)]
    run_s = [[p.requests / _served_rps(d, p) + d.run_overhead_s for p in runs] for runs in points]
    return Plan(servers, points, [(d.startup_s + sum(each)) / 60 for each in run_s])


def _servers(d: Description, rng: random.Random, base: Path, where: str) -> list[SweepServer]:
    """Every verifier plain and with its SD servers, some with a drafter that never drafts."""
    per_verifier, ks = d.sd_servers_per_verifier, range(d.k[0], d.k[1] + 1)
    count = len(d.verifiers) * per_verifier
    deals = [_deal(x, count, rng) for x in (d.drafters, ks, _acceptances(d))]
    arms = list(zip(*deals, strict=True))
    idle = rng.sample(d.verifiers, min(d.idle_drafter_servers, len(d.verifiers)))
    servers: dict[str, SweepServer] = {}
    for i, verifier in enumerate(d.verifiers):
        model, start = _path(verifier, base, where), f"{short_name(verifier)}_"
        servers[f"{start}plain"] = SweepServer(f"{start}plain", model)
        mine = arms[i * per_verifier : (i + 1) * per_verifier]
        if verifier in idle:
            with_model = [drafter for drafter in d.drafters if drafter.model] or d.drafters
            mine.append((rng.choice(with_model), 0, rng.choice(_acceptances(d))))
        for drafter, dealt_k, alpha in mine:
            percent = "" if alpha is None else f"{100 * alpha:g}"
            path = drafter.model.replace("{percent}", percent)
            path = path and _path(path, base, where, hub="{percent}" not in drafter.model)
            imposed = alpha if d.synthetic_acceptance else None
            # The same drafter, k and acceptance twice would only measure the restart.
            for k in [dealt_k, *ks] if dealt_k else [0]:
                name = f"{start}{drafter.name}_k{k}" + (percent and f"_a{percent}")
                if name not in servers:
                    about = (model, drafter.name, path, drafter.method, k, imposed)
                    servers[name] = SweepServer(name, *about)
                    break
    return list(servers.values())


def _path(model: str, base: Path, where: str, hub: bool = True) -> str:
    """A model folder as an absolute path; a name on a hub, or a folder elsewhere, as it is."""
    if os.path.isdir(base / model):  # False for names that no file can have
        return str((base / model).resolve())
    if not (model.startswith("/") or (hub and model[0] not in ".~" and model.count("/") == 1)):
        raise InputError(
            f"{where}: {model!r} is no folder; give a checkpoint, ORG/MODEL, or the absolute "
            "path on the machine that has vLLM"
        )
    return model


def _acceptances(d: Description) -> Sequence[float | None]:
    if d.acceptance is None:
        return [None]
    low, high = d.acceptance
    steps = int((high - low) / ACCEPTANCE_STEP + 1e-9)
    return [round(low + i * ACCEPTANCE_STEP, 4) for i in range(steps + 1)]


def _deal[Item](items: Sequence[Item], count: int, rng: random.Random) -> list[Item]:
    """`count` items in random order, each as often as the others."""
    dealt: list[Item] = []
    while len(dealt) < count:
        dealt += rng.sample(list(items), len(items))
    return dealt[:count]


def _points(d: Description, runs: int, twice: int, rng: random.Random) -> list[Point]:
    """Runs of a server: loads over their whole range, lengths evenly; `twice` of them repeated."""
    cells = runs - twice
    has_rates = bool(d.rates_rps) or d.capacity_rps is not None
    most = d.max_concurrency or (0 if has_rates else DEFAULT_CONCURRENCY)
    closed = 0 if not most else cells - cells // 2 if has_rates else cells
    rates = _deal(sorted(set(d.rates_rps)), cells - closed, rng) if d.rates_rps else []
    points: dict[str, Point] = {}
    for i, (prompt, output) in enumerate(_deal(list(product(d.prompts, d.outputs)), cells, rng)):
        point = Point(prompt, output, d.min_requests)
        if i < closed:
            point = replace(point, concurrency=round(most ** (i / max(closed - 1, 1))))
        elif rates:
            point = replace(point, rate_rps=rates[i - closed])
        else:
            stratum = ((i - closed + rng.random()) / (cells - closed)) ** TOWARDS_IDLE
            share = d.loads[0] + (d.loads[1] - d.loads[0]) * stratum
            point = replace(point, rate_rps=float(f"{share * _capacity_rps(d, point):.3g}"))
        wanted = round(_served_rps(d, point) * d.run_seconds)
        least = max(d.min_requests, ROUNDS * (point.concurrency or 0))
        _add(points, replace(point, requests=max(wanted, least)))
    for point in rng.sample(list(points.values()), twice):
        _add(points, point)
    return list(points.values())


def _add(points: dict[str, Point], point: Point) -> None:
    """One more run, numbered where it is there already."""
    while point.name in points:
        point = replace(point, replicate=point.replicate + 1)
    points[point.name] = point


def _capacity_rps(d: Description, point: Point) -> float:
    """Guess of the most requests a second at the lengths of a run."""
    tokens = PROMPT_WEIGHT * point.prompt_tokens + point.output_tokens
    if d.capacity_rps is None:
        return (1 + HALF_FULL) / (tokens * d.token_s)
    prompt, output = median_low(d.prompts), median_low(d.outputs)
    return d.capacity_rps * (PROMPT_WEIGHT * prompt + output) / tokens


def _served_rps(d: Description, point: Point) -> float:
    """Guess of the requests a second that a run is served at."""
    capacity_rps = _capacity_rps(d, point)
    if point.concurrency is not None:
        return capacity_rps * point.concurrency / (point.concurrency + HALF_FULL)
    return min(point.rate_rps or capacity_rps, capacity_rps)
