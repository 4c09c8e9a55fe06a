"""Who served a run: verifier, drafter, draft tokens, environment; numbers as files write them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bayes_sd.errors import InputError
from bayes_sd.physics.acceptance import DRAFT_TOKENS_MAX

ALIASES = {
    "num_speculative_tokens": "draft_tokens",
    "acceptance": "acceptance_imposed",
    "target_acceptance": "acceptance_imposed",
}
GIVE = "give it as an argument, in a sidecar or in the file's metadata (--metadata {0}=...)"
LARGEST_COUNT = 9e18  # what 64 bits hold
NO_DRAFTER = "none"


def number(value: Any) -> float:
    """Any float, also written as a string, also NaN or infinite."""
    if isinstance(value, bool) or value is None:
        raise ValueError(f"must be a number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"must be a number, got {value!r}") from None


def _checked(rule: str, allowed: Callable[[float], bool]) -> Callable[[Any], float]:
    """A function that refuses numbers that are not allowed, and says the rule."""

    def check(value: Any) -> float:
        x = number(value)
        if not allowed(x):
            raise ValueError(f"must {rule}, got {value!r}")
        return x

    return check


def _whole(value: Any, least: int) -> int:
    """A whole number that 64 bits hold."""
    x = number(value)
    if not (least <= x <= LARGEST_COUNT and x == int(x)):
        most = f" and at most {LARGEST_COUNT:g}" if LARGEST_COUNT < x < math.inf else ""
        raise ValueError(f"must be a whole number of at least {least}{most}, got {value!r}")
    return int(x)


positive = _checked("be a positive finite number", lambda x: 0 < x < math.inf)
nonnegative = _checked("be a finite number of at least 0", lambda x: 0 <= x < math.inf)
finite = _checked("be a finite number", math.isfinite)
positive_or_infinite = _checked("be a positive number or 'inf'", lambda x: x > 0)
fraction = _checked("lie between 0 and 1", lambda x: 0 <= x <= 1)

Number = Annotated[float, BeforeValidator(number)]
Positive = Annotated[float, BeforeValidator(positive)]
NonNegative = Annotated[float, BeforeValidator(nonnegative)]
Finite = Annotated[float, BeforeValidator(finite)]
PositiveOrInfinite = Annotated[float, BeforeValidator(positive_or_infinite)]
Fraction = Annotated[float, BeforeValidator(fraction)]
Count = Annotated[int, BeforeValidator(lambda value: _whole(value, 0))]
PositiveCount = Annotated[int, BeforeValidator(lambda value: _whole(value, 1))]


def absent(value: Any) -> bool:
    """Whether a cell or a metadata value says nothing: None, NaN or blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    return isinstance(value, float) and math.isnan(value)


