"""What the mixing kernels do with one tile: rows of a block times windows of keys.

All heads of a mixing group are in the tile. Two views of it alternate. By head,
(rows, 128) at a time: products with queries, keys and values, and the convolution after
the softmax. By rows, R of them of all M heads at a time: the mixes, as one product of
kron(W, I_R) with the (M R, 128) matrix whose rows are (head, row), which is how the
registers lie anyway.

Shapes: M heads of a group, R rows mixed at once, A query taps, w window of a block.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_layout import (
    LANES,
    Cut,
    joint_rows,
    last_block,
)

NEVER = -(2.0**100)
"""Score of what is not visible; the same number in bfloat16."""
PAD = 8
"""Rows before each phase of the probabilities: what a shift reads beyond the block."""


Sweeps = Literal["one", "two"]


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
    joint: bool = False
    """Whether one product convolves the rows of both phases; see `joint_taps`."""
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
    """(1, I, 128) int32: rows of the same document before this one, up to A - 1."""
    later: Any = None
    """The same of rows after this one; the backward kernels' only."""


def dot(a, b, contract: tuple[int, int] = (1, 0)):
    """A product in float32; exact for float32 operands."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(
        a, b, dims, precision=precision, preferred_element_type=jnp.float32
    )


def each(tile: Tile, count: int, body, together: int = 1):
    """body(0), ..., body(count - 1), `together` of them in one straight piece.

    The compiler fills the matrix unit's waits within a piece only.
    """
    together = together if tile.unroll else 1
    while count % together:
        together -= 1

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
    row = q * cut.own_q - cut.lags + at
    return jnp.where(key >= 0, row - key, -1)


def meets_band(tile: Tile, q, k):
    """Whether the band crosses the tile."""
    cut = tile.cut
    last = (k * cut.windows + cut.windows - 1) * cut.own_window - cut.reach + LANES - 1
    return q * cut.own_q - cut.lags - last < tile.band


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
        key = inputs.k[0, kv_head(tile, inputs.k, m)]
        score = dot(inputs.q[0, m], key, (1, 1))
        if tile.scale != 1.0:
            score = score * tile.scale
        for w in range(tile.cut.windows):
            part = score[:, w * LANES : (w + 1) * LANES]
            score_ref[m, w] = part.astype(score_ref.dtype)

    def correct(m):
        for w in range(tile.cut.windows):
            score_ref[m, w] -= (inputs.band[0, m] * near_ref[w]).astype(score_ref.dtype)

    each(tile, tile.heads, head, 4)
    if inputs.band is not None:

        @pl.when(meets_band(tile, q, k))
        def _():
            each(tile, tile.heads, correct)


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


def lagged_rows(tile: Tile, inputs: Inputs, ref, m, phase: int):
    """(w rows of a phase, A 128): the rows of all lags, largest first, side by side."""
    cut, parts = tile.cut, []
    for lag in range(cut.lags, -1, -1):
        source = (phase - lag) % cut.phases
        shift = (lag - phase + source) // cut.phases
        start = source * (tile.phase_rows + PAD) + PAD - shift
        part = ref[m, :, start : start + tile.phase_rows]
        if inputs.earlier is not None and lag:
            same = inputs.earlier[0, phase_rows_of(tile, phase)] >= lag
            part = jnp.where(same, part, 0.0)
        parts.append(part.astype(tile.dtype))
    return _rows_of_all_windows(parts)


def _rows_of_all_windows(parts):
    """(w rows, parts 128) of parts (w, rows, 128): one product takes up its matrix once
    for all windows."""
    x = jnp.concatenate(parts, axis=2)
    return x.reshape(-1, x.shape[2])


def convolve(tile: Tile, inputs: Inputs, padded_ref, m, phase: int):
    """Step 6 for the rows of one phase of a head: (w, rows, 128) float32.

    One product with the taps' matrices sums the lags.
    """
    rows = lagged_rows(tile, inputs, padded_ref, m, phase)
    return dot(rows, inputs.taps[m]).reshape(-1, tile.phase_rows, LANES)


def convolved(tile: Tile, inputs: Inputs, padded_ref, m) -> list:
    """`convolve` of each phase."""
    if not tile.joint:
        phases = range(tile.cut.phases)
        return [convolve(tile, inputs, padded_ref, m, p) for p in phases]
    parts = []
    for source, shift in joint_rows(tile.cut):
        start = source * (tile.phase_rows + PAD) + PAD - shift
        part = padded_ref[m, :, start : start + tile.phase_rows]
        parts.append(part.astype(tile.dtype))
    both = dot(_rows_of_all_windows(parts), inputs.taps[m])
    halves = both[:, :LANES], both[:, LANES:]
    return [half.reshape(-1, tile.phase_rows, LANES) for half in halves]


def convolve_back(tile: Tile, inputs: Inputs, taps_back, ref, m, phase: int):
    """`convolve` transposed: from later rows, in a tile that is padded below."""
    cut, parts = tile.cut, []
    for lag in range(cut.lags, -1, -1):
        target = (phase + lag) % cut.phases
        start = target * (tile.phase_rows + PAD) + (phase + lag) // cut.phases
        part = ref[m, :, start : start + tile.phase_rows]
        if inputs.later is not None and lag:
            same = inputs.later[0, phase_rows_of(tile, phase)] >= lag
            part = jnp.where(same, part, 0.0)
        parts.append(part.astype(tile.dtype))
    bar = dot(_rows_of_all_windows(parts), taps_back[m])
    return bar.reshape(-1, tile.phase_rows, LANES)


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
    return (row >= cut.lags) & (lane >= cut.reach) & (lane < LANES - cut.reach)


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
            return pl.BlockSpec((1, heads, cut.block_q, D), of_rows)
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
