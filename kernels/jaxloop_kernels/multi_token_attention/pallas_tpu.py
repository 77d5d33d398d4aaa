"""Multi-Token Attention without head mixing as one fused attention; Pallas, TPU.

The convolutions move onto queries, keys and values, see `widen`: what is left is flash
attention on wider arrays whose logits near the diagonal need a correction. Nothing of
size T x T is ever written. Gradients of the convolutions are those of `widen`, plain
JAX; the kernels know only the widened arrays.

Where the post-softmax convolution is there, its correction needs the probabilities of
the C // 2 nearest keys. They come from the kernel's log-sum-exp.

Shapes: B batch, T time, N query heads, K kv heads, H head size, A query taps, C key
taps, P parts of a widened array, E = P * H, U diagonals of the band, W nearest keys.
"""

from math import e, log, log2

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.multi_token_attention import widen
from jaxloop_kernels.multi_token_attention.pallas_tpu_backward import (
    backward,
    memory,
)
from jaxloop_kernels.multi_token_attention.pallas_tpu_forward import forward
from jaxloop_kernels.multi_token_attention.pallas_tpu_tile import (
    LANES,
    Extras,
    Plan,
    band_rows,
)
from jaxloop_kernels.multi_token_attention.weights import Mta


def supports(q_BTNH, k_BTKH, v_BTKH, mta: Mta, order: str = "convolve_first") -> str:
    """Why this implementation cannot do it; "" where it can."""
    if mta.pre_mix_GMM is not None or mta.post_mix_GMM is not None:
        return "head mixing; pallas_tpu_mixing has it"
    if q_BTNH.dtype not in (jnp.bfloat16, jnp.float32):
        return f"{q_BTNH.dtype}; bfloat16 and float32 it can"
    for kernel_NAC in (mta.pre_NAC, mta.post_NAC):
        if kernel_NAC is not None and sum(kernel_NAC.shape[1:]) > LANES:
            return f"a convolution of {kernel_NAC.shape[1:]} taps"
    T, H, Hv = q_BTNH.shape[1], q_BTNH.shape[3], v_BTKH.shape[3]
    plan = plan_of(T, mta, None, None, None)
    wide, wide_v = H * _parts(mta.pre_NAC), Hv * _parts(mta.post_NAC)
    need = memory(plan, T, wide + -wide % LANES, wide_v, q_BTNH.dtype)
    if need > plan.memory:
        return (
            f"T = {T}, of which the gradient takes {need >> 20} of {plan.memory >> 20} "
            "MiB fast memory; xla takes it"
        )
    return ""


def _parts(kernel_NAC) -> int:
    """Of an array that is widened for the kernel."""
    return 1 if kernel_NAC is None else kernel_NAC.shape[1]


def core(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mta: Mta,
    segments_BT: jax.Array | None = None,
    *,
    scale: float,
    order: str = "convolve_first",
    block_q: int | None = None,
    block_k: int | None = None,
    rank: int | None = None,
    interpret=None,
) -> jax.Array:
    """Steps 1 to 8 (arXiv 2504.00927) without the mixes; (B, T, N, H) in v's dtype.

    rank: take the nearest convolution kernels of at most this rank, whose cost is
    `rank` plain query-key products rather than A; see `widen.factors`.

    block_k: queries and keys of a grid step; block_q: queries whose logits are held at
    once, of which a step has block_k / block_q. Multiples of 128.
    """
    del order  # there is no mix to come before or after
    T = q_BTNH.shape[1]
    plan = plan_of(T, mta, block_q, block_k, interpret)
    more = -T % plan.block
    q_BNTH, k_BKTH, v_BKTH = (
        jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))).swapaxes(1, 2)
        for x in (q_BTNH, k_BTKH, v_BTKH)
    )
    segments = segments_BT
    if segments is not None:
        segments = jnp.pad(segments.astype(jnp.int32), ((0, 0), (0, more)))
    queries = widened_logits(plan, q_BNTH, k_BKTH, mta.pre_NAC, scale, rank, segments)
    if mta.post_NAC is None:
        out_BNTH, _ = _attend(plan, *queries, v_BKTH, segments)
    else:
        out_BNTH = _convolved(plan, queries, v_BKTH, mta.post_NAC, rank, segments)
    out_BTNH = out_BNTH.swapaxes(1, 2)[:, :T]
    if segments_BT is not None:
        out_BTNH = jnp.where((segments_BT == 0)[..., None, None], 0, out_BTNH)
    return out_BTNH.astype(v_BTKH.dtype)


