"""Who served a run: verifier, drafter, draft tokens, environment."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bayes_sd.errors import InputError
from bayes_sd.physics.acceptance import DRAFT_TOKENS_MAX
from bayes_sd.traces.numbers import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    absent,
    sentence,
)

ALIASES = {
    "num_speculative_tokens": "draft_tokens",
    "acceptance": "acceptance_imposed",
    "target_acceptance": "acceptance_imposed",
}
GIVE = "give it through --metadata {0}=..., a sidecar or the argument {0}"


class Configuration(BaseModel):
    """One server configuration, checked for contradictions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verifier: str = Field(min_length=1)
    verifier_params: Positive
    verifier_active_params: Positive
    verifier_layers: Positive = math.nan
    verifier_kv_bytes: Positive = math.nan
    family: Literal["dense", "moe"]
    experts: Count = 0
    experts_per_token: Count = 0
    drafter: str = "none"
    drafter_params: NonNegative = math.nan
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


def _contradictions(c: Configuration) -> Iterable[str]:
    if c.drafter == "none" and c.draft_tokens > 0:
        yield (
            f"draft_tokens is {c.draft_tokens} but there is no drafter; "
            "name the drafter or set draft_tokens to 0"
        )
    if c.arm == "plain" and c.drafter != "none":
        yield f"arm is plain but drafter is {c.drafter!r}; a plain run has drafter none"
    if c.arm == "sd" and c.drafter == "none":
        yield "arm is sd but there is no drafter; name the drafter or set arm to plain"
    if c.drafter == "none" and c.drafter_params > 0:
        yield f"drafter_params is {c.drafter_params:g} but there is no drafter; name the drafter"
    if c.arm == "plain" and c.acceptance_imposed > 0:
        yield f"acceptance_imposed is {c.acceptance_imposed:g} in a plain run; give 0 or nothing"
    if c.family == "dense" and c.experts > 0:
        yield f"family is dense but experts is {c.experts}; a dense model has 0 experts"
    if c.family == "dense" and c.experts_per_token > 0:
        yield f"family is dense but experts_per_token is {c.experts_per_token}; give 0"
    if c.family == "moe" and c.experts < 1:
        yield "family is moe but experts is 0; give the number of experts"
    if c.family == "moe" and c.experts_per_token < 1:
        yield f"experts_per_token is missing for a moe verifier; {GIVE.format('experts_per_token')}"
    if c.experts_per_token > c.experts:
        yield f"experts_per_token {c.experts_per_token} is more than experts {c.experts}"
    if c.verifier_active_params > c.verifier_params:
        yield (
            f"verifier_active_params {c.verifier_active_params:g} is more than "
            f"verifier_params {c.verifier_params:g}"
        )
    elif 0 < c.experts_per_token < c.experts:
        least = c.verifier_params * c.experts_per_token / c.experts
        if c.verifier_active_params < least:
            yield (
                f"verifier_active_params {c.verifier_active_params:g} is less than the "
                f"{least:g} of {c.experts_per_token} in {c.experts} experts"
            )


def canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    """Known configuration keys of a mapping under their own names, blanks dropped.

    Raises
    ------
    InputError
        If a key and its alias disagree.
    """
    named = ((ALIASES.get(key, key), key) for key in KNOWN if not absent(values.get(key)))
    return merge((repr(key), {name: values[key]}) for name, key in named)


def merge(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Join configurations that were given in several places.

    Parameters
    ----------
    layers : iterable of (label, mapping)
        The label says where the mapping came from, for the error.

    Raises
    ------
    InputError
        If two layers give one key different values.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for label, values in layers:
        for key, value in values.items():
            if key in merged and not _same(merged[key], value):
                raise InputError(
                    f"{key} is {merged[key]!r} in {origin[key]} but {value!r} in {label}; "
                    "give one value"
                )
            if key not in merged:
                merged[key], origin[key] = value, label
    return merged


def _same(a: Any, b: Any) -> bool:
    try:
        return math.isclose(float(a), float(b), rel_tol=1e-9)
    except (TypeError, ValueError):
        return str(a).strip() == str(b).strip()


def configure(values: Mapping[str, Any]) -> Configuration:
    """Check a configuration under canonical names and fill what follows from the rest.

    Raises
    ------
    InputError
        If a required key is missing, a value is not allowed or two values contradict.
    """
    v = dict(values)
    parts = [str(v.pop(key)).strip() for key in ("hardware", "engine") if key in v]
    v.setdefault("environment", " / ".join(parts) or "unknown")
    for key in ("verifier", "drafter", "environment"):
        if isinstance(v.get(key), list | dict):
            raise InputError(f"{key} must be one name, got {str(v[key])[:40]}")
        if key in v:
            v[key] = str(v[key]).strip()
    for key in ("family", "arm"):
        if key in v:
            v[key] = str(v[key]).strip().lower()
    if v.get("drafter", "none").lower() == "none":
        v["drafter"] = "none"
    for key in ("verifier", "verifier_params", "draft_tokens"):
        if key not in v:
            raise InputError(f"{key} is missing; {GIVE.format(key)}")
    v.setdefault("family", "moe" if _positive(v.get("experts")) else "dense")
    if v["family"] == "dense":
        v.setdefault("verifier_active_params", v["verifier_params"])
    elif "verifier_active_params" not in v:
        reason = "verifier_active_params is missing for a moe verifier"
        raise InputError(f"{reason}; {GIVE.format('verifier_active_params')}")
    v.setdefault("arm", "plain" if v["drafter"] == "none" else "sd")
    try:
        config = Configuration(**v)
    except ValidationError as error:
        raise InputError(sentence(error)) from None
    # Nothing is drafted, so no acceptance was imposed, whatever the metadata's filler says.
    unused = {"acceptance_imposed": math.nan} if config.draft_tokens == 0 else {}
    if config.drafter == "none" or config.drafter_params == 0:
        unused["drafter_params"] = math.nan
    return config.model_copy(update=unused)


def _positive(value: Any) -> bool:
    try:
        return float(value) > 0
    except (TypeError, ValueError):
        return False
