"""Parameters of a model from the config.json of its checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayes_sd.errors import InputError

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token")


@dataclass(frozen=True)
class ModelSize:
    """Parameters without embedding and head (counts); experts are 0 in a dense model."""

    params: int
    active_params: int
    experts: int = 0
    experts_per_token: int = 0
    layers: int | None = None
    hidden: int | None = None
    kv_bytes: int | None = None  # keys and values of one token in 16 bits

    @property
    def family(self) -> str:
        """``moe`` or ``dense``."""
        return "moe" if self.experts else "dense"


def read_size(folder: str | Path) -> ModelSize:
    """Size of a Llama-like or mixture-of-experts checkpoint.

    Counts the attention, feed-forward and router matrices of every block, not the norms, which
    cost nothing, nor embedding and head, which are not part of a block.

    Parameters
    ----------
    folder : path
        Checkpoint folder with a ``config.json``.

    Raises
    ------
    InputError
        If there is no such file, or it lacks what is needed.

    Examples
    --------
    >>> read_size("models/dense-25m").params  # doctest: +SKIP
    25690112
    """
    file = Path(folder) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise InputError(
            f"{file}: is not JSON; the config.json of a checkpoint is needed"
        ) from None
    if not isinstance(config, dict):
        raise InputError(f"{file}: is not a JSON object; the config.json of a checkpoint is needed")
    return size_of(config.get("text_config", config), str(file))


def size_of(config: dict[str, Any], where: str) -> ModelSize:
    """Size from the content of a ``config.json``; `where` names it in errors."""

    def whole(*names: str, default: int | None = None) -> int:
        for name in names:
            value = config.get(name)
            if isinstance(value, int) and value > 0:
                return value
            if value is not None:
                raise InputError(f"{where}: {name} must be a positive whole number, got {value!r}")
        if default is None:
            raise InputError(f"{where}: {names[0]} is missing; give the sizes in the plan instead")
        return default

    hidden, layers = whole("hidden_size"), whole("num_hidden_layers")
    heads = whole("num_attention_heads")
    head = whole("head_dim", default=hidden // heads)
    key_value = whole("num_key_value_heads", default=heads)
    kv_bytes = 4 * layers * head * key_value
    attention = 2 * hidden * head * (heads + key_value)
    if not any(name in config for name in EXPERTS):
        block = attention + 3 * hidden * whole("intermediate_size")
        sizes = layers * block
        return ModelSize(sizes, sizes, layers=layers, hidden=hidden, kv_bytes=kv_bytes)
    experts, per_token = whole(*EXPERTS), whole(*EXPERTS_PER_TOKEN)
    expert = 3 * hidden * whole("moe_intermediate_size", "intermediate_size")
    shared = attention + hidden * experts
    return ModelSize(
        layers * (shared + experts * expert),
        layers * (shared + per_token * expert),
        experts,
        per_token,
        layers,
        hidden,
        kv_bytes,
    )
