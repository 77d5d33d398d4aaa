"""Widened queries, keys and values against the dense convolution, in numpy, float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop_kernels.multi_token_attention import pairing, widen

SEGMENTS = {
    "one document": None,
    "packed": [1] * 9 + [2] * 4 + [3] + [4] * 12 + [0] * 3,
    "interrupted": [1] * 6 + [0] * 2 + [1] * 9 + [2] * 7 + [1] * 5,
}
KERNELS = [(6, 11), (2, 9), (1, 1), (3, 1)]

# Compiling takes most of the time of these tests, and does not matter to what they say.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


@partial(jax.jit, compiler_options=QUICKLY)
def widened_logits(q_BNTH, k_BKTH, theta_NAC, segments_BT):
    taps = theta_NAC.shape[1]
    wide_q = widen.widen_queries(q_BNTH, taps, None, segments_BT)
    wide_k = widen.widen_keys(k_BKTH, theta_NAC, segments_BT)
    band_BNTU = widen.causal_band(q_BNTH, k_BKTH, theta_NAC, segments_BT)
    return jnp.einsum("bntah,bnsah->nts", wide_q, wide_k), band_BNTU


@partial(jax.jit, compiler_options=QUICKLY, static_argnums=0)
def sharing_logits(R, q_BNTH, k_BKTH, theta_NAC, segments_BT):
    taps = theta_NAC.shape[1]
    taps_BTA = None
    if segments_BT is not None:
        taps_BTA = pairing.taps_there(segments_BT, taps, R)
    q_BNMPE = pairing.pair_queries(q_BNTH, taps, R, segments_BT)
    k_BNTPE = pairing.pair_keys(k_BKTH, theta_NAC, R, segments_BT)
    band_BNTU = widen.causal_band(q_BNTH, k_BKTH, theta_NAC, segments_BT, taps_BTA)
    products_PNMT = jnp.einsum("bnmpe,bnspe->pnms", q_BNMPE, k_BNTPE)
    rows_NMRT = jnp.stack(pairing.join(list(products_PNMT), R), axis=2)
    N, M, _, T = rows_NMRT.shape
    return rows_NMRT.reshape(N, R * M, T), band_BNTU


@partial(jax.jit, compiler_options=QUICKLY)
def under_widened_values(prob_NTS, near_BNTW, v_BKTH, phi_NAC, segments_BT):
    wide = widen.widen_values(v_BKTH, phi_NAC, segments_BT)
    wide = jnp.einsum("nts,bnsah->bntah", prob_NTS, wide)
    return widen.join_rows(wide, near_BNTW, v_BKTH, phi_NAC, None, segments_BT)


def dense_convolution(x_NTS, kernel_NAC):
    """Cross-correlation: A - 1 rows of zeros above, C // 2 columns on either side."""
    _, A, C = kernel_NAC.shape
    T = x_NTS.shape[1]
    padded = np.pad(x_NTS, ((0, 0), (A - 1, 0), (C // 2, C // 2)))
    out_NTS = np.zeros_like(x_NTS)
    for a in range(A):
        for c in range(C):
            out_NTS += kernel_NAC[:, a, c, None, None] * padded[:, a : a + T, c : c + T]
    return out_NTS


def by_document(f, x_NTS, segments_T):
    """f on the square of each document alone: its rows and columns put together."""
    if segments_T is None:
        return f(np.tril(x_NTS))
    out_NTS = np.zeros_like(x_NTS)
    same_TS = segments_T[:, None] == segments_T[None]
    for segment in np.unique(segments_T):
        inside_TS = same_TS & (segments_T == segment)[:, None]
        out_NTS += np.where(inside_TS, f(np.where(inside_TS, np.tril(x_NTS), 0)), 0)
    return out_NTS


def make(kernel, segments, N=4, K=2, T=29, H=3, seed=0):
    rng = np.random.default_rng(seed)
    q_NTH, k_KTH = rng.normal(size=(N, T, H)), rng.normal(size=(K, T, H))
    kernel_NAC = rng.normal(size=(N, *kernel))
    segments_T = None if segments is None else np.array(segments)
    segments_BT = None if segments is None else jnp.asarray(segments)[None]
    return q_NTH, k_KTH, kernel_NAC, segments_T, segments_BT


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_widened_attention_logits_are_the_convolved_ones(kernel, segments):
    check_logits(widened_logits, *make(kernel, segments))


# Of whole groups of four. Documents end in even places and in odd ones, one is a single
# token; four begin within a group; padding inside of a document ends in an odd place,
# and in an even one, and fills a group's middle.
PAIRED_SEGMENTS = {
    "one document": None,
    "packed": [1] * 9 + [2] * 4 + [3] + [4] * 11 + [0] * 3,
    "many": [1] * 5 + [2, 3, 4, 4, 5, 6, 7] + [8] * 3 + [9] * 3 + [10, 11] + [12] * 8,
    "padded inside": [1] * 6 + [0] * 3 + [1] * 5 + [0] * 2 + [1] * 3 + [2] * 9,
    "padded groups": [int(x) for x in "0122200200233034440400045056"],
}


@pytest.mark.parametrize("segments", PAIRED_SEGMENTS.values(), ids=PAIRED_SEGMENTS)
@pytest.mark.parametrize("kernel", [(6, 11), (5, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("R", [2, 4])
def test_logits_of_shared_products_are_the_convolved_ones(R, kernel, segments):
    check_logits(partial(sharing_logits, R), *make(kernel, segments, T=28))


@pytest.mark.parametrize("R", [2, 4])
def test_signs_of_shared_products(R):
    """Row r of a group has the product of query d and lag s once if d is s before it;
    sums of few terms have them, and their gradients."""
    queries_PD, keys_PL, rows_RP = sharing = pairing.SHARED[R]
    product_RDL = np.einsum("RP,PD,PL->RDL", rows_RP, queries_PD, keys_PL)
    r, d, s = np.ogrid[:R, : queries_PD.shape[1], : keys_PL.shape[1]]
    np.testing.assert_array_equal(product_RDL, r - s + keys_PL.shape[1] - 1 == d)
    products, rows = list(np.eye(len(queries_PD))), list(np.eye(R))
    np.testing.assert_array_equal(pairing.join(products, R), sharing.rows_RP)
    np.testing.assert_array_equal(pairing.split(rows, R), sharing.rows_RP.T)


def check_logits(logits_of, q_NTH, k_KTH, theta_NAC, segments_T, segments_BT):
    """But for rows of padding, of which nothing is used."""
    kernel, T = theta_NAC.shape[1:], q_NTH.shape[1]
    logit_NTS = np.einsum("nth,nsh->nts", q_NTH, k_KTH.repeat(2, axis=0))
    expected_NTS = by_document(
        lambda x: dense_convolution(x, theta_NAC), logit_NTS, segments_T
    )
    with jax.enable_x64(True):
        logits = logits_of(q_NTH[None], k_KTH[None], theta_NAC, segments_BT)
        actual_NTS, band = map(np.array, logits)
    assert band.shape[-1] == kernel[0] - 1 + kernel[1] // 2
    for u in range(min(T, band.shape[-1])):
        rows = np.arange(u, T)
        actual_NTS[:, rows, rows - u] -= band[0, :, u:, u]
    visible_TS = np.tril(np.ones((T, T), bool))
    if segments_T is not None:
        visible_TS &= segments_T[:, None] == segments_T[None]
        visible_TS &= segments_T[:, None] > 0
    np.testing.assert_allclose(
        actual_NTS[:, visible_TS], expected_NTS[:, visible_TS], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_attention_over_widened_values_is_the_convolved_probabilities(kernel, segments):
    score_NTH, v_KTH, phi_NAC, segments_T, segments_BT = make(kernel, segments)
    N, T, _ = score_NTH.shape
    visible_TS = np.tril(np.ones((T, T), bool))
    if segments_T is not None:
        visible_TS &= segments_T[:, None] == segments_T[None]
    prob_NTS = np.exp(np.einsum("nth,nsh->nts", score_NTH, score_NTH)) * visible_TS
    prob_NTS /= prob_NTS.sum(axis=-1, keepdims=True)
    convolved_NTS = by_document(
        lambda x: dense_convolution(x, phi_NAC), prob_NTS, segments_T
    )
    convolved_NTS = convolved_NTS * visible_TS
    expected = np.einsum("nts,nsh->nth", convolved_NTS, v_KTH.repeat(2, axis=0))
    W = kernel[1] // 2
    near_NTW = np.zeros((N, T, W))
    for w in range(W):
        near_NTW[:, w:, w] = prob_NTS[:, np.arange(w, T), np.arange(T - w)]
    with jax.enable_x64(True):
        actual = under_widened_values(
            prob_NTS, near_NTW[None], v_KTH[None], phi_NAC, segments_BT
        )
    np.testing.assert_allclose(actual[0], expected, rtol=0, atol=1e-12)


def test_a_factorised_kernel_equals_its_product():
    q_NTH, k_KTH, _, _, segments_BT = make((6, 11), SEGMENTS["packed"])
    rng = np.random.default_rng(1)
    left_NAP, right_NPC = rng.normal(size=(4, 6, 2)), rng.normal(size=(4, 2, 11))
    near_BNTW = rng.normal(size=(1, 4, 29, 5))

    @partial(jax.jit, compiler_options=QUICKLY)
    def run(q_BNTH, k_BKTH, left_NAP, right_NPC):
        theta_NAC = left_NAP @ right_NPC
        logits, rows = [], []
        for left, right in ((None, theta_NAC), (left_NAP, right_NPC)):
            wide_q = widen.widen_queries(q_BNTH, 6, left, segments_BT)
            wide_k = widen.widen_keys(k_BKTH, right, segments_BT)
            logits.append(jnp.einsum("bntph,bnsph->bnts", wide_q, wide_k))
            wide_v = widen.widen_values(k_BKTH, right, segments_BT)
            rows.append(widen.join_rows(wide_v, near_BNTW, k_BKTH, theta_NAC, left))
        assert wide_q.shape[3] == wide_k.shape[3] == 2
        return logits, rows

    with jax.enable_x64(True):
        for full, low in run(q_NTH[None], k_KTH[None], left_NAP, right_NPC):
            assert full.dtype == jnp.float64
            np.testing.assert_allclose(low, full, rtol=0, atol=1e-12)
