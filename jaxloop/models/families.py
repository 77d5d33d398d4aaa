"""What Hugging Face calls our parameters and sizes: tensor names, and config.json.

The families here share their tensor names; they differ in which parts are there. A
layout string says how the axes that a leaf's name ends in (`jaxloop.models.decoder` has
the letters) lie in the file: letters written together are merged into one dimension
there, the first one outermost. "NH D" is a matrix with a row for each place of each
head, and a column for each place of the residual stream.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from jaxloop.models.decoder import ModelShape, RopeScaling
from jaxloop.models.mta import MtaShape

TENSORS = {
    "embed_VD": ("model.embed_tokens.weight", "V D"),
    "unembed_VD": ("lm_head.weight", "V D"),
    "final_norm_D": ("model.norm.weight", "D"),
    "head_DK": ("score.weight", "K D"),
    "layers/attn_norm_D": ("model.layers.{}.input_layernorm.weight", "D"),
    "layers/mlp_norm_D": ("model.layers.{}.post_attention_layernorm.weight", "D"),
    "layers/attn/q_DNH": ("model.layers.{}.self_attn.q_proj.weight", "NH D"),
    "layers/attn/k_DKH": ("model.layers.{}.self_attn.k_proj.weight", "KH D"),
    "layers/attn/v_DKH": ("model.layers.{}.self_attn.v_proj.weight", "KH D"),
    "layers/attn/o_NHD": ("model.layers.{}.self_attn.o_proj.weight", "D NH"),
    "layers/attn/q_bias_NH": ("model.layers.{}.self_attn.q_proj.bias", "NH"),
    "layers/attn/k_bias_KH": ("model.layers.{}.self_attn.k_proj.bias", "KH"),
    "layers/attn/v_bias_KH": ("model.layers.{}.self_attn.v_proj.bias", "KH"),
    "layers/attn/o_bias_D": ("model.layers.{}.self_attn.o_proj.bias", "D"),
    "layers/attn/q_norm_H": ("model.layers.{}.self_attn.q_norm.weight", "H"),
    "layers/attn/k_norm_H": ("model.layers.{}.self_attn.k_norm.weight", "H"),
    "mta/before_JNAP": ("model.mta.before", "J N A P"),
    "mta/after_JNAP": ("model.mta.after", "J N A P"),
    "layers/attn/mta/mix_before_GOI": (
        "model.layers.{}.self_attn.mta.mix_before",
        "G O I",
    ),
    "layers/attn/mta/mix_after_GIO": (
        "model.layers.{}.self_attn.mta.mix_after",
        "G I O",
    ),
    "layers/attn/mta/norm_H": ("model.layers.{}.self_attn.mta.norm", "H"),
    "layers/attn/mta/gate_HE": ("model.layers.{}.self_attn.mta.gate", "H E"),
    "layers/attn/mta/gate_bias_E": ("model.layers.{}.self_attn.mta.gate_bias", "E"),
    "layers/mlp/gate_DF": ("model.layers.{}.mlp.gate_proj.weight", "F D"),
    "layers/mlp/up_DF": ("model.layers.{}.mlp.up_proj.weight", "F D"),
    "layers/mlp/down_FD": ("model.layers.{}.mlp.down_proj.weight", "D F"),
    "layers/mlp/gate_bias_F": ("model.layers.{}.mlp.gate_proj.bias", "F"),
    "layers/mlp/up_bias_F": ("model.layers.{}.mlp.up_proj.bias", "F"),
    "layers/mlp/down_bias_D": ("model.layers.{}.mlp.down_proj.bias", "D"),
}
"""Path in our tree -> (name in the file with {} for the layer, layout in the file)."""

MTA = "multi_token_attention"
"""Key of config.json that is ours alone: a model with Multi-Token Attention is of no
type that other software knows, so that none runs it without."""


@dataclass(frozen=True)
class Family:
    """What the architecture fixes, or says where config.json is silent."""

    architecture: str
    attention_bias: bool | None
    """True: on queries, keys and values, always. None: config.json decides, and then
    the output has one too."""
    has_mlp_bias: bool
    """Whether config.json may ask for biases in the feed-forward."""
    qk_norm: bool
    head_dim: int | None
    """None: width / heads."""
    max_positions: int

    @property
    def classifier(self) -> str:
        """What the architecture is called with a scalar head."""
        return self.architecture.replace("ForCausalLM", "ForSequenceClassification")


FAMILIES = {
    "llama": Family("LlamaForCausalLM", None, True, False, None, 2048),
    "qwen2": Family("Qwen2ForCausalLM", True, False, False, None, 32768),
    "qwen3": Family("Qwen3ForCausalLM", None, False, True, 128, 32768),
}
assert set(FAMILIES) == set(get_args(ModelShape.__annotations__["family"]))


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The model that a config.json describes, in the form of transformers 4 or 5.

    ValueError lists everything in it that we do not have, or that is missing.
    """
    config, mta = _without_mta(config)
    name = _family_of(config)
    family = FAMILIES[name]
    problems = _unsupported(config)
    sizes: dict[str, Any] = {field: config.get(key) for field, key in _SIZES.items()}
    if sizes["kv_heads"] is None and name == "llama":
        sizes["kv_heads"] = sizes["heads"]
    for field, size in sizes.items():
        if type(size) is not int or size < 1:
            problems.append(
                f'"{_SIZES[field]}" must be a positive integer, is {size!r}'
            )
    if problems:
        raise ValueError("; ".join(problems))

    rope_base, rope_scaling = _rope(config)
    attention_bias = family.attention_bias or _flag(config, "attention_bias")
    head_dim = _get(config, "head_dim", family.head_dim)
    shape = ModelShape(
        family=name,  # pyright: ignore[reportArgumentType]
        **sizes,
        head_dim=sizes["width"] // sizes["heads"] if head_dim is None else head_dim,
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        norm_eps=float(_get(config, "rms_norm_eps", 1e-6)),
        qkv_bias=attention_bias,
        out_bias=attention_bias and family.attention_bias is None,
        mlp_bias=family.has_mlp_bias and _flag(config, "mlp_bias"),
        qk_norm=family.qk_norm,
        tied=_flag(config, "tie_word_embeddings"),
        max_positions=_get(config, "max_position_embeddings", family.max_positions),
        mta=mta,
        outputs=_outputs(config, family),
    )
    if problems := shape_problems(shape):
        raise ValueError("; ".join(problems))
    return shape


