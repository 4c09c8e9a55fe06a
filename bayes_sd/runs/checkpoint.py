"""How large a checkpoint or a drafting head is: from its config.json or a known model's name."""

import difflib
import math
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
WIDE_SHARED = ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
UNGATED = ("gpt_neox", "nemotron", "nemotron_h", "phi", "starcoder2")  # two matrices, not three
PATTERN = "hybrid_override_pattern"  # of Mamba (M), attention (*), experts (E), feed-forward (-)
UNLIKE = ("block_configs", "layers_block_type", "mamba_d_state", "moe_num_experts")
FULL, LINEAR, WINDOW = "full_attention", "linear_attention", "sliding_attention"
KINDS = (FULL, LINEAR, WINDOW, "chunked_attention")
WIDE = 4096  # tokens of a window that holds most requests whole
# Words of a name that say how a model was trained on or stored, not how large it is.
OTHER_WORDS = re.compile(
    r"[-_](instruct|chat|it|hf|base|(?<!k2-)thinking|reasoning|coder|math|\d{4}|v[01]\.\d|dynamic|"
    r"fp[48]|nvfp4|mxfp4|bf16|int[48]|awq|gptq|bnb|\dbit|quantized|(quantized\.)?w\d+a\d+)(?=[-_]|$)"
)
# Bits of a weight and of its part of a scale, by words of a name or a quantization_config.
STORED = {"mxfp4": 4.25, "fp4": 4.5, r"fp8|float8|(?<![a-z])int8|w8a|8-?bit": 8.0}
STORED |= {r"(?<![a-z])int4|w4a|4-?bit|awq|gptq": 4.15, "float32": 32.0, "bf16|float16": 16.0}
IGNORED = ("ignore", "exclude_modules", "modules_to_not_convert")
ATTENTION, FORWARD = r"attn|attention|mixer\.(in|out|[qkvo])_proj", "mlp|expert"
ROUTED = "(?<!shared_)experts"  # nearly all that feeds forward, where there are any
EAGLE = ("eagle", "eagle2", "eagle3")
# What the block of a head is spared, of MTP and, more, of EAGLE, whose blocks are as in Llama.
MTP_LACKS = (*SPARSE_STEP, "first_k_dense_replace", "layer_types", "full_attention_interval")
EAGLE_LACKS = (*EXPERTS, PATTERN, "model_type", "kv_lora_rank", "dtype", "quantization_config")
EAGLE3_TOKENS = 32_000  # that nearly all EAGLE-3 heads choose from


def sizes_of(content: Any) -> dict[str, Any]:
    """Fields of a Size, from the content of a ``config.json``."""
    outer = _as(dict, content)  # of a model that sees, the part that writes; of a head, its block
    inner = outer.get("text_config") or outer.get("transformer_layer_config") or content
    if not isinstance(inner, Mapping):
        raise InputError("is not a JSON object; a checkpoint's config.json is needed")
    c = {**outer, **inner}
    if (kind := c.get("architectures")) and not WRITES.search(str(kind)):
        raise InputError(f"is of {str(kind)[:80]}, which is no language model")
    if odd := next(filter(c.get, UNLIKE), None):
        raise InputError(f"{odd} makes blocks unlike")
    hidden, kinds, experts = _whole(c, "hidden_size"), _layers(c), _whole(c, *EXPERTS, default=0)
    attention, kv_values, columns, queries = _attention(c, hidden, [k for k in kinds if k in KINDS])
    first, step = _whole(c, "first_k_dense_replace", default=0), _whole(c, *SPARSE_STEP, default=1)
    layers: float = len(kinds)
    sparse = max(len(kinds) - first, 0) // step if experts else 0
    dense = len(kinds) - sparse
    if c.get(PATTERN):  # a block is half a layer: it mixes tokens or feeds forward
        layers, sparse, dense = layers / 2, kinds.count("E"), kinds.count("-")
        heads = _whole(c, "mamba_num_heads")
        state = 2 * _whole(c, "n_groups") * _whole(c, "ssm_state_size") + heads
        mamba = hidden * (3 * heads * _whole(c, "mamba_head_dim") + state)
        attention += kinds.count("M") * mamba
    gates = 2 if c.get("model_type") in UNGATED else 3
    per_token = expert = always = 0
    if sparse:
        per_token, latent = _whole(c, *EXPERTS_PER_TOKEN), _whole(c, "moe_latent_size", default=0)
        width = gates * _whole(c, "moe_intermediate_size", "intermediate_size")
        expert = sparse * width * (latent or hidden)
        # Llama 4, of the two widths, has one shared expert and does not say so.
        shared = width * _whole(c, "n_shared_experts", default=int("intermediate_size_mlp" in c))
        shared = gates * _whole(c, *WIDE_SHARED, default=0) or shared
        always = sparse * hidden * (experts + shared + 2 * latent)
    if dense:
        always += dense * gates * hidden * _whole(c, "intermediate_size_mlp", "intermediate_size")
    head, routed, (low, high) = _head(c, hidden, columns), experts * expert, _bits(c, len(kinds))
    total = attention + always + routed + head
    bits = (attention * low + (always + routed) * high + head * 16) / total
    local = _whole(c, "sliding_window", "attention_chunk_size", default=WIDE) < WIDE
    growing = sum(k == FULL or (k in KINDS[2:] and not local) for k in kinds) or layers
    # Of keys and values that the checkpoint has in fewer than 16 bits.
    scheme = _as(dict, _as(dict, c.get("quantization_config")).get("kv_cache_scheme"))
    kv_bytes = growing * kv_values * _whole(scheme, "num_bits", default=16) / 8
    counts: dict[str, Any] = {"experts": experts if sparse else 0, "experts_per_token": per_token}
    counts |= {"params": total, "active_params": total - routed + per_token * expert}
    counts |= {"layers": layers, "kv_bytes": kv_bytes, "queries_per_key": queries}
    return counts | {"weight_bits": bits}


