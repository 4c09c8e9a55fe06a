"""Shapes of test models: named ones, and others from a YAML file."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bayes_sd.errors import InputError
from bayes_sd.traces.numbers import sentence


class Shape(BaseModel):
    """A Llama-like model, or Qwen3-MoE-like if it has experts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    feed_forward: int = Field(ge=8)
    experts: int = Field(default=0, ge=0)
    experts_per_token: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "Shape":
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(
                f"hidden is {self.hidden} with {self.heads} heads; it must be an even multiple"
            )
        if bool(self.experts) != bool(self.experts_per_token):
            raise ValueError("experts and experts_per_token must be given together or not at all")
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token {self.experts_per_token} is more than experts {self.experts}"
            )
        return self


def _shape(hidden: int, layers: int, heads: int, feed_forward: int, *moe: int) -> Shape:
    experts, per_token = moe or (0, 0)
    return Shape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        feed_forward=feed_forward,
        experts=experts,
        experts_per_token=per_token,
    )


# Head sizes are multiples of 32: the attention kernels of vLLM's CPU build want that.
SHAPES = {
    "tiny": _shape(64, 2, 2, 128),
    "tiny-moe": _shape(64, 2, 2, 64, 4, 2),
    "tiny-draft": _shape(64, 1, 2, 64),
    "dense-12m": _shape(384, 7, 6, 1024),
    "dense-25m": _shape(512, 8, 8, 1408),
    "dense-60m": _shape(704, 10, 11, 1984),
    "dense-115m": _shape(896, 12, 14, 2432),
    "dense-200m": _shape(1024, 16, 16, 2816),
    "dense-400m": _shape(1280, 20, 20, 3456),
    "moe-e8k2": _shape(768, 10, 12, 1024, 8, 2),
    "moe-e16k2": _shape(768, 10, 12, 768, 16, 2),
    "moe-e32k4": _shape(768, 8, 12, 384, 32, 4),
    "draft-3m": _shape(192, 3, 3, 512),
    "draft-12m": _shape(384, 6, 6, 1024),
}
PRESETS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[float, ...]]] = {
    # name: verifiers, drafters, acceptances
    "tiny": (("tiny", "tiny-moe"), ("tiny-draft",), (0.8,)),
    "laptop": (("dense-25m", "dense-60m", "moe-e8k2"), ("draft-3m",), (0.6, 0.8)),
    "full": (
        tuple(name for name in SHAPES if name.startswith(("dense", "moe"))),
        ("draft-3m", "draft-12m"),
        (0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    ),
}


def read_shapes(path: str | Path) -> dict[str, Shape]:
    """Shapes from YAML: a name to hidden, layers, heads, feed_forward (and experts).

    Raises
    ------
    InputError
        If the file cannot be read or a shape is impossible.
    """
    path = Path(path)
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(data, dict) or not data:
        raise InputError(f"{path}: is not a mapping of model names to shapes")
    shapes = {}
    for name, values in data.items():
        if not isinstance(values, dict):
            raise InputError(f"{path}: {name} is not a mapping; give {_known()}")
        unknown = [key for key in values if key not in Shape.model_fields]
        if unknown:
            raise InputError(f"{path}: {name} has unknown key {unknown[0]!r}; known are {_known()}")
        try:
            shapes[str(name)] = Shape(**values)
        except ValidationError as error:
            raise InputError(f"{path}: {name}: {sentence(error)}") from None
    return shapes


def _known() -> str:
    return ", ".join(Shape.model_fields)
