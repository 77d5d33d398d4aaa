"""Multi-Token Attention over a cache of keys and values.

A row of the output is final once it is there, so nothing past is computed again, but a
new row needs what the kernels reach: the last queries, and for the convolution after
the softmax the rows of probabilities before it. These are formed again from the queries
and their log-sum-exp, which is little to keep: the `Tail`, a part of a layer's cache
like its keys and values. Copying it forks a sequence, and keeping the one of an earlier
position rolls back to there.

    tail = empty_tail(mta, B, N, H, dtype)                    # nothing seen yet
    tail = prefill_tail(q_BTNH, k_BTKH, mta, length_B)        # or: after a prompt
    cache = ...                                               # new keys, values written
    out_BQNH, tail = decode(q_BQNH, k_BKHS, v_BKSH, mta, tail, position_B)

A prompt's own output is that of `multi_token_attention`; a long one may also go through
`decode` in chunks. A layer without convolutions has an empty tail.

A long cache is taken in blocks of slots, with what the kernels reach beside each, and
no further than its longest row has come.

Keys are cached time last, values head size last: the products of both with few rows
then need no transpose.

Shapes: B batch, Q new queries, S slots of the cache, N query heads, K kv heads, R query
heads a kv head, H head size, W queries of a tail, I = W + Q, P rows of probabilities
before the new ones that the second kernel reaches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloop_kernels.multi_token_attention.convolve import convolve, mix
from jaxloop_kernels.multi_token_attention.reference import NEVER, Order, finish
from jaxloop_kernels.multi_token_attention.weights import Mta, query_reach


class Tail(NamedTuple):
    """What a layer keeps of a sequence besides keys and values; the latest row last."""

    q_BWNH: jax.Array
    """Queries after RoPE. W is the sum of both kernels' query taps, less one each."""
    lse_BNP: jax.Array
    """Float32, log-sum-exp of the scores as the softmax sees them."""


def empty_tail(mta: Mta, batch: int, heads: int, head_dim: int, dtype) -> Tail:
    """Zeros: before the first token. H is that of the queries, dtype too."""
    W, P = query_reach(mta), _rows_before(mta)
    q_BWNH = jnp.zeros((batch, W, heads, head_dim), dtype)
    return Tail(q_BWNH, jnp.zeros((batch, heads, P), jnp.float32))


def prefill_tail(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    mta: Mta,
    length_B: jax.Array | None = None,
    *,
    scale: float | None = None,
) -> Tail:
    """The tail after a prompt from position 0 on, of which length_B tokens are real
    (None: all). Takes W queries against the prompt's keys."""
    B, T, N, H = q_BTNH.shape
    if length_B is None:
        length_B = jnp.full(B, T)
    empty = empty_tail(mta, B, N, H, q_BTNH.dtype)
    W, P = empty.q_BWNH.shape[1], empty.lse_BNP.shape[2]
    q_BWNH = _last(jnp.concatenate([empty.q_BWNH, q_BTNH], axis=1), length_B, W, 1)
    if not P:
        return Tail(q_BWNH, empty.lse_BNP)
    k_BKHT = k_BTKH.transpose(0, 2, 3, 1)
    score_BNPT = _scores(q_BWNH, k_BKHT, mta, length_B - W, scale)
    # A row before the first has no scores; its lse is never used.
    return Tail(q_BWNH, jax.nn.logsumexp(score_BNPT, axis=-1))


