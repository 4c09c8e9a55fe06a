"""Who served a run: verifier, drafter, draft tokens, environment; numbers as files write them."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import to_json

from bayes_sd.errors import LARGEST, SMALLEST, InputError, shown
from bayes_sd.physics.acceptance import DRAFT_TOKENS_MAX
from bayes_sd.runs.checkpoint import bits_of, drafter_of, is_head, near, of_name
from bayes_sd.runs.machine import Machine, captured, named, one_named, so_many
from bayes_sd.runs.sizes import WEIGHTLESS, contradictions

ALIASES = {
    "num_speculative_tokens": "draft_tokens",
    "acceptance": "acceptance_imposed",
    "target_acceptance": "acceptance_imposed",
}
GIVE = "give it as an argument, in a sidecar or in the file's metadata (--metadata {0}=...)"
LARGEST_COUNT = 9e18  # what 64 bits hold
LONGEST_NAME = 300
NO_DRAFTER = "none"
Values = Mapping[str, Any]


def number(value: Any, *, rule: str = "", allowed: Callable[[float], bool] = bool) -> float:
    """A float, also as text, NaN or infinite, of a size to reckon with; where a rule allows it."""
    try:
        if isinstance(value, bool):
            raise TypeError
        x = float(value)
    except OverflowError:  # an integer of hundreds of digits
        x = 10 * LARGEST
    except (TypeError, ValueError):
        raise ValueError(f"must be a number, got {value!r}") from None
    if rule and not allowed(x):
        raise ValueError(f"must {rule}, got {value!r}")
    if x and math.isfinite(x) and not SMALLEST <= abs(x) <= LARGEST:
        raise ValueError(f"must be 0 or of size {SMALLEST:g} to {LARGEST:g}, got {value!r}")
    return x


def _must(rule: str, allowed: Callable[[float], bool]) -> BeforeValidator:
    return BeforeValidator(partial(number, rule=rule, allowed=allowed))


def _whole(least: int) -> BeforeValidator:
    """Refuse what is no whole number that 64 bits hold."""
    rule = f"be a whole number of at least {least} and at most {LARGEST_COUNT:g}"
    return _must(rule, lambda x: least <= x <= LARGEST_COUNT and x == int(x))


def text(value: Any) -> str:
    """A name without blanks around it, as it may be printed."""
    if isinstance(value, list | dict):
        raise ValueError(f"must be one name, got {str(value)[:40]}")
    name = str(value).strip()
    if len(name) > LONGEST_NAME:
        raise ValueError(f"must have at most {LONGEST_NAME} characters, got {name[:40]!r}...")
    return shown(name)


Number = Annotated[float, BeforeValidator(number)]
Positive = Annotated[float, _must("be a positive finite number", lambda x: 0 < x < math.inf)]
NonNegative = Annotated[
    float, _must("be a finite number of at least 0", lambda x: 0 <= x < math.inf)
]
Finite = Annotated[float, _must("be a finite number", math.isfinite)]
PositiveOrInfinite = Annotated[float, _must("be a positive number or 'inf'", lambda x: x > 0)]
Bits = Annotated[float, _must("be a number of bits from 2 to 64", lambda x: 2 <= x <= 64)]
Limit = Annotated[float, _must("be a number of at least 0 or 'inf'", lambda x: x >= 0)]
Fraction = Annotated[float, _must("lie between 0 and 1", lambda x: 0 <= x <= 1)]
Count = Annotated[int, _whole(0)]
PositiveCount = Annotated[int, _whole(1)]
Text = Annotated[str, BeforeValidator(text)]
Lower = BeforeValidator(lambda value: text(value).lower())


def absent(value: Any) -> bool:
    """Whether a cell or a metadata value says nothing: None, NaN or blank."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def mapping(value: Any) -> Values:
    """A JSON object; an empty one where there is something else."""
    return value if isinstance(value, Mapping) else {}


def finite_or_none(value: Any) -> Any:
    """Plain values for JSON, NumPy's too, with None for NaN and infinities, all the way down."""
    return json.loads(to_json(value, inf_nan_mode="null", fallback=lambda x: x.tolist()))


