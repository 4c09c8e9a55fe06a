"""Sizes: what is refused, what a config.json says, how wrong the assumed depth can be."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_sd.errors import InputError
from bayes_sd.runs import checkpoint
from bayes_sd.runs.sizes import Size, features, typical_kv_gb, typical_layers


@settings(max_examples=40)
@given(
    shared=st.floats(1e6, 1e12),
    expert=st.floats(1e6, 1e12),
    per_token=st.integers(1, 64),
    spare=st.integers(1, 192),
)
def test_parameters_are_split_into_shared_and_experts(
    shared: float, expert: float, per_token: int, spare: int
) -> None:
    experts = per_token + spare
    parts = features(shared + expert, shared + expert * per_token / experts, experts, per_token)
    slack = (shared + expert) * 1e-19
    assert parts["shared"] == pytest.approx(shared / 1e9, rel=1e-6, abs=slack)
    assert parts["expert"] == pytest.approx(expert / 1e9, rel=1e-6, abs=slack)
    assert np.exp(parts["log_idle"]) == pytest.approx(1 - per_token / experts)
    assert parts["moe"] == 1


def test_a_model_that_uses_all_its_experts_is_all_shared() -> None:
    parts = features([8e9, 1e9], [8e9, 1e9], [0, 4], [0, 4], [32, np.nan], [131072, np.nan])
    np.testing.assert_array_equal(parts["shared"], [8, 1])
    np.testing.assert_array_equal(parts["expert"], 0)
    np.testing.assert_array_equal(parts["moe"], 0)
    assert parts["layers"][0] == 32 and parts["layers"][1] == typical_layers(1.0, 1.0)
    assert parts["kv_gb"][0] == 131072e-9 and np.isfinite(parts["log_idle"]).all()


def test_a_size_has_the_features_of_its_numbers() -> None:
    size = Size(30e9, 3e9, 128, 8, layers=48)
    expected = features(30e9, 3e9, 128, 8, 48)
    assert size.features() == {name: float(value) for name, value in expected.items()}
    assert size.label == "new 3e+10 (3e+09 active, 8/128 experts, 48 layers)"
    assert Size(8e9).active == 8e9 and Size(8e9) == Size(8e9)
    assert Size(8e9, weight_bits=4.5).label == "new 8e+09 (8e+09 active, 4.5 bits)"


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"params": 0}, "params = 0: must be a number from 1 to 1e"),
        ({"params": True}, "params = True: must be a number"),
        ({"params": 1e9, "layers": "32"}, "layers = '32'"),
        ({"params": 1e9, "layers": 0}, "layers = 0: must be"),
        ({"params": 1e9, "kv_bytes": -1}, "kv_bytes = -1: must be"),
        (
            {"params": 1e9, "queries_per_key": 0.5},
            r"queries_per_key = 0.5: must be a number from 1 to 1024\.",
        ),
        ({"params": "8e9"}, "params = '8e9': must be a number"),
        ({"params": 1e300}, "must be a number from 1 to 1e"),
        ({"params": 1e-300}, "must be a number from 1 to 1e"),
        ({"params": 1e9, "layers": 1e300}, "layers = 1e.300: must be a number from 1 to"),
        ({"params": 1e9, "experts": 10**400}, "must be 0, or a number from 1 to"),
        ({"params": -1e9}, "must be a number from 1 to 1e"),
        ({"params": 1e9, "weight_bits": 1}, "weight_bits = 1: must be a number from 2 to 64"),
        ({"params": 1e9, "weight_bits": 65}, "weight_bits = 65: must be a number from 2 to 64"),
        ({"params": 1e9, "weight_bits": "8"}, "weight_bits = '8': must be a number from 2 to 64"),
        ({"params": float("nan")}, "params = nan: must be a number"),
        ({"params": float("inf")}, "params = inf: must be a number"),
        ({"params": 1e9, "active_params": 2e9}, r"active_params 2e\+09 is more than params 1e\+09"),
        ({"params": 1e9, "active_params": 0}, "active_params = 0: must be"),
        ({"params": 1e9, "experts": 8}, "experts_per_token is 0 of 8 experts; allowed"),
        ({"params": 1e9, "experts": 8, "experts_per_token": 2}, "needs active_params"),
        ({"params": 1e9, "active_params": 5e8, "experts": 8, "experts_per_token": 9}, "is 9 of 8"),
        (
            {"params": 1e9, "active_params": 5e8, "experts": 8, "experts_per_token": -1},
            "must be 0, or a number from 1",
        ),
        (
            {"params": 10e9, "active_params": 1e9, "experts": 8, "experts_per_token": 2},
            r"active_params 1e\+09 is less than the 2.5e\+09 of 2 of 8 experts",
        ),
    ],
)
def test_impossible_sizes_are_refused(numbers: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Size(**numbers)


LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "head_dim": None,
}
QWEN2_5_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
}
QWEN3_0_6B = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
}
QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}


PATTERN = checkpoint.PATTERN


def config(folder: Path, content: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("content", "params", "active", "layers"),
    [
        (LLAMA_8B, 6.98e9, 6.98e9, 32),
        (QWEN2_5_7B, 6.53e9, 6.53e9, 28),
        ({"text_config": QWEN3_0_6B}, 0.44e9, 0.44e9, 28),
        (QWEN3_30B_A3B, 29.9e9, 2.73e9, 48),
    ],
)
def test_sizes_of_public_models(
    tmp_path: Path, content: Any, params: float, active: float, layers: int
) -> None:
    size = Size.read(config(tmp_path, content))
    assert Size.read(tmp_path / "config.json") == size
    assert size.params == pytest.approx(params, rel=3e-3)
    assert size.active == pytest.approx(active, rel=3e-3) and size.layers == layers
    assert bool(size.experts) == (active < params)


@pytest.mark.parametrize(
    ("content", "layers_off", "kv_off"),
    [(LLAMA_8B, 0.37, 0.37), (QWEN2_5_7B, 0.54, 2.08), (QWEN3_0_6B, -0.30, -0.30)],
)
def test_how_wrong_the_typical_depth_is(
    tmp_path: Path, content: Any, layers_off: float, kv_off: float
) -> None:
    """The errors that the docstrings and check admit."""
    size = Size.read(config(tmp_path, content))
    assert size.layers is not None and size.kv_bytes is not None
    layers = typical_layers(size.params / 1e9, size.params / 1e9)
    assert layers / size.layers - 1 == pytest.approx(layers_off, abs=0.01)
    kv_gb = typical_kv_gb(size.params / 1e9, layers)
    assert kv_gb * 1e9 / size.kv_bytes - 1 == pytest.approx(kv_off, abs=0.01)


@pytest.mark.parametrize(
    ("name", "typical"), [("Llama-3.1-8B", 4.2), ("Qwen3-32B", 6.2), ("Qwen3-0.6B", 1.1)]
)
def test_query_heads_where_nothing_is_said_are_those_of_the_width(
    name: str, typical: float
) -> None:
    """They have 4, 8 and 2: heads of small models are wider together than the model."""
    size = Size.read(name)
    unsaid = replace(size, queries_per_key=None).features()
    assert unsaid["queries"] == pytest.approx(typical, abs=0.1)
    assert size.features()["queries"] == size.queries_per_key
    assert replace(size, queries_per_key=None, kv_bytes=1e9).features()["queries"] == 1


@settings(max_examples=40)
@given(size=st.floats(0.01, 100.0), share=st.floats(0.05, 1.0))
def test_typical_shapes_grow_with_size(size: float, share: float) -> None:
    layers = typical_layers(size, size)
    assert typical_layers(2 * size, 2 * size) > layers > typical_layers(share * size / 2, size)
    assert typical_kv_gb(size, 2 * layers) > typical_kv_gb(size, layers) > 0
    assert typical_kv_gb(size, layers) <= 4e-9 * layers * 1024 * (1 + 1e-12)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({**LLAMA_8B, "hidden_size": 0}, "hidden_size must be a positive whole number .*, got 0"),
        ({**LLAMA_8B, "hidden_size": 10**400}, "hidden_size must be .* at most 1e.07, got 1000"),
        ({**LLAMA_8B, "hidden_size": True}, "hidden_size must be a positive whole number"),
        ({"hidden_size": 64}, "num_hidden_layers is missing; give the model's sizes instead"),
        ({**LLAMA_8B, "num_experts": 8}, "num_experts_per_tok is missing"),
        ({**QWEN3_30B_A3B, "num_experts_per_tok": 129}, ".* experts_per_token is 129 of 128"),
        ({**LLAMA_8B, "num_key_value_heads": 7}, "num_key_value_heads 7 do not divide 32 heads"),
        ({**LLAMA_8B, "layer_types": ["full_attention"]}, "layer_types must say .* 32 layers"),
        ({**LLAMA_8B, "layer_types": ["mamba"] * 32}, r"layer_types must say .* \['mamba'"),
        ({**LLAMA_8B, "layer_types": ["linear_attention"] * 32}, "linear_num_key_heads is missing"),
        ({**LLAMA_8B, "block_configs": [{}]}, "block_configs makes blocks unlike"),
        ({**LLAMA_8B, PATTERN: "M*E-"}, rf"{PATTERN} must say M, \*, E or - for each of 32 blocks"),
        ({**LLAMA_8B, PATTERN: "M-" * 16}, "mamba_num_heads is missing"),
        ({**LLAMA_8B, "draft_vocab_size": None}, "draft_vocab_size is missing"),
        (
            {**LLAMA_8B, "quantization_config": {"quant_method": "gguf"}},
            "quantization_config .*gguf.* does not say the bits of weights",
        ),
        (
            {**LLAMA_8B, "quantization_config": {"quant_method": "gptq", "bits": 99}},
            "weight_bits = 99.0: must be a number from 2 to 64; give the model's sizes",
        ),
        (
            {**LLAMA_8B, "quantization_config": {"quant_method": "gptq", "bits": "4"}},
            "bits must be a whole number .*, got '4'",
        ),
        (
            {**LLAMA_8B, "architectures": ["ViTForImageClassification"]},
            r"is of \['ViTForImageClassification'\], which is no language model; give the model's",
        ),
        ([1], "is not a JSON object"),
        ({"text_config": 1}, "is not a JSON object"),
    ],
)
def test_a_config_that_lacks_something_is_refused(
    tmp_path: Path, content: Any, reason: str
) -> None:
    with pytest.raises(InputError, match=rf"config\.json: {reason}"):
        Size.read(config(tmp_path, content))


LISTED = tomllib.loads(Path(checkpoint.__file__).with_name("models.toml").read_text())


@pytest.mark.parametrize("names", LISTED)
def test_sizes_of_known_models_are_those_published(names: str) -> None:
    """Within 3%; active counts, with or without embedding and head, also within their rounding."""
    listed = LISTED[names]
    size = Size.read(names.split()[0])
    table = listed["vocab_size"] * listed["hidden_size"]
    both = table if listed.get("tie_word_embeddings") else 2 * table
    assert (size.params + both) / 1e9 == pytest.approx(listed["params"], rel=0.03)
    active = listed.get("active_params", listed["params"])
    last = 0.05 if isinstance(active, float) else 0.5
    off = min(abs((size.active + part) / 1e9 - active) for part in (0, table, both))
    assert off <= max(0.03 * active, last)
    assert ("active_params" in listed) == bool(size.experts)


@pytest.mark.parametrize(
    ("name", "kv_bytes", "queries"),
    [
        ("DeepSeek-R1", 61 * 2 * (512 + 64), 128),  # latent
        ("gpt-oss-120b", 18 * 4 * 8 * 64, 8),  # every second of 36 layers has a window of 128
        ("Gemma-3-27B", 10 * 4 * 16 * 128, 2),  # every sixth of 62 keeps all
        ("Qwen3-Next-80B-A3B", 12 * 4 * 2 * 256, 8),  # every fourth is not linear
        ("Llama-4-Scout-17B-16E", 48 * 4 * 8 * 128, 5),  # chunks of 8,192 hold most requests
        ("Nemotron-3-Nano-30B-A3B", 6 * 4 * 2 * 128, 16),  # of 52 blocks 6 have attention
    ],
)
def test_keys_and_values_of_layers_that_keep_all(name: str, kv_bytes: int, queries: int) -> None:
    size = Size.read(name)
    assert (size.kv_bytes, size.queries_per_key) == (kv_bytes, queries)


@pytest.mark.parametrize(
    ("scheme", "share"), [({"num_bits": 8, "type": "float"}, 0.5), (None, 1), ("fp8", 1)]
)
def test_keys_and_values_quantized_with_the_checkpoint(
    tmp_path: Path, scheme: Any, share: float
) -> None:
    quantized = {**LLAMA_8B, "quantization_config": {"kv_cache_scheme": scheme}}
    assert Size.read(config(tmp_path, quantized)).kv_bytes == share * 131072


NVFP4 = {"num_bits": 4, "type": "float", "group_size": 16}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "group_size": None}
SHARE = 2 * 4096 * 128 * 40 / (2 * 4096 * 128 * 40 + 3 * 4096 * 14336)  # of attention


def linear(weights: Any, **more: Any) -> dict[str, Any]:
    """What compressed-tensors says of weights."""
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, **more}


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        (None, 16),
        (linear(FP8, ignore=["lm_head"]), 8),
        (linear({"num_bits": 4, "type": "int", "group_size": 128}), 4.125),
        (linear(NVFP4), 4.5),
        (linear(None), 16),
        (linear(NVFP4, ignore=["re:.*self_attn.*"]), 4.5 + 11.5 * SHARE),
        (linear(NVFP4, ignore=["model.layers.0.self_attn*"]), 4.5 + 11.5 * SHARE / 32),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8),
        ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}, 8),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4.125),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": None}, 4.5),
        ({"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}, 8),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, 4.15),
        ({"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}, 8),
        (
            {
                "quant_method": "modelopt",
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {
                    "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
                    "model.layers.0.mlp.up_proj": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
                },
            },
            4.5 + 3.5 * SHARE,
        ),
    ],
)
def test_bits_of_a_quantized_weight(tmp_path: Path, scheme: Any, bits: float) -> None:
    content = {**LLAMA_8B, "torch_dtype": "bfloat16", "quantization_config": scheme}
    assert Size.read(config(tmp_path, content)).weight_bits == pytest.approx(bits)


def test_routed_experts_decide_the_bits_of_a_mixture(tmp_path: Path) -> None:
    """Beside them 3% of the weights are attention, which is not named and keeps 16 bits."""
    shared = {f"layers.0.mlp.shared_expert.{x}_proj": {"quant_algo": "FP8"} for x in ("up", "down")}
    layers = {"layers.0.mlp.experts": {"quant_algo": "NVFP4"}, **shared}
    content = {**QWEN3_30B_A3B, "quantization_config": {"quantized_layers": layers}}
    bits = Size.read(config(tmp_path, content)).weight_bits
    share = 48 * 2 * 2048 * 128 * 36 / Size.read("Qwen3-30B-A3B").params
    assert bits == pytest.approx(4.5 + 11.5 * share)


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("float16", 16), ("auto", 16)])
def test_bits_of_a_type(tmp_path: Path, dtype: str, bits: float) -> None:
    assert Size.read(config(tmp_path, {**LLAMA_8B, "dtype": dtype})).weight_bits == bits


def test_a_quantization_may_lie_beside_the_config(tmp_path: Path) -> None:
    beside = {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": None}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    assert Size.read(config(tmp_path, LLAMA_8B)).weight_bits == pytest.approx(4.5)


def gigabytes(size: Size) -> float:
    """What the weights take."""
    assert size.weight_bits is not None
    return size.params * size.weight_bits / 8e9


@pytest.mark.parametrize(
    ("name", "gb"), [("gpt-oss-120b", 60.8 * 1.024**3), ("gpt-oss-20b", 12.8 * 1.024**3)]
)
def test_weights_and_tables_fill_the_checkpoint(name: str, gb: float) -> None:
    """Sizes of checkpoints in the model card; embedding and head have 16 bits."""
    tables = 2 * 2 * 201088 * 2880 / 1e9
    assert gigabytes(Size.read(name)) + tables == pytest.approx(gb, rel=0.01)


def test_the_checkpoint_of_deepseek_v3_with_its_mtp_head() -> None:
    """688.6 GB; of the head 11.5e9 parameters are its own, 2.4e9 are used with both tables."""
    table, head = 129280 * 7168, Size.drafter("mtp", "DeepSeek-V3")
    both = gigabytes(Size.read("DeepSeek-V3")) + gigabytes(head) + 2 * table / 1e9
    assert both == pytest.approx(688.587, rel=0.01)
    assert head.params - table == pytest.approx(11.5e9, rel=0.01)
    assert head.active + table == pytest.approx(2.4e9, rel=0.06)
    assert head.layers == 1 and (head.experts, head.experts_per_token) == (256, 8)


@pytest.mark.parametrize(
    ("verifier", "own", "table"),
    [
        ("Llama-2-7B", 0.24e9, 32000 * 4096),
        ("Llama-2-13B", 0.37e9, 32000 * 5120),
        ("Llama-2-70B", 0.99e9, 32000 * 8192),
        ("Llama-3-8B", 0.25e9, 128256 * 4096),
    ],
)
def test_published_eagle_heads(verifier: str, own: float, table: int) -> None:
    """Published without the head of the verifier, to two digits."""
    head = Size.drafter("eagle", verifier)
    assert head.params - table == pytest.approx(own, rel=0.03) and head.experts == 0


EAGLE3 = {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1}
QWEN3_HEAD = {"draft_vocab_size": 32000, "vocab_size": 151936, "head_dim": 128, **EAGLE3}


@pytest.mark.parametrize(
    ("content", "params"),
    [
        (  # with four norms, and numbers for each token of both vocabularies
            {
                **EAGLE3,
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "draft_vocab_size": 32000,
                "vocab_size": 151936,
            },
            202_700_416 - 4 * 2560 - 32000 - 151936,
        ),
        ({**LLAMA_8B, **EAGLE3, "draft_vocab_size": 32000}, 849e6 / 2),
        ({**LLAMA_8B, "num_hidden_layers": 1, "draft_vocab_size": 32000}, 849e6 / 2),
        (
            {
                "architectures": ["Eagle3Speculator"],
                "draft_vocab_size": 32000,
                "transformer_layer_config": {**LLAMA_8B, "num_hidden_layers": 1},
            },
            849e6 / 2,
        ),
    ],
)
def test_published_eagle3_heads(tmp_path: Path, content: Any, params: float) -> None:
    head = Size.read(config(tmp_path, content))
    assert head.params == head.active == pytest.approx(params, rel=1e-3) and head.layers == 1


@pytest.mark.parametrize(
    ("verifier", "hidden", "width", "kv_heads", "heads", "off"),
    [
        ("Qwen3-8B", 4096, 12288, 8, 32, 0),
        ("Qwen3-32B-FP8", 5120, 25600, 8, 64, 0),
        ("Qwen3-30B-A3B", 2048, 12288, 4, 32, 0),
        ("Qwen3-235B-A22B", 4096, 24576, 4, 64, 0),
        ("Qwen3-Coder-480B-A35B", 6144, 16384, 8, 96, 0.44),  # the narrowest
    ],
)
def test_an_eagle3_head_looks_as_those_trained(
    *, tmp_path: Path, verifier: str, hidden: int, width: int, kv_heads: int, heads: int, off: float
) -> None:
    """Against the head's own config.json."""
    shape = {"hidden_size": hidden, "intermediate_size": width, "num_attention_heads": heads}
    trained = Size.read(config(tmp_path, QWEN3_HEAD | shape | {"num_key_value_heads": kv_heads}))
    head = Size.drafter("eagle3", verifier)
    assert head.params / trained.params - 1 == pytest.approx(off, abs=0.01)
    assert head.kv_bytes == trained.kv_bytes and head.weight_bits == 16


