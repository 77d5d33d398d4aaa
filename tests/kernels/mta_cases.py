"""What the tests of the fused kernels share: cases, and the comparison with the dense.

Gradients are those of a random mix of the outputs, in q, k, v and the kernels.
"""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop_kernels.multi_token_attention import Mta, reference


def pairwise(levels):
    """16 combinations of five levels, of four choices each or fewer, in which every two
    choices meet.

    Columns a, b, a + b, a + 2b, a + 3b over the field of four elements, folded where
    there are fewer.
    """
    double, triple = (0, 2, 3, 1), (0, 3, 1, 2)
    for a, b in product(range(4), range(4)):
        at = (a, b, a ^ b, a ^ double[b], a ^ triple[b])
        yield tuple(level[i % len(level)] for level, i in zip(levels, at, strict=True))


def make(ratio, head_dim, T, kernel, after, segments, dtype="float32", value_dim=None):
    N, keys = ratio, jax.random.split(jax.random.key(T), 6)
    q_BTNH = jax.random.normal(keys[0], (1, T, N, head_dim)).astype(dtype)
    k_BTKH = jax.random.normal(keys[1], (1, T, 1, head_dim)).astype(dtype)
    v_BTKH = jax.random.normal(keys[2], (1, T, 1, value_dim or head_dim)).astype(dtype)
    mta = Mta(
        pre_NAC=jax.random.normal(keys[3], (N, *kernel)) / 2,
        post_NAC=jax.random.normal(keys[4], (N, *kernel)) / 2 if after else None,
    )
    bar_BTNH = jax.random.normal(keys[5], (1, T, N, value_dim or head_dim))
    segments_BT = None
    if segments:  # documents of uneven length, padding inside of one and at the end
        cuts = np.array([0.1, 0.15, 0.6, 0.95]) * T
        segments_BT = 1 + np.searchsorted(cuts, np.arange(T), side="right")[None]
        inside_T = (np.arange(T) == 2 * T // 5) & (T > 8)
        segments_BT = np.where((segments_BT == 5) | inside_T, 0, segments_BT)
        segments_BT = jnp.asarray(segments_BT, jnp.int32)
    return (q_BTNH, k_BTKH, v_BTKH, mta), segments_BT, bar_BTNH


# Compiling takes most of the time of these tests, and does not matter to what they say.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def value_and_grads(core, inputs, segments_BT, bar_BTNH, **how):
    @partial(jax.jit, compiler_options=QUICKLY)
    def run(q_BTNH, k_BTKH, v_BTKH, mta):
        def loss(*arrays):
            scale = q_BTNH.shape[-1] ** -0.5
            out = core(*arrays, segments_BT, scale=scale, order="convolve_first", **how)
            return (out.astype(jnp.float32) * bar_BTNH).sum(), out

        grad = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)
        (_, out), grads = grad(q_BTNH, k_BTKH, v_BTKH, mta)
        return out, grads

    return run(*inputs)


def assert_close(actual, expected, relative):
    """Every array within `relative` times its largest value.

    Or times 1 where that is less: a gradient that is zero is the difference of numbers
    about as large as that.
    """
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        bound = relative * max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)


def check(core, case, block_q, block_k):
    """Values and gradients of a case of `make`, and that padding has neither."""
    expected = value_and_grads(reference.core, *case)
    actual = value_and_grads(core, *case, block_q=block_q, block_k=block_k)
    assert_close(actual, expected, 2e-5)
    if case[1] is not None:
        padding = np.asarray(case[1] == 0)
        assert not np.asarray(actual[0])[padding].any()
        assert not any(np.asarray(x)[padding].any() for x in actual[1][:3])
