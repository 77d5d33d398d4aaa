"""A block of queries at a time, forward and backward: (B, N, T, S) is never held.

A block needs the scores of the queries above it that the kernels reach, so each takes
them along and forms them again. The backward pass forms all of a block's scores again;
what is kept between the passes is the inputs. The memory is that of one block's scores,
(B, N, block_q, T), a few times.

Shapes: B batch, T query time, S key time, N query heads, K kv heads, R query heads a kv
head, H head size, Q queries of a block, I those and the ones above that it needs, A
query taps, C key taps, L blocks.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloop_kernels.multi_token_attention.convolve import convolve, mix
from jaxloop_kernels.multi_token_attention.reference import NEVER, Order
from jaxloop_kernels.multi_token_attention.weights import Mta, query_reach

KEY_BLOCKS, KEY_BLOCK = 4, 512
"""Queries are cut in at most so many ranges, of at least so many; a range takes the
keys up to its end. With four, 3/8 of the work is left out."""


class Window(NamedTuple):
    """One block of queries, with those above it."""

    first: jax.Array
    """Index of the first of the I rows; negative where there are none above."""
    q_BKRIH: jax.Array
    segments_BI: jax.Array | None


class Keys(NamedTuple):
    """What the queries see."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    segments_BS: jax.Array | None


def core(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mta: Mta,
    segments_BT: jax.Array | None = None,
    *,
    scale: float,
    order: Order,
    block_q: int = 128,
) -> jax.Array:
    """Steps 1 to 8. Returns (B, T, N, H) in float32.

    Products with q, k and v take operands in their dtype, all else is float32. A block
    is never smaller than what the kernels reach.
    """
    B, T, N, H = q_BTNH.shape
    K, reach, dtype = k_BTKH.shape[2], query_reach(mta), q_BTNH.dtype
    block_q = max(min(block_q, T), reach)
    # In float32 the parts that blocks add to a gradient are summed in float32.
    q_BTNH, k_BTKH, v_BTKH, mta = jax.tree.map(
        lambda x: x.astype(jnp.float32), (q_BTNH, k_BTKH, v_BTKH, mta)
    )
    q_BTKRH = q_BTNH.reshape(B, T, K, N // K, H)
    q_LBKRIH = _windows(q_BTKRH, block_q, reach).transpose(0, 1, 3, 4, 2, 5)
    segments_LBI = None
    if segments_BT is not None:
        segments_LBI = _windows(segments_BT, block_q, reach)
    firsts_L = jnp.arange(q_LBKRIH.shape[0]) * block_q - reach
    windows = Window(firsts_L, q_LBKRIH, segments_LBI)
    keys = Keys(k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2), segments_BT)

    block = partial(_block, scale=scale, order=order, dtype=dtype)
    out_LBKRQH = _ranges(block, mta, keys, windows, block_q)
    out_BLQKRH = out_LBKRQH.transpose(1, 0, 4, 2, 3, 5)
    return out_BLQKRH.reshape(B, -1, N, v_BTKH.shape[-1])[:, :T]


