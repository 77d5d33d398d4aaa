"""What the mixing kernels do with one tile: rows of a block times windows of keys.

All heads of a mixing group are in the tile. Two views of it alternate. By head,
(rows, 128) at a time: products with queries, keys and values, and the convolution after
the softmax. By rows, R of them of all M heads at a time: the mixes, as one product of
kron(W, I_R) with the (M R, 128) matrix whose rows are (head, row), which is how the
registers lie anyway.

Shapes: M heads of a group, R rows mixed at once, A query taps, w window of a block.
"""

import math
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxloop_kernels.multi_token_attention import pairing
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_layout import (
    LANES,
    Cut,
    cut_rows,
    join_rows,
    last_block,
)

NEVER = -(2.0**100)
"""Score of what is not visible; the same number in bfloat16."""
PAD = 8
"""Rows before each phase of the probabilities: what a shift reads beyond the block."""


Sweeps = Literal["one", "two"]
Late = Literal["lags", "joint", "pairs"]
"""How the forward kernel convolves after the softmax: a product of each phase's rows of
all lags; one for both phases, see `joint_taps`; four for both, see `pairing`."""


class Tile(NamedTuple):
    """What is fixed at trace time."""

    cut: Cut
    heads: int
    mix_rows: int
    scale: float
    """Of the products of queries and keys; scores are in bits, for 2**score."""
    mix_first: bool
    band: int
    """Diagonals from which the band is subtracted."""
    dtype: Any
    """Of the products' operands; they accumulate in float32."""
    shared: int = 1
    """Neighbouring queries that share products, 1 or 2, see `pairing`."""
    late: Late = "lags"
    unroll: bool = True
    """Whether loops run several turns as one: not when interpreted."""

    @property
    def phase_rows(self) -> int:
        return self.cut.block_q // self.cut.phases

    @property
    def stored(self) -> Any:
        """Of tiles that are read by rows: 8 rows fill a register only in float32."""
        return self.dtype if self.mix_rows % 16 == 0 else jnp.float32

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Of a tile by head."""
        return (self.heads, self.cut.windows, self.cut.block_q, LANES)

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Of a tile whose rows can be shifted."""
        rows = self.cut.phases * (self.phase_rows + PAD)
        return (self.heads, self.cut.windows, rows, LANES)

    @property
    def mixed_shape(self) -> tuple[int, ...]:
        """Of one register column of a tile by rows."""
        blocks = self.cut.block_q // self.mix_rows
        return (blocks, self.heads * self.mix_rows, LANES)


class Inputs(NamedTuple):
    """Blocks of one step; None where the part is absent."""

    q: Any
    """(1, M, I, D), widened."""
    k: Any
    """(1, kv heads, J, D), widened."""
    v: Any
    """(1, kv heads, J, H), zero at foreign keys."""
    band: Any = None
    """(1, M, I, 128) float32."""
    pre_mix: Any = None
    """(1, M R, M R)."""
    taps: Any = None
    """(M, A 128, 128)."""
    post_mix: Any = None
    """(1, M R, M R), [out, in]."""
    segment_q: Any = None
    """(1, I, 128) int32, a lane like another."""
    segment_k: Any = None
    """(1, 1, J) int32."""
    earlier: Any = None
    """(1, I, 128) int32, bit s: the row s before this one is of its document; where
    pairs are convolved, of the first row's document, or the second's if the first is
    padding (of the second row only bit 0, the row itself, is then asked for)."""
    later: Any = None
    """The same of the rows s after this one; the backward kernels' only."""


