"""Multi-Token Attention (arXiv 2504.00927): attention that looks at several queries and
keys at once, and at several heads.

The scores are convolved over queries and keys, and mixed over heads, before and after
the softmax; `weights.py` has the steps. Written plainly this holds the scores of all
heads, (B, N, T, S), many times over; `xla` holds a block of queries' at a time, the
Pallas kernels a tile's.

`decode.py` has the form for a cache of keys and values.
"""

import importlib
from typing import Literal

import jax
import jax.numpy as jnp

from jaxloop_kernels.multi_token_attention.reference import Order, finish
from jaxloop_kernels.multi_token_attention.weights import (
    Mta,
    check,
    identity,
    identity_kernel,
    identity_mix,
)

__all__ = [
    "Implementation",
    "Mta",
    "Order",
    "identity",
    "identity_kernel",
    "identity_mix",
    "multi_token_attention",
]

Implementation = Literal["auto", "reference", "xla", "pallas_tpu", "pallas_gpu"]


def multi_token_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mta: Mta,
    segments_BT: jax.Array | None = None,
    *,
    scale: float | None = None,
    depth: float | jax.Array | None = None,
    norm_eps: float = 1e-5,
    order: Order = "convolve_first",
    implementation: Implementation = "auto",
    **blocks: int,
) -> jax.Array:
    """Causal self-attention with the parts that `mta` has; (B, T, N, H) in v's dtype.

    q_BTNH, k_BTKH, v_BTKH: after RoPE, bfloat16 or float32 (float64: reference only);
    the K kv heads serve N / K neighbouring query heads each. v's head size may differ,
    and is then the output's. Scores, convolutions and mixes are float32, and products
    with q, k and v of the inputs' dtype accumulate in it.

    segments_BT: int32, 0 is padding, whose output is 0 and which has no gradient;
    other numbers name documents, each in one piece but for padding inside of it, which
    do not see one another. None: a row is one document.

    scale: of the scores; None is H**-0.5. depth: the index of the layer, from 0, for
    the factor of the paper's v1; None: no factor. order: which of the two steps after
    the softmax comes first.

    blocks: block sizes of the named implementation, such as `block_q=128`; see there.

    Differentiable in q, k, v and `mta`. Raises ValueError for shapes that make no
    sense, NotImplementedError for what the named implementation cannot do. "auto" is
    the Pallas kernel of the platform where it serves, else xla; for float64 the
    reference.
    """
    _check(q_BTNH, k_BTKH, v_BTKH, mta, segments_BT, order)
    name = _implementation(implementation, q_BTNH, k_BTKH, v_BTKH, mta, order)
    core = _module(name, mta).core
    inner = mta._replace(norm_H=None, gate_HE=None, gate_bias_E=None)
    scale = q_BTNH.shape[-1] ** -0.5 if scale is None else scale
    with jax.named_scope("multi_token_attention"):
        out_BTNH = core(
            *(q_BTNH, k_BTKH, v_BTKH, inner, segments_BT),
            **{"scale": scale, "order": order, **blocks},
        )
        out_BTNH = out_BTNH.astype(jnp.promote_types(out_BTNH.dtype, jnp.float32))
        out_BTNH = finish(out_BTNH, mta, depth=depth, norm_eps=norm_eps)
    return out_BTNH.astype(v_BTKH.dtype)


def _module(name: str, mta: Mta):
    """The module whose `core` does steps 1 to 8; Pallas is imported only when asked."""
    mixes = mta.pre_mix_GMM is not None or mta.post_mix_GMM is not None
    if name == "pallas_tpu" and mixes:
        name = "pallas_tpu_mixing"
    return importlib.import_module(f"jaxloop_kernels.multi_token_attention.{name}")


def _implementation(name: Implementation, q_BTNH, k_BTKH, v_BTKH, mta, order) -> str:
    arrays = (q_BTNH, k_BTKH, v_BTKH, mta, order)
    if name == "auto":
        if q_BTNH.dtype == jnp.float64:
            return "reference"
        kernel = {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}.get(jax.default_backend())
        return "xla" if kernel is None or _reason(kernel, *arrays) else kernel
    if name not in ("reference", "xla", "pallas_tpu", "pallas_gpu"):
        raise NotImplementedError(
            f"multi_token_attention implementation={name!r}; there are auto, "
            "reference, xla, pallas_tpu, pallas_gpu"
        )
    if name != "reference" and (reason := _reason(name, *arrays)):
        raise NotImplementedError(f"multi_token_attention {name}: {reason}")
    return name


def _reason(name: str, q_BTNH, k_BTKH, v_BTKH, mta, order) -> str:
    """Why the implementation cannot do this; "" where it can."""
    if q_BTNH.dtype == jnp.float64:
        return "float64; the reference takes it"
    if name == "xla":
        return ""
    try:
        module = _module(name, mta)
    except ImportError:
        return "this jax has not its backend of Pallas; xla needs none"
    return module.supports(q_BTNH, k_BTKH, v_BTKH, mta, order)


def _check(q_BTNH, k_BTKH, v_BTKH, mta: Mta, segments_BT, order):
    shapes = f"q {q_BTNH.shape}, k {k_BTKH.shape}, v {v_BTKH.shape}"
    if not q_BTNH.ndim == k_BTKH.ndim == v_BTKH.ndim == 4:
        raise ValueError(
            f"attention wants q (B, T, N, H), k and v (B, T, K, H): {shapes}"
        )
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    if k_BTKH.shape != (B, T, K, H) or v_BTKH.shape[:3] != (B, T, K):
        raise ValueError(f"q, k and v differ in batch, time or head size: {shapes}")
    if 0 in q_BTNH.shape or 0 in v_BTKH.shape or N % K:
        raise ValueError(f"an empty axis, or kv heads that do not divide N: {shapes}")
    check(mta, N, v_BTKH.shape[-1])
    if segments_BT is not None:
        if segments_BT.shape != (B, T):
            raise ValueError(f"segments must be {(B, T)}, got {segments_BT.shape}")
        if not jnp.issubdtype(segments_BT.dtype, jnp.integer):
            raise ValueError(f"segments must be integers, got {segments_BT.dtype}")
    if order not in ("convolve_first", "mix_first"):
        raise ValueError(f"order is convolve_first or mix_first, got {order!r}")