def is_head(drafter: str) -> bool:
    """Whether a drafter's name, or its method's, is that of heads in general."""
    return drafter.lower() in EAGLE or drafter.lower().endswith("mtp")


def drafter_of(verifier: Any, method: str) -> dict[str, Any]:
    """Fields of a Size of a head for a config.json or a name; empty where that is not known."""
    if isinstance(verifier, str) and (verifier := config_of(verifier)) is None:
        return {}
    sparse = sizes_of(verifier)["experts"]  # and refuses what is no language model
    c = {**verifier, **(verifier.get("text_config") or {}), "text_config": None}
    block = c | dict.fromkeys(MTP_LACKS) | {"num_hidden_layers": 1, "drafts": method}
    if method.endswith("mtp"):
        if c.get(PATTERN):
            last = "*E" if sparse else "*-"
            block[PATTERN] = str(c.get("mtp_hybrid_override_pattern") or last)
            block["num_hidden_layers"] = len(block[PATTERN])
        return sizes_of(block)
    if method not in EAGLE:
        rule = "a drafter without weights has drafter_params 0, a draft model a size of its own"
        raise InputError(f"{method!r} is no head; allowed: {', '.join(EAGLE)}, mtp ({rule})")
    block |= dict.fromkeys((*EAGLE_LACKS, "torch_dtype", "intermediate_size_mlp"))
    if sparse:  # published heads are dense and 5 to 8 times as wide inside
        block["intermediate_size"] = 6 * c["hidden_size"]
    if c.get("kv_lora_rank"):  # and have plain attention
        n = c["hidden_size"] // 128
        heads = {"num_attention_heads": n, "num_key_value_heads": math.gcd(n, 8)}
        block |= heads | {"head_dim": 128}
    return sizes_of(block | ({"draft_vocab_size": EAGLE3_TOKENS} if method == "eagle3" else {}))


def _head(c: Mapping[str, Any], hidden: int, columns: int) -> int:
    """What a drafting head has beside its blocks: what joins states and what chooses a token."""
    said = (c.get(name) for name in ("drafts", "architectures", "speculators_model_type"))
    named = " ".join(map(str, said)).lower()
    third = "eagle3" in named or "draft_vocab_size" in c  # joins three states, reads them twice
    if not (third or "eagle" in named or "drafts" in c):
        return 0
    joined = 3 * _whole(c, "target_hidden_size", default=hidden) + columns if third else 2 * hidden
    return hidden * (joined + _whole(c, "draft_vocab_size", "vocab_size"))


def _bits(c: Mapping[str, Any], blocks: int) -> tuple[float, float]:
    """Bits of a weight of attention, and of what feeds forward."""
    plain = bits_of(c.get("torch_dtype") or c.get("dtype")) or 16.0
    scheme = _as(dict, c.get("quantization_config"))
    scheme = {**scheme, **_as(dict, scheme.get("quantization"))}  # as in hf_quant_config.json
    groups = (_as(dict, one) for one in _as(dict, scheme.get("config_groups")).values())
    named = [(x, g.get("weights")) for g in groups for x in _as(list, g.get("targets")) or [""]]
    named = [*_as(dict, scheme.get("quantized_layers")).items()] or named or [("", scheme)]
    found = [(str(name), _scheme_bits(_as(dict, one)) or plain) for name, one in named]
    rest = [x for name, x in found if not re.search(f"{ATTENTION}|{FORWARD}", name)] or [plain]
    low = [x for name, x in found if re.search(ATTENTION, name)] or rest
    fed = ([x for name, x in found if re.search(y, name)] for y in (ROUTED, FORWARD))
    high = next(filter(None, fed), rest)
    ignored = (str(x) for key in IGNORED for x in _as(list, scheme.get(key)))
    whole = [re.search(r"layers\W*(\d+)", x) for x in ignored if re.search(r"attn\W*$", x)]
    left = 1.0 if None in whole else len({x[1] for x in whole if x}) / blocks
    return left * plain + (1 - left) * sum(low) / len(low), sum(high) / len(high)


