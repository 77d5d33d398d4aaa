"""How the mixing kernels go about their work: what they take, and in which blocks.

Shapes: M heads of a group; as in `pallas_tpu_mixing`.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.multi_token_attention import pairing
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_blocks import (
    ROWS,
    WINDOWS,
    Sizes,
    backward_bytes,
    choose,
    forward_bytes,
)
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_layout import LANES, Cut
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_tile import Late, Tile
from jaxloop_kernels.multi_token_attention.reference import Order
from jaxloop_kernels.multi_token_attention.weights import Mta
from jaxloop_kernels.multi_token_attention.widen import lanes

BITS = math.log2(math.e)
"""Of a nat: the kernels' scores are in bits."""


class Run(NamedTuple):
    """How to run the kernels."""

    forward: Tile
    backward: Tile
    """Its rows are fewer where memory is short: it adds up more."""
    vmem: int
    """Bytes of vector memory that a kernel may use."""
    interpret: bool


def supports(q_BTNH, k_BTKH, v_BTKH, mta: Mta, order: Order) -> str:
    """Why this kernel cannot do it; "" where it can."""
    if q_BTNH.dtype not in (jnp.bfloat16, jnp.float32):
        return f"{q_BTNH.dtype}; it takes bfloat16 and float32"
    if mta.pre_mix_GMM is None and mta.post_mix_GMM is None:
        return "no head mix; the kernel without mixes takes it"
    if mta.post_NAC is not None:
        _, A, C = mta.post_NAC.shape
        if A > 9 or C > 33:
            return f"{A} x {C} taps after the softmax; it takes up to 9 x 33"
    if mta.pre_NAC is not None and sum(mta.pre_NAC.shape[1:]) > 64:
        return f"{mta.pre_NAC.shape[1:]} taps before the softmax; too many"
    if _group(mta) > 32:
        return f"mixing groups of {_group(mta)} heads; it takes up to 32"
    vmem, matrix_unit = _device(None, None)
    sizes = _sizes(q_BTNH, k_BTKH, v_BTKH, mta, matrix_unit)
    if None in _chosen(q_BTNH.shape[1], mta, sizes, vmem, None, None):
        return (
            f"{sizes.heads} heads of a group, {sizes.width} wide, in {vmem >> 20} MiB "
            "of vector memory"
        )
    return ""


