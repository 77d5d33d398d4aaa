"""What the forward and the backward kernel share: their grid and their logits; TPU.

The kernels compute causal attention whose logits get a band of U diagonals subtracted.
Tiles stand with keys down and queries across: what belongs to a query (maximum, sum,
gradient's mean) is then a row of numbers, and a sum over keys one of whole registers.
Logits are in bits: softmax is 2**x / sum 2**x here, and the caller scales the keys.

With `Plan.shared` neighbouring queries share products (`pairing`): the queries of a
part stand in another order, the first ones of all groups before the second ones.

Shapes: B batch, N query heads, T time (whole blocks), E width of queries and keys, H
head size of the values, U diagonals; X keys and Y queries of a tile.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxloop_kernels.multi_token_attention import pairing

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
    forward_block: int
    """Of the forward kernel, which keeps less and may take longer steps: `block` or
    twice that, if it divides T."""
    backward_part: int
    """Of the backward kernel; that of the forward one where queries share products."""
    diagonals: int
    """U, at most LANES."""
    shared: int
    """Neighbouring queries that share products, 1, 2 or 4, see `pairing`. It is also
    how far the query of a lane is from that of the next."""
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

    def place(self, column: int) -> int:
        """Of the first query of a tile of lanes in its block, by its column there."""
        part, inside = divmod(column, self.part)
        nth, group = divmod(inside, self.part // self.shared)
        return part * self.part + self.shared * group + nth

    def rows(self, start: int) -> slice:
        """Of the block of wide queries: those of the part at `start`."""
        return slice(start // self.shared, (start + self.part) // self.shared)

    def columns(self, wide) -> list[slice]:
        """Of wide queries or keys: those of each product that makes the logits."""
        count = pairing.count(self.shared)
        size = wide.shape[-1] // count
        return [slice(r * size, (r + 1) * size) for r in range(count)]

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


def block_spec(
    plan: Plan, x, heads: int, time_axis: int, at, stride: int = 1
) -> pl.BlockSpec:
    """Blocks of x (B, some heads, ., .) along `time_axis`: at(r, c) tells which.

    Each head of x serves neighbouring ones of the `heads` query heads, and each row of
    x `stride` tokens.
    """
    shape = [None, None, *x.shape[2:]]
    shape[time_axis] = plan.block // stride
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
    q_ref = q_ref.at[plan.rows(start), :]
    products = [dot(k_ref[:keys, e], q_ref[:, e], NT) for e in plan.columns(k_ref)]
    return _join(pairing.join(products, plan.shared), axis=1)


def logits_bar(plan: Plan, bar_XY) -> list[jax.Array]:
    """The gradients of the products in `logits`, from that of the logits."""
    return pairing.split(jnp.split(bar_XY, plan.shared, axis=1), plan.shared)


def correct(plan: Plan, x_XY, extras: Extras, start: int, near) -> jax.Array:
    """The logits less the band, and NEVER where a key is not visible.

    near: None in a block of the diagonal, else whether the block is the one before it,
    a corner of which the band crosses.
    """
    if near is None:
        x_XY = _correct_diagonal(plan, x_XY, extras, start)
    elif start == 0:
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
            ahead = plan.place(start + y) - x
            if ahead + plan.shared * (LANES - 1) < 0:
                tile = jnp.full_like(tile, NEVER)
            elif ahead < LANES - 1:
                lag = _lag(plan, LANES, ahead)
                extra = _spread(plan, band_UL, LANES, ahead)
                tile = jnp.where(lag >= 0, tile - extra, NEVER)
            elif _reaches(plan, ahead):
                rows = _corner_rows(plan)
                extra = _spread(plan, band_UL, rows, ahead)
                tile = _join([tile[:-rows], tile[-rows:] - extra], axis=0)
            tiles.append(tile)
        columns.append(_join(tiles, axis=0))
    return _join(columns, axis=1)


def _correct_corner(plan: Plan, x_XY, extras: Extras, near):
    rows = _corner_rows(plan)
    columns = []
    for y in range(0, x_XY.shape[1], LANES):
        corner = x_XY[-rows:, y : y + LANES]
        ahead = plan.place(y) + LANES
        if _reaches(plan, ahead):
            extra = _spread(plan, _band(extras, y), rows, ahead)
            corner = corner - jnp.where(near, extra, 0.0)
        columns.append(corner)
    return _join([x_XY[:-rows], _join(columns, axis=1)], axis=0)


def band_bar(plan: Plan, bar_XY, start: int, near) -> list[tuple[int, jax.Array]]:
    """The gradient of the band: (its column, its (U padded, LANES)) where there is one.

    bar_XY: the logits' gradient; start and near as in `correct`.
    """
    rows = _corner_rows(plan)
    found = []
    for y in range(start, start + bar_XY.shape[1], LANES):
        bar_XL = bar_XY[:, y - start : y - start + LANES]
        total_UL = 0.0
        # Of the block before this one only the last tile may be reached.
        offset = 0 if near is None else bar_XY.shape[0]
        for x in range(0, bar_XY.shape[0], LANES):
            ahead = plan.place(y) - x + offset
            if -plan.shared * (LANES - 1) <= ahead < LANES - 1:
                bar_LL = bar_XL[x : x + LANES]
                total_UL += _gather(plan, bar_LL, ahead)
            elif _reaches(plan, ahead):
                corner = bar_XL[x + LANES - rows : x + LANES]
                if near is not None:
                    corner = jnp.where(near, corner, 0.0)
                total_UL += _gather(plan, corner, ahead)
        if not isinstance(total_UL, float):
            found.append((y, total_UL))
    return found


def band_rows(diagonals: int) -> int:
    """U in whole registers."""
    return -(-diagonals // 8) * 8


def _corner_rows(plan: Plan) -> int:
    """Keys before a query's own tile that the band reaches, in whole registers."""
    return band_rows(plan.diagonals - 1)