def plan_of(T: int, mta: Mta, block_q, block_k, interpret) -> Plan:
    """Blocks of about the size asked for that leave little of the last one empty."""
    memory = _fast_memory()
    lanes = -(-T // LANES)
    steps = -(-lanes * LANES // (block_k or (512 if memory > 2**25 else 256)))
    block = -(-lanes // steps) * LANES
    part = min(block_q or (256 if block % 256 == 0 else LANES), block)
    if block % part or part % LANES:
        raise ValueError(
            f"block_q must be a multiple of {LANES} that divides {block}, the keys "
            f"of a step at T = {T}; got {block_q}"
        )
    diagonals = 0
    if mta.pre_NAC is not None:
        _, A, C = mta.pre_NAC.shape
        diagonals = A - 1 + C // 2
    if interpret is None:
        interpret = jax.default_backend() == "cpu"
    return Plan(block, part, diagonals, memory, interpret)


def _fast_memory() -> int:
    """Bytes of it on this chip; where that cannot be told, what most chips have."""
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:
        return 64 * 2**20


def widened_logits(plan: Plan, q_BNTH, k_BKTH, theta_NAC, scale, rank, segments_BT):
    """Wide queries, wide keys and the band (or None) whose logits are in bits."""
    if theta_NAC is None:
        theta_NAC = jnp.ones((k_BKTH.shape[1], 1, 1))
    # Folded into the kernel the scale costs no rounding of its own.
    theta_NAC = theta_NAC.astype(jnp.float32) * (scale * log2(e))
    theta_NAC, left_NAP, right_NPC = _factorised(theta_NAC, rank)
    q_BNTPH = widen.widen_queries(q_BNTH, theta_NAC.shape[1], left_NAP, segments_BT)
    k_BNTPH = widen.widen_keys(k_BKTH, right_NPC, segments_BT)
    band_BNUT = None
    if plan.diagonals:
        band_BNTU = widen.causal_band(q_BNTH, k_BKTH, theta_NAC, segments_BT)
        more = band_rows(plan.diagonals) - plan.diagonals
        band_BNTU = jnp.pad(band_BNTU, ((0, 0), (0, 0), (0, 0), (0, more)))
        band_BNUT = band_BNTU.swapaxes(2, 3)
    return _whole_lanes(q_BNTPH), _whole_lanes(k_BNTPH), band_BNUT


def _factorised(kernel_NAC, rank: int | None):
    """The kernel, and its two factors: (None, itself) where the rank saves nothing."""
    if rank is None or rank >= kernel_NAC.shape[1]:
        return kernel_NAC, None, kernel_NAC
    left_NAP, right_NPC = widen.factors(kernel_NAC, rank)
    product_NAC = jnp.einsum(
        "NAP,NPC->NAC", left_NAP, right_NPC, precision=widen.HIGHEST
    )
    return product_NAC, left_NAP, right_NPC


def _whole_lanes(x_BNTPH) -> jax.Array:
    """(B, N, T, E): the parts side by side, E whole lanes."""
    x_BNTE = x_BNTPH.reshape(*x_BNTPH.shape[:3], -1)
    return jnp.pad(x_BNTE, ((0, 0), (0, 0), (0, 0), (0, -x_BNTE.shape[-1] % LANES)))


def _convolved(plan: Plan, queries, v_BKTH, phi_NAC, rank, segments_BT) -> jax.Array:
    """Attention with the convolution of the probabilities; (B, N, T, H), float32."""
    phi_NAC, left_NAP, right_NPC = _factorised(phi_NAC, rank)
    wide_BNTPH = widen.widen_values(v_BKTH, right_NPC, segments_BT)
    shape = wide_BNTPH.shape
    wide_BNTE = wide_BNTPH.reshape(*shape[:3], -1)
    out_BNTE, lse_BNT = _attend(plan, *queries, wide_BNTE, segments_BT)
    count = phi_NAC.shape[-1] // 2
    near_BNTW = _near_probabilities(queries, lse_BNT, segments_BT, count)
    out_BNTPH = out_BNTE.reshape(shape)
    return widen.join_rows(out_BNTPH, near_BNTW, v_BKTH, phi_NAC, left_NAP, segments_BT)


def _near_probabilities(queries, lse_BNT, segments_BT, count: int) -> jax.Array:
    """(B, N, T, count) float32: probability of the key w before each query."""
    q_BNTE, k_BNTE, band_BNUT = queries
    B, N, T, E = q_BNTE.shape
    K = k_BNTE.shape[1]
    q_BKRTE = q_BNTE.astype(jnp.float32).reshape(B, K, N // K, T, E)
    near = []
    for w in range(count):
        k_BK1TE = widen.shift(k_BNTE, -w, segments_BT, axis=2)[:, :, None]
        logit_BNT = (q_BKRTE * k_BK1TE.astype(jnp.float32)).sum(-1).reshape(B, N, T)
        if band_BNUT is not None and w < band_BNUT.shape[2]:
            logit_BNT -= band_BNUT[:, :, w]
        there_BT = widen.shift(jnp.ones((B, T), bool), -w, segments_BT, axis=1)
        logit_BNT = jnp.where(there_BT[:, None], logit_BNT - lse_BNT, -jnp.inf)
        near.append(jnp.exp2(logit_BNT))
    return jnp.stack(near, axis=-1) if near else jnp.zeros((B, N, T, 0))


def _attention(plan: Plan, q_BNTE, k_BNTE, band_BNUT, v_BNTH, segments_BT):
    """(out_BNTH in v's dtype, log2-sum-exp2 of the logits (B, N, T) float32)."""
    return attend_forward(plan, q_BNTE, k_BNTE, band_BNUT, v_BNTH, segments_BT)[0]


def attend_forward(plan: Plan, q_BNTE, k_BNTE, band_BNUT, v_BNTH, segments_BT=None):
    """(Output and log-sum-exp, what `attend_backward` takes)."""
    extras = _extras(band_BNUT, segments_BT)
    out_BNHT, lse_BN1T = forward(plan, q_BNTE, k_BNTE, v_BNTH.swapaxes(2, 3), extras)
    kept = (q_BNTE, k_BNTE, v_BNTH, extras, out_BNHT, lse_BN1T)
    return (out_BNHT.swapaxes(2, 3), lse_BN1T[:, :, 0]), kept


def attend_backward(plan: Plan, kept, bars):
    q_BNTE, k_BNTE, v_BNTH, extras, out_BNHT, lse_BN1T = kept
    out_bar_BNHT = bars[0].swapaxes(2, 3)
    # With a wide v these rows are all of the softmax: its mean gradient needs no sweep.
    product_BNHT = out_bar_BNHT.astype(jnp.float32) * out_BNHT.astype(jnp.float32)
    mean_BN1T = product_BNHT.sum(axis=2, keepdims=True) - bars[1][:, :, None] / log(2)
    found = backward(
        plan, q_BNTE, k_BNTE, v_BNTH, out_bar_BNHT, lse_BN1T, mean_BN1T, extras
    )
    q_bar_BNTE = (log(2) * found.q_BNTE).astype(q_BNTE.dtype)
    band_bar_BNUT = None
    if found.band_BNUT is not None:
        band_bar_BNUT = log(2) * found.band_BNUT
    return (
        q_bar_BNTE,
        _sum_shared(found.k_BNTE, k_BNTE),
        band_bar_BNUT,
        _sum_shared(found.v_BNHT.swapaxes(2, 3), v_BNTH),
        None,
    )


_attend = jax.custom_vjp(_attention, nondiff_argnums=(0,))
_attend.defvjp(attend_forward, attend_backward)


def _extras(band_BNUT, segments_BT) -> Extras:
    if segments_BT is None:
        return Extras(band_BNUT, None, None)
    segments_B11T = segments_BT[:, None, None]
    return Extras(band_BNUT, segments_B11T, segments_B11T)


def _sum_shared(bar_BNTE, like_BKTE) -> jax.Array:
    """The sum over the query heads that share a head."""
    B, K, T, E = like_BKTE.shape
    bar_BKRTE = bar_BNTE.reshape(B, K, -1, T, E)
    return bar_BKRTE.sum(axis=2, dtype=jnp.float32).astype(like_BKTE.dtype)