def dot(a, b, contract: tuple[int, int] = (1, 0)):
    """A product in float32; exact for float32 operands."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(
        a, b, dims, precision=precision, preferred_element_type=jnp.float32
    )


def each(tile: Tile, count: int, body, together: int = 1):
    """body(0), ..., body(count - 1), about `together` of them in one straight piece.

    The compiler fills the matrix unit's waits within a piece only.
    """
    if tile.unroll:
        pieces = [size for size in range(1, count + 1) if count % size == 0]
        together = min(pieces, key=lambda size: abs(math.log(size / together)))
    else:
        together = 1

    def chunk(at, _):
        for one in range(together):
            body(at * together + one)

    if count == together:
        chunk(0, None)
    else:
        lax.fori_loop(0, count // together, chunk, None)


def each_rows(tile: Tile, body, together: int = 1):
    """body(at, phase): for each R rows of the block their number, and their phase."""
    blocks = tile.phase_rows // tile.mix_rows
    for phase in range(tile.cut.phases):
        each(tile, blocks, lambda at, p=phase: body(p * blocks + at, p), together)


def rows_of(tile: Tile, at):
    """The R rows number `at`."""
    return pl.ds(pl.multiple_of(at * tile.mix_rows, tile.mix_rows), tile.mix_rows)


def padded_rows_of(tile: Tile, at, phase: int, pad: int = PAD):
    """The same in a tile with PAD rows in each phase, `pad` of them before its own."""
    start = at * tile.mix_rows + phase * PAD + pad
    return pl.ds(pl.multiple_of(start, 8), tile.mix_rows)


def ahead(tile: Tile, q, k, window: int):
    """(rows, 128) int32: row minus key, -1 where the key is before the first."""
    cut, shape = tile.cut, (tile.cut.block_q, LANES)
    at = lax.broadcasted_iota(jnp.int32, shape, 0)
    if cut.phases == 2:
        at = jnp.where(at < tile.phase_rows, 2 * at, 2 * (at - tile.phase_rows) + 1)
    lane = lax.broadcasted_iota(jnp.int32, shape, 1)
    key = (k * cut.windows + window) * cut.own_window - cut.reach + lane
    row = q * cut.own_q - cut.halo + at
    return jnp.where(key >= 0, row - key, -1)


def meets_band(tile: Tile, q, k):
    """Whether the band crosses the tile."""
    cut = tile.cut
    last = (k * cut.windows + cut.windows - 1) * cut.own_window - cut.reach + LANES - 1
    return q * cut.own_q - cut.halo - last < tile.band


def clear_padding(tile: Tile, ref, *, below: bool = False):
    """Rows above a block, or below it, are zero."""
    for phase in range(tile.cut.phases):
        start = phase * (tile.phase_rows + PAD) + below * tile.phase_rows
        shape = (tile.heads, tile.cut.windows, PAD, LANES)
        ref[:, :, start : start + PAD] = jnp.zeros(shape, ref.dtype)


def visible(tile: Tile, inputs: Inputs, q, k, window: int):
    """(rows, 128) bool: whether the row sees the key."""
    seen = ahead(tile, q, k, window) >= 0
    if inputs.segment_q is not None:
        own, lanes = inputs.segment_q[0], pl.ds(window * LANES, LANES)
        seen &= (own == inputs.segment_k[0, :, lanes]) & (own != 0)
    return seen


def score_tile(tile: Tile, inputs: Inputs, near_ref, score_ref, q, k):
    """By head, the convolved scores of step 3."""

    def head(m):
        kv = kv_head(tile, inputs.k, m)
        products = [
            dot(inputs.q[0, m, :, e], inputs.k[0, kv, :, e], (1, 1))
            for e in columns(tile, inputs.k)
        ]
        score = jnp.concatenate(pairing.join(products, tile.shared))
        if tile.scale != 1.0:
            score = score * tile.scale
        for w in range(tile.cut.windows):
            part = score[:, w * LANES : (w + 1) * LANES]
            score_ref[m, w] = part.astype(score_ref.dtype)

    def correct(m):
        for w in range(tile.cut.windows):
            score_ref[m, w] -= (inputs.band[0, m] * near_ref[w]).astype(score_ref.dtype)

    each(tile, tile.heads, head, 8)
    if inputs.band is not None:

        @pl.when(meets_band(tile, q, k))
        def _():
            each(tile, tile.heads, correct)


def columns(tile: Tile, wide_ref) -> list[slice]:
    """Of wide queries or keys: those of each product that makes the scores."""
    count = pairing.count(tile.shared)
    size = wide_ref.shape[-1] // count
    return [slice(at * size, (at + 1) * size) for at in range(count)]


def by_rows_view(tile: Tile, ref, rows):
    """(M R, block_k): all heads' rows of a tile by head."""
    columns = [
        ref[:, w, rows].reshape(tile.heads * tile.mix_rows, LANES)
        for w in range(tile.cut.windows)
    ]
    return jnp.concatenate(columns, axis=1)


def store_rows(tile: Tile, ref, rows, x):
    """Undoes `by_rows_view`."""
    for w in range(tile.cut.windows):
        part = x[:, w * LANES : (w + 1) * LANES]
        part = part.reshape(tile.heads, tile.mix_rows, LANES)
        ref[:, w, rows] = part.astype(ref.dtype)


def mix(tile: Tile, matrix_ref, x, side: int = 1):
    """A mix of (M R, block_k), float32; side 0: by the transposed matrix."""
    if matrix_ref is None:
        return x.astype(jnp.float32)
    return dot(matrix_ref[0], x.astype(tile.dtype), (side, 0))


def masked_scores(tile: Tile, inputs: Inputs, tile_ref, seen_ref, at):
    """(M R, block_k) float32 after step 5's mask."""
    rows = rows_of(tile, at)
    score = mix(tile, inputs.pre_mix, by_rows_view(tile, tile_ref, rows))
    seen = all_heads(tile, wide(seen_ref, rows))
    return jnp.where(seen > 0, score, NEVER)


def all_heads(tile: Tile, x):
    """(R, L) to (M R, L), the same for each head."""
    x = jnp.broadcast_to(x, (tile.heads, *x.shape))
    return x.reshape(tile.heads * tile.mix_rows, x.shape[-1])


