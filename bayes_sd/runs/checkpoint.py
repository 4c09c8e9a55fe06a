"""How large a checkpoint is: from its config.json, or, of a known model, from its name."""

import difflib
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bayes_sd.errors import InputError

WIDEST = 1e7  # any number in a config.json that a size depends on
WRITES = re.compile("CausalLM|LMHead|Generation|Eagle|Draft|MTP")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token")
SPARSE_STEP = ("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_freq")
UNGATED = ("gpt_neox", "nemotron", "phi", "starcoder2")  # two feed-forward matrices, not three
UNLIKE = ("block_configs", "hybrid_override_pattern", "mamba_d_state", "moe_num_experts")
FULL, LINEAR, WINDOW = "full_attention", "linear_attention", "sliding_attention"
KINDS = (FULL, LINEAR, WINDOW, "chunked_attention")
WIDE = 4096  # tokens of a window that holds most requests whole
# Words of a name that say how a model was trained on or stored, not how large it is.
OTHER_WORDS = re.compile(
    r"[-_](instruct|chat|it|hf|base|thinking|reasoning|coder|math|\d{4}|v[01]\.\d|dynamic|fp[48]|"
    r"nvfp4|mxfp4|bf16|int[48]|awq|gptq|bnb|\dbit|quantized|(quantized\.)?w\d+a\d+)(?=[-_]|$)"
)
BITS = re.compile(r"(?<![a-z])(?:(?:nv|mx)?fp|int|w)(4|8|16|32)(?!\d)|(?<!\d)([2-8])[-_ ]?bit")


def sizes_of(content: Any) -> dict[str, Any]:
    """Fields of a Size, from the content of a ``config.json``."""
    outer = content
    if isinstance(content, Mapping):  # of a model that sees, the part that writes
        content = content.get("text_config") or content
    if not isinstance(content, Mapping):
        raise InputError("is not a JSON object; a checkpoint's config.json is needed")
    c = {**outer, **content}
    if (kind := c.get("architectures")) and not WRITES.search(str(kind)):
        raise InputError(f"is of {str(kind)[:80]}, which is no language model")
    if odd := next(filter(c.get, UNLIKE), None):
        raise InputError(f"{odd} makes blocks unlike")
    hidden, kinds = _whole(c, "hidden_size"), _layers(c)
    attention, kv_values = _attention(c, hidden, kinds)
    matrices = hidden * (2 if c.get("model_type") in UNGATED else 3)
    layers, experts = len(kinds), _whole(c, *EXPERTS, default=0)
    sparse = per_token = expert = always = 0
    if experts:
        first = _whole(c, "first_k_dense_replace", default=0)
        sparse = max(layers - first, 0) // _whole(c, *SPARSE_STEP, default=1)
        per_token = _whole(c, *EXPERTS_PER_TOKEN)
        expert = matrices * _whole(c, "moe_intermediate_size", "intermediate_size")
        # Llama 4, of the two widths, has one shared expert and does not say so.
        shared = _whole(c, "n_shared_experts", default=int("intermediate_size_mlp" in c))
        wide = _whole(c, "shared_expert_intermediate_size", default=0)
        always = sparse * (hidden * experts + shared * expert + matrices * wide)
    if sparse < layers:
        width = _whole(c, "intermediate_size_mlp", "intermediate_size")
        always += (layers - sparse) * matrices * width
    total, active = (attention + always + sparse * n * expert for n in (experts, per_token))
    counts = {"experts": experts, "experts_per_token": per_token, "layers": layers}
    local = _whole(c, "sliding_window", "attention_chunk_size", default=WIDE) < WIDE
    growing = sum(kind == FULL or (kind != LINEAR and not local) for kind in kinds) or layers
    scheme: Any = c  # of keys and values that the checkpoint has in fewer than 16 bits
    for name in ("quantization_config", "kv_cache_scheme"):
        scheme = (scheme.get(name) or {}) if isinstance(scheme, Mapping) else {}
    bits = _whole(scheme, "num_bits", default=16) if isinstance(scheme, Mapping) else 16
    kv_bytes = growing * kv_values * bits / 8
    return {"params": total, "active_params": active, **counts, "kv_bytes": kv_bytes}


