"""The definition of correct: the steps of `weights.py` one by one, every score held.

Float32 throughout (float64 stays float64). Shapes: B batch, T query time, S = T key
time, N query heads, K kv heads, H head size, A query taps, C key taps, G mixing groups
of M heads.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jaxloop_kernels.multi_token_attention.weights import Mta

Order = Literal["convolve_first", "mix_first"]
"""Which of steps 6 and 7 comes first; the paper's code convolves first."""

NEVER = -1e30
"""Score of what is not visible; finite, so that a row of nothing else has no NaN."""

_einsum = partial(jnp.einsum, precision="highest")


def core(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mta: Mta,
    segments_BT: jax.Array | None = None,
    *,
    scale: float,
    order: Order,
) -> jax.Array:
    """Steps 1 to 8. Holds (B, N, T, S) several times. Returns (B, T, N, H), float32."""
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q_BTNH, k_BTKH, v_BTKH, mta = jax.tree.map(
        lambda x: x.astype(dtype), (q_BTNH, k_BTKH, v_BTKH, mta)
    )
    B, T, N, _ = q_BTNH.shape
    R = N // k_BTKH.shape[2]
    k_BSNH, v_BSNH = jnp.repeat(k_BTKH, R, axis=2), jnp.repeat(v_BTKH, R, axis=2)
    if segments_BT is None:
        segments_BT = jnp.ones((B, T), jnp.int32)
    visible_B1TS = visible(segments_BT)[:, None]

    score_BNTS = _einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH) * scale
    score_BNTS = jnp.where(visible_B1TS, score_BNTS, 0.0)
    score_BNTS = convolve(score_BNTS, mta.pre_NAC, segments_BT)
    score_BNTS = mix(score_BNTS, mta.pre_mix_GMM)
    prob_BNTS = jax.nn.softmax(jnp.where(visible_B1TS, score_BNTS, NEVER))
    prob_BNTS = jnp.where(visible_B1TS, prob_BNTS, 0.0)

    post_mix_GMM = mta.post_mix_GMM  # indexed [in, out]
    if post_mix_GMM is not None:
        post_mix_GMM = post_mix_GMM.swapaxes(1, 2)
    if order == "mix_first":
        prob_BNTS = mix(prob_BNTS, post_mix_GMM)
    prob_BNTS = convolve(prob_BNTS, mta.post_NAC, segments_BT)
    prob_BNTS = jnp.where(visible_B1TS, prob_BNTS, 0.0)
    if order == "convolve_first":
        prob_BNTS = mix(prob_BNTS, post_mix_GMM)
    return _einsum("BNTS,BSNH->BTNH", prob_BNTS, v_BSNH)


def finish(
    out_BTNH: jax.Array, mta: Mta, *, depth: float | jax.Array | None, norm_eps: float
) -> jax.Array:
    """Steps 9 and 10 (Zhang and Sennrich 2019 for the norm), in out's dtype.

    depth: the layer, from 0, for the factor of v1; None: no factor.
    """
    if mta.norm_H is not None:
        mean_square = jnp.mean(out_BTNH**2, axis=-1, keepdims=True)
        out_BTNH = out_BTNH * jax.lax.rsqrt(mean_square + norm_eps)
        out_BTNH = out_BTNH * mta.norm_H.astype(out_BTNH.dtype)
    if depth is not None:
        out_BTNH = out_BTNH * (0.2 + 0.6 * jnp.exp(-0.3 * depth))
    if mta.gate_HE is not None and mta.gate_bias_E is not None:
        gate_HE, bias_E = (
            x.astype(out_BTNH.dtype) for x in (mta.gate_HE, mta.gate_bias_E)
        )
        logit_BTNE = _einsum("...H,HE->...E", out_BTNH, gate_HE) + bias_E
        out_BTNH = out_BTNH * jax.nn.sigmoid(logit_BTNE)
    return out_BTNH


def visible(segments_BT: jax.Array) -> jax.Array:
    """(B, T, S): the same or an earlier index, the same document, no padding."""
    T = segments_BT.shape[1]
    causal_TS = jnp.arange(T)[:, None] >= jnp.arange(T)
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    return causal_TS & same_BTS & (segments_BT != 0)[:, :, None]


def convolve(x_BNTS, kernel_NAC: jax.Array | None, segments_BT) -> jax.Array:
    """Steps 3 and 6 on scores that are 0 where nothing is visible; None: as it was.

    A tap's row must be of the document of the row it is taken for. Its column then is
    too, or the score there is 0.
    """
    if kernel_NAC is None:
        return x_BNTS
    T, S = x_BNTS.shape[2:]
    _, A, C = kernel_NAC.shape
    x_BNTS = jnp.pad(x_BNTS, ((0, 0), (0, 0), (0, 0), (C // 2, C // 2)))
    x_BNCTS = jnp.stack([x_BNTS[..., c : c + S] for c in range(C)], axis=2)
    parts_BNATS = _einsum("NAC,BNCTS->BNATS", kernel_NAC, x_BNCTS)
    out_BNTS = parts_BNATS[:, :, -1]
    for back in range(1, min(A, T)):
        # Row t takes its part of row t - back.
        same_BT = segments_BT[:, back:] == segments_BT[:, :-back]
        part_BNTS = parts_BNATS[:, :, A - 1 - back, :-back]
        part_BNTS = jnp.where(same_BT[:, None, :, None], part_BNTS, 0.0)
        out_BNTS = out_BNTS.at[:, :, back:].add(part_BNTS)
    return out_BNTS


def mix(x_BNTS: jax.Array, weight_GMM: jax.Array | None) -> jax.Array:
    """New head m of a group is sum_n weight[m, n] head n; None: as it was."""
    if weight_GMM is None:
        return x_BNTS
    G, M, _ = weight_GMM.shape
    B, N, T, S = x_BNTS.shape
    x_BGMTS = x_BNTS.reshape(B, G, M, T, S)
    out_BGMTS = _einsum("GOI,BGITS->BGOTS", weight_GMM, x_BGMTS)
    return out_BGMTS.reshape(B, N, T, S)
