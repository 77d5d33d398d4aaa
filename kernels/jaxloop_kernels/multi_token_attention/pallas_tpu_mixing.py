"""Multi-Token Attention with head mixes on TPU: fused, nothing of size T x T in memory.

All heads of a mixing group are one program's; see `pallas_tpu_mixing_tile` for what
happens in a tile, `pallas_tpu_mixing_layout` for the blocks, which overlap where the
probabilities are convolved. The convolution of the scores is plain attention with wider
queries and keys (`widen`), made outside the kernels. So are kron(W, I) of a mix and the
convolution's matrices of taps: gradients of the parameters themselves are XLA's.

Shapes: B batch, T time, N query heads, K kv heads, H head size, G mixing groups of M
heads, A query taps, C key taps, I rows and J keys after the cut.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_backward import backward
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_blocks import (
    ROWS,
    WINDOWS,
    Sizes,
    choose,
)
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_forward import forward
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_layout import (
    LANES,
    Cut,
    cut_keys,
    cut_rows,
    join_rows,
    spread_band,
    tap_matrices,
)
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_tile import Inputs, Tile
from jaxloop_kernels.multi_token_attention.reference import Order
from jaxloop_kernels.multi_token_attention.weights import Mta
from jaxloop_kernels.multi_token_attention.widen import (
    causal_band,
    widen_keys,
    widen_queries,
)

BITS = math.log2(math.e)
"""Of a nat: the kernels' scores are in bits."""


class Run(NamedTuple):
    """How to run the kernels."""

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
    if choose(_cuts(q_BTNH.shape[1], mta, None, None), sizes, vmem) is None:
        return (
            f"{sizes.heads} heads of a group, {sizes.width} wide, in {vmem >> 20} MiB "
            "of vector memory"
        )
    return ""


def core(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mta: Mta,
    segments_BT: jax.Array | None = None,
    *,
    scale: float,
    order: Order,
    interpret: bool | None = None,
    **sizes: int | None,
) -> jax.Array:
    """Steps 1 to 8; (B, T, N, H) in q's dtype. Arguments as `multi_token_attention`;
    sizes and errors as `plan`."""
    arrays = (q_BTNH, k_BTKH, v_BTKH, mta)
    documents = segments_BT is not None
    tile, run = plan(
        *arrays, documents, scale=scale, order=order, interpret=interpret, **sizes
    )
    out_BNIH = _attend(tile, run, cut_inputs(tile, *arrays, segments_BT, scale=scale))
    return join_rows(tile.cut, out_BNIH).swapaxes(1, 2)


