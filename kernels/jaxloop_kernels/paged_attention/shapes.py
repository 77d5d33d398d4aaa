"""Sizes of real models' decoding, for tests and benchmarks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Shape(NamedTuple):
    batch: int
    queries: int
    heads: int
    kv_heads: int
    head_size: int
    page_size: int
    pages: int
    """Of the pool."""
    row_pages: int
    """Of a row at most."""

    def arguments(self, dtype="bfloat16") -> tuple[jax.ShapeDtypeStruct, ...]:
        """q, k_pages, v_pages, table, length; for compiling ahead of time."""
        B, Q, N, K, H, S, P, L = self
        pool = jax.ShapeDtypeStruct((P, K, S, H), dtype)
        return (
            jax.ShapeDtypeStruct((B, Q, N, H), dtype),
            pool,
            pool,
            jax.ShapeDtypeStruct((B, L), jnp.int32),
            jax.ShapeDtypeStruct((B,), jnp.int32),
        )


LLAMA_3_8B = Shape(64, 1, 32, 8, 128, page_size=64, pages=4096, row_pages=128)
QWEN3_8B_DRAFT = Shape(64, 4, 32, 8, 128, page_size=64, pages=4096, row_pages=128)
"""Four new tokens a row."""
QWEN3_0_6B = Shape(128, 1, 16, 8, 128, page_size=32, pages=4096, row_pages=64)
GEMMA_2_9B = Shape(32, 1, 16, 8, 256, page_size=64, pages=2048, row_pages=128)
"""Soft-capped, every other layer with a window of 4,096."""
SHAPES = {
    "llama-3-8b": LLAMA_3_8B,
    "qwen3-8b-draft": QWEN3_8B_DRAFT,
    "qwen3-0.6b": QWEN3_0_6B,
    "gemma-2-9b": GEMMA_2_9B,
}
