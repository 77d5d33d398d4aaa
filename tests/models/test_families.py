"""config.json to sizes and back, in the forms that are found in the wild."""

import json

import pytest

from jaxloop.models.decoder import ModelShape, RopeScaling, count_parameters
from jaxloop.models.families import config_of, shape_of

LLAMA_32_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN25_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def as_version_5(config: dict) -> dict:
    """The same model as transformers 5 writes it."""
    config = dict(config)
    rope = config.pop("rope_scaling", None) or {"rope_type": "default"}
    config["rope_parameters"] = {**rope, "rope_theta": config.pop("rope_theta")}
    config["dtype"] = config.pop("torch_dtype")
    if config["model_type"] != "llama":
        config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
        config["sliding_window"] = None
    return config


@pytest.mark.parametrize(
    ("config", "millions"),
    # The sizes that the models are known by.
    [(LLAMA_32_1B, 1235.8), (QWEN25_05B, 494.0), (QWEN3_06B, 596.0)],
)
def test_published_models_have_their_size(config, millions):
    shape = shape_of(config)
    assert round(count_parameters(shape) / 1e6, 1) == millions
    assert shape_of(as_version_5(config)) == shape


def test_parts_of_the_families():
    llama, qwen2, qwen3 = map(shape_of, (LLAMA_32_1B, QWEN25_05B, QWEN3_06B))
    assert llama.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)
    assert (llama.rope_base, llama.norm_eps, llama.max_positions) == (5e5, 1e-5, 131072)
    assert (qwen2.head_dim, qwen2.qkv_bias, qwen2.out_bias) == (64, True, False)
    assert (qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias) == (128, True, False)
    biased = shape_of(LLAMA_32_1B | {"attention_bias": True, "mlp_bias": True})
    assert (biased.qkv_bias, biased.out_bias, biased.mlp_bias) == (True, True, True)


def test_silent_files_mean_the_defaults_of_the_family():
    llama = {k: v for k, v in LLAMA_32_1B.items() if "size" in k or "num" in k}
    llama |= {"architectures": ["LlamaForCausalLM"], "head_dim": None}
    del llama["num_key_value_heads"]
    shape = shape_of(llama)
    assert (shape.kv_heads, shape.head_dim, shape.tied) == (32, 64, False)
    assert (shape.rope_base, shape.norm_eps, shape.max_positions) == (1e4, 1e-6, 2048)
    qwen3 = {k: v for k, v in QWEN3_06B.items() if k != "head_dim"}
    assert shape_of(qwen3).head_dim == 128


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"architectures": None}, "must name one of"),
        ({"rope_scaling": YARN}, "rope_scaling.*yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.*dynamic"),
        ({"rope_parameters": YARN}, "rope_parameters.*yarn"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "same for all"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["sliding_attention"] * 24}, "sliding-window"),
        ({"quantization_config": {"quant_method": "awq"}}, "unquantised"),
        ({"auto_map": {"AutoModel": "modeling_x.X"}}, "own code is never run"),
        ({"hidden_act": "gelu"}, "hidden_act.*gelu"),
        ({"hidden_size": "896"}, "hidden_size.*'896'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": None}, "num_key_value_heads"),
        ({"num_key_value_heads": 4}, "14 heads cannot share 4"),
        ({"head_dim": 63}, "head_dim 63"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings.*true or false"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        shape_of(QWEN25_05B | change)


def test_all_problems_come_in_one_message():
    change = {"hidden_act": "gelu", "auto_map": {}, "vocab_size": None}
    with pytest.raises(ValueError, match=r"auto_map.*hidden_act.*vocab_size"):
        shape_of(QWEN25_05B | change)


def test_a_window_that_no_layer_uses_is_no_window():
    unused = QWEN25_05B | {"use_sliding_window": True, "max_window_layers": 24}
    assert shape_of(unused) == shape_of(QWEN25_05B)


@pytest.mark.parametrize(
    "shape",
    [
        shape_of(LLAMA_32_1B),
        shape_of(QWEN25_05B),
        shape_of(QWEN3_06B | {"attention_bias": True, "tie_word_embeddings": False}),
        shape_of(LLAMA_32_1B | {"attention_bias": True, "mlp_bias": True}),
        ModelShape(),
    ],
    ids=lambda shape: f"{shape.family}-{shape.width}-{shape.out_bias}",
)
def test_what_is_written_reads_back(shape):
    assert shape_of(json.loads(json.dumps(config_of(shape, "bfloat16")))) == shape


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (ModelShape(mlp_bias=True), "qwen2 has no mlp_bias"),
        (ModelShape(qk_norm=True), "qwen2 has no qk_norm"),
        (ModelShape(qkv_bias=False), "qwen2 has qkv_bias and no out_bias"),
        (ModelShape(family="llama", qkv_bias=True), "together or neither"),
        (ModelShape(family="qwen3", qkv_bias=False), "qwen3 has qk_norm"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.family,
)
def test_shapes_without_a_config_are_refused(shape, message):
    with pytest.raises(ValueError, match=f"cannot be written.*{message}"):
        config_of(shape, "float32")