def finite_or_none(value: Any) -> Any:
    """Plain values for JSON, NumPy's too, with None for NaN and infinities, all the way down."""
    if isinstance(value, Mapping):
        return {str(k): finite_or_none(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(v) for v in value]
    if hasattr(value, "tolist"):
        return finite_or_none(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sentence(error: ValidationError) -> str:
    """First complaint of pydantic as one sentence that names the field."""
    first = error.errors()[0]
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    field = "".join(parts).removeprefix(".")
    if first["type"] == "missing":
        return f"{field} is missing"
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


class Record(BaseModel):
    """Part of a file of another tool: unknown keys are ignored, null is the same as no key."""

    model_config = ConfigDict(extra="ignore", frozen=True)

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
    """One server, checked for contradictions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verifier: str = Field(min_length=1)
    verifier_params: Positive
    verifier_active_params: Positive
    verifier_layers: Positive = math.nan
    verifier_kv_bytes: Positive = math.nan
    family: Literal["dense", "moe"]
    experts: Count = 0
    experts_per_token: Count = 0
    drafter: str = NO_DRAFTER
    drafter_params: NonNegative = math.nan
    drafter_method: str = ""
    drafter_path: str = ""
    draft_tokens: Annotated[Count, Field(le=DRAFT_TOKENS_MAX)]
    arm: Literal["plain", "sd"]
    acceptance_imposed: Fraction = math.nan
    environment: str = "unknown"

    @model_validator(mode="after")
    def _consistent(self) -> "Configuration":
        for problem in _contradictions(self):
            raise ValueError(problem)
        return self


NAMES = (*Configuration.model_fields, "hardware", "engine")
KNOWN = (*NAMES, *ALIASES)
TEXTS = ("verifier", "drafter", "drafter_method", "drafter_path", "environment")


def _contradictions(c: Configuration) -> Iterator[str]:
    plain, name_it = c.drafter == NO_DRAFTER, "but there is no drafter; name the drafter"
    if plain and c.draft_tokens > 0:
        yield f"draft_tokens is {c.draft_tokens} {name_it} or set draft_tokens to 0"
    if plain and c.arm == "sd":
        yield f"arm is sd {name_it} or set arm to plain"
    if plain and c.drafter_params > 0:
        yield f"drafter_params is {c.drafter_params:g} {name_it}"
    for name in ("drafter_method", "drafter_path"):
        if plain and getattr(c, name):
            yield f"{name} is {getattr(c, name)!r} {name_it}"
    if c.arm == "plain" and not plain:
        yield f"arm is plain but drafter is {c.drafter!r}; a plain run has drafter none"
    if c.arm == "plain" and c.acceptance_imposed > 0:
        yield f"acceptance_imposed is {c.acceptance_imposed:g} in a plain run; give 0 or nothing"
    for name in ("experts", "experts_per_token"):
        if c.family == "dense" and getattr(c, name) > 0:
            yield f"family is dense but {name} is {getattr(c, name)}; a dense model has 0"
    if c.family == "moe" and c.experts < 1:
        yield "family is moe but experts is 0; give the number of experts"
    if c.family == "moe" and c.experts_per_token < 1:
        yield f"experts_per_token is missing for a moe verifier; {GIVE.format('experts_per_token')}"
    if c.experts_per_token > c.experts:
        yield f"experts_per_token {c.experts_per_token} is more than experts {c.experts}"
    active = f"verifier_active_params {c.verifier_active_params:g}"
    least = c.verifier_params * c.experts_per_token / max(c.experts, 1)
    if c.verifier_active_params > c.verifier_params:
        yield f"{active} is more than verifier_params {c.verifier_params:g}"
    elif 0 < c.experts_per_token < c.experts and c.verifier_active_params < least:
        share = f"{c.experts_per_token} in {c.experts} experts"
        yield f"{active} is less than the {least:g} of {share}"


def canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    """Known configuration keys under their own names, blanks dropped; InputError if two differ."""
    given = (key for key in KNOWN if not absent(values.get(key)))
    return merge((repr(key), {ALIASES.get(key, key): values[key]}) for key in given)


def merge(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Join (label, mapping) pairs; InputError that names both labels if two values differ."""
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for label, values in layers:
        for key, value in values.items():
            if key in merged and not _same(merged[key], value):
                problem = f"{key} is {merged[key]!r} in {origin[key]} but {value!r} in {label}"
                raise InputError(f"{problem}; give one value")
            if key not in merged:
                merged[key], origin[key] = value, label
    return merged


def _same(a: Any, b: Any) -> bool:
    try:
        return math.isclose(float(a), float(b), rel_tol=1e-9)
    except (TypeError, ValueError):
        return str(a).strip() == str(b).strip()


def configure(values: Mapping[str, Any]) -> Configuration:
    """Check a configuration under canonical names and fill what follows from the rest."""
    v = dict(values)
    parts = [str(v.pop(key)).strip() for key in ("hardware", "engine") if key in v]
    v.setdefault("environment", " / ".join(parts) or "unknown")
    for key in TEXTS:
        if isinstance(v.get(key), list | dict):
            raise InputError(f"{key} must be one name, got {str(v[key])[:40]}")
        if key in v:
            v[key] = str(v[key]).strip()
    for key in ("family", "arm"):
        if key in v:
            v[key] = str(v[key]).strip().lower()
    # A method alone says that there is a drafter: n-grams have no model to name.
    v.setdefault("drafter", v.get("drafter_method") or NO_DRAFTER)
    if v["drafter"].lower() == NO_DRAFTER:
        v["drafter"] = NO_DRAFTER
    for key in ("verifier", "verifier_params", "draft_tokens"):
        if key not in v:
            raise InputError(f"{key} is missing; {GIVE.format(key)}")
    v.setdefault("family", "moe" if _is_positive(v.get("experts")) else "dense")
    if v["family"] == "dense":
        v.setdefault("verifier_active_params", v["verifier_params"])
    elif "verifier_active_params" not in v:
        reason = "verifier_active_params is missing for a moe verifier"
        raise InputError(f"{reason}; {GIVE.format('verifier_active_params')}")
    v.setdefault("arm", "plain" if v["drafter"] == NO_DRAFTER else "sd")
    config = record(Configuration, v)
    # Nothing is drafted, so no acceptance was imposed, whatever the metadata's filler says.
    unused = {"acceptance_imposed": math.nan} if config.draft_tokens == 0 else {}
    if config.drafter == NO_DRAFTER or config.drafter_params == 0:
        unused["drafter_params"] = math.nan
    return config.model_copy(update=unused)


def _is_positive(value: Any) -> bool:
    try:
        return float(value) > 0
    except (TypeError, ValueError):
        return False
