"""Multi-Token Attention in the decoder: starts as nothing, is cut, sampled, saved."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import linen as nn

from jaxloop.mesh import MeshShape
from jaxloop.models.decoder import (
    Decoder,
    ModelShape,
    count_parameters,
    init_boxed,
    unembedding,
)
from jaxloop.models.export import save_model
from jaxloop.models.huggingface import load_params, read_shape
from jaxloop.models.layout import flat
from jaxloop.models.mta import MtaShape, layers_mta, whole_attention
from jaxloop.models.parameters import abstract_params
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.records import Prompt
from jaxloop.sampling.engine import Engine
from jaxloop.sampling.settings import Sampling

PLAIN = ModelShape(vocab=32, layers=3, heads=4, kv_heads=2)
PARTS = MtaShape(first=1, every=2)
FULL = replace(
    PARTS, query_taps=3, key_taps=5, group=2, norm=True, gate=True, depth=True
)
"""Every part; groups that a mesh with two tensor parts can keep together."""
T = 24


def drawn(shape: ModelShape, noise: float = 0.0) -> dict:
    params = nn.unbox(init_boxed(Decoder(shape), jax.random.key(0)))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    return tree.unflatten([x + noise * jax.random.normal(k, x.shape) for x, k in pairs])


def with_mta(mta: MtaShape) -> ModelShape:
    return replace(PLAIN, mta=mta)


def batch(rows: int = 2):
    tokens_BT = jax.random.randint(jax.random.key(2), (rows, T), 0, PLAIN.vocab)
    segments_BT = jnp.array([[1] * 9 + [2] * 11 + [0] * 4, [1] * T] * (rows // 2))
    return tokens_BT, jnp.broadcast_to(jnp.arange(T), (rows, T)), segments_BT


def hidden(shape: ModelShape, params: dict) -> np.ndarray:
    """Of the batch's tokens; what stands at padding has no meaning."""
    apply = jax.jit(lambda params: Decoder(shape).apply({"params": params}, *batch()))
    return np.asarray(apply(params)[0])[np.asarray(batch()[2]) > 0]


def test_parameters_of_the_published_model():
    """The paper's table: 876,583,320 with and 876,553,728 without."""
    sizes = {"width": 1536, "layers": 24, "heads": 16, "kv_heads": 16, "head_dim": 96}
    plain = replace(PLAIN, **sizes)
    paper = replace(plain, mta=MtaShape(norm=True, gate=True))
    assert count_parameters(paper) - count_parameters(plain) == 29_592


@pytest.mark.parametrize("mta", [PARTS, replace(PARTS, order="mix_first", group=1)])
def test_the_switch_changes_nothing_at_first(mta):
    plain, switched = drawn(PLAIN), drawn(with_mta(mta))
    same = flat(switched)
    for path, leaf in flat(plain).items():
        np.testing.assert_array_equal(leaf, same[path], err_msg=path)
    after = hidden(with_mta(mta), switched)
    np.testing.assert_allclose(after, hidden(PLAIN, plain), atol=1e-5)


@pytest.mark.parametrize("part", ["norm", "gate", "depth"])
def test_what_a_retrofit_leaves_off_does_change_it(part):
    shape = with_mta(replace(PARTS, **{part: True}))
    after = hidden(shape, drawn(shape))
    assert abs(after - hidden(PLAIN, drawn(PLAIN))).max() > 0.1


def test_only_the_named_layers_convolve():
    params = drawn(with_mta(PARTS), 0.1)
    layers = layers_mta(PARTS, params, PLAIN.layers)
    assert [mta.pre_NAC is not None for mta in layers] == [False, True, False]
    assert all(mta.pre_mix_GMM is not None for mta in layers)
    mixing = replace(PARTS, before=False, after=False)
    without = drawn(with_mta(mixing), 0.1)
    assert "mta" not in without
    # The scan's layers 0 and 2 are those of the model without convolutions, and layer 1
    # too as long as its kernels are the identity.
    identity = drawn(with_mta(PARTS))["mta"]
    as_identity = hidden(with_mta(PARTS), {**params, "mta": identity})
    kernels = hidden(with_mta(PARTS), params)
    mixes = {name: leaf for name, leaf in params.items() if name != "mta"}
    mixed = hidden(with_mta(mixing), mixes)
    np.testing.assert_allclose(as_identity, mixed, atol=1e-5)
    assert abs(kernels - mixed).max() > 1e-3


