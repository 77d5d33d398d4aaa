"""Causal attention of whole sequences, for training and prefill.

What jax and cuDNN have is used where they serve; `xla` runs anywhere. Decoding, one
token at a time with a cache, is another op.
"""

import importlib
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxloop_kernels.attention import cudnn

__all__ = ["Implementation", "attention"]

Implementation = Literal["auto", "reference", "xla", "pallas_tpu", "cudnn"]


def attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKV: jax.Array,
    segments_BT: jax.Array | None = None,
    *,
    sinks_N: jax.Array | None = None,
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    implementation: Implementation = "auto",
    batch_axes: Sequence[str] = (),
    head_axes: Sequence[str] = (),
    **blocks: int,
) -> jax.Array:
    """softmax(q k^T scale) v over what each position may see; (B, T, N, V), v's dtype.

    q_BTNH, k_BTKH, v_BTKV: bfloat16 or float32 (float64: reference only); the K kv
    heads serve N / K neighbouring query heads each. Scores and softmax are float32.

    segments_BT: int32, 0 is padding, whose output is 0 and which has no gradient;
    positions of another number see those of the same alone. None: a row is one
    document. window: how many positions one sees at most, itself included. soft_cap:
    scores become soft_cap * tanh(score / soft_cap). sinks_N: a score a head that takes
    part in the softmax and has no value. scale: None is H**-0.5.

    batch_axes, head_axes: axes of the mesh that is set over which batch and heads are
    cut. XLA cannot cut a kernel by itself: without them `pallas_tpu` and `cudnn` on a
    mesh gather their arguments. A number of kv heads that they do not divide is a
    ValueError.

    blocks: block sizes of the named implementation, such as `block_q=256`; see there.

    Differentiable in q, k, v and sinks. "auto": splash attention on TPU, cuDNN on GPU
    where it serves, else xla; float64 the reference. Raises ValueError for shapes that
    make no sense, NotImplementedError for what the named implementation cannot do.
    """
    _check(q_BTNH, k_BTKH, v_BTKV, segments_BT, sinks_N, window, soft_cap)
    scale = q_BTNH.shape[-1] ** -0.5 if scale is None else scale
    name = implementation
    if name == "auto":
        name = _best(q_BTNH, v_BTKV, segments_BT, sinks_N, soft_cap)
    if name not in ("reference", "xla", "pallas_tpu", "cudnn"):
        raise NotImplementedError(
            f"attention {implementation=}; there are auto, reference, xla, pallas_tpu "
            "and cudnn"
        )
    if name != "reference" and q_BTNH.dtype == jnp.float64:
        raise NotImplementedError(f"attention {name}: float64; the reference takes it")
    core = importlib.import_module(f"{__name__}.{name}").core
    core = partial(core, scale=scale, window=window, soft_cap=soft_cap, **blocks)
    if name in ("pallas_tpu", "cudnn"):
        core = _on_mesh(core, k_BTKH, batch_axes, head_axes)
    return core(q_BTNH, k_BTKH, v_BTKV, segments_BT, sinks_N)


def _best(q_BTNH, v_BTKV, segments_BT, sinks_N, soft_cap) -> Implementation:
    """The fastest on the platform that this process runs on."""
    if q_BTNH.dtype == jnp.float64:
        return "reference"
    platform = jax.default_backend()
    if platform == "tpu":
        return "pallas_tpu"
    # Packed rows would take cuDNN a mask of (T, T), which is no smaller than scores.
    why_not = cudnn.problem(q_BTNH, v_BTKV, sinks_N, soft_cap)
    served = segments_BT is None and not why_not
    return "cudnn" if platform == "gpu" and served else "xla"


def _on_mesh(core, k_BTKH, batch_axes, head_axes):
    """Each device its own rows and heads, where the mesh that is set has these axes."""
    mesh = jax.sharding.get_abstract_mesh()
    batch = tuple(axis for axis in batch_axes if mesh.shape.get(axis, 1) > 1)
    heads = tuple(axis for axis in head_axes if mesh.shape.get(axis, 1) > 1)
    if not batch and not heads:
        return core
    for name, length, axes in (
        ("rows of the batch", k_BTKH.shape[0], batch),
        ("kv heads", k_BTKH.shape[2], heads),
    ):
        parts = 1
        for axis in axes:
            parts *= mesh.shape[axis]
        if length % parts:
            raise ValueError(f"attention: {length} {name} over {axes}: {parts} parts")
    head, row, one = P(batch, None, heads), P(batch), P(heads)

    def run(q, k, v, segments, sinks):
        specs = (head, head, head, row, one)
        return jax.shard_map(core, in_specs=specs, out_specs=head, check_vma=False)(
            q, k, v, segments, sinks
        )

    return run


def _check(q_BTNH, k_BTKH, v_BTKV, segments_BT, sinks_N, window, soft_cap):
    shapes = f"q {q_BTNH.shape}, k {k_BTKH.shape}, v {v_BTKV.shape}"
    if {q_BTNH.ndim, k_BTKH.ndim, v_BTKV.ndim} != {4}:
        raise ValueError(f"attention wants (B, T, heads, size); got {shapes}")
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    if k_BTKH.shape != (B, T, K, H) or v_BTKV.shape[:3] != (B, T, K):
        raise ValueError(f"attention wants k (B, T, K, H), v (B, T, K, V): {shapes}")
    if 0 in (*q_BTNH.shape, *v_BTKV.shape) or N % K:
        raise ValueError(f"attention: kv heads must divide query heads; got {shapes}")
    if segments_BT is not None and segments_BT.shape != (B, T):
        raise ValueError(f"attention wants segments {(B, T)}; got {segments_BT.shape}")
    if sinks_N is not None and sinks_N.shape != (N,):
        raise ValueError(f"attention wants sinks {(N,)}; got {sinks_N.shape}")
    if window is not None and window < 1:
        raise ValueError(f"attention: window must be at least 1 or None, got {window}")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"attention: soft_cap must be positive, got {soft_cap}")
