"""The scalar head: beside the model, never in its way, in and out of a directory."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file, save_file

from jaxloop.models.decode import decode_weights
from jaxloop.models.decoder import (
    Decoder,
    ModelShape,
    count_parameters,
    head_outputs,
    init_boxed,
)
from jaxloop.models.export import save_model
from jaxloop.models.families import config_of, shape_of
from jaxloop.models.huggingface import load_params, read_shape
from jaxloop.models.parameters import abstract_params

PLAIN = ModelShape(vocab=32, width=16, ffn=24, layers=2, heads=4, kv_heads=2)
SHAPE = replace(PLAIN, outputs=3)


def drawn(shape: ModelShape, dtype="float32") -> dict:
    return nn.unbox(init_boxed(Decoder(shape), jax.random.key(0), dtype))


def test_the_rest_is_drawn_as_without_it_and_it_starts_at_zero():
    plain, params = drawn(PLAIN), drawn(SHAPE)
    head_DK = params.pop("head_DK")
    assert head_DK.shape == (16, 3)
    assert not np.asarray(head_DK).any()
    assert "head_DK" not in plain
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    assert count_parameters(SHAPE) == count_parameters(PLAIN) + 3 * 16


def test_its_numbers_are_a_float32_product():
    params = drawn(SHAPE, "bfloat16")
    params["head_DK"] = jax.random.normal(jax.random.key(1), (16, 3), jnp.bfloat16)
    hidden_BTD = jax.random.normal(jax.random.key(2), (2, 5, 16), jnp.bfloat16)
    out_BTK = head_outputs(params, hidden_BTD)
    assert out_BTK is not None
    assert out_BTK.dtype == jnp.float32
    exact = np.asarray(hidden_BTD, np.float64) @ np.asarray(params["head_DK"], float)
    np.testing.assert_allclose(out_BTK, exact, rtol=1e-5, atol=1e-5)
    assert head_outputs(drawn(PLAIN), hidden_BTD) is None


def test_the_sampler_does_not_see_it():
    weights, plain = (
        decode_weights(drawn(shape), shape, jnp.float32, 32, 1)
        for shape in (SHAPE, PLAIN)
    )
    jax.tree.map(np.testing.assert_array_equal, weights, plain)


def test_it_is_cut_along_the_width(mesh_of):
    head = abstract_params(SHAPE, mesh_of(fsdp=4, tensor=2))["head_DK"]
    assert head.sharding.shard_shape(head.shape) == (4, 3)


@pytest.mark.parametrize(
    ("more", "outputs"),
    [
        ({}, 2),
        ({"num_labels": 1}, 1),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, 3),
        ({"num_labels": 0}, None),
        ({"num_labels": "2"}, None),
    ],
    ids=str,
)
def test_a_classifier_says_how_many_outputs(more, outputs):
    config = config_of(PLAIN, "float32")
    config = config | {"architectures": ["Qwen2ForSequenceClassification"]} | more
    if outputs is None:
        with pytest.raises(ValueError, match="num_labels"):
            shape_of(config)
    else:
        assert shape_of(config) == replace(PLAIN, outputs=outputs)
    assert shape_of(config | {"architectures": ["Qwen2ForCausalLM"]}) == PLAIN


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tied, one_device, tokenizer, tmp_path):
    shape = replace(SHAPE, tied=tied, vocab=64)
    params = drawn(shape)
    params["head_DK"] = jax.random.normal(jax.random.key(1), (16, 3))
    save_model(tmp_path / "m", shape, params, tokenizer)
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]
    assert config["num_labels"] == len(config["id2label"]) == 3
    stored = load_file(tmp_path / "m/model.safetensors")
    np.testing.assert_array_equal(stored["score.weight"], params["head_DK"].T)
    assert read_shape(tmp_path / "m") == shape
    loaded = load_params(tmp_path / "m", shape, one_device)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_eight_devices_hold_what_one_holds(mesh_of, one_device, tokenizer, tmp_path):
    shape = replace(SHAPE, vocab=64)
    params = drawn(shape)
    params["head_DK"] = jax.random.normal(jax.random.key(1), (16, 3))
    save_model(tmp_path / "m", shape, params, tokenizer)
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    jax.tree.map(
        np.testing.assert_array_equal,
        load_params(tmp_path / "m", shape, mesh),
        load_params(tmp_path / "m", shape, one_device),
    )


def test_a_model_without_one_gets_zeros_and_says_so(checkpoint_named, load, mesh_of):
    checkpoint, said = checkpoint_named("qwen3"), []
    shape = replace(checkpoint.shape, outputs=2)
    mesh = mesh_of(fsdp=2)
    params = load_params(checkpoint.directory, shape, mesh, "bfloat16", say=said.append)
    head_DK = params.pop("head_DK")
    assert head_DK.dtype == jnp.bfloat16
    assert head_DK.sharding.shard_shape(head_DK.shape) == (shape.width // 2, 2)
    assert not np.asarray(head_DK).any()
    jax.tree.map(np.testing.assert_array_equal, params, load(checkpoint, "bfloat16"))
    assert len(said) == 1
    assert "has no head_DK: new" in said[0]
    with pytest.warns(UserWarning, match="has no head_DK: new"):
        load_params(checkpoint.directory, shape, mesh)


def test_a_reward_model_may_lack_the_output_matrix(one_device, tokenizer, tmp_path):
    shape = replace(SHAPE, tied=False, vocab=64)
    params = drawn(shape)
    save_model(tmp_path / "m", shape, params, tokenizer)
    stored = load_file(tmp_path / "m/model.safetensors")
    del stored["lm_head.weight"]
    save_file(stored, tmp_path / "m/model.safetensors", {"format": "pt"})
    found = read_shape(tmp_path / "m")
    assert found == replace(shape, tied=True)
    loaded = load_params(tmp_path / "m", found, one_device)
    del params["unembed_VD"]
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_another_number_of_outputs_is_refused(one_device, tokenizer, tmp_path):
    shape = replace(SHAPE, vocab=64)
    save_model(tmp_path / "m", shape, drawn(shape), tokenizer)
    with pytest.raises(ValueError, match=r"score.weight \(3, 16\).*\(2, 16\)"):
        load_params(tmp_path / "m", replace(shape, outputs=2), one_device)
    with pytest.raises(ValueError, match=r"1 unexpected: score.weight"):
        load_params(tmp_path / "m", replace(shape, outputs=0), one_device)