def _windows(x_BT: jax.Array, block: int, reach: int) -> jax.Array:
    """(B, T, ...) to (L, B, reach + block, ...): blocks, with what comes before each.

    Zeros stand before the first and after the last.
    """
    B, T, *rest = x_BT.shape
    blocks = -(-T // block)
    pad = [(0, 0), (0, blocks * block - T)] + [(0, 0)] * len(rest)
    x_LBQ = jnp.moveaxis(jnp.pad(x_BT, pad).reshape(B, blocks, block, *rest), 1, 0)
    above_LB = jnp.roll(x_LBQ[:, :, block - reach :], 1, axis=0).at[0].set(0)
    return jnp.concatenate([above_LB, x_LBQ], axis=2)


def _ranges(block, mta: Mta, keys: Keys, windows: Window, block_q: int) -> jax.Array:
    """All blocks' outputs, (L, B, K, R, Q, H)."""
    blocks, T = windows.first.shape[0], keys.k_BKSH.shape[2]
    if blocks == 1:
        return block(mta, keys, jax.tree.map(lambda x: x[0], windows))[None]
    size = max(-(-blocks // KEY_BLOCKS), -(-KEY_BLOCK // block_q))
    out = []
    for start in range(0, blocks, size):
        S = min((start + size) * block_q, T)
        here = Keys(
            keys.k_BKSH[:, :, :S],
            keys.v_BKSH[:, :, :S],
            None if keys.segments_BS is None else keys.segments_BS[:, :S],
        )
        # Inside a scan nothing can be shared between the passes: no barrier is needed.
        step = jax.checkpoint(partial(block, mta, here), prevent_cse=False)
        some = jax.tree.map(lambda x, s=start: x[s : s + size], windows)
        out.append(jax.lax.map(step, some))
    return jnp.concatenate(out)


def _block(
    mta: Mta, keys: Keys, window: Window, *, scale: float, order: Order, dtype
) -> jax.Array:
    """(B, K, R, Q, H): the last Q rows of the window's I."""
    B, K, R, I, _ = window.q_BKRIH.shape
    S = keys.k_BKSH.shape[2]
    sees_B1IS = _visible(window, keys)
    segments_BI = window.segments_BI
    score_BKRIS = jnp.einsum(
        "BKRIH,BKSH->BKRIS",
        window.q_BKRIH.astype(dtype),
        keys.k_BKSH.astype(dtype),
        preferred_element_type=jnp.float32,
    )
    score_BNIS = score_BKRIS.reshape(B, K * R, I, S) * scale
    if mta.pre_NAC is not None:
        score_BNIS = jnp.where(sees_B1IS, score_BNIS, 0.0)
        score_BNIS = convolve(score_BNIS, mta.pre_NAC, _same(segments_BI, mta.pre_NAC))
        sees_B1IS, segments_BI = _below(mta.pre_NAC, sees_B1IS, segments_BI)
    if mta.pre_mix_GMM is not None:
        score_BNIS = mix(score_BNIS, mta.pre_mix_GMM)
    prob_BNIS = jax.nn.softmax(jnp.where(sees_B1IS, score_BNIS, NEVER))
    prob_BNIS = jnp.where(sees_B1IS, prob_BNIS, 0.0)
    if mta.post_mix_GMM is not None and order == "mix_first":
        prob_BNIS = mix(prob_BNIS, mta.post_mix_GMM.swapaxes(1, 2))
    if mta.post_NAC is not None:
        prob_BNIS = convolve(prob_BNIS, mta.post_NAC, _same(segments_BI, mta.post_NAC))
        sees_B1IS, _ = _below(mta.post_NAC, sees_B1IS, segments_BI)
        prob_BNIS = jnp.where(sees_B1IS, prob_BNIS, 0.0)
    if mta.post_mix_GMM is not None and order == "convolve_first":
        prob_BNIS = mix(prob_BNIS, mta.post_mix_GMM.swapaxes(1, 2))
    return jnp.einsum(
        "BKRQS,BKSH->BKRQH",
        prob_BNIS.reshape(B, K, R, -1, S).astype(dtype),
        keys.v_BKSH.astype(dtype),
        preferred_element_type=jnp.float32,
    )


def _visible(window: Window, keys: Keys) -> jax.Array:
    """(B or 1, 1, I, S)."""
    rows_I = window.first + jnp.arange(window.q_BKRIH.shape[3])
    sees_11IS = (rows_I[:, None] >= jnp.arange(keys.k_BKSH.shape[2]))[None, None]
    if window.segments_BI is None or keys.segments_BS is None:
        return sees_11IS
    row_B1I1 = window.segments_BI[:, None, :, None]
    column_B11S = keys.segments_BS[:, None, None, :]
    return sees_11IS & (row_B1I1 == column_B11S) & (row_B1I1 != 0)


def _same(segments_BI: jax.Array | None, kernel_NAC: jax.Array) -> jax.Array | None:
    """(B, A, Q): whether row q + a is of the document of row q + A - 1."""
    if segments_BI is None:
        return None
    A = kernel_NAC.shape[1]
    Q = segments_BI.shape[1] - (A - 1)
    rows = [segments_BI[:, a : a + Q] for a in range(A)]
    return jnp.stack([row_BQ == rows[-1] for row_BQ in rows], axis=1)


def _below(kernel_NAC: jax.Array, sees_B1IS, segments_BI):
    """Without the rows that were there for the convolution only."""
    A = kernel_NAC.shape[1]
    if segments_BI is not None:
        segments_BI = segments_BI[:, A - 1 :]
    return sees_B1IS[:, :, A - 1 :], segments_BI
