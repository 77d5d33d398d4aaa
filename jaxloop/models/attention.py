"""Attention of a whole sequence, for training and prefill.

Shapes: B batch, T query time, Q queries of a block, S key time, N query heads, K kv
heads, R query heads per kv head, H head size.
"""

import jax
import jax.numpy as jnp

QUERY_BLOCKS, QUERY_BLOCK = 4, 64
"""Attention takes queries in at most so many blocks, of at least so many."""


def attend(q_BTNH, k_BKSH, v_BKSH, visible_BTS, *, causal: bool) -> jax.Array:
    """Grouped-query attention with a float32 softmax.

    The queries go in blocks, which takes less memory. `causal`: nothing is visible past
    a query's own index; each block then takes the keys up to its end: with four, 3/8 of
    the work is left out.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    q_BKRTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    blocks = min(QUERY_BLOCKS, -(-T // QUERY_BLOCK))
    size = -(-T // blocks)
    out = []
    for first in range(0, T, size):
        last = min(first + size, T)
        S = last if causal else k_BKSH.shape[2]
        here = slice(first, last)
        q_BKRQH, visible_BQS = q_BKRTH[:, :, :, here], visible_BTS[:, here, :S]
        out.append(_attend(q_BKRQH, k_BKSH[:, :, :S], v_BKSH[:, :, :S], visible_BQS))
    out_BKRTH = jnp.concatenate(out, axis=3)
    return out_BKRTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _attend(q_BKRQH, k_BKSH, v_BKSH, visible_BQS) -> jax.Array:
    """Divided by the softmax's sum only after the product: S / H times fewer divisions,
    and fewer passes over (Q, S) going backward."""
    f32, H = jnp.float32, q_BKRQH.shape[-1]
    score_BKRQS = jnp.einsum(
        "BKRQH,BKSH->BKRQS", q_BKRQH * H**-0.5, k_BKSH, preferred_element_type=f32
    )
    score_BKRQS = jnp.where(visible_BQS[:, None, None], score_BKRQS, -1e30)
    # The maximum cancels: a gradient through it would be zero.
    top_BKRQ1 = jax.lax.stop_gradient(score_BKRQS.max(axis=-1, keepdims=True))
    mass_BKRQS = jnp.exp(score_BKRQS - top_BKRQ1)
    out_BKRQH = jnp.einsum(
        "BKRQS,BKSH->BKRQH",
        mass_BKRQS.astype(v_BKSH.dtype),
        v_BKSH,
        preferred_element_type=f32,
    )
    out_BKRQH = out_BKRQH / mass_BKRQS.sum(axis=-1, keepdims=True)
    return out_BKRQH.astype(v_BKSH.dtype)


def self_visible(segments_BT: jax.Array) -> jax.Array:
    """(B, T, T): earlier or same index, same segment."""
    T = segments_BT.shape[1]
    causal_TT = jnp.arange(T)[None, :] <= jnp.arange(T)[:, None]
    return causal_TT & (segments_BT[:, :, None] == segments_BT[:, None, :])
