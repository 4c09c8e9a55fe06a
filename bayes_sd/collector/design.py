"""Write a plan from a short description: which models, k, acceptances and loads, in how long."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bayes_sd.collector import load
from bayes_sd.collector.files import write_text
from bayes_sd.collector.plan import (
    BenchPlan,
    ConfigurationPlan,
    EnvironmentPlan,
    ExpectedPlan,
    Plan,
    PointPlan,
    ServerPlan,
    read_mapping,
    record_of,
    resolve,
)
from bayes_sd.collector.sizes import read_size
from bayes_sd.errors import InputError

GIGA = 1e9
ACCEPTANCE_STEP = 0.05
# Above 1, loads are denser where servers are usually run than near saturation.
TOWARDS_IDLE = 1.4


class DrafterDescription(BaseModel):
    """A drafter; ``{percent}`` in `model` stands for 100 x acceptance, a checkpoint for each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str


class Speed(BaseModel):
    """A guess of the seconds a busy server spends on one output token, for the expected time.

    The defaults are a processor of two cores with vLLM's CPU build; the capacity probe, not this,
    sets the rates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    token_s: float = Field(default=0.0005, gt=0)
    token_s_per_gigaparam: float = Field(default=0.0085, ge=0)


class Description(BaseModel):
    """What a campaign should cover; ranges are lowest and highest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verifiers: tuple[str, ...] = Field(min_length=1)
    drafters: tuple[DrafterDescription, ...] = ()
    k: tuple[int, int] = (1, 5)
    acceptance: tuple[float, float] | None = None
    synthetic_acceptance: bool = False
    arms_per_verifier: int = Field(default=3, ge=0)
    sd_k0_arms: int = Field(default=0, ge=0)
    runs_per_server: tuple[int, int] = (4, 8)
    replicated_cells: int = Field(default=0, ge=0)
    loads: tuple[float, float] = (0.05, 1.2)
    prompts: tuple[int, ...] = (32, 128, 512)
    outputs: tuple[int, ...] = (16, 64, 256)
    time_budget_minutes: float = Field(default=60, gt=0)
    seed: int = 1
    speed: Speed = Speed()
    environment: EnvironmentPlan = EnvironmentPlan()
    server: ServerPlan = ServerPlan()
    bench: BenchPlan = BenchPlan()
    expected: ExpectedPlan = ExpectedPlan()

    @model_validator(mode="after")
    def _possible(self) -> "Description":
        for name in ("k", "acceptance", "runs_per_server", "loads"):
            ends = getattr(self, name)
            if ends is not None and not 0 < ends[0] <= ends[1]:
                raise ValueError(f"{name} must be [lowest, highest], both above 0, got {ends}")
        if self.acceptance is not None and self.acceptance[1] > 1:
            raise ValueError(f"acceptance must not be above 1, got {self.acceptance[1]}")
        if self.loads[1] > 2:
            raise ValueError(f"loads are shares of the capacity, at most 2, got {self.loads[1]}")
        if any(x < 1 for x in (*self.prompts, *self.outputs)) or not self.prompts:
            raise ValueError("prompts and outputs must be lists of token numbers of at least 1")
        if (self.arms_per_verifier or self.sd_k0_arms) and not self.drafters:
            raise ValueError("drafters are missing; give some, or arms_per_verifier 0")
        if any("{percent}" in d.model for d in self.drafters) and self.acceptance is None:
            raise ValueError("a drafter's model has {percent}, so acceptance is needed")
        return self


def read_description(path: str | Path) -> Description:
    """Read a description; model folders are meant from its own folder.

    Raises
    ------
    InputError
        If it cannot be read, has an unknown key, an impossible range or no such folder.
    """
    path = Path(path)
    found = record_of(Description, read_mapping(path), str(path))
    verifiers = tuple(str(resolve(v, path.parent, f"{path}: verifiers")) for v in found.verifiers)
    drafters = tuple(
        d
        if "{percent}" in d.model
        else d.model_copy(update={"model": str(resolve(d.model, path.parent, f"{path}: {d.name}"))})
        for d in found.drafters
    )
    drafters = tuple(
        d.model_copy(update={"model": str((path.parent / d.model).absolute())})
        if "{percent}" in d.model
        else d
        for d in drafters
    )
    return found.model_copy(update={"verifiers": verifiers, "drafters": drafters})


