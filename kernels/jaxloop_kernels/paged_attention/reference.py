"""The definition of correct: every row's pages side by side, all scores at once."""

import jax
import jax.numpy as jnp

MASKED = -1e30
"""Score of a key that is not seen; finite, so that a row may see none."""


def paged_attention(
    q_BQNH: jax.Array,
    k_pages_PKSH: jax.Array,
    v_pages_PKSH: jax.Array,
    table_BL: jax.Array,
    length_B: jax.Array,
    *,
    window: int | None = None,
    soft_cap: float | None = None,
    scale: float,
) -> jax.Array:
    """See `jaxloop_kernels.paged_attention.paged_attention`."""
    B, Q, N, H = q_BQNH.shape
    K = k_pages_PKSH.shape[1]

    def rows(pages_PKSH):
        own_BLKSH = pages_PKSH[jnp.clip(table_BL, 0, pages_PKSH.shape[0] - 1)]
        return jnp.moveaxis(own_BLKSH, 2, 3).reshape(B, -1, K, H).astype(jnp.float32)

    k_BTKH, v_BTKH = rows(k_pages_PKSH), rows(v_pages_PKSH)
    q_BQKRH = q_BQNH.astype(jnp.float32).reshape(B, Q, K, N // K, H)
    exact = jax.lax.Precision.HIGHEST
    score = jnp.einsum("BQKRH,BTKH->BKRQT", q_BQKRH, k_BTKH, precision=exact) * scale
    if soft_cap is not None:
        score = soft_cap * jnp.tanh(score / soft_cap)
    at_BQ = length_B[:, None] - Q + jnp.arange(Q)
    seen_B11QT = visible(at_BQ[..., None], jnp.arange(k_BTKH.shape[1]), window)[
        :, None, None
    ]
    prob = jax.nn.softmax(jnp.where(seen_B11QT, score, MASKED), axis=-1)
    prob = jnp.where(seen_B11QT, prob, 0.0)
    out = jnp.einsum("BKRQT,BTKH->BQKRH", prob, v_BTKH, precision=exact)
    return out.reshape(B, Q, N, H).astype(q_BQNH.dtype)


def visible(query_at, key_at, window: int | None) -> jax.Array:
    """Keys up to the query's own place, the last `window` of them."""
    seen = key_at <= query_at
    return seen if window is None else seen & (key_at > query_at - window)
