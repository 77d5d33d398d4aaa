"""One kernel for TPUs: pages come from main memory while those before are worked on.

Rows are taken in turn; of each, blocks of some pages, from the first that its window
reaches to its last. The next block is on its way while one is worked on, and the last
block of a row overlaps with the first of the next row: the pages themselves are all
that moves, and moving them is what decoding costs.

Of a block every kv head is a product of its own, its new tokens and query heads
together as rows (W = Q * R, rounded up to whole tiles).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.paged_attention.reference import MASKED, visible

KEYS = 512
"""Keys in a block, at most."""

BYTES = 4 * 2**20
"""Of the blocks of keys and values in vector memory, at most; twice that is held."""


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
    keys: int = KEYS,
    interpret=None,
) -> jax.Array:
    """See `jaxloop_kernels.paged_attention.paged_attention`.

    interpret: None where there is no TPU.
    """
    if (why := cannot(q_BQNH, k_pages_PKSH)) is not None:
        raise NotImplementedError(f"paged_attention pallas_tpu: {why}; xla takes it")
    B, Q, N, H = q_BQNH.shape
    _, K, S, _ = k_pages_PKSH.shape
    L, R = table_BL.shape[1], N // K
    size = k_pages_PKSH.dtype.itemsize
    pages = pages_of(k_pages_PKSH, L, keys)
    tile = 32 // size  # rows of a tile: 8 in float32, 16 in bfloat16
    W = -(-Q * R // tile) * tile
    q_BKQRH = jnp.moveaxis(q_BQNH.reshape(B, Q, K, R, H), 1, 2)
    q_BKWH = jnp.pad(
        q_BKQRH.reshape(B, K, Q * R, H), ((0, 0), (0, 0), (0, W - Q * R), (0, 0))
    )
    kernel = partial(
        _kernel,
        queries=Q,
        per_query=R,
        pages=pages,
        window=window,
        soft_cap=soft_cap,
        scale=scale,
    )
    row = pl.BlockSpec((1, K, W, H), lambda b, *_: (b, 0, 0, 0))
    block = pltpu.VMEM((2, pages, K, S, H), k_pages_PKSH.dtype)
    out_BKWH = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B,),
            in_specs=[row, *[pl.BlockSpec(memory_space=pl.ANY)] * 2],
            out_specs=row,
            scratch_shapes=[
                block,
                block,
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SMEM((1,), jnp.int32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((B, K, W, H), q_BQNH.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",),
            # Every page that is named is clipped below; the checks of each copy took
            # longer than the arithmetic where pages are small.
            disable_bounds_checks=True,
        ),
        interpret=jax.default_backend() != "tpu" if interpret is None else interpret,
        name="paged_attention",
    )(
        jnp.clip(table_BL, 0, k_pages_PKSH.shape[0] - 1).reshape(-1),
        jnp.clip(length_B, 0, L * S),
        q_BKWH,
        k_pages_PKSH,
        v_pages_PKSH,
    )
    out_BKQRH = out_BKWH[:, :, : Q * R].reshape(B, K, Q, R, H)
    return jnp.moveaxis(out_BKQRH, 1, 2).reshape(B, Q, N, H)


def pages_of(k_pages_PKSH, row_pages: int, keys: int = KEYS) -> int:
    """How many make a block."""
    _, K, S, H = k_pages_PKSH.shape
    page = 2 * K * S * H * k_pages_PKSH.dtype.itemsize
    return max(1, min(keys // S, BYTES // page, row_pages))


def cannot(q_BQNH, k_pages_PKSH) -> str | None:
    """Why the kernel does not take these; None where it does."""
    _, _, S, H = k_pages_PKSH.shape
    dtype = k_pages_PKSH.dtype
    if dtype not in (jnp.bfloat16, jnp.float32) or q_BQNH.dtype != dtype:
        return f"queries {q_BQNH.dtype}, pages {dtype} (both bfloat16 or float32 only)"
    if H % 128:
        return f"head size {H} (multiples of 128 only)"
    if S % (32 // dtype.itemsize):
        return f"pages of {S} slots (multiples of {32 // dtype.itemsize} only)"
    return None


def _kernel(
    table_ref,
    length_ref,
    q_ref,
    k_hbm_ref,
    v_hbm_ref,
    out_ref,
    k_ref,
    v_ref,
    came,
    step_ref,
    *,
    queries: int,
    per_query: int,
    pages: int,
    window: int | None,
    soft_cap: float | None,
    scale: float,
):
    b, rows = pl.program_id(0), pl.num_programs(0)
    row_pages = table_ref.shape[0] // rows
    _, _, heads, slots, width = k_ref.shape
    keys = pages * slots

    def blocks(b):
        """The first block of row b, and the one after its last: one block at least."""
        length = length_ref[b]
        end = jnp.maximum(1, _up(length, keys))
        if window is None:
            return 0, end
        first = jax.lax.div(jnp.maximum(0, length - queries - window + 1), keys)
        return jnp.minimum(first, end - 1), end

    def copies(b, i, slot):
        # A block's pages that the row has not got are copies of its last one.
        last = jnp.maximum(0, _up(length_ref[b], slots) - 1)
        for k in range(pages):
            page = table_ref[b * row_pages + jnp.minimum(i * pages + k, last)]
            for hbm_ref, ref in ((k_hbm_ref, k_ref), (v_hbm_ref, v_ref)):
                yield pltpu.make_async_copy(
                    hbm_ref.at[page], ref.at[slot, k], came.at[slot]
                )

    def start(b, i, slot):
        for copy in copies(b, i, slot):
            copy.start()

    first, end = blocks(b)

    @pl.when(b == 0)
    def _():
        step_ref[0] = 0
        start(b, first, 0)

    def body(i, carry):
        slot = jax.lax.rem(step_ref[0], 2)
        step_ref[0] += 1
        row_ends = i + 1 == end
        next_b = jnp.where(row_ends, b + 1, b)

        @pl.when(next_b < rows)
        def _():
            next_first = blocks(jnp.minimum(next_b, rows - 1))[0]
            start(next_b, jnp.where(row_ends, next_first, i + 1), 1 - slot)

        for copy in copies(b, i, slot):
            copy.wait()
        place = length_ref[b] - queries
        return [
            _fold(
                state,
                q_ref[0, h],
                k_ref[slot, :, h].reshape(keys, width),
                v_ref[slot, :, h].reshape(keys, width),
                _seen(q_ref.shape[2], keys, place, i * keys, per_query, window),
                soft_cap,
                scale,
            )
            for h, state in enumerate(carry)
        ]

    W = q_ref.shape[2]
    empty = (
        jnp.full((W, 1), MASKED, jnp.float32),
        jnp.zeros((W, 1), jnp.float32),
        jnp.zeros((W, width), jnp.float32),
    )
    for h, (_, mass, out) in enumerate(
        jax.lax.fori_loop(first, end, body, [empty] * heads)
    ):
        out = out / jnp.where(mass > 0, mass, 1.0)
        out_ref[0, h] = out.astype(out_ref.dtype)


def _up(x, size: int) -> jax.Array:
    """How many of that size hold x >= 0. (`//` asks for the chip, to know its sign.)"""
    return jax.lax.div(x + size - 1, size)


def _seen(W: int, keys: int, place, first, per_query: int, window: int | None):
    """(W, keys): which keys from `first` on the rows of a head see."""
    row = jax.lax.broadcasted_iota(jnp.int32, (W, keys), 0)
    at = jax.lax.div(row, jnp.full_like(row, per_query)) if per_query > 1 else row
    key = jax.lax.broadcasted_iota(jnp.int32, (W, keys), 1)
    return visible(at + (place - first), key, window)


def _fold(state, q, k, v, seen, soft_cap: float | None, scale: float):
    """Some more keys of one head: (largest score, mass, sum of values) so far."""
    top, mass, out = state
    score = _product(q, k, 1) * scale
    if soft_cap is not None:
        score = soft_cap * jnp.tanh(score / soft_cap)
    score = jnp.where(seen, score, MASKED)
    new_top = jnp.maximum(top, score.max(axis=1, keepdims=True))
    prob = jnp.where(seen, jnp.exp(score - new_top), 0.0)
    weight = jnp.exp(top - new_top)
    mass = weight * mass + prob.sum(axis=1, keepdims=True)
    return new_top, mass, weight * out + _product(prob.astype(v.dtype), v, 0)


def _product(a, b, b_axis: int) -> jax.Array:
    """Float32 sums over a's last axis; float32 factors are not rounded to bfloat16."""
    return jax.lax.dot_general(
        a,
        b,
        (((1,), (b_axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