def _reaches(plan: Plan, ahead: int) -> bool:
    """Whether the band of the first query reaches the last key, which is before it."""
    return LANES - 1 <= ahead < LANES - 1 + plan.diagonals and plan.diagonals > 1


def _lag(plan: Plan, rows: int, ahead: int) -> jax.Array:
    """(rows, LANES): how far each query is ahead of each key.

    The keys are the last rows of a tile of LANES keys, the queries those of a tile
    whose first one is `ahead` of that tile's first key.
    """
    key = lax.broadcasted_iota(jnp.int32, (rows, LANES), 0) + (LANES - rows)
    query = lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)
    return plan.shared * query + ahead - key


def _band(extras: Extras, query: int):
    if extras.band_BNUT is None:
        return None
    return extras.band_BNUT[:, query : query + LANES]


def _spread(plan: Plan, band_UL, rows: int, ahead: int) -> jax.Array | float:
    """(rows, LANES): the band where it belongs, row u of it at the entries of lag u.

    The keys and queries are those of `_lag`. In a row of a register lags are `shared`
    apart: one comparison serves as many lags, each in its own rows of the register.
    """
    level = _level(plan, rows, ahead)
    extra = 0.0
    for n in range(_levels(plan)):
        own = band_UL[n : n + 1]
        if plan.shared > 1:
            lags = [n * plan.shared + (ahead - row) % plan.shared for row in range(8)]
            own = _join([band_UL[u : u + 1] for u in lags], axis=0)
            own = jnp.tile(own, (rows // 8, 1))
        extra = jnp.where(level == n, own, extra)
    return extra


def _gather(plan: Plan, x_XL, ahead: int) -> jax.Array:
    """The transpose of `_spread`, negative: the sum of x over the keys at each lag."""
    level = _level(plan, x_XL.shape[0], ahead)
    totals = []
    for n in range(_levels(plan)):
        total = jnp.where(level == n, x_XL, 0.0).reshape(-1, 8, LANES).sum(axis=0)
        while total.shape[0] > plan.shared:
            upper, lower = jnp.split(total, 2)
            total = upper + lower
        rows = [(ahead - u) % plan.shared for u in range(plan.shared)]
        totals += [-total[row : row + 1] for row in rows]
    more = band_rows(plan.diagonals) - len(totals)
    return _join([*totals, jnp.zeros((more, LANES), jnp.float32)], axis=0)


def _levels(plan: Plan) -> int:
    return -(-plan.diagonals // plan.shared)


def _level(plan: Plan, rows: int, ahead: int) -> jax.Array:
    """(rows, LANES): the lag in whole `shared`, which is a power of two."""
    return _lag(plan, rows, ahead) >> (plan.shared.bit_length() - 1)


def _join(parts, axis: int):
    parts = [x for x in parts if 0 not in x.shape]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)
