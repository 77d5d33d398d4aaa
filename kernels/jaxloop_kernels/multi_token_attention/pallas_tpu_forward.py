"""The forward kernel of `pallas_tpu`: one pass over the keys with a running softmax.

The products of the next part are issued before the exponentials of this one, which
keeps the matrix unit busy. Shapes as in `pallas_tpu_tile`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.multi_token_attention.pallas_tpu_tile import (
    NEVER,
    Extras,
    Plan,
    block_spec,
    correct,
    dot,
    logits,
)


def forward(plan: Plan, q_BNTE, k_BNTE, v_BNHT, extras: Extras):
    """(out_BNHT in v's dtype, the log2 of the sum of 2**logits as (B, N, 1, T) f32).

    Keys and values may have fewer heads, each serving neighbouring query heads.
    """
    B, N, T = *q_BNTE.shape[:2], k_BNTE.shape[2]
    H = v_BNHT.shape[2]
    large = plan._replace(block=plan.forward_block)
    if _memory(large, q_BNTE, H) <= plan.memory:
        plan = large
    block = plan.block
    out = jax.ShapeDtypeStruct((B, N, H, T), v_BNHT.dtype)
    lse = jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32)

    def query_at(r, c):
        return plan.pair(T, r, c)[0]

    def key_at(r, c):
        return plan.pair(T, r, c)[1]

    call = pl.pallas_call(
        partial(_kernel, plan, T),
        grid=(B, N, *plan.grid(T)),
        in_specs=[
            block_spec(plan, q_BNTE, N, 2, query_at, plan.shared),
            block_spec(plan, k_BNTE, N, 2, key_at),
            block_spec(plan, v_BNHT, N, 3, key_at),
            extras.specs(plan, N, query_at, key_at),
        ],
        out_specs=[block_spec(plan, x, N, 3, query_at) for x in (out, lse)],
        out_shape=[out, lse],
        scratch_shapes=[pltpu.VMEM((rows, block), jnp.float32) for rows in (1, 1, H)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=min(plan.memory, _memory(plan, q_BNTE, H)),
        ),
        interpret=plan.interpret,
        name="mta_forward",
    )
    return call(q_BNTE, k_BNTE, v_BNHT, extras)


def _memory(plan: Plan, q_BNTE, H: int) -> int:
    """Bytes of fast memory: blocks twice, the accumulator, tiles of logits."""
    block, E, size = plan.block, q_BNTE.shape[-1], q_BNTE.dtype.itemsize
    blocks = 2 * block * (2 * E + 2 * H) * size + 4 * block * H
    return blocks + 24 * plan.part * block + 2**21


def _kernel(
    plan: Plan,
    T,
    q_ref,
    k_ref,
    v_ref,
    extras,
    out_ref,
    lse_ref,
    max_ref,
    sum_ref,
    acc_ref,
):
    row, column = plan.pair(T, pl.program_id(2), pl.program_id(3))

    @pl.when(column == 0)
    def _():
        max_ref[...] = jnp.full_like(max_ref, NEVER)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    def visit(near):
        parts = plan.parts(diagonal=near is None)
        next_XY = logits(plan, q_ref, k_ref, *parts[0])
        for at, (start, keys) in enumerate(parts):
            x_XY = correct(plan, next_XY, extras, start, near)
            if at + 1 < len(parts):
                next_XY = logits(plan, q_ref, k_ref, *parts[at + 1])
            own = slice(start, start + plan.part)
            max_1Y = jnp.maximum(max_ref[:, own], x_XY.max(axis=0, keepdims=True))
            prob_XY = jnp.exp2(x_XY - max_1Y)
            decay_1Y = jnp.exp2(max_ref[:, own] - max_1Y)
            sum_1Y = prob_XY.sum(axis=0, keepdims=True)
            sum_ref[:, own] = decay_1Y * sum_ref[:, own] + sum_1Y
            value_HY = dot(v_ref[:, :keys], prob_XY.astype(v_ref.dtype))
            acc_ref[:, own] = decay_1Y * acc_ref[:, own] + value_HY
            max_ref[:, own] = max_1Y

    @pl.when(column < row)
    def _():
        visit(near=column == row - 1)

    @pl.when(column == row)
    def _():
        visit(near=None)
        out_ref[...] = (acc_ref[...] / sum_ref[...]).astype(out_ref.dtype)
        lse_ref[...] = max_ref[...] + jnp.log2(sum_ref[...])