_SIZES = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
}


def _get(config: Mapping[str, Any], key: str, default):
    """`null` means the same as a key that is not there."""
    value = config.get(key)
    return default if value is None else value


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = _get(config, key, False)
    if not isinstance(value, bool):
        raise ValueError(f'"{key}" must be true or false, is {value!r}')
    return value


def _without_mta(config: Mapping[str, Any]) -> tuple[dict[str, Any], MtaShape | None]:
    """The config of the plain model, and what `config_of` wrote of Multi-Token
    Attention."""
    config = dict(config)
    if (parts := config.pop(MTA, None)) is None:
        return config, None
    try:
        mta = MtaShape(**parts)
    except TypeError:
        raise ValueError(f'"{MTA}" {parts!r} is not what jaxloop writes') from None
    names = _get(config, "architectures", ())
    config["architectures"] = [name.removeprefix("Mta") for name in names]
    return config, mta


def _family_of(config: Mapping[str, Any]) -> str:
    known = {family.architecture: name for name, family in FAMILIES.items()}
    known |= {family.classifier: name for name, family in FAMILIES.items()}
    named = config.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or named[0] not in known:
        raise ValueError(
            f'"architectures" is {named!r}; it must name one of those that are '
            f"implemented: {', '.join(known)}"
        )
    return known[named[0]]


def _outputs(config: Mapping[str, Any], family: Family) -> int:
    """Outputs of the scalar head; where none are named, transformers takes two."""
    if config["architectures"] != [family.classifier]:
        return 0
    count = _get(config, "num_labels", len(_get(config, "id2label", (0, 1))))
    if type(count) is not int or count < 1:
        raise ValueError(f'"num_labels" must be a positive integer, is {count!r}')
    return count


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    """A sentence for each part of the configuration that the decoder does not have."""
    problems = []
    if _get(config, "quantization_config", None) is not None:
        problems.append(
            '"quantization_config": quantised weights cannot be trained; '
            "start from the unquantised checkpoint"
        )
    if _get(config, "auto_map", None) is not None:
        problems.append(
            '"auto_map": a repository\'s own code is never run; remove the key if '
            "the weights are those of the plain architecture"
        )
    if (activation := _get(config, "hidden_act", "silu")) != "silu":
        problems.append(f'"hidden_act" {activation!r}: only "silu" is implemented')
    if _slides(config):
        problems.append(
            '"use_sliding_window" / "layer_types": sliding-window attention is in use, '
            "which is not implemented"
        )
    return problems


