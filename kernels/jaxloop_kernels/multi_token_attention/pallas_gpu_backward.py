"""The backward kernels of `pallas_gpu`: one along the keys, one along the queries.

Both form the logits again and take the probabilities from the log-sum-exp. A program
sums the wide gradient of a few rows in registers, chunk by chunk of its width, which is
why its rows are few. Nothing is added up in memory: the results do not depend on the
order in which programs run. Shapes as in `pallas_gpu_forward`.
"""

from functools import partial
from math import log
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxloop_kernels.multi_token_attention.pallas_gpu_forward import (
    NT,
    TN,
    Inputs,
    Plan,
    correct,
    diagonals,
    key_blocks,
    logits,
    on_band,
    places,
    whole,
)


class Sums(NamedTuple):
    """What the forward pass and the loss know of each query."""

    out_bar_BNTH: Any
    lse_BNT: Any
    mean_BNT: Any
    """The sum over keys of probability times its gradient."""


class Bars(NamedTuple):
    """Gradients, each query head's on its own."""

    q_BNTE: jax.Array
    k_BNTE: jax.Array
    v_BNTH: jax.Array
    band_BNTU: jax.Array | None
    """Float32. Entries before the start of their document are not written."""


def backward(plan: Plan, inputs: Inputs, sums: Sums) -> Bars:
    B, N, T, _ = inputs.q_BNTE.shape
    band = inputs.band_BNTU

    def like(x):
        return jax.ShapeDtypeStruct((B, N, *x.shape[2:]), x.dtype)

    def rows(x, at):
        return pl.BlockSpec((None, None, plan.rows, x.shape[-1]), at)

    call = partial(
        pl.pallas_call,
        grid=(T // plan.rows, N, B),
        in_specs=[inputs.specs(), Sums(*(whole(x, N) for x in sums))],
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=2),
        interpret=plan.interpret,
    )
    # Blocks with most work come first, as in the forward pass.
    q_BNTE, band_BNTU = call(
        partial(_query_kernel, plan),
        out_specs=[
            rows(inputs.q_BNTE, lambda t, n, b: (b, n, T // plan.rows - 1 - t, 0)),
            None if band is None else whole(band, N),
        ],
        out_shape=[like(inputs.q_BNTE), band if band is None else like(band)],
        name="mta_backward_queries",
    )(inputs, sums)
    k_BNTE, v_BNTH = call(
        partial(_key_kernel, plan),
        out_specs=[
            rows(x, lambda t, n, b: (b, n, t, 0))
            for x in (inputs.k_BNTE, inputs.v_BNTH)
        ],
        out_shape=[like(inputs.k_BNTE), like(inputs.v_BNTH)],
        name="mta_backward_keys",
    )(inputs, sums)
    return Bars(q_BNTE, k_BNTE, v_BNTH, band_BNTU)


def _query_kernel(plan: Plan, refs: Inputs, sums: Sums, q_bar_ref, band_bar_ref):
    X, Y = plan.rows, plan.block_k
    query = (pl.num_programs(0) - 1 - pl.program_id(0)) * X

    def visit(near: bool, y, q_bar):
        key = y * Y
        _, bar_XY = _tile(plan, refs, sums, query, X, key, Y, near)
        if near and band_bar_ref is not None:
            at = places(bar_XY.shape, query, key)
            band, inside_XY = on_band(band_bar_ref, *at)
            plgpu.store(band, -log(2) * bar_XY, mask=inside_XY)
        return _add(plan, q_bar, bar_XY, refs.k_BNTE, key, Y)

    start, near, end = key_blocks(refs, query, X, Y)
    q_bar = _zeros(plan, q_bar_ref)
    q_bar = lax.fori_loop(start, near, partial(visit, False), q_bar)
    q_bar = lax.fori_loop(jnp.maximum(start, near), end, partial(visit, True), q_bar)
    _write(plan, q_bar_ref, q_bar)


def _key_kernel(plan: Plan, refs: Inputs, sums: Sums, k_bar_ref, v_bar_ref):
    X, Y = plan.block_k, plan.rows
    key = pl.program_id(0) * Y

    def visit(near: bool, x, carry):
        k_bar, v_bar_YH = carry
        query = x * X
        prob_XY, bar_XY = _tile(plan, refs, sums, query, X, key, Y, near)
        out_bar_XH = sums.out_bar_BNTH[pl.ds(query, X), :]
        v_bar_YH += plan.dot(prob_XY.astype(out_bar_XH.dtype), out_bar_XH, TN)
        return _add(plan, k_bar, bar_XY.T, refs.q_BNTE, query, X), v_bar_YH

    end = refs.q_BNTE.shape[0] // X
    if refs.last_BT is not None:
        end = lax.div(refs.last_BT[key + Y - 1] + X, X)
    far = lax.div(key + Y + diagonals(refs) - 2, X) + 1
    carry = _zeros(plan, k_bar_ref), jnp.zeros(v_bar_ref.shape, jnp.float32)
    carry = lax.fori_loop(
        lax.div(key, X), jnp.minimum(far, end), partial(visit, True), carry
    )
    k_bar, v_bar_YH = lax.fori_loop(far, end, partial(visit, False), carry)
    _write(plan, k_bar_ref, k_bar)
    v_bar_ref[...] = v_bar_YH.astype(v_bar_ref.dtype)


def _tile(plan: Plan, refs: Inputs, sums: Sums, query, X: int, key, Y: int, near):
    """(X, Y) probabilities, and gradients of the logits as if these were nats."""
    own, keys = pl.ds(query, X), pl.ds(key, Y)
    x_XY = correct(logits(plan, refs, query, X, key, Y), refs, query, key, near)
    prob_XY = jnp.exp2(x_XY - sums.lse_BNT[own][:, None])
    prob_bar_XY = plan.dot(sums.out_bar_BNTH[own, :], refs.v_BNTH[keys, :], NT)
    return prob_XY, prob_XY * (prob_bar_XY - sums.mean_BNT[own][:, None])


def _zeros(plan: Plan, ref) -> tuple[jax.Array, ...]:
    """Chunks of a wide gradient."""
    rows, width = ref.shape
    return (jnp.zeros((rows, plan.chunk), jnp.float32),) * (width // plan.chunk)


def _add(plan: Plan, wide_bar, bar_XY, other_ref, start, rows: int):
    """The chunks, plus bar_XY times the `rows` wide rows of the other side."""
    bar_XY = bar_XY.astype(other_ref.dtype)
    added = []
    for e, chunk in enumerate(wide_bar):
        columns = pl.ds(e * plan.chunk, plan.chunk)
        added.append(chunk + plan.dot(bar_XY, other_ref[pl.ds(start, rows), columns]))
    return tuple(added)


def _write(plan: Plan, ref, wide_bar) -> None:
    for e, chunk in enumerate(wide_bar):
        columns = pl.ds(e * plan.chunk, plan.chunk)
        ref[:, columns] = (log(2) * chunk).astype(ref.dtype)
