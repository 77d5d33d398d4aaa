"""Multi-Token Attention's convolution before the softmax, fused; Pallas, NVIDIA GPUs.

The convolution moves onto queries and keys, see `widen`: what is left is attention with
a query and a key A times as wide whose logits near the diagonal need a correction. All
of it is matrix products, which tensor cores do; shifting a tile of logits, as a
convolution inside of the kernel would, is what Triton has no means for. Nothing of size
T x T is ever written, and between the passes nothing wide is kept.

For Ampere and newer, by Pallas' Triton backend. Newer versions of jax call that
deprecated; where a jax has it no more, "auto" takes xla.

No GPU was at hand: nothing here has run on one, and no block size has been tuned. The
kernels have been run interpreted, lowered for CUDA, and compiled by Triton 3.9 for
compute capability 8.0, 8.6 and 9.0. A program takes at most 72 KiB of shared memory, of
which every such card has 99, and all registers there are: in bfloat16 the forward
kernel spills at most 152 bytes a thread, the backward ones 24; in float32 kilobytes.

Shapes: B batch, T time, N query heads, K kv heads, H head size, A query taps, C key
taps, P parts of a widened array (A, or the rank), E = P * H, U diagonals of the band.
"""

from functools import partial
from math import e, log2

import jax
import jax.numpy as jnp
from jax import lax

from jaxloop_kernels.multi_token_attention import widen
from jaxloop_kernels.multi_token_attention.pallas_gpu_backward import Sums, backward
from jaxloop_kernels.multi_token_attention.pallas_gpu_forward import (
    Inputs,
    Plan,
    forward,
)
from jaxloop_kernels.multi_token_attention.weights import Mta

REGISTERS = 148 * 2**10
"""Bytes, of 256 KiB, that a backward program may hold; with more Triton spills."""


def supports(q_BTNH, k_BTKH, v_BTKH, mta: Mta, order: str = "convolve_first") -> str:
    """Why this implementation cannot do it; "" where it can."""
    if mta.pre_mix_GMM is not None or mta.post_mix_GMM is not None:
        return "head mixing; xla has it"
    if mta.post_NAC is not None:
        return "a convolution after the softmax; xla has it"
    if q_BTNH.dtype not in (jnp.bfloat16, jnp.float32):
        return f"{q_BTNH.dtype}; bfloat16 and float32 it can"
    if not q_BTNH.dtype == k_BTKH.dtype == v_BTKH.dtype:
        return "q, k and v of different dtypes"
    return _old_card()


def core(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mta: Mta,
    segments_BT: jax.Array | None = None,
    *,
    scale: float,
    order: str = "convolve_first",
    block_q: int = 128,
    block_k: int = 64,
    rank: int | None = None,
    interpret=None,
) -> jax.Array:
    """Steps 1 to 3, 5 and 8 (arXiv 2504.00927); (B, T, N, H) in v's dtype.

    rank: take the nearest convolution kernels of at most this rank, whose cost is
    `rank` plain query-key products rather than A; see `widen.factors`.

    block_q, block_k: queries and keys whose logits a program holds at once, powers of
    two, at least 16. Raises ValueError for others.
    """
    del order  # there is nothing after the softmax
    T, H = q_BTNH.shape[1], v_BTKH.shape[-1]
    v_BTKH = _pad_last(v_BTKH, max(16, _power_of_two(H)) - H)
    theta_NAC = mta.pre_NAC
    if theta_NAC is None:
        theta_NAC = jnp.ones((k_BTKH.shape[2], 1, 1))
    # Folded into the kernel the scale costs no rounding of its own.
    theta_NAC = theta_NAC.astype(jnp.float32) * (scale * log2(e))
    parts = min(theta_NAC.shape[1], rank or theta_NAC.shape[1])
    width = q_BTNH.shape[-1] * parts + v_BTKH.shape[-1]
    plan = _plan(T, width, q_BTNH.dtype, block_q, block_k, interpret)
    more = -T % max(plan.block_q, plan.block_k)
    arrays = (_heads_first(x, more) for x in (q_BTNH, k_BTKH, v_BTKH))
    q_BNTH, k_BKTH, v_BKTH = arrays
    segments = segments_BT
    if segments is not None:
        segments = jnp.pad(segments.astype(jnp.int32), ((0, 0), (0, more)))
    out_BNTH = _attend(plan, rank, q_BNTH, k_BKTH, v_BKTH, theta_NAC, segments)
    out_BTNH = out_BNTH.swapaxes(1, 2)[:, :T, :, :H]
    if segments_BT is not None:
        out_BTNH = jnp.where((segments_BT == 0)[..., None, None], 0, out_BTNH)
    return out_BTNH