def plan(
    q_BTNH,
    k_BTKH,
    v_BTKH,
    mta: Mta,
    documents: bool = False,
    *,
    scale: float,
    order: Order,
    block_q: int | None = None,
    block_k: int | None = None,
    mix_rows: int | None = None,
    vmem: int | None = None,
    matrix_unit: int | None = None,
    interpret: bool | None = None,
) -> tuple[Tile, Run]:
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
    cuts = _cuts(q_BTNH.shape[1], mta, block_q, block_k)
    sizes = _sizes(q_BTNH, k_BTKH, v_BTKH, mta, matrix_unit)
    if block_q and block_k:
        (cut,) = cuts
    elif (cut := choose(cuts, sizes, vmem)) is None:
        raise NotImplementedError(
            f"multi_token_attention pallas_tpu: {M} mixed heads do not fit into "
            f"{vmem >> 20} MiB of vector memory; xla takes them"
        )
    late = mta.post_NAC if mta.post_mix_GMM is not None else None
    tile = Tile(
        cut=cut,
        heads=M,
        mix_rows=mix_rows or _mix_rows(M, cut.block_q // cut.phases),
        scale=1.0 if mta.pre_NAC is not None else scale * BITS,
        mix_first=order == "mix_first" or late is None,
        band=_band_of(mta),
        dtype=q_BTNH.dtype,
        joint=matrix_unit > LANES and cut.phases == 2 and not documents,
        unroll=not interpret,
    )
    return tile, Run(vmem, interpret)


def _cuts(T: int, mta: Mta, block_q: int | None, block_k: int | None) -> Iterator[Cut]:
    """Those with the given blocks."""
    lags = reach = 0
    if mta.post_NAC is not None:
        lags, reach = mta.post_NAC.shape[1] - 1, mta.post_NAC.shape[2] // 2
    for rows in [block_q] if block_q else ROWS:
        for windows in [block_k // LANES] if block_k else WINDOWS:
            yield Cut(T, rows, windows, lags, reach)


def _sizes(q_BTNH, k_BTKH, v_BTKH, mta: Mta, matrix_unit: int) -> Sizes:
    N, H = q_BTNH.shape[2:]
    K, M = k_BTKH.shape[2], _group(mta)
    taps = 1 if mta.pre_NAC is None else mta.pre_NAC.shape[1]
    return Sizes(
        heads=M,
        # Convolved keys are a query head's own.
        kv_heads=M if mta.pre_NAC is not None else max(1, M * K // N),
        width=taps * H,
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


def _mix_rows(M: int, rows: int) -> int:
    """So many that a mix's product is as high as the matrix unit of most chips."""
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


def cut_inputs(
    tile: Tile, q_BTNH, k_BTKH, v_BTKH, mta: Mta, segments_BT=None, *, scale: float
) -> Inputs:
    """What the kernels take: convolved, in blocks, with the scale in keys and taps."""
    if mta.pre_NAC is not None:  # with the taps' own, keys are rounded once
        taps_NAC = mta.pre_NAC.astype(jnp.float32) * (scale * BITS)
        mta = mta._replace(pre_NAC=taps_NAC)
    cut, dtype = tile.cut, tile.dtype
    B, T, N, _ = q_BTNH.shape
    q, k, v = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))
    k, v = (_serve(x, N, tile.heads) for x in (k, v))
    band = None
    if mta.pre_NAC is not None:
        if tile.band:
            band = causal_band(q, k, mta.pre_NAC, segments_BT)
            band = spread_band(cut, band)
        q = widen_queries(q, mta.pre_NAC.shape[1], segments_BT=segments_BT)
        q = q.reshape(B, N, T, -1)
        k = widen_keys(k, mta.pre_NAC, segments_BT).reshape(B, N, T, -1)
    post_mix = mta.post_mix_GMM
    taps = None
    if mta.post_NAC is not None:
        taps = tap_matrices(mta.post_NAC).astype(dtype).reshape(N, -1, LANES)
    return Inputs(
        q=cut_rows(cut, q),
        k=cut_keys(cut, k),
        v=cut_keys(cut, v.astype(dtype), foreign=False),
        band=band,
        pre_mix=_mix_matrix(tile, mta.pre_mix_GMM),
        taps=taps,
        post_mix=_mix_matrix(tile, None if post_mix is None else post_mix.mT),
        **_segments(cut, segments_BT),
    )


def _serve(x_BKTH, N: int, M: int):
    """Kv heads repeated until each group of M query heads has its own."""
    K = x_BKTH.shape[1]
    R = N // K
    if M % R == 0:
        return x_BKTH
    return jnp.repeat(x_BKTH, R // M if R % M == 0 else R, axis=1)


def _mix_matrix(tile: Tile, weight_GMM):
    """(G, M R, M R) [out, in] for groups of M heads, which may hold several smaller."""
    if weight_GMM is None:
        return None
    many = tile.heads // weight_GMM.shape[1]
    G = weight_GMM.shape[0] // many
    weight = weight_GMM.astype(jnp.float32).reshape(G, many, *weight_GMM.shape[1:])
    rows = jnp.eye(tile.mix_rows)
    matrix = jnp.einsum("GaOI,ab,rs->GaOrbIs", weight, jnp.eye(many), rows)
    size = tile.heads * tile.mix_rows
    return matrix.reshape(G, size, size).astype(tile.dtype)


def _segments(cut: Cut, segments_BT) -> dict[str, jax.Array]:
    if segments_BT is None:
        return {}
    B, T = segments_BT.shape
    segment = segments_BT.astype(jnp.int32)[:, None, :, None]

    def by_row(x_B1T1):
        wide = jnp.broadcast_to(x_B1T1, (B, 1, T, LANES))
        return cut_rows(cut, wide)[:, 0]

    found = {
        "segment_q": by_row(segment),
        "segment_k": cut_keys(cut, segment)[..., 0],
    }
    if cut.lags:
        found["earlier"] = by_row(_neighbours(segment, -cut.lags))
        found["later"] = by_row(_neighbours(segment, cut.lags))
    return found


def _neighbours(segment_B1T1, reach: int):
    """How many of the `reach` rows after (or before) a row are of its document."""
    pads = [(0, 0)] * 4
    pads[2] = (max(0, -reach), max(0, reach))
    padded, T = jnp.pad(segment_B1T1, pads), segment_B1T1.shape[2]
    offsets = range(1, reach + 1) if reach > 0 else range(-reach)
    return sum(
        (padded[:, :, at : at + T] == segment_B1T1).astype(jnp.int32) for at in offsets
    )


def _attention(tile: Tile, run: Run, inputs: Inputs) -> jax.Array:
    return attend_forward(tile, run, inputs)[0]


def attend_forward(tile: Tile, run: Run, inputs: Inputs):
    """Output (B, N, I, H), and what `attend_backward` takes."""
    out_BNIH, lse = forward(
        tile,
        inputs._replace(later=None),
        vmem=run.vmem,
        interpret=run.interpret,
    )
    return out_BNIH, (inputs, lse)


def attend_backward(tile: Tile, run: Run, saved, out_bar_BNIH):
    inputs, lse = saved
    grads = backward(
        tile, inputs, lse, out_bar_BNIH, vmem=run.vmem, interpret=run.interpret
    )
    return (grads,)


_attend = jax.custom_vjp(_attention, nondiff_argnums=(0, 1))
_attend.defvjp(attend_forward, attend_backward)