def plan(
    q_BTNH,
    k_BTKH,
    v_BTKH,
    mta: Mta,
    *,
    scale: float,
    order: Order,
    block_q: int | None = None,
    block_k: int | None = None,
    mix_rows: int | None = None,
    vmem: int | None = None,
    matrix_unit: int | None = None,
    interpret: bool | None = None,
) -> Run:
    """How to do it; of the arrays only shapes and dtypes count.

    block_q: rows of a tile, a multiple of 32; block_k: keys, a multiple of 128 (the
    backward kernels take 128); None: `pallas_tpu_mixing_blocks` chooses. mix_rows: rows
    mixed by one product, a multiple of 8 that divides half of block_q. vmem: bytes of
    vector memory that a kernel may use; matrix_unit: width of the chip's, which only
    changes how the work is cut; None: the device's. Raises ValueError for sizes that do
    not fit one another, NotImplementedError where no block fits into the memory.
    """
    if (block_q or 32) % 32 or (block_k or LANES) % LANES:
        raise ValueError(
            f"block_q must be a multiple of 32 and block_k of {LANES}, got {block_q} "
            f"and {block_k}"
        )
    if interpret is None:
        interpret = jax.default_backend() == "cpu"
    vmem, matrix_unit = _device(vmem, matrix_unit)
    M = _group(mta)
    sizes = _sizes(q_BTNH, k_BTKH, v_BTKH, mta, matrix_unit)
    cuts = _chosen(q_BTNH.shape[1], mta, sizes, vmem, block_q, block_k)
    if None in cuts:
        raise NotImplementedError(
            f"multi_token_attention pallas_tpu: {M} mixed heads do not fit into "
            f"{vmem >> 20} MiB of vector memory; xla takes them"
        )
    after = mta.post_NAC if mta.post_mix_GMM is not None else None
    tiles = (
        Tile(
            cut=cut,
            heads=M,
            mix_rows=_mix_rows(M, cut.block_q // cut.phases, mix_rows),
            scale=1.0 if mta.pre_NAC is not None else scale * BITS,
            mix_first=order == "mix_first" or after is None,
            band=_band_of(mta),
            dtype=q_BTNH.dtype,
            shared=_shared(mta, matrix_unit),
            late=late,
            unroll=not interpret,
        )
        for cut, late in zip(cuts, (_late(cuts[0], matrix_unit), "lags"), strict=True)
    )
    forward, backward = tiles
    return Run(forward, backward, vmem, interpret)


def _chosen(T: int, mta: Mta, sizes: Sizes, vmem: int, block_q, block_k) -> list:
    """The cuts of the forward and the backward kernels; None where nothing fits.

    Backward a window of keys at a time: two do not fit beside all that is added up.
    """
    cuts = []
    for windows, need in (
        ((block_k or 0) // LANES, forward_bytes),
        (1, backward_bytes),
    ):
        possible = list(_cuts(T, mta, block_q, windows))
        given = bool(block_q and windows)
        cuts.append(possible[0] if given else choose(possible, sizes, need, vmem))
    return cuts


def _shared(mta: Mta, matrix_unit: int) -> int:
    """How many neighbouring queries share products.

    Only where the convolution after the softmax parts the rows into even and odd ones
    anyway. A wide matrix unit has little from four keys for half of the rows instead of
    six for all of them, and the former take more memory.
    """
    pre, post = (1 if x is None else x.shape[1] for x in (mta.pre_NAC, mta.post_NAC))
    gains = matrix_unit == LANES and post > 1 and pairing.products(pre, 2) < pre
    return 2 if gains else 1


def _late(cut: Cut, matrix_unit: int) -> Late:
    if matrix_unit > LANES and cut.phases == 2:
        return "joint"
    return "pairs" if pairing.products(cut.lags + 1, 2) < cut.lags + 1 else "lags"


def _cuts(T: int, mta: Mta, block_q: int | None, windows: int) -> Iterator[Cut]:
    """Those with the given blocks."""
    lags = reach = 0
    if mta.post_NAC is not None:
        lags, reach = mta.post_NAC.shape[1] - 1, mta.post_NAC.shape[2] // 2
    for rows in [block_q] if block_q else ROWS:
        for some in [windows] if windows else WINDOWS:
            yield Cut(T, rows, some, lags, reach)


def _sizes(q_BTNH, k_BTKH, v_BTKH, mta: Mta, matrix_unit: int) -> Sizes:
    N, H = q_BTNH.shape[2:]
    K, M = k_BTKH.shape[2], _group(mta)
    taps = 1 if mta.pre_NAC is None else mta.pre_NAC.shape[1]
    shared = _shared(mta, matrix_unit)
    return Sizes(
        heads=M,
        # Convolved keys are a query head's own.
        kv_heads=M if mta.pre_NAC is not None else max(1, M * K // N),
        width=pairing.width(taps, H, 2) if shared == 2 else lanes(taps * H),
        query_rows=shared,
        value=v_BTKH.shape[-1],
        size=q_BTNH.dtype.itemsize,
        band=_band_of(mta) > 0,
        convolves=mta.post_NAC is not None,
        matrix_unit=matrix_unit,
    )


def _device(vmem: int | None, matrix_unit: int | None) -> tuple[int, int]:
    """Bytes of vector memory for a kernel, and width of the matrix unit."""
    info = pltpu.get_tpu_info() if pltpu.is_tpu_device() else None
    if vmem is None:
        vmem = (info.vmem_capacity_bytes if info else 64 * 2**20) * 15 // 16
    if matrix_unit is None:
        matrix_unit = info.mxu_column_size if info else LANES
    return vmem, matrix_unit


def _mix_rows(M: int, rows: int, given: int | None) -> int:
    """So many that a mix's product is as high as the matrix unit of most chips."""
    if given is not None:
        if given % 8 or given < 8 or rows % given:
            raise ValueError(
                f"mix_rows must be a multiple of 8 that divides {rows}, got {given}"
            )
        return given
    fits = [R for R in (64, 32, 16) if R * M <= LANES and rows % R == 0]
    return fits[0] if fits else 8


def _group(mta: Mta) -> int:
    """Heads of a program: both mixes' groups fit in."""
    sizes = [x.shape[1] for x in (mta.pre_mix_GMM, mta.post_mix_GMM) if x is not None]
    return math.lcm(*sizes)


def _band_of(mta: Mta) -> int:
    if mta.pre_NAC is None:
        return 0
    _, A, C = mta.pre_NAC.shape
    return A - 1 + C // 2
