"""Small checkpoints whose acceptance is known by construction, for vLLM's CPU build.

    uv run benchmarks/testbed.py FOLDER --preset tiny|laptop|full

The output projection of every block is zero, so the residual stream carries the current token's
embedding to the head, and the head maps it to the next token of one fixed cycle through the
vocabulary. A drafter follows the same cycle on a share ``alpha`` of the tokens and leaves it on
the others. Acceptance is then ``alpha`` at every position, independently, while a pass costs what
it costs in any model of the shape: every matrix is multiplied, every expert routed to.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bayes_sd.errors import InputError

VOCABULARY = 4096
WEIGHT_SD = 0.02  # as in initialized models
CYCLE_SEED = 20240521  # one cycle for all checkpoints: any drafter fits any verifier
BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class Shape:
    """A Llama-like model, or Qwen3-MoE-like if it has experts."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    experts: int = 0
    experts_per_token: int = 0

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads):
            raise InputError(
                f"hidden is {self.hidden} with {self.heads} heads; it must be an even multiple"
            )
        if not min(self.experts, 1) <= self.experts_per_token <= self.experts:
            raise InputError(f"{self}: needs 1 <= experts_per_token <= experts, or 0 of both")


# Head sizes are multiples of 32: the attention kernels of vLLM's CPU build want that.
SHAPES = {
    "tiny": Shape(64, 2, 2, 128),
    "tiny-moe": Shape(64, 2, 2, 64, 4, 2),
    "tiny-draft": Shape(64, 1, 2, 64),
    "dense-12m": Shape(384, 7, 6, 1024),
    "dense-25m": Shape(512, 8, 8, 1408),
    "dense-60m": Shape(704, 10, 11, 1984),
    "dense-115m": Shape(896, 12, 14, 2432),
    "dense-200m": Shape(1024, 16, 16, 2816),
    "dense-400m": Shape(1280, 20, 20, 3456),
    "moe-e8k2": Shape(768, 10, 12, 1024, 8, 2),
    "moe-e16k2": Shape(768, 10, 12, 768, 16, 2),
    "moe-e32k4": Shape(768, 8, 12, 384, 32, 4),
    "draft-3m": Shape(192, 3, 3, 512),
    "draft-12m": Shape(384, 6, 6, 1024),
}
# Name to verifiers, drafters and acceptances.
PRESETS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[float, ...]]] = {
    "tiny": (("tiny", "tiny-moe"), ("tiny-draft",), (0.8,)),
    "laptop": (("dense-25m", "dense-60m", "moe-e8k2"), ("draft-3m",), (0.6, 0.8)),
    "full": (
        tuple(name for name in SHAPES if name.startswith(("dense", "moe"))),
        ("draft-3m", "draft-12m"),
        (0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    ),
}


def write_testbed(
    folder: str | Path,
    verifiers: Sequence[str],
    drafters: Sequence[str] = (),
    acceptances: Sequence[float] = (),
    shapes: Mapping[str, Shape] = SHAPES,
) -> list[Path]:
    """Write a checkpoint a verifier, and ``NAME-aPERCENT`` a drafter and acceptance."""
    for name in (*verifiers, *drafters):
        if name not in shapes:
            raise InputError(f"unknown model {name!r}; known are {', '.join(shapes)}")
    for wanted in acceptances:
        if not 0 <= wanted <= 1:
            raise InputError(f"acceptance must lie between 0 and 1, got {wanted}")
    if drafters and not acceptances:
        raise InputError("drafters need acceptances; give at least one between 0 and 1")
    for name in drafters:
        if shapes[name].experts:
            raise InputError(f"drafter {name!r} has experts; drafters are dense")
    root = Path(folder)
    jobs: list[tuple[Path, Shape, float | None]] = []
    jobs += [(root / name, shapes[name], None) for name in verifiers]
    jobs += [
        (root / f"{name}-a{100 * alpha:g}", shapes[name], alpha)
        for name in drafters
        for alpha in acceptances
    ]
    for path, shape, alpha in jobs:
        if not (path / "config.json").is_file():
            write_checkpoint(path, shape, alpha)
    return [path for path, _, _ in jobs]


def write_checkpoint(path: Path, shape: Shape, acceptance: float | None = None) -> None:
    """Write one checkpoint, a drafter if it has an acceptance; its folder appears when complete."""
    try:
        from safetensors import TensorSpec, serialize_file
    except ImportError:
        raise InputError("writing checkpoints needs the package safetensors") from None
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        arrays = {name: _bfloat16(array) for name, array in _tensors(shape, acceptance)}
        tensors = {
            name: TensorSpec(
                dtype=BFLOAT16, shape=list(a.shape), data_ptr=a.ctypes.data, data_len=a.nbytes
            )
            for name, a in arrays.items()
        }
        serialize_file(tensors, str(partial / "model.safetensors"), {"format": "pt"})
        for name, content in _files(shape, acceptance).items():
            (partial / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def successors(acceptance: float | None = None) -> np.ndarray:
    """Next token of each token: of a verifier, or of a drafter with an acceptance."""
    rng = np.random.default_rng(CYCLE_SEED)
    order = rng.permutation(VOCABULARY)
    after = np.empty(VOCABULARY, dtype=np.int64)
    after[order] = np.roll(order, -1)
    if acceptance is None:
        return after
    wrong = rng.permutation(VOCABULARY)[round(acceptance * VOCABULARY) :]
    # Swapped among themselves: still one successor each, and never the right one.
    after[wrong] = after[np.roll(wrong, 1)] if wrong.size > 1 else after[order[0]]
    return after


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """Upper half of the float's bits, rounded; NumPy has no such type, so as whole numbers."""
    return ((array.view(np.uint32) + 0x8000) >> 16).astype("<u2")


def _tensors(shape: Shape, acceptance: float | None) -> Iterator[tuple[str, np.ndarray]]:
    """Every weight of a checkpoint under its name."""
    rng = np.random.default_rng([CYCLE_SEED, *astuple(shape)])
    h = shape.hidden

    def random(*dims: int) -> np.ndarray:
        return WEIGHT_SD * rng.standard_normal(dims, dtype=np.float32)

    embedding = random(VOCABULARY, h)
    head = np.empty_like(embedding)
    head[successors(acceptance)] = embedding
    yield "model.embed_tokens.weight", embedding
    yield "lm_head.weight", head / WEIGHT_SD
    yield "model.norm.weight", np.ones(h, np.float32)
    for i in range(shape.layers):
        block = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{block}.{norm}.weight", np.ones(h, np.float32)
        for name in "qkv":
            yield f"{block}.self_attn.{name}_proj.weight", random(h, h)
        yield f"{block}.self_attn.o_proj.weight", np.zeros((h, h), np.float32)
        if shape.experts:
            for name in "qk":
                weight = np.ones(h // shape.heads, np.float32)
                yield f"{block}.self_attn.{name}_norm.weight", weight
            yield f"{block}.mlp.gate.weight", random(shape.experts, h)
        feeds = [f".experts.{e}" for e in range(shape.experts)] or [""]
        for feed in feeds:
            yield f"{block}.mlp{feed}.gate_proj.weight", random(shape.feed_forward, h)
            yield f"{block}.mlp{feed}.up_proj.weight", random(shape.feed_forward, h)
            yield (
                f"{block}.mlp{feed}.down_proj.weight",
                np.zeros((h, shape.feed_forward), np.float32),
            )


def _files(shape: Shape, acceptance: float | None) -> dict[str, Any]:
    """Configuration and tokenizer: words of their own number."""
    moe = bool(shape.experts)
    config: dict[str, Any] = {
        "architectures": ["Qwen3MoeForCausalLM" if moe else "LlamaForCausalLM"],
        "model_type": "qwen3_moe" if moe else "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.hidden // shape.heads,
        "intermediate_size": shape.feed_forward,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": BFLOAT16,
        "max_position_embeddings": 8192,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "bayes_sd_acceptance": acceptance,
    }
    if moe:
        config |= {
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.experts_per_token,
            "moe_intermediate_size": shape.feed_forward,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    words = {f"t{i}": i for i in range(VOCABULARY)}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
    }
    return {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 8192,
        },
    }


def main() -> None:
    """Write the checkpoints of a preset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--preset", choices=PRESETS, default="laptop")
    options = parser.parse_args()
    print("\n".join(map(str, write_testbed(options.folder, *PRESETS[options.preset]))))


if __name__ == "__main__":
    main()
