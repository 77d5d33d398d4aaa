"""The forward kernel of `pallas_gpu`, and the logits that the backward shares with it.

Causal attention whose logits get a band of U diagonals subtracted; they are in bits:
softmax is 2**x / sum 2**x here. A program takes one block of queries and goes along the
keys with a running softmax (FlashAttention-2, Dao 2023, arXiv 2307.08691). Queries and
keys are too wide to stay in fast memory: their product is summed chunk by chunk, as a
matrix product is, which the compiler turns into a pipeline of loads.

Shapes: B batch, N query heads, T time (whole blocks), E width of queries and keys
(whole chunks), H head size of the values (a power of two), U diagonals; X queries and
Y keys of a tile.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

NEVER = -1e30
"""The logit of what is not visible; finite, so that differences are no NaN."""
NN = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))
TN = (((0,), (0,)), ((), ()))
"""Dimensions of products: plain, second factor transposed, first factor transposed."""


class Plan(NamedTuple):
    """What is fixed at trace time. Blocks are powers of two that divide T."""

    block_q: int
    """Queries of a program of the forward pass."""
    block_k: int
    """Keys, and going backward queries, whose logits are held at once beside these."""
    rows: int
    """Queries, or keys, whose wide gradient one program of the backward pass sums."""
    chunk: int
    """Columns of E that are multiplied at once."""
    interpret: Any

    def dot(self, a, b, dims=NN) -> jax.Array:
        """Float32 product; of float32 factors (nearly) in full precision.

        Tensor cores do that in three products of TF32, which CPUs do not know.
        """
        precision = None
        if a.dtype == jnp.float32:
            precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
            if self.interpret:
                precision = lax.Precision.HIGHEST
        return lax.dot_general(
            a, b, dims, precision=precision, preferred_element_type=jnp.float32
        )


class Inputs(NamedTuple):
    """Arrays outside of a kernel; refs of one row and head inside of it."""

    q_BNTE: Any
    k_BNTE: Any
    """Like the values it may have fewer heads: each serves neighbouring query heads."""
    v_BNTH: Any
    band_BNTU: Any
    """Float32: what to take from the logits of (i, i - u). None: no band."""
    segments_BT: Any
    """int32. None: one document, and so for what follows."""
    first_BT: Any
    """int32: where the document of each token starts, at the earliest."""
    last_BT: Any
    """int32: where it ends, that token itself, at the latest."""

    def specs(self) -> "Inputs":
        heads = self.q_BNTE.shape[1]
        return Inputs(*(None if x is None else whole(x, heads) for x in self))


def whole(x, heads: int) -> pl.BlockSpec:
    """All of a row's, or of a row's and head's: kernels pick their blocks themselves.

    The grid is (blocks, heads, batch): a head's programs run side by side and find its
    keys in the cache.
    """
    if x.ndim == 2:
        return pl.BlockSpec((None, x.shape[1]), lambda t, n, b: (b, 0))
    share = heads // x.shape[1]
    rest = (0,) * (x.ndim - 2)
    return pl.BlockSpec(
        (None, None, *x.shape[2:]), lambda t, n, b: (b, lax.div(n, share), *rest)
    )


def forward(plan: Plan, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """(out_BNTH in v's dtype, the log2 of the sum of 2**logits as (B, N, T) f32)."""
    B, N, T, _ = inputs.q_BNTE.shape
    H, block = inputs.v_BNTH.shape[-1], plan.block_q

    def at(t, n, b):
        # The last block has most keys: it must not be what the card waits for.
        return b, n, T // block - 1 - t

    call = pl.pallas_call(
        partial(_kernel, plan),
        grid=(T // block, N, B),
        in_specs=[inputs.specs()],
        out_specs=[
            pl.BlockSpec((None, None, block, H), lambda *i: (*at(*i), 0)),
            pl.BlockSpec((None, None, block), at),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((B, N, T, H), inputs.v_BNTH.dtype),
            jax.ShapeDtypeStruct((B, N, T), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=3),
        interpret=plan.interpret,
        name="mta_forward",
    )
    return call(inputs)


def _kernel(plan: Plan, refs: Inputs, out_ref, lse_ref):
    X, H = out_ref.shape
    query = (pl.num_programs(0) - 1 - pl.program_id(0)) * X

    def visit(near: bool, y, carry):
        acc_XH, sum_X, max_X = carry
        key = y * plan.block_k
        x_XY = logits(plan, refs, query, X, key, plan.block_k)
        x_XY = correct(x_XY, refs, query, key, near)
        now_X = jnp.maximum(max_X, x_XY.max(axis=1))
        prob_XY = jnp.exp2(x_XY - now_X[:, None])
        decay_X = jnp.exp2(max_X - now_X)
        v_YH = refs.v_BNTH[pl.ds(key, plan.block_k), :]
        acc_XH = decay_X[:, None] * acc_XH + plan.dot(prob_XY.astype(v_YH.dtype), v_YH)
        return acc_XH, decay_X * sum_X + prob_XY.sum(axis=1), now_X

    carry = (
        jnp.zeros((X, H), jnp.float32),
        jnp.zeros(X, jnp.float32),
        jnp.full(X, NEVER, jnp.float32),
    )
    start, near, end = key_blocks(refs, query, X, plan.block_k)
    carry = lax.fori_loop(start, near, partial(visit, False), carry)
    carry = lax.fori_loop(jnp.maximum(start, near), end, partial(visit, True), carry)
    acc_XH, sum_X, max_X = carry
    out_ref[...] = (acc_XH / sum_X[:, None]).astype(out_ref.dtype)
    lse_ref[...] = max_X + jnp.log2(sum_X)


def key_blocks(refs: Inputs, query, X: int, Y: int):
    """(first, first near the diagonal, end) of the key blocks that X queries see.

    Near: the causal mask or the band concerns it. A block before that needs neither.
    """
    start = 0 if refs.first_BT is None else lax.div(refs.first_BT[query], Y)
    near = lax.div(jnp.maximum(query + 1 - diagonals(refs), 0), Y)
    return start, near, lax.div(query + X + Y - 1, Y)


def diagonals(refs: Inputs) -> int:
    """U; the band is the entries whose query is 0 to U - 1 after their key."""
    return 0 if refs.band_BNTU is None else refs.band_BNTU.shape[-1]


def logits(plan: Plan, refs: Inputs, query, X: int, key, Y: int) -> jax.Array:
    """(X, Y): products of the X queries and Y keys that start at `query` and `key`."""

    def add(e, x_XY):
        columns = pl.ds(e * plan.chunk, plan.chunk)
        q_XE = refs.q_BNTE[pl.ds(query, X), columns]
        k_YE = refs.k_BNTE[pl.ds(key, Y), columns]
        return x_XY + plan.dot(q_XE, k_YE, NT)

    chunks = refs.q_BNTE.shape[-1] // plan.chunk
    return lax.fori_loop(0, chunks, add, jnp.zeros((X, Y), jnp.float32))


def correct(x_XY, refs: Inputs, query, key, near: bool) -> jax.Array:
    """The logits less the band, and NEVER where a key is not visible."""
    row_XY, column_XY = places(x_XY.shape, query, key)
    if near:
        if refs.band_BNTU is not None:
            band, inside_XY = on_band(refs.band_BNTU, row_XY, column_XY)
            # Only lanes on the band touch memory.
            x_XY -= plgpu.load(band, mask=inside_XY, other=0.0)
        x_XY = jnp.where(row_XY >= column_XY, x_XY, NEVER)
    if refs.segments_BT is not None:
        X, Y = x_XY.shape
        query_X, key_Y = (refs.segments_BT[pl.ds(*at)] for at in ((query, X), (key, Y)))
        x_XY = jnp.where(query_X[:, None] == key_Y, x_XY, NEVER)
    return x_XY


def places(shape: tuple[int, int], query, key) -> tuple[jax.Array, jax.Array]:
    """The index of each entry's query and of its key."""
    iota = partial(lax.broadcasted_iota, jnp.int32, shape)
    return query + iota(0), key + iota(1)


def on_band(band_ref, row_XY, column_XY):
    """Where each entry of a tile is in the band, and whether it is there at all.

    Where it is not, the place is one past the last: a mask that is carried out by
    writing back what was there (the interpreter's) must not do so at a neighbour's.
    """
    lag_XY, U = row_XY - column_XY, band_ref.shape[-1]
    inside_XY = (lag_XY >= 0) & (lag_XY < U)
    return band_ref.at[row_XY, jnp.where(inside_XY, lag_XY, U)], inside_XY
