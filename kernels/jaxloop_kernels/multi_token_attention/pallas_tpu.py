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

from jaxloop_kernels.multi_token_attention import pairing, widen
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
    plan = plan._replace(part=plan.backward_part)
    wide_v = Hv * _parts(mta.post_NAC)
    need = memory(plan, T, _width(plan, H, mta.pre_NAC), wide_v, q_BTNH.dtype)
    if need > plan.memory:
        return (
            f"T = {T}, of which the gradient takes {need >> 20} of {plan.memory >> 20} "
            "MiB fast memory; xla takes it"
        )
    return ""


def _parts(kernel_NAC) -> int:
    """Of an array that is widened for the kernel."""
    return 1 if kernel_NAC is None else kernel_NAC.shape[1]


def _width(plan: Plan, H: int, theta_NAC) -> int:
    """Of a widened key."""
    if plan.shared > 1:
        return pairing.width(theta_NAC.shape[1], H, plan.shared)
    return widen.lanes(H * _parts(theta_NAC))


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
    shared: int | None = None,
    interpret=None,
) -> jax.Array:
    """Steps 1 to 8 (arXiv 2504.00927) without the mixes; (B, T, N, H) in v's dtype.

    rank: take the nearest convolution kernels of at most this rank, whose cost is
    `rank` plain query-key products rather than A; see `widen.factors`.

    shared: how many neighbouring queries share products, 1, 2 or 4, see `pairing`;
    None: as many as are known to be faster.

    block_k: queries and keys of a grid step; block_q: queries whose logits are held at
    once, of which a step has block_k / block_q. Multiples of 128.
    """
    del order  # there is no mix to come before or after
    T = q_BTNH.shape[1]
    plan = plan_of(T, mta, block_q, block_k, interpret, rank, shared)
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


