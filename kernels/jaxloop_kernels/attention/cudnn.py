"""cuDNN's flash attention on NVIDIA GPUs, through `jax.nn.dot_product_attention`."""

import jax

from jaxloop_kernels.attention.reference import visible_from, without_padding


def problem(q_BTNH, v_BTKV, sinks_N, soft_cap) -> str:
    """Why cuDNN does not serve this; "" if it does."""
    H, V = q_BTNH.shape[-1], v_BTKV.shape[-1]
    if q_BTNH.dtype not in ("bfloat16", "float16"):
        return f"dtype {q_BTNH.dtype} (bfloat16 and float16 are served)"
    if H != V:
        return f"values of width {V} beside queries of width {H}"
    if H % 8 or H > 128:
        return f"head size {H} (multiples of 8 up to 128 are served)"
    if sinks_N is not None:
        return "sinks"
    if soft_cap is not None:
        return "a soft cap"
    return ""


def core(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """See `jaxloop_kernels.attention.attention`. With segments a mask of (B, T, T) is
    held, which cuDNN has no other way to be told."""
    why = problem(q_BTNH, v_BTKH, sinks_N, soft_cap)
    if why:
        raise NotImplementedError(f"attention cudnn: {why}; xla takes it")
    mask = None
    if segments_BT is not None:
        at_T = jax.numpy.arange(q_BTNH.shape[1])
        mask = visible_from(at_T, at_T, segments_BT, segments_BT, None)[:, None]
    out_BTNH = jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        mask=mask,
        scale=scale,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return without_padding(out_BTNH, segments_BT)