def _old_card() -> str:
    """Why this machine's GPU cannot run it; "" where it can, or where there is none."""
    if jax.default_backend() != "gpu":
        return ""
    card = jax.local_devices()[0]
    capability = str(getattr(card, "compute_capability", ""))
    if capability.partition(".")[0].isdigit() and float(capability) >= 8:
        return ""
    return f"{card.device_kind}; NVIDIA cards from Ampere on it can"


def _plan(T: int, width: int, dtype, block_q: int, block_k: int, interpret) -> Plan:
    """Blocks as asked for, less where T is, and rows that registers have room for.

    width: of the gradients that a backward program sums, E and the values'.
    """
    for block in (block_q, block_k):
        if block < 16 or block != _power_of_two(block):
            raise ValueError(
                f"block_q and block_k must be powers of two, at least 16; got {block}"
            )
    most = max(16, _power_of_two(T))
    block_q, block_k = min(block_q, most), min(block_k, most)
    rows = min(64, block_q, block_k)
    # Beside the sums: logits, probabilities and the gradients of both.
    while rows > 16 and rows * 4 * (width + 4 * block_k) > REGISTERS:
        rows //= 2
    if interpret is None:
        interpret = jax.default_backend() == "cpu"
    return Plan(block_q, block_k, rows, 128 // jnp.dtype(dtype).itemsize, interpret)


def _power_of_two(size: int) -> int:
    """The least that is not less."""
    return 1 << (size - 1).bit_length()


def _attention(
    plan: Plan, rank, q_BNTH, k_BKTH, v_BKTH, theta_NAC, segments_BT
) -> jax.Array:
    """(B, N, T, H); T whole blocks. theta_NAC carries the scale; logits are in bits."""
    arrays = (q_BNTH, k_BKTH, v_BKTH, theta_NAC, segments_BT)
    return _attend_forward(plan, rank, *arrays)[0]


def _attend_forward(plan, rank, q_BNTH, k_BKTH, v_BKTH, theta_NAC, segments_BT):
    wide = _widened(plan, rank, segments_BT, q_BNTH, k_BKTH, theta_NAC)
    inputs = _inputs(wide, v_BKTH, segments_BT)
    out_BNTH, lse_BNT = forward(plan, inputs)
    arrays = (q_BNTH, k_BKTH, v_BKTH, theta_NAC, segments_BT)
    return out_BNTH, (*arrays, out_BNTH, lse_BNT)


def _attend_backward(plan: Plan, rank, kept, out_bar_BNTH):
    q_BNTH, k_BKTH, v_BKTH, theta_NAC, segments_BT, out_BNTH, lse_BNT = kept
    # Widened again rather than kept: they are 2 A times the size of a query.
    wide, pull = jax.vjp(
        partial(_widened, plan, rank, segments_BT), q_BNTH, k_BKTH, theta_NAC
    )
    product_BNTH = out_bar_BNTH.astype(jnp.float32) * out_BNTH.astype(jnp.float32)
    sums = Sums(out_bar_BNTH, lse_BNT, product_BNTH.sum(axis=-1))
    inputs = _inputs(wide, v_BKTH, segments_BT)
    bars = backward(plan, inputs, sums)
    band_bar_BNTU = None
    if bars.band_BNTU is not None:
        T, U = bars.band_BNTU.shape[2:]
        before_BT = jnp.arange(T)[None]
        if inputs.first_BT is not None:
            before_BT = before_BT - inputs.first_BT
        there_B1TU = before_BT[:, None, :, None] >= jnp.arange(U)
        band_bar_BNTU = jnp.where(there_B1TU, bars.band_BNTU, 0.0)
    k_bar_BNTE = _sum_shared(bars.k_BNTE, wide[1])
    q_bar, k_bar, theta_bar = pull((bars.q_BNTE, k_bar_BNTE, band_bar_BNTU))
    return q_bar, k_bar, _sum_shared(bars.v_BNTH, v_BKTH), theta_bar, None


_attend = jax.custom_vjp(_attention, nondiff_argnums=(0, 1))
_attend.defvjp(_attend_forward, _attend_backward)


def _widened(plan: Plan, rank, segments_BT, q_BNTH, k_BKTH, theta_NAC):
    """Wide queries and keys (B, N, T, E), and the band (B, N, T, U) or None."""
    left_NAP, right_NPC = None, theta_NAC
    if rank is not None and rank < theta_NAC.shape[1]:
        left_NAP, right_NPC = widen.factors(theta_NAC, rank)
        theta_NAC = jnp.einsum(
            "NAP,NPC->NAC", left_NAP, right_NPC, precision=widen.HIGHEST
        )
    A, C = theta_NAC.shape[1:]
    wide = (
        widen.widen_queries(q_BNTH, A, left_NAP, segments_BT),
        widen.widen_keys(k_BKTH, right_NPC, segments_BT),
    )
    q_BNTE, k_BNTE = (
        _pad_last(flat, -flat.shape[-1] % plan.chunk)
        for flat in (x.reshape(*x.shape[:3], -1) for x in wide)
    )
    if A + C == 2:
        return q_BNTE, k_BNTE, None
    return q_BNTE, k_BNTE, widen.causal_band(q_BNTH, k_BKTH, theta_NAC, segments_BT)


def _heads_first(x_BTNH, more: int) -> jax.Array:
    return jnp.pad(x_BTNH, ((0, 0), (0, more), (0, 0), (0, 0))).swapaxes(1, 2)


def _pad_last(x, more: int) -> jax.Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)])