def plan_of(
    T: int, mta: Mta, block_q, block_k, interpret, rank=None, shared=None
) -> Plan:
    """Blocks of about the size asked for that leave little of the last one empty."""
    memory, generation = _device()
    lanes = -(-T // LANES)
    steps = -(-lanes * LANES // (block_k or (512 if memory > 2**25 else 256)))
    block = -(-lanes // steps) * LANES
    taps, diagonals = 1, 0
    if mta.pre_NAC is not None:
        _, taps, C = mta.pre_NAC.shape
        diagonals = taps - 1 + C // 2
    part = min(block_q or block, block)
    if shared is None:
        shared = _sharing(taps, rank, part) if generation < 6 else 1
    usual = LANES * max(shared, 2)
    if block_q is None:
        part = usual if block % usual == 0 else LANES
    if block % part or part % LANES:
        raise ValueError(
            f"block_q must be a multiple of {LANES} that divides {block}, the keys "
            f"of a step at T = {T}; got {block_q}"
        )
    known = shared in (1, *pairing.SHARED) and part % (shared * LANES) == 0
    if not known or (shared > 1 and rank is not None and rank < taps):
        raise ValueError(
            f"1, 2 or 4 queries share products, {shared} in parts of "
            f"{shared * LANES} only, and without a rank; got parts of {part}, "
            f"rank {rank}"
        )
    own = block_q is not None or block_k is not None
    forward_block = block if own or steps % 2 or memory <= 2**25 else 2 * block
    backward_part = block if generation > 6 and not own and shared == 1 else part
    if interpret is None:
        interpret = jax.default_backend() == "cpu"
    return Plan(
        block=block,
        part=part,
        forward_block=forward_block,
        backward_part=backward_part,
        diagonals=diagonals,
        shared=shared,
        memory=memory,
        interpret=interpret,
    )


def _sharing(taps: int, rank: int | None, part: int) -> int:
    """The queries that share products, of whole lanes each, where that takes fewest."""
    if rank is not None and rank < taps:
        return 1
    can = [R for R in (1, *pairing.SHARED) if part % (R * LANES) == 0]
    return min(can, key=lambda R: pairing.products(taps, R))


def _device() -> tuple[int, int]:
    """Bytes of fast memory, and the chip's generation; what is usual if unknown.

    From the sixth on the matrix unit is 256 wide and deep: shared products, which
    are 128 deep going backward, would fill half of it.
    """
    try:
        info = pltpu.get_tpu_info()
    except ValueError:
        return 64 * 2**20, 6
    return info.vmem_capacity_bytes, info.generation


def widened_logits(plan: Plan, q_BNTH, k_BKTH, theta_NAC, scale, rank, segments_BT):
    """Wide queries, wide keys and the band_BNTU, or None, whose logits are in bits."""
    if theta_NAC is None:
        theta_NAC = jnp.ones((k_BKTH.shape[1], 1, 1))
    # Folded into the kernel the scale costs no rounding of its own.
    theta_NAC = theta_NAC.astype(jnp.float32) * (scale * log2(e))
    taps_BTA = None
    if plan.shared > 1:
        shape = theta_NAC.shape[1], plan.shared
        if segments_BT is not None:
            taps_BTA = pairing.taps_there(segments_BT, *shape)
        q = pairing.pair_queries(q_BNTH, *shape, segments_BT)
        k = pairing.pair_keys(k_BKTH, theta_NAC, plan.shared, segments_BT)
    else:
        theta_NAC, left_NAP, right_NPC = _factorised(theta_NAC, rank)
        q = widen.widen_queries(q_BNTH, theta_NAC.shape[1], left_NAP, segments_BT)
        k = widen.widen_keys(k_BKTH, right_NPC, segments_BT)
        q, k = (x.reshape(*x.shape[:3], 1, -1) for x in (q, k))
    band_BNTU = None
    if plan.diagonals:
        arrays = q_BNTH, k_BKTH, theta_NAC, segments_BT, taps_BTA
        band_BNTU = widen.causal_band(*arrays)
        more = band_rows(plan.diagonals) - plan.diagonals
        band_BNTU = jnp.pad(band_BNTU, ((0, 0), (0, 0), (0, 0), (0, more)))
    return widen.whole_lanes(q), widen.whole_lanes(k), band_BNTU


def _factorised(kernel_NAC, rank: int | None):
    """The kernel, and its two factors: (None, itself) where the rank saves nothing."""
    if rank is None or rank >= kernel_NAC.shape[1]:
        return kernel_NAC, None, kernel_NAC
    left_NAP, right_NPC = widen.factors(kernel_NAC, rank)
    product_NAC = jnp.einsum(
        "NAP,NPC->NAC", left_NAP, right_NPC, precision=widen.HIGHEST
    )
    return product_NAC, left_NAP, right_NPC


def _convolved(plan: Plan, queries, v_BKTH, phi_NAC, rank, segments_BT) -> jax.Array:
    """Attention with the convolution of the probabilities; (B, N, T, H), float32."""
    phi_NAC, left_NAP, right_NPC = _factorised(phi_NAC, rank)
    wide_BNTPH = widen.widen_values(v_BKTH, right_NPC, segments_BT)
    shape = wide_BNTPH.shape
    wide_BNTE = wide_BNTPH.reshape(*shape[:3], -1)
    out_BNTE, lse_BNT = _attend(plan, *queries, wide_BNTE, segments_BT)
    count = phi_NAC.shape[-1] // 2
    near_BNTW = _near_probabilities(plan, queries, lse_BNT, segments_BT, count)
    out_BNTPH = out_BNTE.reshape(shape)
    return widen.join_rows(out_BNTPH, near_BNTW, v_BKTH, phi_NAC, left_NAP, segments_BT)


def _near_probabilities(plan, queries, lse_BNT, segments_BT, count: int) -> jax.Array:
    """(B, N, T, count) float32: probability of the key w before each query."""
    q_BNTE, k_BNTE, band_BNTU = queries
    B, T = lse_BNT.shape[0], lse_BNT.shape[2]
    near = []
    for w in range(count):
        shifted_BNTE = widen.shift(k_BNTE, -w, segments_BT, axis=2)
        own = pairing.near_logits if plan.shared > 1 else _own_logits
        logit_BNT = own(q_BNTE, shifted_BNTE)
        if band_BNTU is not None and w < band_BNTU.shape[3]:
            logit_BNT -= band_BNTU[..., w]
        there_BT = widen.shift(jnp.ones((B, T), bool), -w, segments_BT, axis=1)
        logit_BNT = jnp.where(there_BT[:, None], logit_BNT - lse_BNT, -jnp.inf)
        near.append(jnp.exp2(logit_BNT))
    return jnp.stack(near, axis=-1) if near else jnp.zeros((*lse_BNT.shape, 0))


def _own_logits(q_BNTE, k_BKTE) -> jax.Array:
    """(B, N, T) float32: of each query and the key in its row."""
    B, N, T, E = q_BNTE.shape
    K = k_BKTE.shape[1]
    q_BKRTE = q_BNTE.astype(jnp.float32).reshape(B, K, N // K, T, E)
    product_BKRTE = q_BKRTE * k_BKTE[:, :, None].astype(jnp.float32)
    return product_BKRTE.sum(axis=-1).reshape(B, N, T)


def _attention(plan: Plan, q_BNTE, k_BNTE, band_BNTU, v_BNTH, segments_BT):
    """(out_BNTH in v's dtype, log2-sum-exp2 of the logits (B, N, T) float32)."""
    return attend_forward(plan, q_BNTE, k_BNTE, band_BNTU, v_BNTH, segments_BT)[0]


def attend_forward(plan: Plan, q_BNTE, k_BNTE, band_BNTU, v_BNTH, segments_BT=None):
    """(Output and log-sum-exp, what `attend_backward` takes)."""
    extras = _extras(plan, band_BNTU, segments_BT)
    out_BNHT, lse_BN1T = forward(plan, q_BNTE, k_BNTE, v_BNTH.swapaxes(2, 3), extras)
    kept = (q_BNTE, k_BNTE, v_BNTH, extras, out_BNHT, lse_BN1T)
    return (_in_rows(plan, out_BNHT), _in_rows(plan, lse_BN1T)[..., 0]), kept


def _in_lanes(plan: Plan, x_BNTF) -> jax.Array:
    """(B, N, F, T): what belongs to queries, as the kernels want it."""
    if plan.shared == 1:
        return x_BNTF.swapaxes(2, 3)
    return pairing.in_lanes(x_BNTF, plan.part, plan.shared)


def _in_rows(plan: Plan, x_BNFT) -> jax.Array:
    if plan.shared == 1:
        return x_BNFT.swapaxes(2, 3)
    return pairing.in_rows(x_BNFT, plan.part, plan.shared)


def attend_backward(plan: Plan, kept, bars):
    q_BNTE, k_BNTE, v_BNTH, extras, out_BNHT, lse_BN1T = kept
    out_bar_BNHT = _in_lanes(plan, bars[0])
    lse_bar_BN1T = _in_lanes(plan, bars[1][..., None])
    # With a wide v these rows are all of the softmax: its mean gradient needs no sweep.
    product_BNHT = out_bar_BNHT.astype(jnp.float32) * out_BNHT.astype(jnp.float32)
    mean_BN1T = product_BNHT.sum(axis=2, keepdims=True) - lse_bar_BN1T / log(2)
    found = backward(
        plan._replace(part=plan.backward_part),
        q_BNTE,
        k_BNTE,
        v_BNTH,
        out_bar_BNHT,
        lse_BN1T,
        mean_BN1T,
        extras,
    )
    q_bar_BNTE = (log(2) * found.q_BNTE).astype(q_BNTE.dtype)
    band_bar_BNTU = None
    if found.band_BNUT is not None:
        band_bar_BNTU = log(2) * _in_rows(plan, found.band_BNUT)
    return (
        q_bar_BNTE,
        _sum_shared(found.k_BNTE, k_BNTE),
        band_bar_BNTU,
        _sum_shared(found.v_BNHT.swapaxes(2, 3), v_BNTH),
        None,
    )


_attend = jax.custom_vjp(_attention, nondiff_argnums=(0,))
_attend.defvjp(attend_forward, attend_backward)


def _extras(plan: Plan, band_BNTU, segments_BT) -> Extras:
    band_BNUT = None if band_BNTU is None else _in_lanes(plan, band_BNTU)
    if segments_BT is None:
        return Extras(band_BNUT, None, None)
    query_B11T = _in_lanes(plan, segments_BT[:, None, :, None])
    return Extras(band_BNUT, query_B11T, segments_BT[:, None, None])


def _sum_shared(bar_BNTE, like_BKTE) -> jax.Array:
    """The sum over the query heads that share a head."""
    B, K, T, E = like_BKTE.shape
    bar_BKRTE = bar_BNTE.reshape(B, K, -1, T, E)
    return bar_BKRTE.sum(axis=2, dtype=jnp.float32).astype(like_BKTE.dtype)