def design(d: Description) -> Plan:
    """A plan that fits the time budget, with as many runs a server as it allows.

    Loads are stratified over their range; lengths are drawn at random among those with enough
    requests in a run; k, acceptances and drafters are spread evenly over all SD servers.

    Raises
    ------
    InputError
        If even the fewest runs a server do not fit.
    """
    fewest, most = d.runs_per_server
    for runs in range(most, fewest - 1, -1):
        plan = _plan(d, runs)
        if load.total_s(plan) <= 60 * d.time_budget_minutes:
            return plan
    raise InputError(
        f"{len(plan.configurations)} servers with {fewest} runs each take "
        f"{load.total_s(plan) / 60:.0f} minutes; time_budget_minutes is "
        f"{d.time_budget_minutes:g}, so take fewer models or arms_per_verifier"
    )


def _plan(d: Description, runs: int) -> Plan:
    rng = random.Random(d.seed)
    servers = _servers(d, rng)
    twice = _spread(d.replicated_cells, len(servers), runs // 2)
    configurations = [
        server.model_copy(update={"points": tuple(_points(d, server, runs, extra, rng))})
        for server, extra in zip(servers, twice, strict=True)
    ]
    return Plan(
        seed=d.seed,
        environment=d.environment,
        server=d.server,
        bench=d.bench,
        expected=d.expected,
        configurations=tuple(configurations),
    )


def _spread(total: int, bins: int, most: int) -> list[int]:
    if total > bins * most:
        raise InputError(f"replicated_cells is {total}; {bins} servers can have {bins * most}")
    return [total * (i + 1) // bins - total * i // bins for i in range(bins)]


def _servers(d: Description, rng: random.Random) -> list[ConfigurationPlan]:
    """Every verifier plain and with its arms, each with one point that is to be replaced."""
    count = len(d.verifiers) * d.arms_per_verifier
    ks = _deal(range(d.k[0], d.k[1] + 1), count, rng)
    alphas = _deal(_acceptances(d), count, rng)
    drafters = _deal(d.drafters, count, rng)
    chosen_k0 = rng.sample(list(d.verifiers), min(d.sd_k0_arms, len(d.verifiers)))
    found = []
    for i, verifier in enumerate(d.verifiers):
        found.append(_server(d, verifier, "plain"))
        names: set[str] = set()
        for j in range(i * d.arms_per_verifier, (i + 1) * d.arms_per_verifier):
            k = ks[j]
            # The same drafter, k and acceptance twice would only measure the restart.
            while (name := f"{drafters[j].name}-k{k}-{alphas[j]}") in names:
                k = k + 1 if k < d.k[1] else d.k[0]
                if len(names) >= d.k[1] - d.k[0] + 1:
                    break
            if name not in names:
                names.add(name)
                found.append(_server(d, verifier, "sd", drafters[j], k, alphas[j]))
        if verifier in chosen_k0:
            drafter, alpha = rng.choice(d.drafters), rng.choice(_acceptances(d))
            found.append(_server(d, verifier, "sd_k0", drafter, max(d.k[0], 1), alpha))
    return found


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


def _server(
    d: Description,
    model: str,
    arm: Literal["plain", "sd", "sd_k0"],
    drafter: DrafterDescription | None = None,
    k: int = 0,
    acceptance: float | None = None,
) -> ConfigurationPlan:
    verifier = Path(model).name
    about: dict[str, Any] = {"name": f"{verifier}_plain", "arm": arm, "model": model}
    about["verifier"] = verifier
    if drafter is not None:
        percent = "" if acceptance is None else f"{100 * acceptance:g}"
        folder = drafter.model.replace("{percent}", percent)
        if "{percent}" in drafter.model and not Path(folder).is_dir():
            raise InputError(f"drafter {drafter.name}: {folder} is no folder; write it first")
        last = "" if not percent or arm == "sd_k0" else f"_a{percent}"
        name = f"{verifier}_{drafter.name}_k{0 if arm == 'sd_k0' else k}{last}"
        about |= {"name": name, "drafter": drafter.name, "drafter_model": folder}
        about |= {"draft_tokens": k, "acceptance": None if arm == "sd_k0" else acceptance}
        about["synthetic_acceptance"] = d.synthetic_acceptance and arm == "sd"
    token_s = d.speed.token_s
    if Path(model).is_dir():
        token_s += d.speed.token_s_per_gigaparam * read_size(model).params / GIGA
    if arm == "sd":
        # Between a server that only reads weights (k tokens come free) and one that computes.
        alpha = 0.7 if acceptance is None else acceptance
        committed = sum(alpha**j for j in range(k + 1))
        token_s *= ((k + 1) / committed) ** 0.5
    work = d.bench.prompt_weight * d.bench.probe_prompt + d.bench.probe_output
    about["capacity_guess_rps"] = float(f"{1 / (token_s * work):.3g}")
    about["points"] = (PointPlan(load=1, prompt=1, output=1),)
    return record_of(ConfigurationPlan, about, "design")


def _points(
    d: Description, c: ConfigurationPlan, runs: int, twice: int, rng: random.Random
) -> list[PointPlan]:
    """Loads one from each stratum of their range, lengths at random; some points twice."""
    low, high = d.loads
    cells = runs - twice
    points: dict[str, PointPlan] = {}
    for i in range(cells):
        stratum = ((i + rng.random()) / cells) ** TOWARDS_IDLE
        share = float(f"{low + (high - low) * stratum:.2g}")
        point = _drawn(d, c, share, rng)
        points.setdefault(point.name, point)
    repeated = [p.model_copy(update={"replicate": 1}) for p in _steady(points, twice, rng)]
    return [*points.values(), *repeated]


def _steady(points: dict[str, PointPlan], count: int, rng: random.Random) -> list[PointPlan]:
    """Points to measure twice: below saturation while there are enough of those."""
    below = [p for p in points.values() if p.load is not None and p.load < 0.9]
    above = [p for p in points.values() if p not in below]
    chosen = rng.sample(below, min(count, len(below)))
    return chosen + above[: count - len(chosen)]


def _drawn(d: Description, c: ConfigurationPlan, share: float, rng: random.Random) -> PointPlan:
    """A point at a load, with lengths that leave enough requests in the time of a run."""
    every = [
        PointPlan(load=share, prompt=prompt, output=output)
        for prompt in d.prompts
        for output in d.outputs
    ]
    guesses = [load.load_of(d.bench, p, c.capacity_guess_rps) for p in every]
    enough = [p for p, g in zip(every, guesses, strict=True) if g.requests >= d.bench.min_requests]
    if enough:
        return rng.choice(enough)
    return max(zip(every, guesses, strict=True), key=lambda pair: pair[1].requests)[0]


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan as YAML, one line a point, without what is the default anyway.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    data = plan.model_dump(mode="json", exclude_defaults=True)
    for c in data["configurations"]:
        c["points"] = [_Flow(p) for p in c["points"]]
    for part in ("server", "bench"):
        for key, value in data.get(part, {}).items():
            if isinstance(value, list):
                data[part][key] = _FlowList(value)
    head = f"# bayes-sd collect; expected to take {load.total_s(plan) / 60:.0f} minutes.\n"
    text = head + yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=200)
    try:
        write_text(Path(path), text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


class _Flow(dict):
    """A mapping written on one line."""


class _FlowList(list):
    """A list written on one line."""


class _Dumper(yaml.SafeDumper):
    """Keeps the above on one line."""


_Dumper.add_representer(
    _Flow, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, True)
)
_Dumper.add_representer(
    _FlowList, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True)
)


def table(plan: Plan) -> list[dict[str, Any]]:
    """One row a server: what it is, its loads and lengths, and its expected minutes."""
    rows = []
    for c in plan.configurations:
        seconds = load.server_s(plan, c) + sum(load.run_s(plan, c, p) for p in c.points)
        rows.append(
            {
                "server": c.name,
                "arm": c.arm,
                "k": c.draft_tokens if c.arm == "sd" else 0,
                "acceptance": "-" if c.acceptance is None else f"{c.acceptance:g}",
                "runs": len(c.points),
                "load": _ends([p.load or p.rate_rps or p.concurrency or 0 for p in c.points]),
                "prompt": _ends([p.prompt for p in c.points]),
                "output": _ends([p.output for p in c.points]),
                "minutes": round(seconds / 60, 1),
            }
        )
    return rows


def _ends(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"
