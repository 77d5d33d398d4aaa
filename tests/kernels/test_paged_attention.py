"""Attention to pages against a dense softmax over the same keys."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.paged_attention import paged_attention, pallas_tpu, reference, xla

S, L, H = 16, 5, 128
LENGTHS = (0, 1, S - 1, S, S + 1, 3 * S, 2 * S + 5, S * L)


def make_inputs(Q=1, R=2, K=2, dtype="float32", lengths=LENGTHS, shared=0):
    """Pages in no order. The first `shared` pages of all rows are the same."""
    B = len(lengths)
    keys = jax.random.split(jax.random.key(Q + 10 * R), 4)
    pages = B * L + 1
    k_pages, v_pages = (jax.random.normal(key, (pages, K, S, H)) for key in keys[:2])
    table_BL = jax.random.permutation(keys[2], pages)[: B * L].reshape(B, L)
    table_BL = table_BL.at[:, :shared].set(table_BL[0, :shared])
    q_BQNH = 2 * jax.random.normal(keys[3], (B, Q, K * R, H))
    arrays = [x.astype(dtype) for x in (q_BQNH, k_pages, v_pages)]
    return (*arrays, table_BL, jnp.asarray(lengths, jnp.int32))


def worst(actual, expected) -> float:
    """The largest error, relative to the largest value."""
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert np.isfinite(a).all()
    return np.abs(a - b).max() / np.abs(b).max()


def one_by_one(q_BQNH, k_pages, v_pages, table_BL, length_B, *, window, soft_cap):
    """The reference's own oracle: loops over rows, tokens and heads in numpy."""
    q_BQNH, k_pages, v_pages = (
        np.asarray(x, np.float64) for x in (q_BQNH, k_pages, v_pages)
    )
    B, Q, N, _ = q_BQNH.shape
    K = k_pages.shape[1]
    out_BQNH = np.zeros(q_BQNH.shape)
    for b, i, n in product(range(B), range(Q), range(N)):
        k_TH, v_TH = (
            np.concatenate(x[np.asarray(table_BL[b])][:, n // (N // K)])
            for x in (k_pages, v_pages)
        )
        end = int(length_B[b]) - Q + i + 1
        start = max(0, end - window) if window else 0
        if end <= 0:
            continue
        score_T = k_TH[start:end] @ q_BQNH[b, i, n] * H**-0.5
        if soft_cap:
            score_T = soft_cap * np.tanh(score_T / soft_cap)
        weight_T = np.exp(score_T - score_T.max())
        out_BQNH[b, i, n] = weight_T @ v_TH[start:end] / weight_T.sum()
    return out_BQNH


HOW = [
    ({"Q": 1, "R": 1}, {}),
    ({"Q": 4, "R": 2, "shared": 2}, {"soft_cap": 2.0}),
    ({"Q": 1, "R": 4, "K": 1, "shared": 1}, {"window": 7}),
    ({"Q": 4, "R": 3}, {"window": S + 3, "soft_cap": 1.0}),
]
FULL = [
    ({"Q": Q, "R": R, "shared": shared}, {"window": window, "soft_cap": cap})
    for Q, R, shared, window, cap in product(
        (1, 2, 4), (1, 2, 8), (0, 3), (None, 1, S, 40), (None, 1.5)
    )
]


def reference_of(inputs, *, window=None, soft_cap=None):
    settings = {"window": window, "soft_cap": soft_cap, "implementation": "reference"}
    return paged_attention(*inputs, **settings)


@pytest.mark.parametrize(("made", "what"), HOW, ids=str)
def test_reference_is_softmax_over_the_rows_own_keys(made, what):
    inputs = make_inputs(**made)
    expected = one_by_one(*inputs, **{"window": None, "soft_cap": None} | what)
    assert worst(reference_of(inputs, **what), expected) < 2e-6


@pytest.mark.parametrize("keys", [S, 3 * S])
@pytest.mark.parametrize(("made", "what"), HOW, ids=str)
def test_xla_matches_reference(made, what, keys):
    inputs = make_inputs(**made)
    actual = xla.paged_attention(*inputs, **what, scale=H**-0.5, keys=keys)
    assert worst(actual, reference_of(inputs, **what)) < 2e-5


@pytest.mark.parametrize(("made", "what"), HOW, ids=str)
def test_kernel_matches_reference(made, what):
    inputs = make_inputs(**made)
    actual = pallas_tpu.paged_attention(*inputs, **what, scale=H**-0.5, keys=2 * S)
    assert worst(actual, reference_of(inputs, **what)) < 2e-5


@pytest.mark.full
@pytest.mark.parametrize(("made", "what"), FULL, ids=str)
def test_all_match_reference(made, what):
    inputs = make_inputs(**made)
    expected = reference_of(inputs, **what)
    for keys in (S, 2 * S, 512):
        for form in (xla, pallas_tpu):
            actual = form.paged_attention(*inputs, **what, scale=H**-0.5, keys=keys)
            assert worst(actual, expected) < 2e-5


def test_kernel_has_no_races_and_reads_nothing_that_was_not_written():
    checks = pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
    )
    inputs = make_inputs(Q=2, lengths=(5, 0, 3 * S, S * L))
    how = {"scale": H**-0.5, "keys": 2 * S, "window": S, "interpret": checks}
    actual = pallas_tpu.paged_attention(*inputs, **how)
    assert worst(actual, reference_of(inputs, window=S)) < 2e-5


@pytest.mark.parametrize("form", [xla, pallas_tpu])
def test_bfloat16(form):
    inputs = make_inputs(Q=2, dtype="bfloat16", lengths=(3, S, 2 * S + 1))
    actual = form.paged_attention(*inputs, scale=H**-0.5, keys=2 * S)
    assert actual.dtype == jnp.bfloat16
    exact = [x.astype("float32") for x in inputs[:3]] + list(inputs[3:])
    # Probabilities and results are rounded to 8 bits each.
    assert worst(actual, reference_of(exact)) < 8e-3


def test_nothing_beyond_a_rows_length_matters():
    q, k_pages, v_pages, table_BL, length_B = make_inputs(Q=2, lengths=(2, S + 3, 40))
    expected = reference_of((q, k_pages, v_pages, table_BL, length_B))
    used_BL = jnp.arange(L) * S < length_B[:, None]
    wild_BL = jnp.where(used_BL, table_BL, 10**6)  # no such page
    at_BLS = (jnp.arange(L)[:, None] * S + jnp.arange(S)) >= length_B[:, None, None]
    noise = jnp.zeros((k_pages.shape[0], S)).at[table_BL].set(1e4 * at_BLS)
    pools = [x + noise[:, None, :, None] for x in (k_pages, v_pages)]
    for implementation in ("reference", "xla", "pallas_tpu"):
        actual = paged_attention(
            q, *pools, wild_BL, length_B, implementation=implementation
        )
        assert worst(actual, expected) < 2e-5


def test_rows_see_their_last_tokens_in_order():
    """A block of new tokens is the same as one token after the other."""
    q_BQNH, *pools, table_BL, length_B = make_inputs(Q=4, lengths=(2, 4, S + 2, 50))
    block = xla.paged_attention(q_BQNH, *pools, table_BL, length_B, scale=0.1)
    for i in range(4):
        alone = xla.paged_attention(
            q_BQNH[:, i : i + 1], *pools, table_BL, length_B - 3 + i, scale=0.1
        )
        np.testing.assert_allclose(block[:, i : i + 1], alone, rtol=2e-5, atol=2e-5)
    assert not np.asarray(block[0, :2]).any()  # a row of two tokens


def test_the_loop_ends_with_the_longest_row():
    """A table for long rows costs nothing while rows are short: pages that no row has
    reached may hold anything."""
    q, k_pages, v_pages, table_BL, length_B = make_inputs(lengths=(3, S))
    expected = reference_of((q, k_pages, v_pages, table_BL, length_B))
    later = table_BL[:, 1:].reshape(-1)
    pools = [x.at[later].set(jnp.nan) for x in (k_pages, v_pages)]
    actual = xla.paged_attention(q, *pools, table_BL, length_B, scale=H**-0.5, keys=S)
    assert worst(actual, expected) < 2e-5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"implementation": "mosaic"}, NotImplementedError, "mosaic"),
        ({"window": 0}, ValueError, "window"),
        ({"soft_cap": 0.0}, ValueError, "soft_cap"),
        ({"length_B": jnp.zeros((3,), int)}, ValueError, "length_B"),
        ({"length_B": jnp.zeros((2,))}, ValueError, "length must be integers"),
        ({"q_BQNH": jnp.zeros((2, 1, 3, H))}, ValueError, "multiple"),
        ({"q_BQNH": jnp.zeros((2, 1, 4, 64))}, ValueError, "head size"),
    ],
    ids=lambda value: "",
)
def test_what_makes_no_sense_is_named(change, error, message):
    names = ("q_BQNH", "k_pages_PKSH", "v_pages_PKSH", "table_BL", "length_B")
    arguments = dict(zip(names, make_inputs(lengths=(1, 2)), strict=True))
    with pytest.raises(error, match=message):
        paged_attention(**(arguments | change))


def test_what_the_kernel_cannot_do_is_named():
    for head, slots, message in ((64, 16, "head size 64"), (128, 4, "4 slots")):
        pool = jnp.zeros((3, 1, slots, head))
        arrays = (jnp.zeros((1, 1, 2, head)), pool, pool)
        ids = (jnp.zeros((1, 1), int), jnp.ones((1,), int))
        with pytest.raises(NotImplementedError, match=message):
            paged_attention(*arrays, *ids, implementation="pallas_tpu")


def test_reference_sees_the_window_and_no_more():
    seen = reference.visible(jnp.int32(5), jnp.arange(8), 3)
    np.testing.assert_array_equal(np.flatnonzero(seen), [3, 4, 5])
