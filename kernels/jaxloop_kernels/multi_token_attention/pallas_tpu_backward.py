"""The backward kernel of `pallas_tpu`: one pass that makes all gradients.

It goes along the queries of a block of keys. The gradients of these keys and values are
summed in fast memory; that of the queries of a whole head stays there until the head is
done, which bounds T: four bytes a token and feature of the widened query.
Shapes as in `pallas_tpu_tile`.
"""

from functools import partial
from math import log
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.multi_token_attention.pallas_tpu_tile import (
    LANES,
    NT,
    TN,
    Extras,
    Plan,
    band_bar,
    block_spec,
    correct,
    dot,
    logits,
    logits_bar,
)


class Bars(NamedTuple):
    """Gradients of each query head on its own; or their specs, or the kernel's refs."""

    q_BNTE: Any
    """Float32."""
    k_BNTE: Any
    v_BNHT: Any
    band_BNUT: Any
    """Float32; None: no band."""


def backward(
    plan: Plan,
    q_BNTE,
    k_BNTE,
    v_BNTH,
    out_bar_BNHT,
    lse_BN1T,
    mean_BN1T,
    extras: Extras,
) -> Bars:
    """Gradients of the forward kernel.

    lse_BN1T is what that returned. mean_BN1T: the sum over keys of probability times
    its gradient, less the gradient of the log-sum-exp in nats. Raises
    NotImplementedError where a head's gradient does not fit into fast memory.
    """
    B, N, T, E = *q_BNTE.shape[:2], *k_BNTE.shape[2:]
    H, block = v_BNTH.shape[-1], plan.block

    def key_at(r, c):
        row, _ = plan.pair(T, r, c)
        return T // block - 1 - row

    def query_at(r, c):
        return key_at(r, c) + plan.pair(T, r, c)[1]

    def own(x, time_axis):
        return block_spec(plan, x, N, time_axis, query_at)

    need = memory(plan, T, E, H, q_BNTE.dtype)
    if need > plan.memory:
        raise NotImplementedError(
            f"multi_token_attention pallas_tpu: the gradient at T = {T} takes "
            f"{need >> 20} MiB of {plan.memory >> 20} MiB fast memory; xla takes less"
        )
    more = 4 * T * E // plan.shared
    twice = need + more <= plan.memory
    need += more * twice

    def whole(x):
        # Written out while the next head is under way, if there is room for two.
        mode = pl.Buffered(2 if twice else 1)
        shape = (None, None, *x.shape[2:])
        return pl.BlockSpec(shape, lambda b, n, r, c: (b, n, 0, 0), pipeline_mode=mode)

    bars = Bars(
        jax.ShapeDtypeStruct(q_BNTE.shape, jnp.float32),
        jax.ShapeDtypeStruct((B, N, T, E), k_BNTE.dtype),
        jax.ShapeDtypeStruct((B, N, H, T), v_BNTH.dtype),
        extras.band_BNUT,
    )
    out_specs = Bars(
        whole(bars.q_BNTE),
        block_spec(plan, bars.k_BNTE, N, 2, key_at),
        block_spec(plan, bars.v_BNHT, N, 3, key_at),
        None if bars.band_BNUT is None else whole(bars.band_BNUT),
    )
    call = pl.pallas_call(
        partial(_kernel, plan, T),
        grid=(B, N, *plan.grid(T)),
        in_specs=[
            block_spec(plan, q_BNTE, N, 2, query_at, plan.shared),
            block_spec(plan, k_BNTE, N, 2, key_at),
            block_spec(plan, v_BNTH, N, 2, key_at),
            *(own(x, 3) for x in (out_bar_BNHT, lse_BN1T, mean_BN1T)),
            extras.specs(plan, N, query_at, key_at),
        ],
        out_specs=out_specs,
        out_shape=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), bars),
        scratch_shapes=[
            pltpu.VMEM((block, E), jnp.float32),
            pltpu.VMEM((H, block), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=need,
        ),
        interpret=plan.interpret,
        name="mta_backward",
    )
    return call(q_BNTE, k_BNTE, v_BNTH, out_bar_BNHT, lse_BN1T, mean_BN1T, extras)


