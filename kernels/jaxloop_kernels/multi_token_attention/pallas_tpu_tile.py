"""What the forward and the backward kernel share: their grid and their logits; TPU.

The kernels compute causal attention whose logits get a band of U diagonals subtracted.
Tiles stand with keys down and queries across: what belongs to a query (maximum, sum,
gradient's mean) is then a row of numbers, and a sum over keys one of whole registers.
Logits are in bits: softmax is 2**x / sum 2**x here, and the caller scales the keys.

Shapes: B batch, N query heads, T time (whole blocks), E width of queries and keys, H
head size of the values, U diagonals; X keys and Y queries of a tile.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

NEVER = -1e30
"""The logit of what is not visible; finite, so that differences are no NaN."""
LANES = 128
NN = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))
TN = (((0,), (0,)), ((), ()))
"""Dimensions of products: plain, second factor transposed, first factor transposed."""


class Plan(NamedTuple):
    """What is fixed at trace time."""

    block: int
    """Queries, and keys, of a grid step: whole lanes, and they divide T."""
    part: int
    """Queries whose logits are held at once: whole lanes, and they divide the block."""
    diagonals: int
    """U, at most LANES."""
    memory: int
    """Bytes of the chip's fast memory."""
    interpret: Any

    def grid(self, T: int) -> tuple[int, int]:
        """The pairs of blocks below a diagonal, folded to a rectangle.

        A long row of the triangle and a short one make one row of the grid, so that no
        step is spent above the diagonal.
        """
        n = T // self.block
        return (n + 1) // 2, n + 1 - n % 2

    def pair(self, T: int, r, c):
        """(row, column <= row) of step (r, c); the columns of a row come in order."""
        n = T // self.block
        short = c >= n - r
        return jnp.where(short, r - n % 2, n - 1 - r), jnp.where(short, c - n + r, c)

    def parts(self, diagonal: bool) -> list[tuple[int, int]]:
        """(first query, visible keys) of each part of a block."""
        starts = range(0, self.block, self.part)
        return [(y, y + self.part if diagonal else self.block) for y in starts]


