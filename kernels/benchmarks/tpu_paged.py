"""Ours and jax's two kernels of paged attention, for `tpu_entries.py`.

Counted with rows as long as their tables.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention as jax_paged
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import (
    ragged_paged_attention,
)
from tpu_op import Blocks, bf16

from jaxloop_kernels.paged_attention import pallas_tpu as paged_attention
from jaxloop_kernels.paged_attention.shapes import Shape
from jaxloop_kernels.schedule import VMEM


def ours(shape, blocks: Blocks, chip: str):
    how = {"scale": shape.head_size**-0.5, "interpret": False, **blocks}
    return partial(paged_attention.paged_attention, **how), shape.arguments()


def jax_first(shape, blocks: Blocks, chip: str):
    """jax's first kernel of this kind: a head of a row at a time."""
    _, k_pages, _, table, length = shape.arguments()
    P, K, S, H = k_pages.shape
    fn = partial(jax_paged, pages_per_compute_block=_pages(shape, blocks))
    q, pages = bf16(shape.batch, shape.heads, H), bf16(K, P, S, H)
    return fn, (q, pages, pages, length, table)


def jax_ragged(shape, blocks: Blocks, chip: str):
    """jax's second: rows of any number of new tokens, keys beside their values."""
    (B, Q, N, K, H, S, P, _), (*_, table, length) = shape, shape.arguments()
    fn = partial(
        ragged_paged_attention,
        num_kv_pages_per_block=_pages(shape, blocks),
        num_queries_per_block=blocks["block_q"],
        vmem_limit_bytes=VMEM[chip] * 2**20 * 3 // 4,
    )
    ends, rows = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (B + 1, 1))
    return fn, (bf16(B * Q, N, H), bf16(P, S, 2 * K, H), length, table, ends, rows)


def _pages(shape, blocks: Blocks) -> int:
    """Of a block, where all rows are as long as their tables."""
    keys = blocks.get("keys", paged_attention.KEYS)
    return max(1, min(keys // shape.page_size, shape.row_pages))


def ours_counts(shape, blocks: Blocks) -> dict:
    size = paged_attention.pages_of(shape.arguments()[1], shape.row_pages, **blocks)
    # Copies are begun for the first block of all, and in every step for the next.
    shares = {"paged_attention": (1 / shape.batch, 1.0)}
    return {"trips": (-(-shape.row_pages // size),), "shares": shares}


def jax_first_counts(shape, blocks: Blocks) -> dict:
    steps = -(-shape.row_pages // _pages(shape, blocks))
    # Loops over a row and over empty rows; a block's part, and what begins the first.
    shares = {"paged_attention": (1.0, 1.0, 1 / steps)}
    return {"trips": (steps, 0), "shares": shares}


def jax_ragged_counts(shape, blocks: Blocks) -> dict:
    rows, steps = blocks["block_q"], -(-shape.row_pages // _pages(shape, blocks))
    shares = {"ragged_paged_attention_kernel": (1.0, 1.0)}
    return {"trips": (rows // shape.queries, steps), "shares": shares}


FULL = {
    f"4k{slots}": Shape(32, 1, 32, 8, 128, slots, 32 * 4096 // slots, 4096 // slots)
    for slots in (16, 64)
}
