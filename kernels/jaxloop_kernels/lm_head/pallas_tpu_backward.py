"""Both gradients in one pass over the logits: three matrix products a tile.

The grid goes over blocks of the vocabulary and, within, blocks of rows. The gradient of
a block of the vocabulary gathers in vector memory; that of the rows is brought from
main memory, added to and taken back at every step, while the matrix unit works.

Shapes as in `pallas_tpu`; C cores, each with its own sum over its part of the
vocabulary.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.lm_head.pallas_tpu_blocks import (
    LOG2_E,
    Plan,
    backward_blocks,
    chunks,
    cut_rows,
    logits_tile,
    product,
    share,
)
from jaxloop_kernels.lm_head.passes import Arrays
from jaxloop_kernels.lm_head.reference import LmHead


def backward(plan: Plan, arrays: Arrays, lse_BT, entropy_BT, bar: LmHead):
    """Gradients of this device's hidden states (float32, summed over the axis that
    cuts the vocabulary) and rows of the vocabulary."""
    hidden_BTD, vocab_VD, target_BT, _, inverse = arrays
    B, T, D = hidden_BTD.shape
    out_dtype = jnp.float32 if plan.summed else vocab_VD.dtype
    vocab_VD = vocab_VD.astype(hidden_BTD.dtype)
    blocks = backward_blocks(plan, B * T, vocab_VD, out_dtype)
    # d lse = p, d logp = onehot - p, d entropy = -p (log p + entropy); by logit:
    # onehot * a + p * (b - c * logit)
    a_BT = bar.logp_BT * inverse
    b_BT = bar.lse_BT - bar.logp_BT - bar.entropy_BT * (entropy_BT - lse_BT)
    c_BT = bar.entropy_BT * inverse * inverse
    rows = (lse_BT * LOG2_E, a_BT, b_BT * inverse, c_BT)
    block = blocks.rows * (2 if blocks.rows >= B * T else 1)  # two at least
    hidden_MD, target_M, *rows = cut_rows(block, hidden_BTD, target_BT, *rows)
    bound, target_M = share(plan, vocab_VD, target_M)
    with jax.named_scope("lm_head_backward"):
        hidden_bar_CMD, vocab_bar_VD = _gradients(
            plan,
            blocks,
            (jnp.reshape(inverse * LOG2_E, (1,)), jnp.reshape(bound, (1,))),
            (hidden_MD, vocab_VD, target_M[None], jnp.stack(rows)),
            out_dtype,
        )
        hidden_bar_MD = hidden_bar_CMD.sum(axis=0)
        if plan.axis is not None:
            hidden_bar_MD = jax.lax.psum(hidden_bar_MD, plan.axis)
    return hidden_bar_MD[: B * T].reshape(B, T, D), vocab_bar_VD


def _gradients(plan: Plan, blocks, scalars, arrays, out_dtype):
    hidden_MD, vocab_VD = arrays[:2]
    (M, D), V = hidden_MD.shape, vocab_VD.shape[0]
    rows, tokens = blocks
    tiles = pl.cdiv(V, tokens)
    cores = min(plan.cores, tiles)
    a_core = pl.cdiv(tiles, cores)

    def tile(c, j, i):
        return jnp.minimum(c * a_core + j, tiles - 1), 0

    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    return pl.pallas_call(
        partial(
            _kernel,
            soft_cap=plan.soft_cap,
            ragged=plan.ragged(V, tokens),
            chunk=plan.chunk,
            tiles=tiles,
        ),
        grid=(cores, a_core, M // rows),
        in_specs=[
            scalar,
            scalar,
            pl.BlockSpec((rows, D), lambda c, j, i: (i, 0)),
            pl.BlockSpec((tokens, D), tile),
            pl.BlockSpec((1, rows), lambda c, j, i: (0, i)),
            pl.BlockSpec((4, rows), lambda c, j, i: (0, i)),
        ],
        out_specs=[
            pl.BlockSpec(memory_space=pl.ANY),
            pl.BlockSpec((tokens, D), tile),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((cores, M, D), jnp.float32),
            jax.ShapeDtypeStruct((V, D), out_dtype),
        ],
        scratch_shapes=[
            pltpu.VMEM((tokens, rows), hidden_MD.dtype),
            pltpu.VMEM((tokens, D), jnp.float32),
            pltpu.VMEM((2, rows, D), jnp.float32),
            pltpu.SemaphoreType.DMA((2,)),
            pltpu.SemaphoreType.DMA((2,)),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=plan.vmem_limit(),
        ),
        interpret=plan.interpret,
        name="lm_head_backward",
    )(*scalars, *arrays)


def _kernel(
    slope_ref,
    bound_ref,
    hidden_ref,
    vocab_ref,
    target_ref,
    rows_ref,
    hidden_bar_ref,
    vocab_bar_ref,
    bar_ref,
    sum_ref,
    moved_ref,
    came,
    went,
    *,
    soft_cap: float | None,
    ragged: bool,
    chunk: int,
    tiles: int,
):
    core, j, i = (pl.program_id(axis) for axis in range(3))
    blocks = pl.num_programs(2)
    rows = hidden_ref.shape[0]
    tile = core * pl.num_programs(1) + j
    step = j * blocks + i
    steps = jnp.minimum(pl.num_programs(1), tiles - core * pl.num_programs(1)) * blocks
    slot = jax.lax.rem(step, 2)

    def main(step):
        at = pl.multiple_of(jax.lax.rem(step, blocks) * rows, rows)
        return hidden_bar_ref.at[core, pl.ds(at, rows)]

    def bring(step, slot):
        return pltpu.make_async_copy(main(step), moved_ref.at[slot], came.at[slot])

    def take(step, slot):
        return pltpu.make_async_copy(moved_ref.at[slot], main(step), went.at[slot])

    @pl.when(step < steps)  # the last core may have a block less
    def _():
        # All that was sent before this step has arrived, so with two blocks of rows
        # or more nothing is brought before it is there.
        @pl.when(step > 0)
        def _():
            take(step - 1, 1 - slot).wait()

        @pl.when((step + 1 >= blocks) & (step + 1 < steps))
        def _():
            bring(step + 1, 1 - slot).start()

        _bars(
            slope_ref[0],
            bound_ref[0] - tile * vocab_ref.shape[0],
            (hidden_ref, vocab_ref, target_ref, rows_ref),
            bar_ref,
            (tile * vocab_ref.shape[0], soft_cap, ragged, chunk),
        )
        more = product(bar_ref[...], hidden_ref[...], 1, 0)

        @pl.when(i == 0)
        def _():
            sum_ref[...] = more

        @pl.when(i > 0)
        def _():
            sum_ref[...] += more

        @pl.when(i == blocks - 1)
        def _():
            vocab_bar_ref[...] = sum_ref[...].astype(vocab_bar_ref.dtype)

        hidden_bar = product(bar_ref[...], vocab_ref[...], 0, 0)

        @pl.when(j == 0)
        def _():
            moved_ref[slot] = hidden_bar

        @pl.when(j > 0)
        def _():
            bring(step, slot).wait()
            moved_ref[slot] += hidden_bar

        take(step, slot).start()

        @pl.when(step == steps - 1)
        def _():
            take(step, slot).wait()


def _bars(slope, bound, refs, bar_ref, how):
    """The gradient of a tile's products, before the soft cap, into bar_ref."""
    hidden_ref, vocab_ref, target_ref, rows_ref = refs
    first, soft_cap, ragged, chunk = how
    tokens, rows = bar_ref.shape
    if ragged:

        @pl.when(bound < tokens)
        def _():  # rows beyond the array hold anything, and 0 * nan is nan
            row = jax.lax.broadcasted_iota(jnp.int32, vocab_ref.shape, 0)
            vocab = vocab_ref[...]
            vocab_ref[...] = jnp.where(row < bound, vocab, jnp.zeros_like(vocab))

    lse_1M, a_1M, b_1M, c_1M = (rows_ref[k : k + 1] for k in range(4))
    target_1M = target_ref[...] - first
    for part in chunks(tokens, chunk):
        x, tanh = logits_tile(vocab_ref[part], hidden_ref[...]), None
        if soft_cap is not None:
            tanh = jnp.tanh(x / soft_cap)
            x = soft_cap * tanh
        bar = jnp.exp2(x * slope - lse_1M) * (b_1M - c_1M * x)
        row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0) + part.start
        bar += jnp.where(target_1M == row, a_1M, 0.0)
        if tanh is not None:
            bar *= 1.0 - tanh * tanh
        bar_ref[part] = bar.astype(bar_ref.dtype)
    if ragged:

        @pl.when(bound < tokens)
        def _():
            row = jax.lax.broadcasted_iota(jnp.int32, (tokens, rows), 0)
            bar = bar_ref[...]
            bar_ref[...] = jnp.where(row < bound, bar, jnp.zeros_like(bar))