def _inputs(wide, v_BKTH, segments_BT) -> Inputs:
    q_BNTE, k_BNTE, band_BNTU = wide
    ends = (None, None) if segments_BT is None else _documents(segments_BT)
    return Inputs(q_BNTE, k_BNTE, v_BKTH, band_BNTU, segments_BT, *ends)


def _documents(segments_BT) -> tuple[jax.Array, jax.Array]:
    """Where each token's document starts and ends, in one piece but for padding."""
    here_T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
    # Padding belongs to what is before it.
    token_BT = lax.cummax(jnp.where(segments_BT == 0, 0, here_T), axis=1)
    segments_BT = jnp.take_along_axis(segments_BT, token_BT, axis=1)
    cut_BT = segments_BT[:, :-1] != segments_BT[:, 1:]
    start_BT = jnp.pad(cut_BT, ((0, 0), (1, 0)), constant_values=True)
    end_BT = jnp.pad(cut_BT, ((0, 0), (0, 1)), constant_values=True)
    first_BT = lax.cummax(jnp.where(start_BT, here_T, 0), axis=1)
    last_BT = jnp.where(end_BT, here_T, here_T.size)
    return first_BT, lax.cummin(last_BT, axis=1, reverse=True)


def _sum_shared(bar_BNTE, like_BKTE) -> jax.Array:
    """The sum over the query heads that share a head."""
    B, K, T, E = like_BKTE.shape
    bar_BKRTE = bar_BNTE.reshape(B, K, -1, T, E)
    return bar_BKRTE.sum(axis=2, dtype=jnp.float32).astype(like_BKTE.dtype)
