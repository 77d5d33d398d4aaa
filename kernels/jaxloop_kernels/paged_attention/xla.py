"""Some pages of every row at a time, from the first that any row sees to the last.

How far the loop goes is known at run time only, from the lengths: a table made for long
rows costs nothing while rows are short. No more than a block of keys is brought
together at once.
"""

import jax
import jax.numpy as jnp

from jaxloop_kernels.paged_attention.reference import MASKED, visible

KEYS = 512
"""About how many keys of a row are taken at once."""


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
) -> jax.Array:
    """See `jaxloop_kernels.paged_attention.paged_attention`."""
    B, Q, N, H = q_BQNH.shape
    _, K, S, _ = k_pages_PKSH.shape
    L = table_BL.shape[1]
    pages = min(max(1, keys // S), L)
    q_BKQRH = jnp.moveaxis(q_BQNH.reshape(B, Q, K, N // K, H), 1, 2)
    place_BQ = length_B[:, None] - Q + jnp.arange(Q)
    place_B1Q11 = place_BQ[:, None, :, None, None]
    last = jnp.minimum(length_B.max(), L * S)
    first = jnp.int32(0)
    if window is not None:
        before_B = jnp.where(
            length_B > 0, length_B - Q, L * S
        )  # empty rows see nothing
        first = jnp.maximum(0, before_B.min() - window + 1) // (pages * S)

    def fold(i, carry):
        top, mass, out = carry
        at_A = i * pages + jnp.arange(pages)
        # A table's last block may be short: what it repeats has no place in the row.
        own_BA = jnp.take(table_BL, jnp.minimum(at_A, L - 1), axis=1)
        own_BA = jnp.clip(own_BA, 0, k_pages_PKSH.shape[0] - 1)
        key_at_AS = (at_A[:, None] * S + jnp.arange(S)).reshape(pages, S)
        score_BKQRAS = scale * _einsum(
            "BKQRH,BAKSH->BKQRAS", q_BKQRH, k_pages_PKSH[own_BA]
        )
        if soft_cap is not None:
            score_BKQRAS = soft_cap * jnp.tanh(score_BKQRAS / soft_cap)
        there = (at_A < L)[:, None]
        seen = visible(place_B1Q11[..., None], key_at_AS, window) & there
        score_BKQRAS = jnp.where(seen, score_BKQRAS, MASKED)
        new_top = jnp.maximum(top, score_BKQRAS.max(axis=(-2, -1)))
        weight = jnp.exp(top - new_top)
        prob = jnp.exp(score_BKQRAS - new_top[..., None, None])
        prob = jnp.where(seen, prob, 0.0)
        mass = weight * mass + prob.sum(axis=(-2, -1))
        more_BKQRH = _einsum(
            "BKQRAS,BAKSH->BKQRH",
            prob.astype(v_pages_PKSH.dtype),
            v_pages_PKSH[own_BA],
        )
        return new_top, mass, weight[..., None] * out + more_BKQRH

    shape = (B, K, Q, N // K)
    start = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, H)))
    with jax.named_scope("paged_attention"):
        blocks = -(-last // (pages * S))
        _, mass, out_BKQRH = jax.lax.fori_loop(first, blocks, fold, start)
        out_BKQRH = out_BKQRH / jnp.where(mass > 0, mass, 1.0)[..., None]
    out_BQNH = jnp.moveaxis(out_BKQRH, 1, 2).reshape(B, Q, N, H)
    return out_BQNH.astype(q_BQNH.dtype)


def _einsum(pattern: str, x, pages):
    """In float32; float32 factors are not rounded to less."""
    dtype = jnp.promote_types(x.dtype, pages.dtype)
    return jnp.einsum(
        pattern,
        x.astype(dtype),
        pages.astype(dtype),
        precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