def sentence(error: ValidationError) -> str:
    """First complaint of pydantic as one sentence that names the field."""
    first = error.errors()[0]
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    field = "".join(parts).removeprefix(".")
    if first["type"] == "missing":
        return f"{field} is missing"
    if first["type"] == "too_short":
        return f"{field} is empty; give at least one"
    if first["type"] == "model_type":
        return f"{field} must be a JSON object, got {str(first['input'])[:40]!r}".strip()
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{field} {message}".strip()
    return f"{field}: {message[:1].lower()}{message[1:]}, got {str(first['input'])[:40]!r}"


def record[R: BaseModel](kind: type[R], values: Any, where: str = "") -> R:
    """A record of values; InputError that begins with `where` if one is not allowed."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}{sentence(error)}") from None


def column(meaning: str, default: Any = math.nan) -> Any:
    """A field that is a column of the run table."""
    return Field(default, description=meaning)


class Record(BaseModel):
    """Part of a file of another tool: unknown keys are ignored, null is the same as no key."""

    # Built when first needed: a question to a saved fit needs none.
    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _objects_without_null(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        for field in cls.model_fields.values():
            keys = getattr(field.validation_alias, "path", ())
            inner: Any = data
            for i, key in enumerate(keys[:-1]):  # pydantic takes what is no object for missing
                inner = {} if inner.get(key) is None else inner[key]
                if not isinstance(inner, Mapping):
                    name = ".".join(map(str, keys[: i + 1]))
                    raise ValueError(f"{name} must be a JSON object, got {str(inner)[:40]!r}")
        return {k: v for k, v in data.items() if v is not None}


class Configuration(BaseModel):
    """One server."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    environment: Text = column("hardware / engine", ...)
    verifier: Text = column("model that answers", ...)
    family: Annotated[Literal["dense", "moe"] | None, Lower] = column("dense or moe", None)
    verifier_params: Positive = column("parameters of the verifier", ...)
    verifier_active_params: Positive = column("parameters used for one token")
    verifier_layers: Positive = column("layers; missing: assumed from the size")
    verifier_kv_bytes: Positive = column("keys and values of one token, or missing")
    verifier_queries_per_key: Positive = column("query heads to a key-value head, or missing")
    experts: Count = column("experts in a layer, 0 if dense", 0)
    experts_per_token: Count = column("experts routed to, 0 if dense", 0)
    drafter: Text = column("model that drafts, 'none' if plain", NO_DRAFTER)
    drafter_params: NonNegative = column("parameters of the drafter, 0 if it has no weights")
    drafter_layers: Positive = column("layers of the drafter; missing: one, as of a head")
    drafter_method: Text = column("draft_model, eagle3, mtp, ngram, ...; '' if unknown", "")
    drafter_path: Text = column("what vLLM calls the drafter's model; '' if unknown", "")
    draft_tokens: Annotated[Count, Field(le=DRAFT_TOKENS_MAX)] = column("per cycle, k", ...)
    arm: Annotated[Literal["plain", "sd"] | None, Lower] = column("sd: a drafter is loaded", None)
    workload: Text = column("data set that requests are of; '' if all are alike", "")
    acceptance_imposed: Fraction = column("acceptance per token known by construction")
    machine: Text = column("accelerator, as in its data sheet; '' if unknown", "")
    gpus: PositiveCount = column("accelerators that serve the model together", 1)
    dies: PositiveCount = column("dies of them all, over which tensor parallelism splits", 1)
    gb_per_s: Positive = column("memory bandwidth of them all, GB/s; missing if unknown")
    tflops: Positive = column("arithmetic of them all with such weights; missing if unknown")
    weight_bits: Bits = column("bits of a weight of the verifier", 16.0)
    captured_tokens: Limit = column("most tokens of a pass with a captured graph; 0: no graphs")


