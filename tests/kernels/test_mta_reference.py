"""Multi-Token Attention: the dense form against the paper's steps in plain loops.

The loops know one document of one sequence. That the dense form agrees with them on
packed rows is what "documents do not see one another" means.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop_kernels.multi_token_attention import (
    Mta,
    identity,
    multi_token_attention,
)

B, T, N, K, H = 2, 9, 4, 2, 6
SEGMENTS_BT = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [3] * 9], np.int32)
ALL = identity(N, H, pre=(3, 5), post=(2, 3), pre_group=4, post_group=2, norm=True)
CASES = {
    "v2": (ALL._replace(gate_HE=jnp.zeros((H, 1)), gate_bias_E=jnp.zeros(1)), None),
    "v1": (ALL._replace(pre_mix_GMM=None), 3),
    "wide gate": (ALL._replace(gate_HE=jnp.zeros((H, H)), gate_bias_E=ALL.norm_H), 0),
    "mixes only": (
        identity(N, H, pre=None, post=None, pre_group=4, post_group=4),
        None,
    ),
    "before": (identity(N, H, pre=(6, 11), post=None), None),
    "after": (identity(N, H, pre=None, post=(6, 11), post_group=4), None),
}


def make_inputs(mta=ALL, seed=0):
    """Random q, k, v and parameters around those given."""
    rng = np.random.default_rng(seed)

    def normal(size):
        return jnp.asarray(rng.standard_normal(size, np.float32))

    qkv = [normal((B, T, n, H)) for n in (N, K, K)]
    return *qkv, jax.tree.map(lambda x: x + 0.5 * normal(x.shape), mta)


def dense(*arrays, **settings):
    def run(*arrays):
        return multi_token_attention(*arrays, **settings, implementation="reference")

    return jax.jit(run)(*arrays)


def loops_convolve(x_NTT, kernel_NAC):
    """Step 3: zeros above the first row and on both sides."""
    _, A, C = kernel_NAC.shape
    _, T, _ = x_NTT.shape
    out_NTT = np.zeros_like(x_NTT)
    for i, j, a, b in product(range(T), range(T), range(A), range(C)):
        row, column = i - (A - 1) + a, j - (C - 1) // 2 + b
        if row >= 0 and 0 <= column < T:
            out_NTT[:, i, j] += kernel_NAC[:, a, b] * x_NTT[:, row, column]
    return out_NTT


def loops_mix(x_NTT, weight_GMM, *, out_first: bool):
    G, M, _ = weight_GMM.shape
    out_NTT = np.zeros_like(x_NTT)
    for g, out, into in product(range(G), range(M), range(M)):
        weight = weight_GMM[g, out, into] if out_first else weight_GMM[g, into, out]
        out_NTT[g * M + out] += weight * x_NTT[g * M + into]
    return out_NTT


def loops(q_TNH, k_TKH, v_TKH, mta: Mta, order, depth):
    """Steps 1 to 10 for one document, float64."""
    T, N, H = q_TNH.shape
    R = N // k_TKH.shape[1]
    score_NTT = np.zeros((N, T, T))
    for n, i, j in product(range(N), range(T), range(T)):
        if j <= i:
            score_NTT[n, i, j] = q_TNH[i, n] @ k_TKH[j, n // R] / np.sqrt(H)
    if mta.pre_NAC is not None:
        score_NTT = loops_convolve(score_NTT, mta.pre_NAC)
    if mta.pre_mix_GMM is not None:
        score_NTT = loops_mix(score_NTT, mta.pre_mix_GMM, out_first=True)
    prob_NTT = np.zeros((N, T, T))
    for n, i in product(range(N), range(T)):
        mass = np.exp(score_NTT[n, i, : i + 1] - score_NTT[n, i, : i + 1].max())
        prob_NTT[n, i, : i + 1] = mass / mass.sum()
    if mta.post_mix_GMM is not None and order == "mix_first":
        prob_NTT = loops_mix(prob_NTT, mta.post_mix_GMM, out_first=False)
    if mta.post_NAC is not None:
        prob_NTT = np.tril(loops_convolve(prob_NTT, mta.post_NAC))
    if mta.post_mix_GMM is not None and order == "convolve_first":
        prob_NTT = loops_mix(prob_NTT, mta.post_mix_GMM, out_first=False)
    out_TNH = np.stack([prob_NTT[n] @ v_TKH[:, n // R] for n in range(N)], axis=1)
    if mta.norm_H is not None:
        mean_square = (out_TNH**2).mean(axis=-1, keepdims=True)
        out_TNH = out_TNH / np.sqrt(mean_square + 1e-5) * mta.norm_H
    if depth is not None:
        out_TNH = out_TNH * (1 - (0.8 - 0.6 * np.exp(-0.3 * depth)))
    if mta.gate_HE is not None:
        gate = out_TNH @ mta.gate_HE + mta.gate_bias_E
        out_TNH = out_TNH / (1 + np.exp(-gate))
    return out_TNH


@pytest.mark.parametrize("order", ["convolve_first", "mix_first"])
@pytest.mark.parametrize("case", CASES)
def test_the_paper_steps_document_by_document(case, order):
    parts, depth = CASES[case]
    *qkv, mta = make_inputs(parts)
    out = dense(*qkv, mta, SEGMENTS_BT, order=order, depth=depth)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), (*qkv, mta))
    expected = np.zeros(out.shape)
    for row, segment in ((0, 1), (0, 2), (1, 3)):
        here = SEGMENTS_BT[row] == segment
        one = (x[row, here] for x in exact[:3])
        expected[row, here] = loops(*one, exact[3], order, depth)
    np.testing.assert_allclose(out, expected, atol=2e-5 * abs(expected).max())


def test_identity_is_plain_attention():
    q_BTNH, k_BTKH, v_BTKH, _ = make_inputs()
    mta = identity(N, H, pre_group=4, post_group=2)
    plain = jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, is_causal=True)
    np.testing.assert_allclose(dense(q_BTNH, k_BTKH, v_BTKH, mta), plain, atol=2e-6)
    none = dense(q_BTNH, k_BTKH, v_BTKH, Mta())
    np.testing.assert_allclose(none, plain, atol=2e-6)


def test_the_future_does_not_matter():
    *qkv, mta = make_inputs(CASES["v2"][0])
    *others, _ = make_inputs(seed=1)
    mixed = [x.at[:, 5:].set(y[:, 5:]) for x, y in zip(qkv, others, strict=True)]
    out, changed = dense(*qkv, mta), dense(*mixed, mta)
    np.testing.assert_array_equal(out[:, :5], changed[:, :5])
    assert (out[:, 5:] != changed[:, 5:]).any(axis=(0, 2, 3)).all()


def test_padding_is_inert():
    *qkv, mta = make_inputs(CASES["v2"][0])

    def loss(*qkv):
        out = dense(*qkv, mta, SEGMENTS_BT)
        return (out + jnp.sin(3 * out)).sum(), out

    value = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    (_, out), grads = value(*qkv)
    (_, other), other_grads = value(*(x.at[0, 7:].set(50.0) for x in qkv))
    np.testing.assert_array_equal(out, other)
    np.testing.assert_array_equal(out[0, 7:], 0.0)
    for grad, other_grad in zip(grads, other_grads, strict=True):
        np.testing.assert_array_equal(grad, other_grad)
        np.testing.assert_array_equal(grad[0, 7:], 0.0)
        assert (grad[1] != 0).any(axis=(1, 2)).all()


def test_the_880m_model_gains_29592_parameters():
    total, convolved = 0, (2, 6, 10, 14, 18, 22)
    for layer in range(24):
        taps = (6, 11) if layer in convolved else None
        groups = {"pre_group": 16, "post_group": 16}
        mta = identity(16, 96, pre=taps, post=taps, **groups, norm=True, gates=1)
        total += sum(leaf.size for leaf in jax.tree.leaves(mta))
    assert total == 29_592


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pre_NAC": jnp.zeros((N, 3, 4))}, "odd"),
        ({"post_NAC": jnp.zeros((N + 1, 3, 5))}, "post_NAC"),
        ({"pre_mix_GMM": jnp.zeros((2, 3, 3))}, "pre_mix"),
        ({"post_mix_GMM": jnp.zeros((4, 4))}, "post_mix"),
        ({"norm_H": jnp.zeros(H + 1)}, "norm"),
        ({"gate_HE": jnp.zeros((H, 1))}, "together"),
        ({"gate_HE": jnp.zeros((H, 2)), "gate_bias_E": jnp.zeros(2)}, "gate"),
    ],
)
def test_parts_that_do_not_fit(change, word):
    *qkv, mta = make_inputs()
    with pytest.raises(ValueError, match=word):
        multi_token_attention(*qkv, mta._replace(**change))


def test_arguments_that_make_no_sense():
    q_BTNH, k_BTKH, v_BTKH, mta = make_inputs()
    with pytest.raises(ValueError, match="do not divide"):
        identity(N, H, pre_group=3)
    with pytest.raises(ValueError, match="time"):
        multi_token_attention(q_BTNH, k_BTKH[:, 1:], v_BTKH[:, 1:], mta)
    with pytest.raises(ValueError, match="kv heads"):
        multi_token_attention(q_BTNH[:, :, :3], k_BTKH, v_BTKH, mta)
    with pytest.raises(ValueError, match="segments"):
        multi_token_attention(q_BTNH, k_BTKH, v_BTKH, mta, SEGMENTS_BT[:, 1:])
    with pytest.raises(ValueError, match="order"):
        multi_token_attention(q_BTNH, k_BTKH, v_BTKH, mta, order="mix")
    with pytest.raises(NotImplementedError, match="reference, xla"):
        multi_token_attention(q_BTNH, k_BTKH, v_BTKH, mta, implementation="cuda")