def phase_rows_of(tile: Tile, phase: int) -> slice:
    """The rows of one phase."""
    return slice(phase * tile.phase_rows, (phase + 1) * tile.phase_rows)


def kv_head(tile: Tile, kv, m):
    """Of the program's kv heads the one that serves query head m."""
    return lax.div(m, tile.heads // kv.shape[1])


def owned(tile: Tile, at, phase: int):
    """(R, block_k): whether row and key both are the tile's own."""
    cut, shape = tile.cut, (tile.mix_rows, tile.cut.block_k)
    inner = at * tile.mix_rows + lax.broadcasted_iota(jnp.int32, shape, 0)
    row = (inner - phase * tile.phase_rows) * cut.phases + phase
    lane = lax.broadcasted_iota(jnp.int32, shape, 1) % LANES
    return (row >= cut.halo) & (lane >= cut.reach) & (lane < LANES - cut.reach)


def wide(ref, rows: Any = slice(None)):
    """(rows, block_k) of (w, rows, 128)."""
    return jnp.concatenate([ref[w, rows] for w in range(ref.shape[0])], axis=1)


def masks(tile: Tile, inputs: Inputs, q, k, seen_ref, near_ref):
    """Fills the step's masks: visible, and in the band."""
    for w in range(tile.cut.windows):
        seen_ref[w] = visible(tile, inputs, q, k, w).astype(jnp.float32)
        if near_ref is not None:
            distance = ahead(tile, q, k, w)
            near = (distance >= 0) & (distance < tile.band)
            near_ref[w] = near.astype(jnp.float32)


def stats_by_time(tile: Tile, stat):
    """(B, N, T) of (B, G, blocks of rows, blocks of R rows, M R), a number a row."""
    return join_rows(tile.cut, stats_by_row(tile, stat))[..., 0]


def stats_by_tile(tile: Tile, stat_BNT):
    """Undoes `stats_by_time`: each block's rows, with those of the one before it."""
    return stats_of_rows(tile, cut_rows(tile.cut, stat_BNT[..., None]))


def stats_by_row(tile: Tile, stat):
    """(B, N, I, 1)."""
    B, G, blocks, inner, _ = stat.shape
    stat = stat.reshape(B, G, blocks, inner, tile.heads, tile.mix_rows)
    by_head = stat.transpose(0, 1, 4, 2, 3, 5)
    return by_head.reshape(B, G * tile.heads, tile.cut.rows, 1)


def stats_of_rows(tile: Tile, stat_BNI1):
    """Undoes `stats_by_row`."""
    B, N = stat_BNI1.shape[:2]
    blocks, inner, M = tile.cut.q_blocks, tile.mixed_shape[0], tile.heads
    stat = stat_BNI1.reshape(B, N // M, M, blocks, inner, tile.mix_rows)
    return stat.transpose(0, 1, 3, 4, 2, 5).reshape(B, N // M, blocks, inner, -1)


def specs(tile: Tile, inputs: Inputs, sweeps: Sweeps = "one") -> Inputs:
    """Blocks of the inputs for a grid of (batch, group, step) with `Steps` prefetched.

    What a sweep has no use for stays as it was and is not fetched again: the values in
    the first of two, the keys in the second.
    """
    cut, M = tile.cut, tile.heads
    groups = inputs.q.shape[1] // M

    def of_rows(b, g, s, q, *_):
        return b, g, q[s], 0

    def of_keys(b, g, s, q, k, sweep, edge):
        if sweeps == "two":
            last = last_block(cut, q[s])
            return b, g, jnp.where(sweep[s] == 0, k[s], last), 0
        return b, g, k[s], 0

    def of_values(b, g, s, q, k, sweep, edge):
        return b, g, (k[s] if sweeps == "one" else k[s] * sweep[s]), 0

    def of_group(b, g, s, *_):
        return g, 0, 0

    def spec(name, x):
        heads, D = x.shape[1] // groups, x.shape[-1]
        if name in ("q", "band"):
            rows = cut.block_q // (tile.shared if name == "q" else 1)
            return pl.BlockSpec((1, heads, rows, D), of_rows)
        if name in ("k", "v"):
            index = of_keys if name == "k" else of_values
            return pl.BlockSpec((1, heads, cut.block_k, D), index)
        if name in ("segment_q", "earlier", "later"):
            return pl.BlockSpec(
                (1, cut.block_q, D), lambda b, g, s, q, *_: (b, q[s], 0)
            )
        if name == "segment_k":
            return pl.BlockSpec(
                (1, 1, cut.block_k), lambda b, g, s, q, k, *_: (b, 0, k[s])
            )
        one = pl.Buffered(1)  # it seldom changes
        shape = (x.shape[0] // groups, *x.shape[1:])
        return pl.BlockSpec(shape, of_group, pipeline_mode=one)

    named = inputs._asdict().items()
    return Inputs(**{n: None if x is None else spec(n, x) for n, x in named})
