"""The definition of correct: all scores at once.

Shapes: B batch, T time, N query heads, K kv heads, R query heads per kv head, H head
size of queries and keys, V of values.
"""

from functools import partial

import jax
import jax.numpy as jnp

HIDDEN = -1e30
"""A score that is not seen; finite, so that no gradient is nan."""


def core(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKV: jax.Array,
    segments_BT: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """See `jaxloop_kernels.attention.attention`. Holds (B, N, T, T) in float32; float64
    stays float64."""
    B, T, N, _ = q_BTNH.shape
    K = k_BTKH.shape[2]
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    einsum = partial(jnp.einsum, precision="highest", preferred_element_type=wide)
    q_BTKRH = q_BTNH.reshape(B, T, K, N // K, -1)
    score_BKRTS = einsum("BTKRH,BSKH->BKRTS", q_BTKRH, k_BTKH) * scale
    if soft_cap is not None:
        score_BKRTS = soft_cap * jnp.tanh(score_BKRTS / soft_cap)
    at_T = jnp.arange(T)
    visible = visible_from(at_T, at_T, segments_BT, segments_BT, window)
    score_BKRTS = jnp.where(visible[:, None, None], score_BKRTS, HIDDEN)
    if sinks_N is not None:
        sink_KR11 = sinks_N.astype(wide).reshape(K, -1, 1, 1)
        sink_BKRT1 = jnp.broadcast_to(sink_KR11, (*score_BKRTS.shape[:-1], 1))
        score_BKRTS = jnp.concatenate([score_BKRTS, sink_BKRT1], axis=-1)
    weight_BKRTS = jax.nn.softmax(score_BKRTS)[..., :T]
    out_BTKRV = einsum("BKRTS,BSKV->BTKRV", weight_BKRTS, v_BTKV.astype(wide))
    out_BTNV = out_BTKRV.reshape(B, T, N, -1).astype(v_BTKV.dtype)
    return without_padding(out_BTNV, segments_BT)


def visible_from(query_Q, key_S, query_segments_BQ, key_segments_BS, window):
    """(B or 1, Q, S): which keys, at the indices key_S, each query sees.

    Its own and earlier ones of its document, at most `window` of them.
    """
    behind_QS = query_Q[:, None] - key_S[None, :]
    visible_BQS = (behind_QS >= 0)[None]
    if window is not None:
        visible_BQS &= (behind_QS < window)[None]
    if query_segments_BQ is not None:
        visible_BQS &= query_segments_BQ[:, :, None] == key_segments_BS[:, None, :]
    return visible_BQS


def without_padding(out_BTNV, segments_BT):
    """Padding sees padding, for want of anything else; it gives 0."""
    if segments_BT is None:
        return out_BTNV
    return jnp.where((segments_BT > 0)[:, :, None, None], out_BTNV, 0)