ROUNDING = 1 + 1e-4  # of figures that tools print
# Engines and accelerators whose graphs are captured by other rules than vLLM's on NVIDIA and AMD.
OTHER_GRAPHS = re.compile(
    "(?i)sglang|tensorrt|trt|tgi|llama[._]cpp|lmdeploy|mlc|gaudi|tpu|max 1550"
)
NAMES = (*Configuration.model_fields, "hardware", "engine")
KNOWN = (*NAMES, *ALIASES)


def _problems(c: Configuration) -> Iterator[str]:
    plain, moe = c.drafter == NO_DRAFTER, c.family == "moe"
    facts = ("params", "layers", "method", "path")
    for name in ("draft_tokens", *(f"drafter_{fact}" for fact in facts)):
        if plain and (value := getattr(c, name)) and not absent(value):
            yield f"{name} is {value} but there is no drafter; name the drafter"
    for name in ("experts", "experts_per_token"):
        if not moe and getattr(c, name):
            yield f"family is dense but {name} is {getattr(c, name)}; a dense model has 0"
    if moe and not c.experts:
        yield "family is moe but experts is 0; give the number of experts"
    if plain and c.arm == "sd":
        yield "arm is sd but there is no drafter; name the drafter or set arm to plain"
    if c.arm == "plain" and not plain:
        yield f"arm is plain but drafter is {c.drafter!r}; a plain run has drafter none"
    if c.arm == "plain" and c.acceptance_imposed > 0:
        yield f"acceptance_imposed is {c.acceptance_imposed:g} in a plain run; give 0 or nothing"
    sizes = (c.verifier_params, c.verifier_active_params, c.experts, c.experts_per_token)
    yield from contradictions(*sizes, "verifier_")


def canonical(values: Values) -> dict[str, Any]:
    """Known configuration keys under their own names, blanks dropped; InputError if two differ."""
    given = (key for key in KNOWN if not absent(values.get(key)))
    return merge((repr(key), {ALIASES.get(key, key): values[key]}) for key in given)


def merge(layers: Iterable[tuple[str, Values]]) -> dict[str, Any]:
    """Join (label, mapping) pairs; InputError that names both labels if two values differ."""
    merged: dict[str, tuple[Any, str]] = {}
    for label, values in layers:
        for key, value in values.items():
            first, origin = merged.setdefault(key, (value, label))
            if first is not value and not _same(first, value):
                problem = f"{key} is {first!r} in {origin} but {value!r} in {label}"
                raise InputError(f"{problem}; give one value")
    return {key: value for key, (value, _) in merged.items()}


def _same(a: Any, b: Any) -> bool:
    try:
        return math.isclose(float(a), float(b), rel_tol=1e-9)
    except (TypeError, ValueError, OverflowError):
        return str(a).strip() == str(b).strip()


def verifier_sizes(sizes: Values) -> dict[str, Any]:
    """Fields of a Size as those of a verifier."""
    plain = ("experts", "experts_per_token", "weight_bits")
    known = {n: x for n, x in sizes.items() if n != "name"}
    return {n if n in plain else f"verifier_{n}": x for n, x in known.items()}


def drafter_sizes(sizes: Values) -> dict[str, Any]:
    """What the law takes of a drafter's Size, under its columns' names; empty of none."""
    facts = {"active_params": "drafter_params", "layers": "drafter_layers"}
    return {column: sizes[fact] for fact, column in facts.items() if not absent(sizes.get(fact))}


def _machine(c: Configuration, given: Values, where: str, own_name: bool) -> dict[str, Any]:
    """Columns that follow from the machine, or from the one that a text names.

    An environment is called after its machine, unless it has a name of its own, and always after
    the number of accelerators: of two numbers the servers differ.
    """
    gpus = c.gpus if "gpus" in given else None
    name, count = known, said = named(where)
    if c.machine:
        known, count = one_named(c.machine, gpus, "gb_per_s" in given)
        name, count = known or c.machine, count or (said if known == name else None)
    gpus = gpus or count or 1
    filled: dict[str, Any] = {"machine": name, "gpus": gpus, "dies": gpus}
    if known:
        m = Machine(known, gpus)
        filled |= {"dies": m.dies, "gb_per_s": m.gb_per_s}
        filled["tflops"] = m.tflops_at(c.weight_bits) or math.nan
        if not OTHER_GRAPHS.search(f"{known} {c.environment}"):
            filled["captured_tokens"] = float(captured(c.draft_tokens))
    filled = {k: x for k, x in filled.items() if k not in given or k == "machine"}
    stated, number = named(c.environment)
    label = so_many(name, gpus) if gpus > 1 or not own_name else ""
    if (stated, number or 1) == (name, gpus) or label.lower() in c.environment.lower():
        return filled
    unnamed = c.environment == "unknown"
    return filled | {"environment": label if unnamed else f"{c.environment} / {label}"}


