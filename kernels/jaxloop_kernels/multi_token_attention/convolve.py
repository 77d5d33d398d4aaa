"""Steps 3, 4, 6 and 7 on a tile of scores: convolve over queries and keys, mix heads.

Unlike `reference.py` the convolution is one elementwise pass over the tile, all taps
added in registers, and so is its gradient in the scores. Left to automatic
differentiation, each tap would be a pass of its own over the tile.

Shapes: B batch, N heads, I rows of the tile with the A - 1 above that it needs, Q = I -
(A - 1) rows out, S key time, A query taps, C key taps, G mixing groups of M heads.
"""

import jax
import jax.numpy as jnp

ROWS = 16
"""Rows that the kernel's gradient multiplies at once. Of their ROWS x (ROWS + A - 1)
products it keeps A diagonals; fewer rows waste less, but make for small products."""


@jax.custom_vjp
def convolve(x_BNIS: jax.Array, kernel_NAC: jax.Array, same_BAQ: jax.Array | None):
    """(B, N, Q, S): row q is made of rows q to q + A - 1, scores beyond S being 0.

    same_BAQ: whether row q may take anything from row q + a; None: always. Float32.
    """
    C = kernel_NAC.shape[2]
    return _taps(_pad(x_BNIS, 0, C // 2), kernel_NAC, same_BAQ)


def _forward(x_BNIS, kernel_NAC, same_BAQ):
    return convolve(x_BNIS, kernel_NAC, same_BAQ), (x_BNIS, kernel_NAC, same_BAQ)


def _backward(saved, bar_BNQS):
    x_BNIS, kernel_NAC, same_BAQ = saved
    _, A, C = kernel_NAC.shape
    x_bar = _taps(
        _pad(bar_BNQS, A - 1, C // 2), kernel_NAC[:, ::-1, ::-1], _transposed(same_BAQ)
    )
    return x_bar, _kernel_gradient(x_BNIS, bar_BNQS, same_BAQ, A, C), None


convolve.defvjp(_forward, _backward)


def _taps(x_BNIS, kernel_NAC, same_BAQ) -> jax.Array:
    """The correlation of a padded tile with a kernel."""
    _, A, C = kernel_NAC.shape
    Q, S = x_BNIS.shape[2] - (A - 1), x_BNIS.shape[3] - (C - 1)
    # Written out first: else every tap would ask again what is padding (measured on
    # CPU: 3 times the time).
    x_BNIS = jax.lax.optimization_barrier(x_BNIS)
    total_BNQS = jnp.zeros(())
    for a in range(A):
        row_BNQS = sum(
            kernel_NAC[:, a, c, None, None] * x_BNIS[:, :, a : a + Q, c : c + S]
            for c in range(C)
        )
        if same_BAQ is not None:
            row_BNQS = jnp.where(same_BAQ[:, None, a, :, None], row_BNQS, 0.0)
        total_BNQS += row_BNQS
    return total_BNQS


def _transposed(same_BAQ):
    """What row i gives instead of what row q takes: (B, A, I), taps reversed."""
    if same_BAQ is None:
        return None
    A = same_BAQ.shape[1]
    taken = [jnp.pad(same_BAQ[:, a], ((0, 0), (a, A - 1 - a))) for a in range(A)]
    return jnp.stack(taken[::-1], axis=1)


def _kernel_gradient(x_BNIS, bar_BNQS, same_BAQ, A: int, C: int) -> jax.Array:
    """sum over B, Q and S of bar[q, s] x[q + a, s + c - C // 2], as matrix products.

    L blocks of J rows: for each key tap the products of all pairs of rows of a block,
    of which A diagonals count.
    """
    B, N, Q, S = bar_BNQS.shape
    blocks = -(-Q // ROWS)
    fill = blocks * ROWS - Q
    bar_BNQS = jnp.pad(bar_BNQS, ((0, 0), (0, 0), (0, fill), (0, 0)))
    bar_BNLJS = bar_BNQS.reshape(B, N, blocks, ROWS, S)
    x_BNIS = jnp.pad(x_BNIS, ((0, 0), (0, 0), (0, fill), (C // 2, C // 2)))
    starts = range(0, blocks * ROWS, ROWS)
    x_BNLIS = jnp.stack([x_BNIS[:, :, s : s + ROWS + A - 1] for s in starts], axis=2)
    same_B1ALJ = None
    if same_BAQ is not None:
        same_BAQ = jnp.pad(same_BAQ, ((0, 0), (0, 0), (0, fill)))
        same_B1ALJ = same_BAQ.reshape(B, 1, A, blocks, ROWS)

    def tap_gradient(_, c):
        moved_BNLIS = jax.lax.dynamic_slice_in_dim(x_BNLIS, c, S, axis=4)
        product_BNLJI = _einsum("BNLJS,BNLIS->BNLJI", bar_BNLJS, moved_BNLIS)
        by_tap = [product_BNLJI[..., a : a + ROWS] for a in range(A)]
        by_tap = [jnp.diagonal(x, axis1=3, axis2=4) for x in by_tap]
        pairs_BNALJ = jnp.stack(by_tap, axis=2)
        if same_B1ALJ is not None:
            pairs_BNALJ = jnp.where(same_B1ALJ, pairs_BNALJ, 0.0)
        return (), pairs_BNALJ.sum(axis=(0, 3, 4))

    gradient_CNA = jax.lax.scan(tap_gradient, (), jnp.arange(C))[1]
    return jnp.moveaxis(gradient_CNA, 0, 2)


def mix(x_BNQS: jax.Array, weight_GMM: jax.Array) -> jax.Array:
    """New head m of a group is sum_n weight[m, n] head n."""
    G, M, _ = weight_GMM.shape
    B, N, Q, S = x_BNQS.shape
    # A batch axis on both sides, though the weight has none: no transpose.
    weight_BGMM = jnp.broadcast_to(weight_GMM, (B, G, M, M))
    x_BGMQS = x_BNQS.reshape(B, G, M, Q, S)
    mixed_BGMQS = _einsum("BGOM,BGMQS->BGOQS", weight_BGMM, x_BGMQS)
    return mixed_BGMQS.reshape(B, N, Q, S)


def _einsum(terms: str, *arrays) -> jax.Array:
    return jnp.einsum(
        terms, *arrays, precision="highest", preferred_element_type=jnp.float32
    )


def _pad(x_BNIS, rows: int, columns: int) -> jax.Array:
    return jnp.pad(x_BNIS, ((0, 0), (0, 0), (rows, rows), (columns, columns)))
