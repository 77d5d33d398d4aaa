"""Block sizes of the mixing kernels: what fits into vector memory and costs least.

Bytes are those of blocks, two of each that changes from step to step, and of what the
kernels keep between steps, as the compiler pads them.

Shapes: M heads of a group.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from jaxloop_kernels.multi_token_attention import pairing
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_layout import LANES, Cut
from jaxloop_kernels.multi_token_attention.widen import lanes

ROWS = range(32, 417, 32)
"""Blocks of rows that are tried: two phases of whole registers of 16-bit numbers."""
WINDOWS = (1, 2)
"""Of keys; three or four take 1 to 6 % fewer cycles and twice the instructions."""
STEP = 24_576
"""What a step costs beside its entries, in entries."""
EMPTY = 0.3
"""Share of the cost that columns without keys take as well."""
SPARE = 2 * 2**20
"""Bytes for what the compiler keeps itself, spilled registers above all."""


class Sizes(NamedTuple):
    """What bytes depend on, beside the cut."""

    heads: int
    """M."""
    kv_heads: int
    """Of a group."""
    width: int
    """Of the widened queries and keys."""
    query_rows: int
    """That one widened query serves."""
    value: int
    """Of the values."""
    size: int
    """Bytes of a number of theirs."""
    band: bool
    convolves: bool
    """After the softmax."""
    matrix_unit: int
    """Width of the chip's."""


def choose(
    cuts: Iterable[Cut], sizes: Sizes, need: Callable[[Cut, Sizes], int], vmem: int
) -> Cut | None:
    """The cut that costs least; None if none needs at most that many bytes."""
    fit = [(_cost(cut, sizes), cut) for cut in cuts if need(cut, sizes) <= vmem]
    return min(fit)[1] if fit else None


def _cost(cut: Cut, sizes: Sizes) -> float:
    """Entries that are computed, dearer where the matrix unit has columns without keys.

    Fitted to the compiler's schedules at 16 heads of 128: at T = 1024 to 8192 it picks
    the best of 128 to 416 rows and one to three windows, or one at most 3 % dearer.
    """
    steps = sum(cut.last_k(q) + 1 for q in range(cut.q_blocks))
    empty = -cut.block_k % sizes.matrix_unit / cut.block_k
    return steps * (cut.block_q * cut.block_k + STEP) * (1 + EMPTY * empty)


def forward_bytes(cut: Cut, sizes: Sizes) -> int:
    """Of the forward kernel."""
    M, rows = sizes.heads, cut.block_q
    by_head = 4 * M * rows * cut.block_k
    fetched = _fetched(cut, sizes) + M * rows * lanes(sizes.value) * sizes.size
    scratch = by_head + 2 * 4 * M * rows * LANES + 2 * 4 * rows * cut.block_k
    scratch += 4 * M * rows * lanes(sizes.value)
    scratch += 2 * M * rows * cut.block_k * sizes.size
    if sizes.convolves:
        scratch += by_head + 4 * M * 16 * cut.block_k + _taps(cut, sizes)
    return 2 * fetched + scratch + SPARE


def backward_bytes(cut: Cut, sizes: Sizes) -> int:
    """Of the larger backward kernel, that of the queries or that of the keys."""
    M, rows = sizes.heads, cut.block_q
    by_head = 4 * M * rows * cut.block_k
    fetched = _fetched(cut, sizes) + M * rows * lanes(sizes.value) * sizes.size
    both = 2 * by_head + M * rows * cut.block_k * sizes.size
    both += 2 * 4 * rows * cut.block_k
    # Gradients are added up in float32, and written.
    band = sizes.band * M * rows * LANES
    wide = M * rows // sizes.query_rows * lanes(sizes.width)
    queries = 4 * (wide + band) + 2 * (wide * sizes.size + 4 * band)
    wide = sizes.kv_heads * cut.block_k * (lanes(sizes.width) + lanes(sizes.value))
    keys = by_head + (4 + 2 * sizes.size) * wide
    if sizes.convolves:
        matrices = M * (cut.lags + 1) * LANES * LANES
        both += by_head + 2 * sizes.size * matrices
        keys += by_head + 4 * matrices
    return 2 * fetched + both + max(queries, keys) + SPARE


def _fetched(cut: Cut, sizes: Sizes) -> int:
    """Queries, keys, values and the band of one step."""
    M, rows = sizes.heads, cut.block_q
    wide = lanes(sizes.width) + lanes(sizes.value)
    fetched = M * rows // sizes.query_rows * lanes(sizes.width) * sizes.size
    fetched += sizes.kv_heads * cut.block_k * wide * sizes.size
    return fetched + sizes.band * 4 * M * rows * LANES


def _taps(cut: Cut, sizes: Sizes) -> int:
    """The matrices of `Tile.late`."""
    parts = cut.lags + 1
    shared = pairing.products(parts, 2)
    if sizes.matrix_unit > LANES and cut.phases == 2:
        parts = 2 * (parts + 1)
    elif shared < parts:
        parts = int(2 * shared)  # `shared` is of one query of two
    return sizes.heads * parts * LANES * LANES * sizes.size
