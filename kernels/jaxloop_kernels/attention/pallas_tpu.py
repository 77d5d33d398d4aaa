"""jax's splash attention, on TPU: scores stay on the chip, forward and backward.

Splash takes sequences in multiples of 128 and one row of a batch, has no scale and
counts a window without the query itself; this pads, maps and scales.

Shapes: B batch, T time, N query heads, K kv heads, H head size of queries and keys,
V of values.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)

from jaxloop_kernels.attention.reference import without_padding

LANES = 128
BLOCK = 512


def core(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKV: jax.Array,
    segments_BT: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """See `jaxloop_kernels.attention.attention`.

    block_q, block_k: queries and keys of a tile, multiples of 128; None: up to `BLOCK`,
    as little padding as there is. interpret: runs as plain JAX; None: on a CPU.
    """
    T = q_BTNH.shape[1]
    block = _block(T)
    block_q, block_k = block_q or block, block_k or block
    longest, shortest = max(block_q, block_k), min(block_q, block_k)
    if block_q % LANES or block_k % LANES or longest % shortest:
        raise ValueError(
            f"attention pallas_tpu: {block_q=}, {block_k=}; both are multiples of "
            f"{LANES}, and one divides the other"
        )
    padded = -(-T // longest) * longest
    kernel = _kernel(
        q_BTNH.shape[2], padded, window, soft_cap, (block_q, block_k), interpret
    )
    q_BNTH, k_BKTH, v_BKTV = (
        jnp.pad(x.transpose(0, 2, 1, 3), [(0, 0)] * 2 + [(0, padded - T), (0, 0)])
        for x in (q_BTNH * scale, k_BTKH, v_BTKV)
    )
    ids = None
    if segments_BT is not None:
        ids_BT = jnp.pad(segments_BT, [(0, 0), (0, padded - T)])
        ids = splash.SegmentIds(ids_BT, ids_BT)
    rows = jax.vmap(kernel, (0, 0, 0, 0 if ids else None, None))
    out_BNTV = jnp.asarray(rows(q_BNTH, k_BKTH, v_BKTV, ids, sinks_N))
    out_BTNV = out_BNTV[:, :, :T].transpose(0, 2, 1, 3)
    return without_padding(out_BTNV, segments_BT)


def _block(time: int) -> int:
    """The largest block of those that pad least."""
    blocks = range(BLOCK, 0, -LANES)
    return min(blocks, key=lambda block: (-(-time // block) * block, -block))


def _kernel(heads, time, window, soft_cap, blocks, interpret):
    mask = masks.CausalMask((time, time))
    if window is not None and window < time:
        # Splash's window is of what lies left of the query.
        mask = masks.LocalMask((time, time), (window - 1, 0), 0)
    block_q, block_k = blocks
    sizes = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_kv_compute=block_k,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        block_kv_dkv_compute=block_k,
        block_q_dq=block_q,
        block_kv_dq=block_k,
    )
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        attn_logits_soft_cap=soft_cap,
        interpret=jax.default_backend() == "cpu" if interpret is None else interpret,
    )
