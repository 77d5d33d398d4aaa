"""Properties of the decoder: causality, packing, cache; numbers are in the goldens."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxloop.models.decoder import (
    Decoder,
    ModelShape,
    RopeScaling,
    count_parameters,
    init_boxed,
    init_cache,
    rope_frequencies,
)

SHAPE = ModelShape(
    vocab=32, width=16, ffn=24, layers=2, heads=4, kv_heads=2, head_dim=8, qk_norm=True
)
MODEL = Decoder(SHAPE)
B, T = 2, 8


@pytest.fixture(scope="module")
def params():
    return nn.unbox(init_boxed(MODEL, jax.random.key(0)))


@pytest.fixture(scope="module")
def forward(params):
    """Compiled (tokens, positions, segments) -> hidden states."""

    @jax.jit
    def run(tokens_BT, positions_BT, segments_BT):
        apply = MODEL.apply({"params": params}, tokens_BT, positions_BT, segments_BT)
        return apply[0]

    return lambda *arrays: np.asarray(run(*arrays))


def inputs(seed: int = 0):
    tokens_BT = jax.random.randint(jax.random.key(seed), (B, T), 0, SHAPE.vocab)
    positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    return tokens_BT, positions_BT, jnp.ones((B, T), jnp.int32)


def test_the_future_changes_nothing(forward):
    tokens_BT, positions_BT, segments_BT = inputs()
    before = forward(tokens_BT, positions_BT, segments_BT)
    other_BT = tokens_BT.at[:, 5].set((tokens_BT[:, 5] + 1) % SHAPE.vocab)
    after = forward(other_BT, positions_BT, segments_BT)
    assert (before[:, :5] == after[:, :5]).all()
    assert (before[:, 5:] != after[:, 5:]).any(axis=-1).all()


def test_packed_sequences_equal_those_alone(forward):
    tokens_BT, positions_BT, segments_BT = inputs()
    cut = 5
    packed_positions = jnp.concatenate([jnp.arange(cut), jnp.arange(T - cut)])
    packed_segments = jnp.where(jnp.arange(T) < cut, 1, 2)
    packed = forward(
        tokens_BT,
        jnp.broadcast_to(packed_positions, (B, T)),
        jnp.broadcast_to(packed_segments, (B, T)),
    )
    moved_BT = jnp.roll(tokens_BT, -cut, axis=1)  # the second one, first in its row
    alone = forward(moved_BT, positions_BT, segments_BT)
    np.testing.assert_allclose(packed[:, cut:], alone[:, : T - cut], atol=2e-6)
    first = forward(tokens_BT, positions_BT, segments_BT)
    np.testing.assert_allclose(packed[:, :cut], first[:, :cut], atol=2e-6)


def test_padding_on_the_left_changes_nothing(forward):
    tokens_BT, positions_BT, segments_BT = inputs()
    pad = 3
    padded = forward(
        jnp.roll(tokens_BT, pad, axis=1),
        jnp.maximum(positions_BT - pad, 0),
        segments_BT.at[:, :pad].set(0),
    )
    plain = forward(tokens_BT, positions_BT, segments_BT)
    np.testing.assert_allclose(padded[:, pad:], plain[:, : T - pad], atol=2e-6)
    assert np.isfinite(padded).all()


def test_cached_decoding_equals_the_full_forward(params, forward):
    tokens_BT, positions_BT, segments_BT = inputs()
    full = forward(tokens_BT, positions_BT, segments_BT)
    cache = init_cache(SHAPE, B, T, jnp.float32)
    step = jax.jit(lambda *a: MODEL.apply({"params": params}, *a))
    for t in range(T):
        at = slice(t, t + 1)
        hidden, cache = step(tokens_BT[:, at], positions_BT[:, at], None, cache)
        np.testing.assert_allclose(hidden[:, 0], full[:, t], atol=2e-6)


def test_prefill_keeps_what_decoding_would_have_written(params):
    tokens_BT, positions_BT, _ = inputs()
    _, prefilled = MODEL.apply(
        {"params": params}, tokens_BT, positions_BT, keep_cache=True
    )
    cache = init_cache(SHAPE, B, T, jnp.float32)
    _, written = MODEL.apply({"params": params}, tokens_BT, positions_BT, None, cache)
    # Other shapes, other orders of float32 sums: a few units in the last place of 2.
    np.testing.assert_allclose(prefilled.k, written.k, atol=4e-6)
    np.testing.assert_allclose(prefilled.v, written.v, atol=4e-6)


def test_llama3_scaling_keeps_fast_rotations_and_stretches_slow_ones():
    plain = replace(SHAPE, head_dim=128, rope_base=500_000.0)
    scaled = replace(plain, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
    before, after = rope_frequencies(plain), rope_frequencies(scaled)
    turns = 8192 * np.asarray(before) / (2 * np.pi)
    ratio = np.asarray(before / after)
    np.testing.assert_allclose(ratio[turns > 4], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < 1], 8.0, rtol=1e-6)
    between = ratio[(turns > 1) & (turns < 4)]
    assert len(between) > 2
    assert ((between > 1) & (between < 8)).all()
    assert (np.diff(between) > 0).all()


@pytest.mark.parametrize("tied", [True, False])
def test_the_count_of_parameters_is_that_of_the_formula(tied):
    s = replace(SHAPE, tied=tied, qkv_bias=True)
    attention = s.width * s.head_dim * (2 * s.heads + 2 * s.kv_heads)
    biases = s.head_dim * (s.heads + 2 * s.kv_heads)
    norms = 2 * s.width + 2 * s.head_dim
    layer = attention + biases + norms + 3 * s.width * s.ffn
    embeddings = s.vocab * s.width * (1 if tied else 2)
    assert count_parameters(s) == s.layers * layer + embeddings + s.width


def test_bfloat16_stays_near_float32(params):
    tokens_BT, positions_BT, _ = inputs()
    low = Decoder(SHAPE, jnp.dtype("bfloat16"))
    hidden, _ = low.apply({"params": params}, tokens_BT, positions_BT)
    full, _ = MODEL.apply({"params": params}, tokens_BT, positions_BT)
    assert hidden.dtype == jnp.bfloat16
    # 8 bits of mantissa over two layers; hidden states have size 1 after the norm.
    assert float(jnp.abs(hidden.astype(jnp.float32) - full).max()) < 0.15
