"""What both passes of the TPU kernels share: how arrays are cut, and for which chip."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LOG2_E = 1.4426950408889634
LARGEST = 2**31
"""Products of a tile: the compiler writes all of them out, and takes its time."""

LEAST_VMEM = 16 * 2**20
"""Of a core, in bytes, where no TPU can be asked: v4's. Newer chips have more."""


class Plan(NamedTuple):
    """What is fixed at trace time."""

    soft_cap: float | None
    valid: int | None
    axis: str | None
    """The mesh axis, if any, that cuts the vocabulary."""
    summed: bool
    """Whether devices of other rows add their gradients of the vocabulary."""
    vmem: int
    cores: int
    chunk: int
    looped: bool
    """Whether chunks are a loop's."""
    interpret: Any

    def ragged(self, rows: int, block: int) -> bool:
        """Whether some block of the vocabulary may hold rows that are no tokens."""
        return self.valid is not None or rows % block != 0

    def vmem_limit(self) -> int:
        """A little is the compiler's own."""
        return self.vmem * 15 // 16


class Blocks(NamedTuple):
    rows: int
    """Of hidden states: a multiple of 128, they lie along lanes."""
    tokens: int
    """Of the vocabulary."""


def chunks(tokens: int, chunk: int) -> list[slice]:
    """Of the rows of a tile, those that are formed at once."""
    size = tokens // max(1, tokens // chunk)
    return [slice(at, at + size) for at in range(0, tokens, size)]


def chip(
    width: int,
    vmem: int | None,
    cores: int | None,
    chunk: int | None,
    looped: bool | None,
) -> tuple[int, int, int, bool]:
    """Bytes of vector memory, cores that run one program, rows of a tile that are
    formed at once, while others are worked on, and whether they are a loop's.

    Smaller chunks mix better, but the matrix unit takes up the hidden states anew for
    each, which costs most where it is small.

    Where the matrix unit sums its results itself, nothing holds a product back: in one
    piece of code the compiler puts all of them first, and no folding beside them. In a
    loop it has one chunk's at a time, which wait in the matrix unit: 512 fill it. That
    pays where folding takes as long as the product: 16 % at width 896. The loop's own
    starts and ends cost 2 % more than it gains at width 1024, 10 % at 2048.
    """
    info = pltpu.get_tpu_info() if pltpu.is_tpu_device() else None
    if vmem is None:
        vmem = info.vmem_capacity_bytes if info else LEAST_VMEM
    if cores is None:
        cores = info.num_cores if info else 1
    if looped is None:
        looped = bool(info and info.num_accumulators) and width < 1024
    if chunk is None:
        chunk = 256 if info and info.mxu_column_size > 128 and not looped else 512
    return vmem, cores, chunk, looped


def forward_blocks(plan: Plan, rows: int, vocab_VD) -> Blocks:
    """The vocabulary is read once a block of rows: those are as large as can be."""
    V, D = vocab_VD.shape
    size = vocab_VD.dtype.itemsize
    most = Blocks(_round_up(rows, 128), _round_up(V, 128))

    def fits(blocks: Blocks) -> bool:
        # The compiler keeps the hidden states once more, as it wants them.
        arrays = size * D * (3 * blocks.rows + 2 * blocks.tokens)
        tile = 8 * blocks.rows * blocks.tokens
        small = blocks.rows * blocks.tokens * D <= LARGEST
        return small and arrays + tile <= plan.vmem_limit() * 7 // 8

    options = [Blocks(1024, 2048)]
    sizes = (1024, 512, 256, 128)
    options += [Blocks(r, t) for r in sizes for t in sizes]
    return _first(fits, most, options, D)


def backward_blocks(plan: Plan, rows: int, vocab_VD, out_dtype) -> Blocks:
    """The gradient of the hidden states is read and written once a block of the
    vocabulary: those are as large as can be. There are at least two blocks of rows."""
    V, D = vocab_VD.shape
    size, out = vocab_VD.dtype.itemsize, jnp.dtype(out_dtype).itemsize
    most = Blocks(_round_up(pl.cdiv(rows, 2), 128), _round_up(V, 128))

    def fits(blocks: Blocks) -> bool:
        hidden = blocks.rows * D * (3 * size + 3 * 4)
        vocab = blocks.tokens * D * (3 * size + 2 * out + 2 * 4)
        tile = 8 * blocks.rows * blocks.tokens
        small = 2 * blocks.rows * blocks.tokens * D <= LARGEST
        return small and hidden + vocab + tile <= plan.vmem_limit() * 7 // 8

    sizes = (1024, 512, 256, 128)
    options = [Blocks(r, t) for t in sizes for r in (512, 256, 128)]
    options += [Blocks(128, t) for t in (64, 32)]
    return _first(fits, most, options, D)


def _first(fits, most: Blocks, options: list[Blocks], D: int) -> Blocks:
    for blocks in options:
        blocks = Blocks(*map(min, blocks, most))
        if fits(blocks):
            return blocks
    raise NotImplementedError(
        f"lm_head pallas_tpu: width {D} is too much for this chip's vector memory; "
        "xla takes it"
    )


def cut_rows(block: int, *arrays):
    """(B, T, ...) to (M, ...), padded with zeros to a multiple of the block."""

    def cut(x):
        x = x.reshape(-1, *x.shape[2:])
        pad = [(0, -x.shape[0] % block)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, pad)

    return [cut(x) for x in arrays]


def share(plan: Plan, vocab_VD, target_M):
    """How many of this device's rows are tokens, and targets counted from its first;
    -1 for those of other devices."""
    V = vocab_VD.shape[0]
    first = 0 if plan.axis is None else jax.lax.axis_index(plan.axis) * V
    bound = jnp.int32(V)
    if plan.valid is not None:
        bound = jnp.clip(plan.valid - first, 0, V).astype(jnp.int32)
    target_M = target_M.astype(jnp.int32) - first
    here_M = (target_M >= 0) & (target_M < V)
    return bound, jnp.where(here_M, target_M, -1)


def logits_tile(vocab, hidden) -> jax.Array:
    """(tokens, rows), float32."""
    return product(vocab, hidden, 1, 1)


def product(a, b, a_axis: int, b_axis: int) -> jax.Array:
    """Sums over these axes; float32 factors are not rounded to bfloat16."""
    exact = a.dtype == jnp.float32
    return jax.lax.dot_general(
        a,
        b,
        (((a_axis,), (b_axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


def _round_up(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple
