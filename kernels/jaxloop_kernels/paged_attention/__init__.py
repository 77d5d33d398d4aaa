"""Attention of a few new tokens a row to a cache that is kept in pages.

A row's keys and values lie in pages of a common pool, in the order of its page table.
Rows may name the same page: the samples of one prompt share its pages.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxloop_kernels.paged_attention import pallas_tpu, reference, xla

__all__ = ["Implementation", "paged_attention"]

Implementation = Literal["auto", "reference", "xla", "pallas_tpu"]


def paged_attention(
    q_BQNH: jax.Array,
    k_pages_PKSH: jax.Array,
    v_pages_PKSH: jax.Array,
    table_BL: jax.Array,
    length_B: jax.Array,
    *,
    window: int | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """(B, Q, N, H): each row's last Q tokens attend to all of its cache.

    Shapes: B rows, Q new tokens of each, N query heads, K kv heads (N a multiple of K),
    H head size; P pages of S slots, L pages at most to a row.

    length_B: int32, tokens of the row in the cache, the Q new ones included: token i of
    those is at place length - Q + i and sees the keys up to there. A row shorter than Q
    has its tokens at the end of the Q; the others, and all of a row of length 0, give
    zeros. table_BL: int32, a row's pages in order; only those that its length reaches
    are used. Slots beyond the length are not used but must hold finite numbers.

    A page's heads lie apart, (K, S, H): a page is one piece of memory, and so is a
    head's part of it.

    window: how many keys a token sees, its own among them. soft_cap: scores become
    soft_cap * tanh(score / soft_cap). scale: of the scores, H**-0.5 by default.

    Scores, softmax and sums are float32; probabilities are rounded to the pages' dtype
    before the second product. No gradient: this is for decoding.

    "auto" is pallas_tpu on one TPU where it serves, else xla. pallas_tpu is interpreted
    off a TPU. Over several devices wrap it in `jax.shard_map`, cut along B or K.

    ValueError for shapes and numbers that make no sense, NotImplementedError for what
    the named implementation cannot do.
    """
    _check(q_BQNH, k_pages_PKSH, v_pages_PKSH, table_BL, length_B, window, soft_cap)
    arrays = (q_BQNH, k_pages_PKSH, v_pages_PKSH, table_BL, length_B)
    scale = q_BQNH.shape[-1] ** -0.5 if scale is None else scale
    numbers = {"window": window, "soft_cap": soft_cap, "scale": scale}
    if implementation == "auto":
        one_tpu = jax.default_backend() == "tpu" and jax.device_count() == 1
        serves = one_tpu and pallas_tpu.cannot(q_BQNH, k_pages_PKSH) is None
        implementation = "pallas_tpu" if serves else "xla"
    if implementation == "reference":
        return reference.paged_attention(*arrays, **numbers)
    if implementation == "xla":
        return xla.paged_attention(*arrays, **numbers)
    if implementation == "pallas_tpu":
        return pallas_tpu.paged_attention(*arrays, **numbers)
    raise NotImplementedError(
        f"paged_attention implementation={implementation!r}; there are auto, "
        "reference, xla, pallas_tpu"
    )


def _check(q_BQNH, k_pages_PKSH, v_pages_PKSH, table_BL, length_B, window, soft_cap):
    shapes = f"q {q_BQNH.shape}, pages {k_pages_PKSH.shape} and {v_pages_PKSH.shape}"
    if q_BQNH.ndim != 4 or k_pages_PKSH.ndim != 4:
        raise ValueError(f"paged_attention wants q_BQNH, pages_PKSH; got {shapes}")
    B, _, N, H = q_BQNH.shape
    _, K, _, key_size = k_pages_PKSH.shape
    if k_pages_PKSH.shape != v_pages_PKSH.shape or key_size != H or N % K:
        raise ValueError(
            "paged_attention wants keys and values of one shape, of q's head size, and "
            f"query heads a multiple of theirs; got {shapes}"
        )
    if table_BL.ndim != 2 or table_BL.shape[0] != B or length_B.shape != (B,):
        raise ValueError(
            f"paged_attention wants table_BL, length_B of q's B; got {shapes}, table "
            f"{table_BL.shape}, length {length_B.shape}"
        )
    for name, ids in (("table", table_BL), ("length", length_B)):
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"paged_attention: {name} must be integers: {ids.dtype}")
    if 0 in q_BQNH.shape or 0 in k_pages_PKSH.shape or 0 in table_BL.shape:
        raise ValueError(f"paged_attention: an empty axis; got {shapes}")
    if window is not None and window < 1:
        raise ValueError(f"paged_attention: window must be positive, got {window}")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"paged_attention: soft_cap must be positive, got {soft_cap}")