def decode(
    q_BQNH: jax.Array,
    k_BKHS: jax.Array,
    v_BKSH: jax.Array,
    mta: Mta,
    tail: Tail,
    position_B: jax.Array,
    count_B: jax.Array | None = None,
    *,
    scale: float | None = None,
    depth: float | jax.Array | None = None,
    norm_eps: float = 1e-5,
    order: Order = "convolve_first",
    block: int | None = None,
) -> tuple[jax.Array, Tail]:
    """The outputs (B, Q, N, H) of new tokens in v's dtype, and the tail after them.

    position_B: int32, where each row's first new token stands; its Q keys and values
    are in the cache already, at the slots from there on. A query sees the slots up to
    its own position. count_B: how many of a row's Q tokens are real, from the first;
    the others' outputs mean nothing and they leave the tail alone. None: all.
    block: slots of the cache taken at once, up to the last that a row has; slots beyond
    are not read. None: the whole cache at once, as it is where S is hardly longer.

    The rest as in `multi_token_attention`, whose rows these are. Float32 or bfloat16.
    """
    B, Q, _, _ = q_BQNH.shape
    W, P = tail.q_BWNH.shape[1], tail.lse_BNP.shape[2]
    if (query_reach(mta), _rows_before(mta)) != (W, P):
        raise ValueError(f"decode: a tail of {W} queries, {P} rows is not of this mta")
    if count_B is None:
        count_B = jnp.full(B, Q)
    q_BINH = jnp.concatenate([tail.q_BWNH.astype(q_BQNH.dtype), q_BQNH], axis=1)
    blocks = _blocks(k_BKHS.shape[3], mta, block, position_B, count_B)
    with jax.named_scope("multi_token_attention_decode"):
        at_B = position_B - W
        score_BNRS = _all_scores(q_BINH, k_BKHS, mta, at_B, scale, blocks)
        new_BNQ = jax.nn.logsumexp(score_BNRS[:, :, P:], axis=-1)
        lse_BNR = jnp.concatenate([tail.lse_BNP, new_BNQ], axis=2)
        row_BR = position_B[:, None] + jnp.arange(-P, Q)
        out_BQNH = _sum_values(score_BNRS, lse_BNR, v_BKSH, mta, row_BR, order, blocks)
        out_BQNH = finish(out_BQNH, mta, depth=depth, norm_eps=norm_eps)
    tail = Tail(_last(q_BINH, count_B, W, 1), _last(lse_BNR, count_B, P, 2))
    return out_BQNH.astype(v_BKSH.dtype), tail


def _rows_before(mta: Mta) -> int:
    return 0 if mta.post_NAC is None else mta.post_NAC.shape[1] - 1


def _last(x: jax.Array, count_B: jax.Array, size: int, axis: int) -> jax.Array:
    """Of old rows and new ones behind them: the last `size` of the old and `count`."""

    def pick(row, count):
        return jax.lax.dynamic_slice_in_dim(row, count, size, axis - 1)

    return jax.vmap(pick)(x, count_B)