def _scheme_bits(scheme: Mapping[str, Any]) -> float | None:
    """Bits of a weight under a quantization and of its part of a scale; None where it has none."""
    if bits := _whole(scheme, "num_bits", "bits", default=0):
        group, scale = scheme.get("group_size"), 8 if scheme.get("type") == "float" else 16
        return bits + (scale / group if isinstance(group, int) and group > 0 else 0)
    words = [scheme.get(x) for x in ("quant_algo", "quant_type", "global_quant_config")]
    words += [scheme.get("quant_method"), *(x for x in scheme if x[:5] == "load_" and scheme[x])]
    if scheme.get("quant_method") and bits_of(words) is None:
        raise InputError(f"quantization_config {str(scheme)[:60]} does not say the bits of weights")
    return bits_of(words)


def bits_of(words: Any) -> float | None:
    """Bits of a weight of which this is said."""
    found = (bits for word, bits in STORED.items() if re.search(word, str(words).lower()))
    return next(found, None)


def _as[Kind: (dict, list)](kind: type[Kind], value: Any) -> Kind:
    return value if isinstance(value, kind) else kind()


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
    if pattern := c.get(PATTERN):
        if not re.fullmatch(rf"[M*E-]{{{layers}}}", str(pattern)):
            rule = f"must say M, *, E or - for each of {layers} blocks"
            raise InputError(f"{PATTERN} {rule}, got {str(pattern)[:60]!r}")
        return [FULL if kind == "*" else kind for kind in pattern]
    if kinds is None:
        every = _whole(c, "full_attention_interval", "sliding_window_pattern", default=1)
        other = LINEAR if c.get("full_attention_interval") else WINDOW
        return [other if (i + 1) % every else FULL for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or {*map(str, kinds)} - {*KINDS}:
        rule = f"must say {', '.join(KINDS)} for each of {layers} layers"
        raise InputError(f"layer_types {rule}, got {str(kinds)[:60]}")
    return kinds


def _attention(c: Mapping[str, Any], hidden: int, kinds: list[Any]) -> tuple[int, int, int, float]:
    """Parameters of all layers' attention; values that one keeps of a token; columns one reads;
    query heads that share what is kept."""
    heads, linear = _whole(c, "num_attention_heads"), kinds.count(LINEAR)
    if c.get("kv_lora_rank") is not None:  # latent attention keeps what it projects from
        shape = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
        rank, rope, nope, inner = (_whole(c, name) for name in shape)
        low, query = _whole(c, "q_lora_rank", default=0), heads * (nope + rope)
        params = hidden * (rank + rope + heads * inner) + rank * heads * (nope + inner)
        params += low * (hidden + query) if low else hidden * query
        return len(kinds) * params, rank + rope, (low or query) + rank + rope, heads
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
    return params, kv_values, head * (heads + 2 * kv_heads), heads / kv_heads


def _plain(name: str) -> str:
    """A model's name in lower case, without its owner and words on training or storage."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    return OTHER_WORDS.sub("", last.removeprefix("meta-").removeprefix("nvidia-"))


@cache
def _models() -> dict[str, tuple[str, dict[str, Any]]]:
    """Names and configurations of known models, by plain name."""
    listed = tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))
    return {_plain(name): (name, c) for names, c in listed.items() for name in names.split()}


def known_models() -> list[str]:
    """Names of the models that are known by name."""
    return [name for name, _ in _models().values()]


def config_of(name: str) -> dict[str, Any] | None:
    """Configuration of a known model, stored as words of the name say; None if it is not known."""
    words = [word[0] for word in OTHER_WORDS.finditer(name.rstrip("/").lower())]
    said = {"quantization_config": {"quant_algo": words}} if bits_of(words) else {}
    return _models()[_plain(name)][1] | said if _plain(name) in _models() else None


def of_name(name: str) -> dict[str, Any]:
    """Fields of a Size of a known model; empty where the name is not known."""
    return sizes_of(known) if (known := config_of(name)) else {}


def near(name: str) -> str:
    """Names of known models like this one, as the end of a message."""
    alike = difflib.get_close_matches(_plain(name), _models(), cutoff=0.75)
    return f"; models known by name are {', '.join(_models()[n][0] for n in alike)}" * bool(alike)