def test_a_head_of_a_folder(tmp_path: Path) -> None:
    head = Size.drafter("eagle3", config(tmp_path, LLAMA_8B | {"vocab_size": 128256}))
    assert head == Size.drafter("eagle3", "Llama-3.1-8B")
    assert checkpoint.drafter_of("Llama-3.1-8B-FP8", "eagle3")["params"] == head.params
    assert checkpoint.drafter_of("unknown", "eagle3") == {}
    mtp = Size.drafter("mtp", "Nemotron-3-Super-120B-A12B")
    assert mtp.layers == 1 and mtp.experts == 512
    assert Size.drafter("mtp", "Nemotron-Nano-9B-v2").experts == 0


@pytest.mark.parametrize(("hidden", "kv_heads"), [(7168, 8), (2560, 4)])  # DeepSeek's, MiniCPM3's
def test_a_head_for_latent_attention_has_plain_attention(
    tmp_path: Path, hidden: int, kv_heads: int
) -> None:
    latent = {"kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
    verifier = LLAMA_8B | latent | {"hidden_size": hidden, "vocab_size": 32000}
    head = Size.drafter("eagle", config(tmp_path, verifier))
    attention = 2 * hidden * (hidden + 128 * kv_heads)
    assert head.params == attention + hidden * (3 * 14336 + 2 * hidden + 32000)
    assert head.kv_bytes == 2 * 2 * 128 * kv_heads


@pytest.mark.parametrize("method", ["ngram", "draft_model", "medusa"])
def test_methods_without_a_head_are_refused(method: str) -> None:
    allowed = "allowed: eagle, eagle2, eagle3, mtp .without weights has drafter_params 0"
    with pytest.raises(InputError, match=f"'{method}' is no head; {allowed.replace('.', '.*', 1)}"):
        Size.drafter(method, "Llama-3.1-8B")
    with pytest.raises(InputError, match="cannot be read .*; models known by name are Qwen3-32B"):
        Size.drafter("eagle3", "Qwen3-33B")


def test_layer_types_and_pattern_say_the_same(tmp_path: Path) -> None:
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(32)]
    by_type = {**LLAMA_8B, "sliding_window": 128, "layer_types": kinds}
    by_pattern = {**LLAMA_8B, "sliding_window": 128, "sliding_window_pattern": 2}
    size = Size.read(config(tmp_path, by_type))
    assert size == Size.read(config(tmp_path, by_pattern)) and size.kv_bytes == 131072 / 2
    wide = Size.read(config(tmp_path, {**by_type, "sliding_window": 4096}))
    assert wide.kv_bytes == 131072