def _scores(
    q_BINH, k_BKHS, mta: Mta, first_B, scale: float | None, slot: jax.Array | int = 0
):
    """Steps 1 to 4 without the rows that only the first convolution needs: scores
    (B, N, rows, S), NEVER where nothing is seen.

    first_B: the position of the first of the I queries, negative before the sequence.
    slot: the first of the S.
    """
    B, I, N, H = q_BINH.shape
    K, S = k_BKHS.shape[1], k_BKHS.shape[3]
    scale = H**-0.5 if scale is None else scale
    mta = jax.tree.map(lambda x: x.astype(jnp.float32), mta)
    row_BI = first_B[:, None] + jnp.arange(I)
    sees_B1IS = _sees(row_BI, slot + jnp.arange(S))
    score_BKRIS = jnp.einsum(
        "BKRIH,BKHS->BKRIS",
        q_BINH.reshape(B, I, K, N // K, H).transpose(0, 2, 3, 1, 4),
        k_BKHS,
        preferred_element_type=jnp.float32,
    )
    score_BNIS = score_BKRIS.reshape(B, N, I, S) * scale
    if mta.pre_NAC is not None:
        score_BNIS = jnp.where(sees_B1IS, score_BNIS, 0.0)
        score_BNIS = convolve(score_BNIS, mta.pre_NAC, None)
        sees_B1IS = sees_B1IS[:, :, mta.pre_NAC.shape[1] - 1 :]
    if mta.pre_mix_GMM is not None:
        score_BNIS = mix(score_BNIS, mta.pre_mix_GMM)
    return jnp.where(sees_B1IS, score_BNIS, NEVER)


def _sees(row_BI: jax.Array, slot_S: jax.Array) -> jax.Array:
    return (row_BI[:, :, None] >= slot_S)[:, None]


class _Blocks(NamedTuple):
    """How a cache is gone through."""

    size: int
    count: jax.Array
    """Blocks up to the last slot in use."""

    def at(self, i, slots: int, beside: int):
        """Of block i the first slot, and the first of what is taken: `beside` more on
        either side. The last block begins earlier where it would pass the end."""
        first = jnp.minimum(i * self.size, slots - self.size)
        return first, jnp.clip(first - beside, 0, slots - self.size - 2 * beside)


def _blocks(S: int, mta: Mta, size: int | None, position_B, count_B) -> _Blocks | None:
    """None: all at once."""
    kernels = [k.shape[2] for k in (mta.pre_NAC, mta.post_NAC) if k is not None]
    if size is not None and size < 1:
        raise ValueError(f"decode: block must be positive, got {size}")
    if size is None or size + 2 * max([C // 2 for C in kernels], default=0) > S:
        return None
    longest = jnp.minimum((position_B + count_B).max(), S)
    return _Blocks(size, -(-longest // size))


def _all_scores(q_BINH, k_BKHS, mta: Mta, first_B, scale, blocks: _Blocks | None):
    """`_scores` of the whole cache: they are few beside its keys, so they are kept."""
    if blocks is None:
        return _scores(q_BINH, k_BKHS, mta, first_B, scale)
    (B, I, N, _), S, pre = q_BINH.shape, k_BKHS.shape[3], mta.pre_NAC
    beside, R = (0, I) if pre is None else (pre.shape[2] // 2, I - pre.shape[1] + 1)
    taken = blocks.size + 2 * beside

    def fill(i, score_BNRS):
        first, start = blocks.at(i, S, beside)
        k = jax.lax.dynamic_slice_in_dim(k_BKHS, start, taken, 3)
        score = _scores(q_BINH, k, mta, first_B, scale, start)
        score = jax.lax.dynamic_slice_in_dim(score, first - start, blocks.size, 3)
        return jax.lax.dynamic_update_slice_in_dim(score_BNRS, score, first, 3)

    nothing_BNRS = jnp.full((B, N, R, S), NEVER, jnp.float32)
    return jax.lax.fori_loop(0, blocks.count, fill, nothing_BNRS)


def _sum_values(score_BNRS, lse_BNR, v_BKSH, mta: Mta, row_BR, order, blocks):
    """Step 5 to the product with the values, (B, Q, N, H) in float32."""
    B, N, _, S = score_BNRS.shape
    K, H, Q = v_BKSH.shape[1], v_BKSH.shape[3], row_BR.shape[1] - _rows_before(mta)
    beside = 0 if mta.post_NAC is None else mta.post_NAC.shape[2] // 2

    def product(start, taken, first, fresh, size):
        """Of slots [first, first + size), those before `fresh` left out."""
        sees_B1RS = _sees(row_BR, start + jnp.arange(taken))
        score = jax.lax.dynamic_slice_in_dim(score_BNRS, start, taken, 3)
        prob = jnp.where(sees_B1RS, jnp.exp(score - lse_BNR[..., None]), 0.0)
        prob = _after_softmax(prob, sees_B1RS[:, :, -Q:], mta, order)
        prob = jax.lax.dynamic_slice_in_dim(prob, first - start, size, 3)
        prob = jnp.where(first + jnp.arange(size) >= fresh, prob, 0.0)
        return jnp.einsum(
            "BKRQS,BKSH->BKRQH",
            prob.reshape(B, K, N // K, Q, size).astype(v_BKSH.dtype),
            jax.lax.dynamic_slice_in_dim(v_BKSH, first, size, 2),
            preferred_element_type=jnp.float32,
        )

    def add(i, out_BKRQH):
        first, start = blocks.at(i, S, beside)
        taken = blocks.size + 2 * beside
        return out_BKRQH + product(start, taken, first, i * blocks.size, blocks.size)

    if blocks is None:
        out_BKRQH = product(0, S, 0, 0, S)
    else:
        zero_BKRQH = jnp.zeros((B, K, N // K, Q, H), jnp.float32)
        out_BKRQH = jax.lax.fori_loop(0, blocks.count, add, zero_BKRQH)
    return out_BKRQH.transpose(0, 3, 1, 2, 4).reshape(B, Q, N, H)


def _after_softmax(prob_BNRS, sees_B1QS, mta: Mta, order: Order) -> jax.Array:
    """Steps 6 and 7: the last Q rows."""
    mta = jax.tree.map(lambda x: x.astype(jnp.float32), mta)
    if mta.post_mix_GMM is not None and order == "mix_first":
        prob_BNRS = mix(prob_BNRS, mta.post_mix_GMM.swapaxes(1, 2))
    if mta.post_NAC is not None:
        prob_BNRS = convolve(prob_BNRS, mta.post_NAC, None)
        prob_BNRS = jnp.where(sees_B1QS, prob_BNRS, 0.0)
    if mta.post_mix_GMM is not None and order == "convolve_first":
        prob_BNRS = mix(prob_BNRS, mta.post_mix_GMM.swapaxes(1, 2))
    return prob_BNRS