def _drafter_size(verifier: str, values: Values) -> Values:
    """Fields of a Size of a known model, or of a head for one; empty where it is not known."""
    name, method = str(values["drafter"]), str(values.get("drafter_method", ""))
    if is_head(method):
        return drafter_of(verifier, method.lower())
    # Other heads may be called what their verifier is called and are much smaller.
    return of_name(name) if method in ("", "draft_model") else {}


def _alike(given: Any, known: Any) -> bool:
    """Whether a size that was given may be that of the known model, counted in another way."""
    try:
        return absent(given) or known / 2 <= number(given) <= 2 * known
    except ValueError:
        return False  # refused with the configuration


def configure(values: Values) -> Configuration:
    """Check a configuration under canonical names and fill what follows from the rest."""
    v = {key: value for key, value in values.items() if not absent(value)}
    hardware, own_name = shown(str(v.get("hardware", "")).strip()), "environment" in v
    parts = [str(v.pop(key)).strip() for key in ("hardware", "engine") if key in v]
    v.setdefault("environment", " / ".join(parts) or "unknown")
    # A method alone says that there is a drafter: n-grams have no model to name. And a head's name.
    v.setdefault("drafter", v.get("drafter_method", NO_DRAFTER))
    if is_head(str(v["drafter"])):
        v.setdefault("drafter_method", str(v["drafter"]).lower())
    plain = str(v["drafter"]).strip().lower() == NO_DRAFTER
    names = {str(v.get(key, "")).strip().lower() for key in ("drafter", "drafter_method")}
    if names & {*WEIGHTLESS}:
        v.setdefault("drafter_params", 0)
    if plain:
        v["drafter"] = NO_DRAFTER
        v.setdefault("draft_tokens", 0)
    verifier = str(v.get("verifier", ""))
    known = of_name(verifier)
    v.setdefault("weight_bits", known.get("weight_bits") or bits_of(verifier) or 16.0)
    if "verifier_params" not in v:
        v = verifier_sizes(known) | v
    size = {} if plain else drafter_sizes(_drafter_size(verifier, v))
    if size and _alike(v.get("drafter_params"), size["drafter_params"]):
        v = size | v
    for key in ("verifier", "verifier_params", "draft_tokens"):
        if key not in v:
            alike = near(verifier) if key == "verifier_params" else ""
            raise InputError(f"{key} is missing; {GIVE.format(key)}{alike}")
    stated = record(Configuration, v)
    family = stated.family or ("moe" if stated.experts else "dense")
    filled: dict[str, Any] = {"family": family, "arm": stated.arm or ("plain" if plain else "sd")}
    if family == "dense" and "verifier_active_params" not in v:
        filled["verifier_active_params"] = stated.verifier_params
    for key in ("verifier_active_params", "experts_per_token"):
        if family == "moe" and (key not in v or not getattr(stated, key)):
            raise InputError(f"{key} is missing for a moe verifier; {GIVE.format(key)}")
    filled |= _machine(stated, v, hardware or stated.environment, own_name)
    config = stated.model_copy(update=filled)
    for problem in _problems(config):
        raise InputError(problem)
    # Nothing is drafted, so no acceptance was imposed, whatever the metadata's filler says.
    unused = ["acceptance_imposed"] if config.draft_tokens == 0 else []
    unused += ["drafter_params", "drafter_layers"] if plain else []
    return config.model_copy(update=dict.fromkeys(unused, math.nan))