@pytest.mark.parametrize(
    ("name", "known", "bits"),
    [
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen3-30B-A3B", 16),
        ("/models/Meta-Llama-3.1-8B-Instruct-FP8/", "Llama-3.1-8B", 8),
        ("x/Meta-Llama-3.1-70B-Instruct-quantized.w4a16", "Llama-3.1-70B", 4.15),
        ("Qwen/Qwen3-32B-AWQ", "Qwen3-32B", 4.15),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "Qwen2.5-7B", 8),
        ("nvidia/Qwen3-32B-NVFP4", "Qwen3-32B", 4.5),
        ("unsloth/Qwen3-8B-bnb-4bit", "Qwen3-8B", 4.15),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "Nemotron-3-Nano-30B-A3B", 16),
        ("unsloth/DeepSeek-R1-BF16", "DeepSeek-R1", 16),
        ("deepseek-ai/DeepSeek-V3-0324", "DeepSeek-V3", 8),
        ("mistralai/Mistral-7B-Instruct-v0.3", "Mistral-7B", 16),
        ("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", None, None),
        ("Llama-8B", None, None),
        ("", None, None),
    ],
)
def test_names_that_are_known(name: str, known: str | None, bits: float | None) -> None:
    size, expected = (checkpoint.of_name(x) for x in (name, known or ""))
    assert size.pop("weight_bits", None) == (bits and pytest.approx(bits))
    expected.pop("weight_bits", None)
    assert size == expected and bool(size) == bool(known)


def test_a_folder_comes_before_a_known_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "Qwen3-32B").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        Size.read("Qwen3-33B")
    assert Size.read(config(folder, LLAMA_8B)) == Size.read("Qwen3-32B") != Size.read("Qwen3-14B")


def test_an_unknown_name_is_refused_with_those_like_it() -> None:
    with pytest.raises(InputError, match="cannot be read .*; models known by name are Qwen3-32B"):
        Size.read("Qwen/Qwen3-33B")
    with pytest.raises(
        InputError, match=r"cannot be read \([\w ]+\); the sizes of another can be given"
    ):
        Size.read("my-model")


def test_a_config_that_is_not_there_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Size.read(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff{")
    with pytest.raises(InputError, match="is not JSON"):
        Size.read(tmp_path)
