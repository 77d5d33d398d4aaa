"""From logits to drawn tokens: temperature, top-k, top-p, min-p.

Shapes: B rows, V vocabulary, G blocks of the vocabulary, W tokens of a block, V = G W.

A draw costs two uniform numbers a row, not one a token: the first picks a block of the
vocabulary by its mass, the second a token inside the block. That is exact, and does
without V random numbers, a sort or a running sum over V.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloop.sampling.settings import Sampling

BLOCK = 128
"""Tokens of a block."""
MINUS_INFINITY = -0x7F800001
"""-inf in the integer order of `_least_floor`."""


class Drawn(NamedTuple):
    """(B,) each: int32 token, and float32 nats."""

    token_B: jax.Array
    logp_B: jax.Array
    """Of the whole distribution at the temperature (at 1 for greedy)."""
    drawn_logp_B: jax.Array
    """Of the distribution drawn from: cut and renormalised (0 for greedy)."""


def draw(
    logits_BV: jax.Array, uniform_B2: jax.Array, sampling: Sampling, size: int
) -> Drawn:
    """One token a row, below `size`.

    logits_BV: float32, V a multiple of BLOCK; columns from `size` on (padding) take no
    probability. uniform_B2: in [0, 1).
    """
    V = logits_BV.shape[1]
    z_BV = logits_BV / (sampling.temperature or 1.0)
    if size < V:
        z_BV = jnp.where(jnp.arange(V) < size, z_BV, -jnp.inf)
    with jax.named_scope("normalise"):
        max_B1 = z_BV.max(axis=1, keepdims=True)
        mass_BG = _block_mass(z_BV, max_B1, None)
        lse_B = max_B1[:, 0] + jnp.log(jnp.cumsum(mass_BG, axis=1)[:, -1])

    def at(token_B):
        return jnp.take_along_axis(z_BV, token_B[:, None], axis=1)[:, 0]

    if sampling.temperature == 0:
        token_B = jnp.minimum(_first_max(z_BV, max_B1), size - 1)
        return Drawn(token_B, at(token_B) - lse_B, jnp.zeros_like(lse_B))

    floor_B1, drawn_lse_B = None, lse_B
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p:
        floor_B1 = cut(z_BV, max_B1, sampling)
        mass_BG = _block_mass(z_BV, max_B1, floor_B1)
        drawn_lse_B = max_B1[:, 0] + jnp.log(jnp.cumsum(mass_BG, axis=1)[:, -1])
    with jax.named_scope("pick"):
        token_B = _pick(z_BV, max_B1, floor_B1, mass_BG, uniform_B2)
        token_B = jnp.minimum(token_B, size - 1)  # where all is nan
    return Drawn(token_B, at(token_B) - lse_B, at(token_B) - drawn_lse_B)


def cut(z_BV: jax.Array, max_B1: jax.Array, sampling: Sampling) -> jax.Array:
    """(B, 1): the least z that each row may draw, after top-k, top-p and min-p in turn.

    Tokens tied with the last one kept are kept. Top-p keeps a token when the mass
    strictly above it is less than `top_p`, so the likeliest always stays (Holtzman et
    al. 2020); min-p is Nguyen et al. 2024.
    """
    floor_B1 = jnp.full_like(max_B1, -jnp.inf)
    if sampling.top_k:
        k = min(sampling.top_k, z_BV.shape[1])

        def fewer_than_k(above_BV):
            return above_BV.sum(axis=1, keepdims=True) < k

        floor_B1 = _least_floor(z_BV, fewer_than_k)
    if sampling.top_p < 1:
        mass_BV = jnp.where(z_BV >= floor_B1, jnp.exp(z_BV - max_B1), 0.0)
        wanted_B1 = sampling.top_p * mass_BV.sum(axis=1, keepdims=True)

        def less_than_p(above_BV):
            above_mass_BV = jnp.where(above_BV, mass_BV, 0.0)
            return above_mass_BV.sum(axis=1, keepdims=True) < wanted_B1

        floor_B1 = jnp.maximum(floor_B1, _least_floor(z_BV, less_than_p))
    if sampling.min_p:
        least_B1 = max_B1 + jnp.log(jnp.float32(sampling.min_p))
        floor_B1 = jnp.maximum(floor_B1, least_B1)
    return floor_B1


def _least_floor(z_BV: jax.Array, enough) -> jax.Array:
    """The least f for which enough(z > f) holds, found bit by bit: no sort.

    `enough` must hold for the largest z, and once it holds it holds for all above.
    """
    # The bits of floats, read as integers, have their order once negatives are flipped.
    bits_BV = jax.lax.bitcast_convert_type(z_BV, jnp.int32)
    order_BV = jnp.where(bits_BV < 0, bits_BV ^ 0x7FFFFFFF, bits_BV)

    def halve(_, bounds):
        low_B1, high_B1 = bounds
        middle_B1 = (low_B1 >> 1) + (high_B1 >> 1) + (low_B1 & high_B1 & 1)
        holds_B1 = enough(order_BV > middle_B1)
        low_B1 = jnp.where(holds_B1, low_B1, middle_B1)
        return low_B1, jnp.where(holds_B1, middle_B1, high_B1)

    high_B1 = order_BV.max(axis=1, keepdims=True)
    low_B1 = jnp.full_like(high_B1, MINUS_INFINITY)
    _, high_B1 = jax.lax.fori_loop(0, 32, halve, (low_B1, high_B1))
    bits_B1 = jnp.where(high_B1 < 0, high_B1 ^ 0x7FFFFFFF, high_B1)
    return jax.lax.bitcast_convert_type(bits_B1, jnp.float32)


def _block_mass(z_BV, max_B1, floor_B1) -> jax.Array:
    """(B, G): sums of exp(z - max) over blocks, of what is not below the floor.

    Their total is taken as the end of their running sum, which the draw needs anyway: a
    sum of sums would be fused into a second pass over the vocabulary.
    """
    mass_BV = jnp.exp(z_BV - max_B1)
    if floor_B1 is not None:
        mass_BV = jnp.where(z_BV >= floor_B1, mass_BV, 0.0)
    return mass_BV.reshape(len(z_BV), -1, BLOCK).sum(axis=2)


def _pick(z_BV, max_B1, floor_B1, mass_BG, uniform_B2) -> jax.Array:
    """Inverse distribution function in two steps: the block, then the token in it."""
    block_B = _invert(mass_BG, uniform_B2[:, :1])
    z_BGW = z_BV.reshape(len(z_BV), -1, BLOCK)
    z_BW = jnp.take_along_axis(z_BGW, block_B[:, None, None], axis=1)[:, 0]
    mass_BW = jnp.exp(z_BW - max_B1)
    if floor_B1 is not None:
        mass_BW = jnp.where(z_BW >= floor_B1, mass_BW, 0.0)
    return block_B * BLOCK + _invert(mass_BW, uniform_B2[:, 1:])


def _invert(mass_BX: jax.Array, uniform_B1: jax.Array) -> jax.Array:
    """The first x whose running sum exceeds u times the whole, among those with mass.

    Rounding may lift u times the whole to the whole, or break the order of the sums: a
    token without mass is never taken, and the last with mass stands in where none is
    found.
    """
    X = mass_BX.shape[1]
    sums_BX = jnp.cumsum(mass_BX, axis=1)
    ids_X = jnp.arange(X, dtype=jnp.int32)
    has_BX = mass_BX > 0
    last_B = jnp.where(has_BX, ids_X, 0).max(axis=1)
    beyond_BX = has_BX & (sums_BX > uniform_B1 * sums_BX[:, -1:])
    return jnp.minimum(jnp.where(beyond_BX, ids_X, X).min(axis=1), last_B)


def _first_max(z_BV: jax.Array, max_B1: jax.Array) -> jax.Array:
    """argmax over the vocabulary, first of equals, as plain reductions: CPUs vectorise
    those, not argmax."""
    V = z_BV.shape[1]
    ids_V = jnp.arange(V, dtype=jnp.int32)
    return jnp.where(z_BV >= max_B1, ids_V, V).min(axis=1)
