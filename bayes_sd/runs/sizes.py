"""How large a model is: from numbers, or from the config.json of its checkpoint."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from bayes_sd.errors import LARGEST, InputError, require
from bayes_sd.runs.checkpoint import config_of, drafter_of, is_head, near, sizes_of

GIGA = 1e9
WEIGHTLESS = ("ngram", "[ngram]", "ngram_gpu", "suffix", "prompt_lookup", "prompt-lookup")
LIMITS = {"weight_bits": (2, 64), "queries_per_key": (1, 1024)}
NO_WEIGHTS = 1.0  # parameters of what has none
KV_WIDTH_MAX = 1024.0  # eight key-value heads of 128: grouped queries in nearly all large models


def typical_layers(active: Any, total: Any) -> Any:
    """Layers of a transformer of `N`, the geometric mean of both in 1e9: ``25 N^0.29``.

    That is 37% above Llama-3.1-8B, 54% above Qwen2.5-7B and 30% below Qwen3-0.6B.
    """
    return 25.0 * (active * total) ** 0.145


def typical_kv_gb(active: Any, layers: Any) -> Any:
    """Keys and values of one token in 16 bits, GB: ``4 bytes x layers x min(width, 1024)``.

    ``width = sqrt(N / 12 layers)``; with guessed layers three times that of Qwen2.5-7B.
    """
    width = (active * GIGA / (12 * layers)) ** 0.5
    narrow = (width + KV_WIDTH_MAX - abs(width - KV_WIDTH_MAX)) / 2  # the smaller, by operators
    return 4e-9 * layers * narrow


def features(
    params: Any,
    active: Any,
    experts: Any = 0,
    per_token: Any = 0,
    layers: Any = np.nan,
    kv_bytes: Any = np.nan,
    queries_per_key: Any = np.nan,
) -> dict[str, Any]:
    """What the cost law knows of models, in 1e9; typical depth where it is NaN.

    ``active = shared + (m / M) expert`` and ``total = shared + expert`` give both parts.
    """
    params, active = np.asarray(params, float) / GIGA, np.asarray(active, float) / GIGA
    experts, per_token = np.asarray(experts, float), np.asarray(per_token, float)
    moe = (experts > per_token) & (experts > 0)
    # The idle share of a dense model multiplies nothing; 0.5 keeps its log finite.
    idle = np.where(moe, 1 - per_token / np.where(moe, experts, 1), 0.5)
    expert = np.where(moe, (params - active) / idle, 0.0)
    layers, kv_gb = np.asarray(layers, float), np.asarray(kv_bytes, float) / GIGA
    layers = np.where(np.isnan(layers), typical_layers(active, params), layers)
    kv_gb = np.where(np.isnan(kv_gb), typical_kv_gb(active, layers), kv_gb)
    queries, width = np.asarray(queries_per_key, float), (active * GIGA / (12 * layers)) ** 0.5
    as_wide = np.maximum(width * 4e-9 * layers / kv_gb, 1.0)  # all heads together as the model
    return {
        "active": active,
        "shared": params - expert,
        "expert": expert,
        "idle": idle,
        "log_idle": np.log(idle),
        "moe": moe.astype(float),
        "layers": layers,
        "kv_gb": kv_gb,
        "queries": np.where(np.isnan(queries), as_wide, queries),
    }


def contradictions(
    params: float, active: float, experts: int, per_token: int, prefix: str = ""
) -> Iterator[str]:
    """What cannot all be true of one model."""
    least = params * per_token / max(experts, 1)
    if not min(experts, 1) <= per_token <= experts:
        yield f"experts_per_token is {per_token} of {experts} experts; allowed: 1 to all, or 0 of 0"
    if active > params:
        yield f"{prefix}active_params {active:g} is more than {prefix}params {params:g}"
    # Counts are often given rounded to three digits.
    elif per_token < experts and active < least * (1 - 1e-6):
        share = f"{per_token} of {experts} experts"
        yield f"{prefix}active_params {active:g} is less than the {least:g} of {share}"


@dataclass(frozen=True)
class Size:
    """A model given by its size only, as a verifier or drafter that nobody measured.

    Parameters
    ----------
    params : float
        Parameters without embedding and head, a count (``8e9``).
    active_params : float, optional
        Parameters used for one token; equal to `params` for a dense model.
    experts, experts_per_token : int
        Experts of a layer and how many a token uses; 0 for a dense model.
    layers, kv_bytes : float, optional
        Layers, and bytes of one token's keys and values; by default what is typical at this size,
        which can be off by 50% and by a factor of 3.
    queries_per_key : float, optional
        Query heads that share a key-value head; by default as for heads as wide as the model.
    weight_bits : float, optional
        Bits of a weight on average, with the scales of blocks of weights; by default 16. The
        weights are ``params * weight_bits / 8`` bytes.
    name : str
        What it is called in answers.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> bsd.Size(30e9, active_params=3e9, experts=128, experts_per_token=8).label
    'new 3e+10 (3e+09 active, 8/128 experts)'
    """

    params: float
    active_params: float | None = None
    experts: int = 0
    experts_per_token: int = 0
    layers: float | None = None
    kv_bytes: float | None = None
    queries_per_key: float | None = None
    weight_bits: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for field in fields(self)[:-1]:
            value, zero_allowed = getattr(self, field.name), field.default == 0
            if value is None and field.default is None:
                continue
            low, high = LIMITS.get(field.name, (1, LARGEST))
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            fits = is_number and (low <= value <= high or (value == 0 and zero_allowed))
            least, count = ("0, or a", "whole count") if zero_allowed else ("a", "count")
            form = f" (a {count}, as in 8e9)" if high == LARGEST else ""
            fits = fits and not (zero_allowed and value % 1)
            require(field.name, value, fits, f"{least} number from {low} to {high:g}{form}")
        if self.experts > self.experts_per_token > 0 and self.active_params is None:
            raise InputError(f"{self.label}: a mixture of experts needs active_params.")
        for text in contradictions(self.params, self.active, self.experts, self.experts_per_token):
            raise InputError(f"{self.label}: {text}.")

    @classmethod
    def read(cls, path: str | Path) -> "Size":
        """Size of a checkpoint, from its ``config.json``, or of a known model, from its name.

        Attention, feed-forward and router matrices of all blocks are counted; norms, embedding and
        head, which stay in 16 bits, are not. The head that a drafting head reads in each step is.
        Keys and values are those of layers that attend to the whole context, or to a window of at
        least 4,096 tokens; linear, Mamba and narrower ones hold what does not grow. Two blocks of
        Nemotron-H are one layer. Bits are those of the quantization or the name, else as stored.

        Parameters
        ----------
        path : path
            The checkpoint's folder, its ``config.json``, or a name such as ``Qwen/Qwen3-32B``.
        """
        return cls._of(path, sizes_of)

    @classmethod
    def drafter(cls, method: str, verifier: str | Path) -> "Size":
        """Size of a head that drafts for a verifier, given as in :meth:`read`, as published.

        `method` is ``eagle`` or ``eagle3``, one dense block, or ``mtp``, one like the verifier's.
        """
        return cls._of(verifier, lambda content: drafter_of(content, method), method)

    @classmethod
    def _of(
        cls, path: str | Path, sizes: Callable[[Any], dict[str, Any]], name: str = ""
    ) -> "Size":
        file = Path(path)
        file = file / "config.json" if file.is_dir() else file
        beside = file.with_name("hf_quant_config.json")
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(config, dict) and beside.is_file():
                quantized = json.loads(beside.read_text(encoding="utf-8"))
                config.setdefault("quantization_config", quantized)
        except OSError as error:
            problem = f"{file}: cannot be read ({error.strerror}){near(str(path))}"
            problem += "; the sizes of another can be given, as params=8e9,layers=32"
            if file.exists() or (config := config_of(str(path))) is None:
                raise InputError(problem) from None
        except ValueError:
            raise InputError(f"{file}: is not JSON; a checkpoint's config.json is needed") from None
        try:
            there = file.parent if file.is_file() else file
            return cls(**sizes(config), name=name or there.name)
        except InputError as error:
            problem = f"{file}: {error.message.rstrip('.')}"
            raise InputError(f"{problem}; give the model's sizes instead") from None

    @classmethod
    def public(cls, name: str, verifier: str = "") -> "Size | None":
        """Size of a public model by name, or of what drafts for one, by method; else None.

        Examples
        --------
        >>> import bayes_sd as bsd
        >>> bsd.Size.public("eagle3", "Qwen3-8B") == bsd.Size.drafter("eagle3", "Qwen3-8B")
        True
        """
        if name.lower() in WEIGHTLESS:
            return cls(NO_WEIGHTS, name=name)
        if is_head(name):
            return cls.drafter(name.lower(), verifier) if config_of(verifier) else None
        return cls.read(name) if config_of(name) else None

    @property
    def active(self) -> float:
        """Parameters used for one token."""
        return self.params if self.active_params is None else self.active_params

    @property
    def label(self) -> str:
        """Name for display; equal for all answers about one new model."""
        if self.name:
            return self.name
        moe = f", {self.experts_per_token}/{self.experts} experts" if self.experts else ""
        depth = "" if self.layers is None else f", {self.layers:g} layers"
        bits = "" if self.weight_bits in (None, 16) else f", {self.weight_bits:.3g} bits"
        return f"new {self.params:g} ({self.active:g} active{moe}{depth}{bits})"

    def features(self) -> dict[str, float]:
        """What the cost law knows of this model, see ``bayes_sd.runs.sizes.features``."""
        known = (self.layers, self.kv_bytes, self.queries_per_key)
        depth = [np.nan if x is None else x for x in known]
        values = features(self.params, self.active, self.experts, self.experts_per_token, *depth)
        return {name: float(value) for name, value in values.items()}

    def drafter_features(self) -> dict[str, float]:
        """What the cost law knows of it as a drafter, of one layer if nothing is said."""
        return {"drafter": self.active / GIGA, "drafter_layers": float(self.layers or 1)}