def _whole(c: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of these numbers that is there."""
    least = 0 if default == 0 else 1
    for name in names:
        value = c.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= WIDEST:
            return value
        if value is not None:
            rule = f"a {'positive ' * least}whole number of at most {WIDEST:g}"
            raise InputError(f"{name} must be {rule}, got {value!r}")
    if default is None:
        raise InputError(f"{names[0]} is missing")
    return default


def _layers(c: Mapping[str, Any]) -> list[Any]:
    """What each layer attends to."""
    kinds, layers = c.get("layer_types"), _whole(c, "num_hidden_layers")
    if kinds is None:
        every = _whole(c, "full_attention_interval", "sliding_window_pattern", default=1)
        other = LINEAR if c.get("full_attention_interval") else WINDOW
        return [other if (i + 1) % every else FULL for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or {*map(str, kinds)} - {*KINDS}:
        rule = f"must say {', '.join(KINDS)} for each of {layers} layers"
        raise InputError(f"layer_types {rule}, got {str(kinds)[:60]}")
    return kinds


def _attention(c: Mapping[str, Any], hidden: int, kinds: list[Any]) -> tuple[int, int]:
    """Parameters of all layers' attention, and values kept of a token in one that keeps all."""
    heads, linear = _whole(c, "num_attention_heads"), kinds.count(LINEAR)
    if c.get("kv_lora_rank") is not None:  # latent attention keeps what it projects from
        shape = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
        rank, rope, nope, inner = (_whole(c, name) for name in shape)
        low, query = _whole(c, "q_lora_rank", default=0), heads * (nope + rope)
        params = hidden * (rank + rope + heads * inner) + rank * heads * (nope + inner)
        params += low * (hidden + query) if low else hidden * query
        return len(kinds) * params, rank + rope
    head = _whole(c, "head_dim", default=max(hidden // heads, 1))
    kv_heads = _whole(c, "num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise InputError(f"num_key_value_heads {kv_heads} do not divide {heads} heads")
    params, kv_values = len(kinds) * 2 * hidden * head * (heads + kv_heads), 2 * head * kv_heads
    if linear:  # of Qwen3-Next, which gates what the other layers' heads give
        key = _whole(c, "linear_num_key_heads") * _whole(c, "linear_key_head_dim")
        value = _whole(c, "linear_num_value_heads") * _whole(c, "linear_value_head_dim")
        one = hidden * head * (3 * heads + 2 * kv_heads)
        params = (len(kinds) - linear) * one + linear * hidden * (2 * key + 3 * value)
    return params, kv_values


def _plain(name: str) -> str:
    """A model's name in lower case, without its owner and words on training or storage."""
    last = name.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")
    return OTHER_WORDS.sub("", last)


@cache
def _models() -> dict[str, tuple[str, dict[str, Any]]]:
    """Names and configurations of known models, by plain name."""
    listed = tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))
    return {_plain(name): (name, c) for names, c in listed.items() for name in names.split()}


def of_name(name: str) -> dict[str, Any]:
    """Fields of a Size of a known model; empty where the name is not known."""
    known = _models().get(_plain(name))
    return sizes_of(known[1]) if known else {}


def near(name: str) -> str:
    """Names of known models like this one, as the end of a message."""
    alike = difflib.get_close_matches(_plain(name), _models(), cutoff=0.75)
    return f"; models known by name are {', '.join(_models()[n][0] for n in alike)}" * bool(alike)


def bits_of(name: str) -> float | None:
    """Bits of a weight that a quantization, or a checkpoint's name, tells; AWQ and GPTQ have 4."""
    if said := BITS.search(name.lower()):
        return float(said[1] or said[2])
    return 4.0 if re.search("awq|gptq", name.lower()) else None
