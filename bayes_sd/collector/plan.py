"""A plan: which servers to start, and at which points to measure each of them."""

import shlex
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bayes_sd.errors import InputError
from bayes_sd.traces.numbers import sentence

_SAFE = frozenset(string.ascii_letters + string.digits + "._-+")


def _words(value: Any) -> Any:
    if isinstance(value, str):
        return shlex.split(value)
    return [str(v) for v in value] if isinstance(value, list | tuple) else value


def _texts(value: Any) -> Any:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Texts = Annotated[dict[str, str], BeforeValidator(_texts)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerPlan(_Record):
    """How a server is started, found healthy and stopped.

    ``command`` is followed by the model and its options; an SSH prefix or a container works
    (``quote`` protects the options from the shell on the other side of SSH).
    """

    command: Words = ("vllm", "serve")
    args: Words = ()
    env: Texts = {}
    stop_command: Words = ()
    quote: bool = False
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    base_url: str | None = None
    startup_timeout_s: float = Field(default=600, gt=0)
    stop_timeout_s: float = Field(default=20, gt=0)
    retries: int = Field(default=1, ge=0)


class BenchPlan(_Record):
    """How the load generator is called and how long a run is.

    A run has ``rate x run_seconds`` requests, within the bounds, fewer where that would take
    longer than ``max_seconds``. ``preload`` is the Python of the load generator's environment:
    it then imports vLLM once instead of once a run. ``prompt_weight`` is the cost of a prompt
    token in output tokens, by which the probed capacity is carried to other lengths. ``tool`` is
    the load generator, ``command`` how it is called.
    """

    tool: Literal["vllm", "guidellm"] = "vllm"
    command: Words = ()
    args: Words = ()
    env: Texts = {}
    preload: str | None = None
    run_seconds: float = Field(default=20, gt=0)
    max_seconds: float = Field(default=60, gt=0)
    min_requests: int = Field(default=16, ge=1)
    max_requests: int = Field(default=200, ge=1)
    percentiles: tuple[float, ...] = (50, 90, 95, 99)
    timeout_s: float = Field(default=600, gt=0)
    retries: int = Field(default=1, ge=0)
    warmup_requests: int = Field(default=8, ge=0)
    probe_requests: int = Field(default=64, ge=1)
    probe_prompt: int = Field(default=128, ge=1)
    probe_output: int = Field(default=64, ge=1)
    prompt_weight: float = Field(default=0.25, ge=0)

    @model_validator(mode="after")
    def _bounds(self) -> "BenchPlan":
        if self.min_requests > self.max_requests:
            raise ValueError(
                f"min_requests {self.min_requests} is more than max_requests {self.max_requests}"
            )
        if self.tool != "vllm" and self.preload:
            raise ValueError(f"preload is for vllm bench serve, not for {self.tool}")
        if any(not 0 < p < 100 for p in self.percentiles):
            raise ValueError("percentiles must lie between 0 and 100")
        return self


class EnvironmentPlan(_Record):
    """Labels of the hardware and the engine, as they go into the traces."""

    hardware: str = "unknown"
    engine: str | None = None


class ExpectedPlan(_Record):
    """Times the plan's duration is estimated from; seconds."""

    startup_s: float = Field(default=60, ge=0)
    stop_s: float = Field(default=3, ge=0)
    run_overhead_s: float = Field(default=10, ge=0)


class PointPlan(_Record):
    """One run: a share of the probed capacity, a rate (1/s) or a concurrency, and the lengths."""

    load: float | None = Field(default=None, gt=0)
    rate_rps: float | None = Field(default=None, gt=0)
    concurrency: int | None = Field(default=None, ge=1)
    prompt: int = Field(ge=1)
    output: int = Field(ge=1)
    replicate: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_load(self) -> "PointPlan":
        if sum(x is not None for x in (self.load, self.rate_rps, self.concurrency)) != 1:
            raise ValueError("needs exactly one of load, rate_rps and concurrency")
        return self

    @property
    def name(self) -> str:
        """Name of its file: what makes it the same run in a later session."""
        if self.load is not None:
            at = f"load{self.load:g}"
        elif self.rate_rps is not None:
            at = f"rps{self.rate_rps:g}"
        else:
            at = f"conc{self.concurrency}"
        return f"{at}_p{self.prompt}_g{self.output}_r{self.replicate}"


class ConfigurationPlan(_Record):
    """One server: the models, the arm, and the points to measure.

    Arms: ``plain`` has no drafter; ``sd`` drafts ``draft_tokens`` a cycle; ``sd_k0`` loads the
    drafter and never drafts. Sizes not given are read from the models' ``config.json``.
    """

    name: str = Field(min_length=1)
    arm: Literal["plain", "sd", "sd_k0"] = "plain"
    model: str = Field(min_length=1)
    verifier: str | None = None
    verifier_params: float | None = Field(default=None, gt=0)
    verifier_active_params: float | None = Field(default=None, gt=0)
    experts: int | None = Field(default=None, ge=0)
    experts_per_token: int | None = Field(default=None, ge=0)
    drafter_model: str | None = None
    drafter: str | None = None
    drafter_params: float | None = Field(default=None, ge=0)
    draft_tokens: int = Field(default=0, ge=0)
    acceptance: float | None = Field(default=None, ge=0, le=1)
    synthetic_acceptance: bool = False
    speculative: dict[str, Any] = {}
    tokenizer: str | None = None
    served_name: str | None = None
    args: Words = ()
    env: Texts = {}
    capacity_guess_rps: float | None = Field(default=None, gt=0)
    points: tuple[PointPlan, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _arm_fits(self) -> "ConfigurationPlan":
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> list[str]:
        found = []
        if not set(self.name) <= _SAFE or self.name.startswith("."):
            found.append(f"name {self.name!r} must be letters, digits and . _ - + only")
        speculates = self.arm != "plain"
        if speculates and not (self.drafter_model or self.speculative.get("method")):
            found.append(f"arm is {self.arm} but there is no drafter_model; give one")
        if speculates and self.draft_tokens < 1:
            found.append(f"arm is {self.arm} but draft_tokens is 0; give at least 1")
        if not speculates and (self.drafter_model or self.drafter or self.draft_tokens):
            found.append("arm is plain but a drafter or draft_tokens is given; make it sd")
        if self.synthetic_acceptance and self.acceptance is None:
            found.append("synthetic_acceptance needs acceptance; give it")
        names = [point.name for point in self.points]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            found.append(f"point {twice} is there twice; number them by replicate")
        return found


class Plan(_Record):
    """All of a campaign; see the classes of its parts."""

    seed: int = 1
    environment: EnvironmentPlan = EnvironmentPlan()
    server: ServerPlan = ServerPlan()
    bench: BenchPlan = BenchPlan()
    expected: ExpectedPlan = ExpectedPlan()
    configurations: tuple[ConfigurationPlan, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> "Plan":
        names = [c.name for c in self.configurations]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"configuration name {twice!r} is there twice; names must differ")
        return self


def read_plan(path: str | Path) -> Plan:
    """Read a plan and check all of it.

    Relative model folders are meant from the plan's own folder.

    Parameters
    ----------
    path : path
        YAML.

    Raises
    ------
    InputError
        If the file cannot be read, has an unknown key or an impossible value, or names a model
        folder that is not there.
    """
    path = Path(path)
    plan = record_of(Plan, read_mapping(path), str(path))
    here = path.parent
    found = []
    for c in plan.configurations:
        folders = {
            name: str(resolve(value, here, f"{path}: {c.name}: {name}"))
            for name in ("model", "drafter_model", "tokenizer")
            if (value := getattr(c, name)) is not None
        }
        found.append(c.model_copy(update=folders))
    return plan.model_copy(update={"configurations": tuple(found)})


def resolve(value: str, here: Path, where: str) -> str | Path:
    """A model folder as an absolute path; a name on a model hub stays a name.

    Raises
    ------
    InputError
        If it is written as a path and is no folder.
    """
    folder = here / value
    if folder.is_dir():
        return folder.resolve()
    if value.startswith(("/", ".", "~")) or value.count("/") != 1:
        raise InputError(f"{where}: {value!r} is no folder; give a checkpoint or ORG/MODEL")
    return value


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: is not a mapping; see docs/collect.md for its keys")
    return data


def record_of[Record: BaseModel](kind: type[Record], data: Mapping[str, Any], where: str) -> Record:
    """Validate a mapping; an unknown key is refused with the known ones."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        # A misspelt key also makes the right one missing: it is the former that has to be said.
        unknown = [e for e in error.errors() if e["type"] == "extra_forbidden"]
        first = (unknown or error.errors())[0]
        if first["type"] == "extra_forbidden":
            known = _fields_at(kind, first["loc"][:-1])
            place = "".join(f" {part}" for part in first["loc"][:-1])
            raise InputError(
                f"{where}:{place} has unknown key {first['loc'][-1]!r}; known are {known}"
            ) from None
        raise InputError(f"{where}: {sentence(error)}") from None


def _fields_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> str:
    current: Any = kind
    for part in location:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation
        inner = [a for a in getattr(annotation, "__args__", ()) if a is not Ellipsis]
        current = next(
            (a for a in (annotation, *inner) if isinstance(a, type) and issubclass(a, BaseModel)),
            current,
        )
    return ", ".join(current.model_fields)
