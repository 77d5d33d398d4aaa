"""Multi-Token Attention with head mixes on TPU: fused, nothing of size T x T in memory.

All heads of a mixing group are one program's; see `pallas_tpu_mixing_tile` for what
happens in a tile, `pallas_tpu_mixing_layout` for the blocks, which overlap where the
probabilities are convolved. The convolution of the scores is plain attention with wider
queries and keys (`widen`, `pairing`), made outside the kernels. So are kron(W, I) of a
mix and the convolution's matrices of taps: gradients of the parameters themselves are
XLA's. The forward and the backward kernels have blocks of their own.

Shapes: B batch, T time, N query heads, K kv heads, H head size, G mixing groups of M
heads, A query taps, C key taps, I rows and J keys after the cut.
"""

from functools import partial

import jax

from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_backward import backward
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_forward import forward
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_inputs import (
    Arrays,
    convolved,
    cut_inputs,
    cut_segments,
)
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_layout import join_rows
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_plan import (
    Run,
    plan,
    supports,
)
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_tile import (
    stats_by_tile,
    stats_by_time,
)
from jaxloop_kernels.multi_token_attention.reference import Order
from jaxloop_kernels.multi_token_attention.weights import Mta

__all__ = ["core", "supports"]


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
    inputs = (q_BTNH, k_BTKH, v_BTKH, mta)
    run = plan(*inputs, scale=scale, order=order, interpret=interpret, **sizes)
    arrays = convolved(run.forward, *inputs, segments_BT, scale=scale)
    return _attend(run, arrays, segments_BT).swapaxes(1, 2)


def _attention(run: Run, arrays: Arrays, segments_BT) -> jax.Array:
    """(B, N, T, H)."""
    return _attend_forward(run, arrays, segments_BT)[0]


def _attend_forward(run: Run, arrays: Arrays, segments_BT):
    tile = run.forward
    inputs = cut_inputs(tile, arrays)
    inputs = inputs._replace(**cut_segments(tile, segments_BT))._replace(later=None)
    out_BNIH, lse = forward(tile, inputs, vmem=run.vmem, interpret=run.interpret)
    lse_BNT = stats_by_time(tile, lse)
    return join_rows(tile.cut, out_BNIH), (arrays, segments_BT, lse_BNT)


def _attend_backward(run: Run, saved, out_bar_BNTH):
    (arrays, segments_BT, lse_BNT), tile = saved, run.backward
    inputs, arrays_bar = jax.vjp(partial(cut_inputs, tile), arrays)
    B, N, _, H = out_bar_BNTH.shape
    rows = jax.ShapeDtypeStruct((B, N, tile.cut.rows, H), out_bar_BNTH.dtype)
    own_rows = jax.linear_transpose(partial(join_rows, tile.cut), rows)
    (out_bar_BNIH,) = own_rows(out_bar_BNTH)
    grads = backward(
        tile,
        inputs._replace(**cut_segments(tile, segments_BT)),
        stats_by_tile(tile, lse_BNT),
        out_bar_BNIH,
        vmem=run.vmem,
        interpret=run.interpret,
    )
    return *arrays_bar(grads), None


_attend = jax.custom_vjp(_attention, nondiff_argnums=(0,))
_attend.defvjp(_attend_forward, _attend_backward)
