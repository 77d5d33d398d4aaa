"""Block sizes of the mixing kernels: what fits into vector memory and costs least.

Bytes are those of blocks, two of each that changes from step to step, and of what the
kernels keep between steps, as the compiler pads them.

Shapes: M heads of a group.
"""

from collections.abc import Iterator
from typing import NamedTuple

from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_layout import (
    LANES,
    Cut,
)

ROWS = range(32, 385, 32)
"""Blocks of rows that are tried: two phases of whole registers of 16-bit numbers."""
WINDOWS = (1, 2, 3, 4)
STEP = 4096
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
    value: int
    """Of the values."""
    size: int
    """Bytes of a number of theirs."""
    band: bool
    convolves: bool
    """After the softmax."""
    matrix_unit: int
    """Width of the chip's."""


def choose(cuts: Iterator[Cut], sizes: Sizes, vmem: int) -> Cut | None:
    """The cut that costs least; None if nothing fits."""
    fit = [
        (_cost(cut, sizes), cut)
        for cut in cuts
        if backward_bytes(cut._replace(windows=1), sizes) <= vmem
        and forward_bytes(cut, sizes) <= vmem
    ]
    return min(fit)[1] if fit else None


def _cost(cut: Cut, sizes: Sizes) -> float:
    """Entries that are computed, dearer where the matrix unit takes up new keys often
    or has columns without any.

    Fitted to the compiler's schedules at 16 heads of 128 on v5e and v6e.
    """
    steps = sum(cut.last_k(q) + 1 for q in range(cut.q_blocks))
    entries = steps * (cut.block_q * cut.block_k + STEP)
    fill = 1 + sizes.matrix_unit / 4 / cut.block_q
    empty = -cut.block_k % sizes.matrix_unit / cut.block_k
    return entries * (fill + EMPTY * empty)


def forward_bytes(cut: Cut, sizes: Sizes) -> int:
    """Of the forward kernel."""
    M, rows = sizes.heads, cut.block_q
    by_head = 4 * M * rows * cut.block_k
    fetched = _fetched(cut, sizes) + M * rows * _lanes(sizes.value) * sizes.size
    scratch = by_head + 2 * 4 * M * rows * LANES + 2 * 4 * rows * cut.block_k
    scratch += 4 * M * rows * _lanes(sizes.value)
    scratch += 2 * M * rows * cut.block_k * sizes.size
    if sizes.convolves:
        scratch += by_head + 4 * M * 16 * cut.block_k + _taps(cut, sizes)
    return 2 * fetched + scratch + SPARE


def backward_bytes(cut: Cut, sizes: Sizes) -> int:
    """Of the largest backward kernel, that of the keys."""
    M, rows = sizes.heads, cut.block_q
    by_head = 4 * M * rows * cut.block_k
    wide = _lanes(sizes.width) + _lanes(sizes.value)
    fetched = _fetched(cut, sizes) + M * rows * _lanes(sizes.value) * sizes.size
    written = sizes.kv_heads * cut.block_k * wide * sizes.size
    scratch = 3 * by_head + M * rows * cut.block_k * sizes.size
    scratch += sizes.kv_heads * cut.block_k * wide * 4 + 2 * 4 * rows * cut.block_k
    if sizes.convolves:
        matrices = M * (cut.lags + 1) * LANES * LANES
        scratch += 2 * by_head + matrices * (2 * sizes.size + 4)
    return 2 * (fetched + written) + scratch + SPARE


def _fetched(cut: Cut, sizes: Sizes) -> int:
    """Queries, keys, values and the band of one step."""
    M, rows = sizes.heads, cut.block_q
    wide = _lanes(sizes.width) + _lanes(sizes.value)
    fetched = M * rows * _lanes(sizes.width) * sizes.size
    fetched += sizes.kv_heads * cut.block_k * wide * sizes.size
    return fetched + sizes.band * 4 * M * rows * LANES


def _taps(cut: Cut, sizes: Sizes) -> int:
    parts = cut.lags + 1
    if sizes.matrix_unit > LANES and cut.phases == 2:
        parts = 2 * (parts + 1)
    return sizes.heads * parts * LANES * LANES * sizes.size


def _lanes(width: int) -> int:
    return -(-width // LANES) * LANES