@pytest.mark.parametrize(
    "mesh",
    [pytest.param(MeshShape(2, 1, 1), marks=pytest.mark.full), MeshShape(1, 2, 2)],
)
@pytest.mark.parametrize("mta", [FULL, PARTS], ids=["grouped", "all-heads"])
def test_a_mesh_computes_the_same(mesh, mta, mesh_of):
    shape = with_mta(mta)
    model, params = Decoder(shape, remat="dots"), drawn(shape, 0.05)

    def loss(params):
        hidden_BTD, _ = model.apply({"params": params}, *batch())
        return jnp.sum(hidden_BTD**2 * (batch()[2] > 0)[..., None])

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    devices = mesh_of(mesh.data, mesh.fsdp, mesh.tensor)
    placed = jax.tree.map(
        lambda x, leaf: jax.device_put(x, leaf.sharding),
        params,
        abstract_params(shape, devices),
    )
    with jax.set_mesh(devices):
        value_there, grads_there = jax.jit(jax.value_and_grad(loss))(placed)
    np.testing.assert_allclose(value_there, value, rtol=1e-5)
    there = flat(grads_there)
    for path, grad in flat(grads).items():
        scale = np.abs(grad).max()
        np.testing.assert_allclose(there[path], grad, atol=2e-5 * scale, err_msg=path)
        assert scale > 0, path


def test_mixing_more_heads_than_a_device_has_is_told():
    assert whole_attention(None, 4, 2) == ""
    assert whole_attention(FULL, 4, 2) == ""
    assert (
        whole_attention(replace(PARTS, mix_before=False, mix_after=False), 4, 4) == ""
    )
    assert "mta.group = 2" in whole_attention(PARTS, 4, 2)


def test_settings_that_make_no_sense_are_named():
    wrong = MtaShape(key_taps=4, group=3, first=5)
    text = " ".join(wrong.problems(heads=4, layers=3))
    for part in ("key taps odd", "mta.group = 3", "mta.first = 5"):
        assert part in text
    assert not PARTS.problems(heads=4, layers=3)


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer("0123456789abcdefghij+=;#")


@pytest.mark.parametrize("shared", [0, 32], ids=["whole", "shared-head"])
def test_samples_have_the_log_probabilities_of_the_trainer(shared, tokenizer, mesh_of):
    """Prompts of different lengths, with and without a head prefilled once."""
    shape = with_mta(FULL)
    model, params = Decoder(shape), drawn(shape, 0.1)
    head = "0123456789abcdefghij"[: 20 if shared else 0] * 2
    texts = [head + text for text in ("12+34=", "ab", "7;#01234567", "0")]
    prompts = [
        Prompt(id=text, text=text, token_ids=tokenizer.encode(text)) for text in texts
    ]
    sampling = Sampling(n=2, max_new_tokens=9, rows=4, prefill_rows=2, chunk=4)
    engine = Engine(model, tokenizer, mesh_of())
    out = engine.sample(params, prompts, sampling, key=jax.random.key(3), shared=shared)
    apply = jax.jit(lambda ids, at: model.apply({"params": params}, ids, at)[0])
    for prompt, rollouts in zip(prompts, out, strict=True):
        for rollout in rollouts:
            first = len(prompt.token_ids)
            ids = [*prompt.token_ids, *rollout.token_ids]
            padded_1T = jnp.array([ids + [0] * (64 - len(ids))])
            hidden_TD = apply(padded_1T, jnp.arange(64)[None])[0]
            logits_TV = (hidden_TD @ unembedding(params).T)[:, : tokenizer.size]
            logp_TV = jax.nn.log_softmax(logits_TV)
            at = jnp.arange(first - 1, len(ids) - 1)
            wanted = logp_TV[at, jnp.array(rollout.token_ids)]
            np.testing.assert_allclose(rollout.logps, wanted, atol=2e-5)


def test_saved_and_read_again(tmp_path, tokenizer, mesh_of):
    shape, mesh = with_mta(FULL), mesh_of()
    params = drawn(shape, 0.1)
    save_model(tmp_path / "model", shape, params, tokenizer)
    assert read_shape(tmp_path / "model") == shape
    again = flat(load_params(tmp_path / "model", shape, mesh))
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(leaf, again[path], err_msg=path)


def test_other_software_does_not_take_it_for_a_plain_model(tmp_path, tokenizer):
    shape = with_mta(PARTS)
    save_model(tmp_path / "model", shape, drawn(shape), tokenizer)
    with pytest.raises(ValueError, match="mta_qwen2"):
        transformers.AutoConfig.from_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["multi_token_attention"]["taps"] = 3
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="multi_token_attention"):
        read_shape(tmp_path / "model")


def test_a_plain_checkpoint_is_switched(tmp_path, tokenizer, mesh_of):
    plain = drawn(PLAIN)
    save_model(tmp_path / "model", PLAIN, plain, tokenizer)
    said = []
    shape = replace(read_shape(tmp_path / "model"), mta=PARTS)
    params = load_params(tmp_path / "model", shape, mesh_of(), say=said.append)
    assert "mta/before_JNAP" in said[0]
    np.testing.assert_allclose(hidden(shape, params), hidden(PLAIN, plain), atol=1e-5)
