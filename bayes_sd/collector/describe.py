"""Who a run measured: the metadata keys that ``read_traces`` knows."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayes_sd.collector.plan import ConfigurationPlan, EnvironmentPlan
from bayes_sd.collector.sizes import ModelSize, read_size
from bayes_sd.errors import InputError


def metadata(c: ConfigurationPlan, environment: EnvironmentPlan) -> dict[str, Any]:
    """Metadata of a configuration's runs.

    Raises
    ------
    InputError
        If a size is neither given nor in the checkpoint, or the drafts cannot be as long.
    """
    verifier = _verifier_size(c)
    about: dict[str, Any] = {
        "configuration": c.name,
        "verifier": c.verifier or _short(c.model),
        "family": verifier.family,
        "verifier_params": verifier.params,
        "verifier_active_params": verifier.active_params,
        "experts": verifier.experts,
        "experts_per_token": verifier.experts_per_token,
        **_form("verifier", verifier),
        "arm": "plain" if c.arm == "plain" else "sd",
        "server_arm": c.arm,
        "hardware": environment.hardware,
    }
    if c.arm == "plain":
        return about | {"drafter": "none", "num_speculative_tokens": 0}
    about["drafter"] = c.drafter or _short(c.drafter_model or str(c.speculative["method"]))
    about |= _drafter(c)
    about["num_speculative_tokens"] = c.draft_tokens if c.arm == "sd" else 0
    if c.arm == "sd_k0":
        about["server_draft_tokens"] = c.draft_tokens
    elif c.acceptance is not None:
        about["target_acceptance"] = c.acceptance
    return about


def _short(model: str) -> str:
    return os.path.basename(model.rstrip("/"))


def _verifier_size(c: ConfigurationPlan) -> ModelSize:
    if c.verifier_params is None:
        return _read(c, c.model, "verifier_params")
    experts = c.experts or 0
    active = c.verifier_active_params
    if active is None and experts:
        raise InputError(f"{c.name}: verifier_active_params is missing for a moe verifier")
    active = c.verifier_params if active is None else active
    return ModelSize(int(c.verifier_params), int(active), experts, c.experts_per_token or 0)


def _drafter(c: ConfigurationPlan) -> dict[str, Any]:
    if c.drafter_params is not None:
        return {"drafter_params": c.drafter_params}
    if c.drafter_model is None:  # drafts without a model, from the prompt's own n-grams say
        return {"drafter_params": 0}
    size = _read(c, c.drafter_model, "drafter_params")
    return {"drafter_params": size.params, **_form("drafter", size)}


def _form(role: str, size: ModelSize) -> dict[str, Any]:
    form = {
        f"{role}_layers": size.layers,
        f"{role}_hidden": size.hidden,
        f"{role}_kv_bytes": size.kv_bytes,
    }
    return {key: value for key, value in form.items() if value is not None}


def _read(c: ConfigurationPlan, model: str, key: str) -> ModelSize:
    if not Path(model).is_dir():
        raise InputError(f"{c.name}: {key} is missing and {model!r} is no folder to read it from")
    try:
        return read_size(model)
    except InputError as error:
        raise InputError(f"{c.name}: {key} is missing, and {error}") from None


def portable(arguments: Sequence[str]) -> str:
    """Engine arguments as one line, folders cut to their names: nobody else has these paths."""
    return " ".join(_cut(word) for word in arguments)


def _cut(word: str) -> str:
    if word.startswith("{"):
        import json

        try:
            data = json.loads(word)
        except ValueError:
            return word
        return json.dumps({k: _cut(v) if isinstance(v, str) else v for k, v in data.items()})
    return os.path.basename(word.rstrip("/")) if os.path.isabs(word) else word