def memory(plan: Plan, T: int, E: int, H: int, dtype) -> int:
    """Bytes of fast memory, at least: a head's gradient, blocks twice, some tiles."""
    block, size = plan.block, jnp.dtype(dtype).itemsize
    blocks = 2 * block * (3 * E + 3 * H) * size + 4 * block * (E + H)
    return (
        4 * T * (E // plan.shared + 2 * LANES) + blocks + 32 * plan.part * block + 2**20
    )


def _kernel(
    plan: Plan,
    T: int,
    q_ref,
    k_ref,
    v_ref,
    out_bar_ref,
    lse_ref,
    mean_ref,
    extras: Extras,
    *refs,
):
    bars, (k_bar_ref, v_bar_ref) = Bars(*refs[:-2]), refs[-2:]
    r, c = pl.program_id(2), pl.program_id(3)
    row, ahead = plan.pair(T, r, c)
    query = T // plan.block - 1 - row + ahead

    def wide_rows(start: int, queries: int):
        """Of a head's wide queries: those of `queries` from `start` of this block."""
        first = query * (plan.block // plan.shared) + start // plan.shared
        return pl.ds(pl.multiple_of(first, LANES), queries // plan.shared)

    @pl.when(row == T // plan.block - 1)  # the first keys, which come first
    def _():
        q_bar_YE = bars.q_BNTE.at[wide_rows(0, plan.block), :]
        q_bar_YE[...] = jnp.zeros_like(q_bar_YE)
        if bars.band_BNUT is not None:
            y = pl.multiple_of(query * plan.block, LANES)
            band_UY = bars.band_BNUT.at[:, pl.ds(y, plan.block)]
            band_UY[...] = jnp.zeros_like(band_UY)

    @pl.when(ahead == 0)
    def _():
        k_bar_ref[...] = jnp.zeros_like(k_bar_ref)
        v_bar_ref[...] = jnp.zeros_like(v_bar_ref)

    def products(start, keys):
        out_bar_HY = out_bar_ref[:, start : start + plan.part]
        prob_bar_XY = dot(v_ref[:keys, :], out_bar_HY)
        return logits(plan, q_ref, k_ref, start, keys), prob_bar_XY

    def visit(near):
        parts = plan.parts(diagonal=near is None)
        following = products(*parts[0])
        for at, (start, keys) in enumerate(parts):
            x_XY, prob_bar_XY = following
            x_XY = correct(plan, x_XY, extras, start, near)
            if at + 1 < len(parts):
                following = products(*parts[at + 1])
            own = slice(start, start + plan.part)
            prob_XY = jnp.exp2(x_XY - lse_ref[:, own])
            bar_XY = prob_XY * (prob_bar_XY - mean_ref[:, own])
            prob_XY = prob_XY.astype(v_ref.dtype)
            v_bar_ref[:, :keys] += dot(out_bar_ref[:, own], prob_XY, NT)
            if bars.band_BNUT is not None:
                for y, bar_UL in band_bar(plan, bar_XY, start, near):
                    y = pl.multiple_of(query * plan.block + y, LANES)
                    bars.band_BNUT[:, pl.ds(y, LANES)] += bar_UL
            rows = wide_rows(start, plan.part)
            wide_bars = logits_bar(plan, bar_XY)
            for e, bar in zip(plan.columns(k_ref), wide_bars, strict=True):
                bar = bar.astype(q_ref.dtype)
                k_bar_ref[:keys, e] += dot(bar, q_ref[plan.rows(start), e])
                bars.q_BNTE[rows, e] += dot(bar, k_ref[:keys, e], TN)

    @pl.when(ahead > 0)
    def _():
        visit(near=ahead == 1)

    @pl.when(ahead == 0)
    def _():
        visit(near=None)

    @pl.when(ahead == row)
    def _():
        # Logits are in bits: a nat's gradient is log(2) of a bit's.
        bars.k_BNTE[...] = (log(2) * k_bar_ref[...]).astype(bars.k_BNTE.dtype)
        bars.v_BNHT[...] = v_bar_ref[...].astype(bars.v_BNHT.dtype)
