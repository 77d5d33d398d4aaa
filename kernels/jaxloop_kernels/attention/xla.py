"""Attention in plain JAX, the queries in blocks: for any device.

The sequence is cut into a few parts; each takes the keys up to its end, which leaves
out up to 3/8 of the work. Short ones keep their softmax for the backward pass, which is
the fastest on a CPU. Where that would take much memory a part goes through its queries
a block at a time, and the backward pass computes each block again.

Shapes: B batch, T time, Q queries of a block, S keys, N query heads, K kv heads,
R query heads per kv head, H head size of queries and keys, V of values.
"""

import jax
import jax.numpy as jnp

from jaxloop_kernels.attention.reference import HIDDEN, visible_from, without_padding

PARTS, PART = 4, 64
"""The sequence is cut into at most so many parts, of at least so many queries."""
SCORES = 2**26
"""A part with more scores goes through its queries in blocks."""
BLOCK = 2**24
"""Scores of such a block, unless one query alone has more."""


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
    block_q: int | None = None,
) -> jax.Array:
    """See `jaxloop_kernels.attention.attention`.

    block_q: queries whose scores are held at once; None: as many as fit `BLOCK`, and
    all of a part where that has no more than `SCORES`.
    """
    B, T, N, H = q_BTNH.shape
    K, V = v_BTKV.shape[2:]
    q_BKRTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKTH, v_BKTV = (x.transpose(0, 2, 1, 3) for x in (k_BTKH, v_BTKV))
    sinks_KR = None if sinks_N is None else sinks_N.reshape(K, N // K)
    parts = min(PARTS, -(-T // PART))
    size = -(-T // parts)
    out = []
    for first in range(0, T, size):
        last = min(first + size, T)
        start = 0 if window is None else max(0, first - window + 1)
        keys, queries = slice(start, last), slice(first, last)
        small = B * N * (last - first) * (last - start) <= SCORES
        block = block_q or (last - first if small else _fitting(B * N, last - start))
        ids_BQ, ids_BS = None, None
        if segments_BT is not None:
            ids_BQ, ids_BS = segments_BT[:, queries], segments_BT[:, keys]
        arrays = (q_BKRTH[:, :, :, queries], k_BKTH[:, :, keys], v_BKTV[:, :, keys])
        how = {"scale": scale, "soft_cap": soft_cap, "sinks_KR": sinks_KR}
        out.append(_part(arrays, ids_BQ, ids_BS, first - start, block, window, how))
    out_BKRTV = jnp.concatenate(out, axis=3)
    out_BTNV = out_BKRTV.transpose(0, 3, 1, 2, 4).reshape(B, T, N, V)
    return without_padding(out_BTNV, segments_BT)


def _fitting(heads: int, keys: int) -> int:
    return max(1, BLOCK // (heads * keys))


def _part(arrays, ids_BT, ids_BS, offset, block, window, how):
    """Neighbouring queries, the first at the keys' index `offset`."""
    q_BKRTH, k_BKSH, v_BKSV = arrays
    T = q_BKRTH.shape[3]
    key_S = jnp.arange(k_BKSH.shape[2])
    if block >= T:
        visible = visible_from(offset + jnp.arange(T), key_S, ids_BT, ids_BS, window)
        return attend(q_BKRTH, k_BKSH, v_BKSV, visible, **how)
    blocks = -(-T // block)
    pad = blocks * block - T
    q_BKRTH = jnp.pad(q_BKRTH, [(0, 0)] * 3 + [(0, pad), (0, 0)])
    if ids_BT is not None:
        ids_BT = jnp.pad(ids_BT, [(0, 0), (0, pad)])

    @jax.checkpoint
    def one(first):
        q_BKRQH = jax.lax.dynamic_slice_in_dim(q_BKRTH, first, block, axis=3)
        ids_BQ = None
        if ids_BT is not None:
            ids_BQ = jax.lax.dynamic_slice_in_dim(ids_BT, first, block, axis=1)
        query_Q = offset + first + jnp.arange(block)
        visible = visible_from(query_Q, key_S, ids_BQ, ids_BS, window)
        return attend(q_BKRQH, k_BKSH, v_BKSV, visible, **how)

    out = jax.lax.map(one, block * jnp.arange(blocks))
    out_BKRTV = jnp.moveaxis(out, 0, 3).reshape(*q_BKRTH.shape[:4], v_BKSV.shape[-1])
    return out_BKRTV[:, :, :, :T]


def attend(
    q_BKRQH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSV: jax.Array,
    visible_BQS: jax.Array,
    sinks_KR: jax.Array | None = None,
    *,
    scale: float,
    soft_cap: float | None = None,
) -> jax.Array:
    """Attention of a block of queries to the keys that each sees, (B, K, R, Q, V).

    Divided by the softmax's sum only after the product: S / H times fewer divisions,
    and fewer passes over (Q, S) going backward.
    """
    f32 = jnp.float32
    score_BKRQS = jnp.einsum(
        "BKRQH,BKSH->BKRQS", q_BKRQH * scale, k_BKSH, preferred_element_type=f32
    )
    if soft_cap is not None:
        score_BKRQS = soft_cap * jnp.tanh(score_BKRQS / soft_cap)
    score_BKRQS = jnp.where(visible_BQS[:, None, None], score_BKRQS, HIDDEN)
    # The maximum cancels: a gradient through it would be zero.
    top_BKRQ1 = jax.lax.stop_gradient(score_BKRQS.max(axis=-1, keepdims=True))
    if sinks_KR is not None:
        sink_KR11 = sinks_KR.astype(f32)[:, :, None, None]
        top_BKRQ1 = jnp.maximum(top_BKRQ1, jax.lax.stop_gradient(sink_KR11))
    mass_BKRQS = jnp.exp(score_BKRQS - top_BKRQ1)
    out_BKRQV = jnp.einsum(
        "BKRQS,BKSV->BKRQV",
        mass_BKRQS.astype(v_BKSV.dtype),
        v_BKSV,
        preferred_element_type=f32,
    )
    sum_BKRQ1 = mass_BKRQS.sum(axis=-1, keepdims=True)
    if sinks_KR is not None:
        sum_BKRQ1 += jnp.exp(sink_KR11 - top_BKRQ1)
    return (out_BKRQV / sum_BKRQ1).astype(v_BKSV.dtype)
