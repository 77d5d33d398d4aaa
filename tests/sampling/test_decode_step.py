"""The decoding form of the model against the full forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.models.decode import (
    copy_row,
    decode_step,
    decode_weights,
    empty_caches,
    split_cache,
)
from jaxloop.models.decoder import Decoder, ModelShape, RopeScaling, rotation
from tests.sampling.tiny import random_params

SHAPES = {
    "qwen2": ModelShape(vocab=50, width=24, ffn=40, heads=4, kv_heads=2, head_dim=8),
    "qwen3": ModelShape(
        vocab=50, width=24, ffn=40, heads=4, kv_heads=1, head_dim=12,
        family="qwen3", qk_norm=True, qkv_bias=False, tied=False,
    ),
    "llama": ModelShape(
        vocab=50, width=24, ffn=40, heads=2, kv_heads=2, head_dim=8, family="llama",
        rope_scaling=RopeScaling(original_positions=16), out_bias=True, mlp_bias=True,
        rope_base=100.0,
    ),
}  # fmt: skip
PROMPTS, NEW = (5, 1, 3), 4


def decoded(model, params, tokens_BT):
    """Hidden states at the new tokens (B, NEW, D), by prefill and steps."""
    shape, B, longest = model.shape, len(PROMPTS), max(PROMPTS)
    weights = decode_weights(params, shape, model.dtype, shape.vocab, 16)
    _, cache = full(model, params, tokens_BT[:, :longest])
    caches = empty_caches(shape, B, longest + NEW, model.dtype)
    for row in range(B):
        caches = copy_row(caches, row, split_cache(cache), row)
    out = []
    for step in range(NEW):
        position_B = jnp.array(PROMPTS) + step
        token_B = tokens_BT[jnp.arange(B), position_B]
        turn = rotation(shape, position_B)
        hidden_BD, caches = decode_step(
            weights, shape, caches, token_B, position_B, turn
        )
        out.append(hidden_BD)
    return jnp.stack(out, axis=1)


def full(model, params, tokens_BT):
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return model.apply({"params": params}, tokens_BT, positions_BT, keep_cache=True)


@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_full_forward_pass(name):
    model = Decoder(SHAPES[name])
    params = random_params(model)
    T = max(PROMPTS) + NEW
    tokens_BT = np.random.default_rng(1).integers(0, 50, (len(PROMPTS), T))
    full_BTD, _ = jax.jit(full, static_argnums=0)(model, params, tokens_BT)
    got = np.asarray(jax.jit(decoded, static_argnums=0)(model, params, tokens_BT))
    for row, length in enumerate(PROMPTS):
        want = np.asarray(full_BTD)[row, length : length + NEW]
        # Float32 rounding of sums in another order.
        np.testing.assert_allclose(got[row], want, atol=2e-6, rtol=2e-6)


def test_output_rows_are_cut_and_padded():
    model = Decoder(SHAPES["qwen2"])
    params = random_params(model)
    cut_down = jax.jit(decode_weights, static_argnums=(1, 2, 3, 4))
    weights = cut_down(params, model.shape, model.dtype, 37, 16)
    assert weights.unembed_VD.shape == (48, 24)
    np.testing.assert_array_equal(weights.unembed_VD[:37], params["embed_VD"][:37])
    assert not weights.unembed_VD[37:].any()