def dot(a, b, dims=NN):
    """Float32 product; of float32 factors in full precision."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, dims, precision=precision, preferred_element_type=jnp.float32
    )


def block_spec(plan: Plan, x, heads: int, time_axis: int, at) -> pl.BlockSpec:
    """Blocks of x (B, some heads, ., .) along `time_axis`: at(r, c) tells which.

    Each head of x serves neighbouring ones of the `heads` query heads.
    """
    shape = [None, None, *x.shape[2:]]
    shape[time_axis] = plan.block
    share = heads // x.shape[1]

    def index(b, n, r, c):
        place = [b, lax.div(n, share), 0, 0]
        place[time_axis] = at(r, c)
        return tuple(place)

    return pl.BlockSpec(tuple(shape), index)


class Extras(NamedTuple):
    """What shapes the logits beside queries and keys; None: absent.

    Arrays outside of the kernel, refs of their blocks inside of it.
    """

    band_BNUT: Any
    """U padded to whole registers."""
    query_segments_B11T: Any
    key_segments_B11T: Any

    def specs(self, plan: Plan, heads: int, query_at, key_at) -> "Extras":
        places = (query_at, query_at, key_at)
        return Extras(
            *(
                None if x is None else block_spec(plan, x, heads, 3, at)
                for x, at in zip(self, places, strict=True)
            )
        )


def logits(plan: Plan, q_ref, k_ref, start: int, keys: int):
    """(X, Y): the first `keys` keys of a block and the part of queries at `start`."""
    return dot(k_ref[:keys, :], q_ref[start : start + plan.part, :], NT)


def correct(plan: Plan, x_XY, extras: Extras, start: int, near) -> jax.Array:
    """The logits less the band, and NEVER where a key is not visible.

    near: None in a block of the diagonal, else whether the block is the one before it,
    a corner of which the band crosses.
    """
    if near is None:
        x_XY = _correct_diagonal(plan, x_XY, extras, start)
    elif start == 0 and plan.diagonals > 1:
        x_XY = _correct_corner(plan, x_XY, extras, near)
    if extras.query_segments_B11T is None:
        return x_XY
    X, Y = x_XY.shape
    query_1Y = extras.query_segments_B11T[:, start : start + Y]
    key_LX = jnp.broadcast_to(extras.key_segments_B11T[:, :X], (LANES, X))
    same_XY = jnp.tile(key_LX.T, (1, Y // LANES)) == query_1Y
    return jnp.where(same_XY, x_XY, NEVER)


def _correct_diagonal(plan: Plan, x_XY, extras: Extras, start: int):
    columns = []
    for y in range(0, x_XY.shape[1], LANES):
        band_UL = _band(extras, start + y)
        tiles = []
        for x in range(0, x_XY.shape[0], LANES):
            tile = x_XY[x : x + LANES, y : y + LANES]
            ahead = start + y - x
            if ahead < 0:
                tile = jnp.full_like(tile, NEVER)
            elif ahead == 0:
                lag = _lag(LANES, 0)
                tile = jnp.where(lag >= 0, tile - _spread(plan, band_UL, lag), NEVER)
            elif ahead == LANES and plan.diagonals > 1:
                rows = _corner_rows(plan)
                extra = _spread(plan, band_UL, _lag(rows, LANES))
                tile = _join([tile[:-rows], tile[-rows:] - extra], axis=0)
            tiles.append(tile)
        columns.append(_join(tiles, axis=0))
    return _join(columns, axis=1)


def _correct_corner(plan: Plan, x_XY, extras: Extras, near):
    rows = _corner_rows(plan)
    extra = _spread(plan, _band(extras, 0), _lag(rows, LANES))
    corner = x_XY[-rows:, :LANES] - jnp.where(near, extra, 0.0)
    last = _join([corner, x_XY[-rows:, LANES:]], axis=1)
    return _join([x_XY[:-rows], last], axis=0)


def band_bar(plan: Plan, bar_XY, start: int, near) -> list[tuple[int, jax.Array]]:
    """The gradient of the band: (query, its (U padded, LANES)) where there is some.

    bar_XY: the logits' gradient; start and near as in `correct`.
    """
    rows = _corner_rows(plan)
    if near is not None:
        if start or plan.diagonals < 2:
            return []
        corner = jnp.where(near, bar_XY[-rows:, :LANES], 0.0)
        return [(0, _gather(plan, corner, _lag(rows, LANES)))]
    found = []
    for y in range(0, bar_XY.shape[1], LANES):
        x = start + y
        tile = bar_XY[x : x + LANES, y : y + LANES]
        total_UL = _gather(plan, tile, _lag(LANES, 0))
        if x and plan.diagonals > 1:
            corner = bar_XY[x - rows : x, y : y + LANES]
            total_UL += _gather(plan, corner, _lag(rows, LANES))
        found.append((x, total_UL))
    return found


def band_rows(diagonals: int) -> int:
    """U in whole registers."""
    return -(-diagonals // 8) * 8


def _corner_rows(plan: Plan) -> int:
    """Keys before a query's own tile that the band reaches, in whole registers."""
    return band_rows(plan.diagonals - 1)


def _lag(rows: int, ahead: int) -> jax.Array:
    """(rows, LANES): how far each query is ahead of each key.

    The keys are the last rows of a tile of LANES keys, the queries those of a tile
    whose first one is `ahead` of that tile's first key.
    """
    key = lax.broadcasted_iota(jnp.int32, (rows, LANES), 0) + (LANES - rows)
    return lax.broadcasted_iota(jnp.int32, (rows, LANES), 1) + ahead - key


def _band(extras: Extras, query: int):
    if extras.band_BNUT is None:
        return None
    return extras.band_BNUT[:, query : query + LANES]


def _spread(plan: Plan, band_UL, lag) -> jax.Array | float:
    """The band where it belongs: row u of it at the entries of lag u."""
    extra = 0.0
    for u in range(plan.diagonals):
        extra = jnp.where(lag == u, band_UL[u : u + 1], extra)
    return extra


def _gather(plan: Plan, x, lag) -> jax.Array:
    """The transpose of `_spread`, negative: the sum of x over the keys at each lag."""
    shape = (band_rows(plan.diagonals), LANES)
    row = lax.broadcasted_iota(jnp.int32, shape, 0)
    total_UL = jnp.zeros(shape, jnp.float32)
    for u in range(plan.diagonals):
        sum_1L = jnp.where(lag == u, x, 0.0).sum(axis=0, keepdims=True)
        total_UL = jnp.where(row == u, -sum_1L, total_UL)
    return total_UL


def _join(parts, axis: int):
    parts = [x for x in parts if 0 not in x.shape]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)