def _slides(config: Mapping[str, Any]) -> bool:
    kinds = _get(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) != {"full_attention"}
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return False
    # transformers: the first `max_window_layers` layers see everything.
    return _get(config, "max_window_layers", 0) < _get(config, "num_hidden_layers", 0)


def _rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling; transformers 5 has both in `rope_parameters`."""
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = _get(config, key, {})
    base = _get(rope, "rope_theta", _get(config, "rope_theta", 10_000.0))
    kind = _get(rope, "rope_type", _get(rope, "type", "default"))
    partial = _get(rope, "partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise ValueError(f'"partial_rotary_factor" {partial}: only 1 is implemented')
    if kind == "default" and not any(isinstance(x, dict) for x in rope.values()):
        return float(base), None
    if kind != "llama3":
        raise ValueError(
            f'"{key}" {rope!r}: only the types "default" and "llama3" are implemented, '
            "the same for all layers"
        )
    names = {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_positions": "original_max_position_embeddings",
    }
    absent = [name for name in names.values() if name not in rope]
    if absent:
        raise ValueError(f'"{key}" of type "llama3" lacks {", ".join(absent)}')
    return float(base), RopeScaling(**{ours: rope[hf] for ours, hf in names.items()})


def shape_problems(shape: ModelShape) -> list[str]:
    """What no config.json of the shape's family can say, and sizes that do not fit."""
    family, problems = FAMILIES[shape.family], []
    if shape.heads % shape.kv_heads:
        problems.append(f"{shape.heads} heads cannot share {shape.kv_heads} kv heads")
    if type(shape.head_dim) is not int or shape.head_dim < 2 or shape.head_dim % 2:
        problems.append(f"head_dim {shape.head_dim!r} must be an even integer")
    if shape.mta is not None:
        problems += shape.mta.problems(shape.heads, shape.layers)
    if family.attention_bias and not (shape.qkv_bias and not shape.out_bias):
        problems.append(f"{shape.family} has qkv_bias and no out_bias")
    if family.attention_bias is None and shape.qkv_bias != shape.out_bias:
        problems.append(f"{shape.family} has qkv_bias and out_bias together or neither")
    if shape.mlp_bias and not family.has_mlp_bias:
        problems.append(f"{shape.family} has no mlp_bias")
    if shape.qk_norm != family.qk_norm:
        problems.append(f"{shape.family} has {'' if family.qk_norm else 'no '}qk_norm")
    return problems


def config_of(shape: ModelShape, dtype: str) -> dict[str, Any]:
    """config.json for transformers (4.4x and 5) and vLLM; special tokens are not in it.

    Written as transformers 4 writes it: version 5 reads that form too. ValueError where
    the family cannot have what the shape asks for.
    """
    if problems := shape_problems(shape):
        raise ValueError(f"cannot be written as {shape.family}: {'; '.join(problems)}")
    family = FAMILIES[shape.family]
    config = {
        "architectures": [family.classifier if shape.outputs else family.architecture],
        "model_type": shape.family,
        **{key: getattr(shape, field) for field, key in _SIZES.items()},
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_base,
        "rope_scaling": None,
        "tie_word_embeddings": shape.tied,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": dtype,
    }
    if (scaling := shape.rope_scaling) is not None:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_positions,
        }
    if shape.mta is not None:
        config["architectures"] = [f"Mta{name}" for name in config["architectures"]]
        config["model_type"] = f"mta_{shape.family}"
        config[MTA] = asdict(shape.mta)
    if shape.outputs:
        labels = [f"LABEL_{i}" for i in range(shape.outputs)]
        config["num_labels"] = shape.outputs
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    if family.attention_bias is None:
        config["attention_bias"] = shape.qkv_bias
    if family.has_mlp_bias:
        config["mlp_bias"] = shape.mlp_bias
    if shape.family != "llama":
        config["use_sliding_window"] = False
        config["sliding_window"] = None
    return config
