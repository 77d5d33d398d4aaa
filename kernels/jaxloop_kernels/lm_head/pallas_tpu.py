"""One kernel a pass for TPUs: a tile of logits lives in vector memory only.

Tokens lie along lanes and the vocabulary along sublanes, so that what is known of a
token is a row and running sums need no reduction across lanes. A token has eight sums
of each kind, one a sublane; they meet at the end, with those of other devices.

The statistics of a tile are taken while the matrix unit forms the next one, which is
what makes the pass cost little more than its matrix product: one step of the grid folds
the tile of the step before, chunk by chunk, and puts its own in the same place.

Shapes: M rows of hidden states, a multiple of the block; V rows of the vocabulary on
this device.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.lm_head import pallas_tpu_backward as backward
from jaxloop_kernels.lm_head.pallas_tpu_blocks import (
    LOG2_E,
    Plan,
    chip,
    chunks,
    cut_rows,
    forward_blocks,
    logits_tile,
    share,
)
from jaxloop_kernels.lm_head.passes import Arrays, Passes, Shards, run
from jaxloop_kernels.lm_head.reference import PADDING, LmHead


class Sums(NamedTuple):
    """Of the logits x of a token, before the temperature; `e` is exp((x - top) / t)."""

    top: jax.Array
    mass: jax.Array
    """Of e."""
    moment: jax.Array
    """Of e * (x - top)."""
    squares: jax.Array
    """Of e ** 2."""
    picked: jax.Array
    """x of the target; 0 on other sublanes and other devices."""
    total: jax.Array
    """Of x; 0 without a soft cap: then it is a product with one vector."""


def lm_head(
    hidden_BTD: jax.Array,
    vocab_VD: jax.Array,
    target_BT: jax.Array,
    choices_BTK: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 1.0,
    soft_cap: float | None = None,
    valid: int | None = None,
    shards: Shards | None = None,
    vmem: int | None = None,
    cores: int | None = None,
    chunk: int | None = None,
    looped: bool | None = None,
    interpret=None,
) -> LmHead:
    """See `jaxloop_kernels.lm_head.lm_head`.

    vmem: bytes of vector memory of a core, and cores that run one program, of the chip
    that this is compiled for; None asks the device. chunk: rows of the vocabulary whose
    logits are formed at once, in a loop or one after another in one piece of code.
    interpret: None where there is no TPU.
    """
    if (why := cannot(hidden_BTD, choices_BTK)) is not None:
        raise NotImplementedError(f"lm_head pallas_tpu: {why}; xla takes it")
    axis = shards.vocab if shards else None
    interpret = jax.default_backend() != "tpu" if interpret is None else interpret
    found = chip(hidden_BTD.shape[-1], vmem, cores, chunk, looped)
    plan = Plan(soft_cap, valid, axis, shards is not None, *found, interpret)
    inverse = jax.lax.stop_gradient(1.0 / jnp.asarray(temperature, jnp.float32))
    arrays = Arrays(hidden_BTD, vocab_VD, target_BT, None, inverse)
    return run(Passes(forward, backward.backward, plan), shards, arrays)


def cannot(hidden_BTD, choices_BTK) -> str | None:
    """Why the kernel does not take these; None where it does."""
    if choices_BTK is not None:
        return "choices"
    if hidden_BTD.dtype not in (jnp.bfloat16, jnp.float32):
        return f"{hidden_BTD.dtype} (bfloat16 and float32 only)"
    if hidden_BTD.shape[-1] % 128:
        return f"width {hidden_BTD.shape[-1]} (multiples of 128 only)"
    return None


def forward(plan: Plan, arrays: Arrays) -> LmHead:
    """Of this device's rows."""
    hidden_BTD, vocab_VD, target_BT, _, inverse = arrays
    B, T, _ = hidden_BTD.shape
    vocab_VD = vocab_VD.astype(hidden_BTD.dtype)
    blocks = forward_blocks(plan, B * T, vocab_VD)
    hidden_MD, target_M = cut_rows(blocks.rows, hidden_BTD, target_BT)
    bound, target_M = share(plan, vocab_VD, target_M)
    with jax.named_scope("lm_head"):
        sums = _sums(plan, blocks, hidden_MD, vocab_VD, target_M, inverse, bound)
        if plan.soft_cap is None:
            row_V1 = jnp.arange(vocab_VD.shape[0])[:, None]
            sum_D = jnp.sum(vocab_VD, 0, jnp.float32, where=row_V1 < bound)
            exact = jax.lax.Precision.HIGHEST
            total_M = jnp.dot(hidden_MD.astype(jnp.float32), sum_D, precision=exact)
            sums = sums._replace(total=total_M[None])
        out = _meet(plan, sums, inverse, vocab_VD.shape[0])
    return jax.tree.map(lambda x_M: x_M[: B * T].reshape(B, T), out)


def _meet(plan: Plan, sums: Sums, inverse, rows: int) -> LmHead:
    """Joins the eight parts of each sum, and those of all devices."""
    top_M, tokens = sums.top.max(axis=0), rows
    if plan.axis is not None:
        top_M = jax.lax.pmax(top_M, plan.axis)
        tokens *= jax.lax.axis_size(plan.axis)
    below_8M = sums.top - top_M
    weight_8M = jnp.exp(below_8M * inverse)
    joined_5M = jnp.stack([
        (weight_8M * sums.mass).sum(axis=0),
        (weight_8M * (sums.moment + sums.mass * below_8M)).sum(axis=0),
        (weight_8M**2 * sums.squares).sum(axis=0),
        sums.picked.sum(axis=0),
        sums.total.sum(axis=0),
    ])  # fmt: skip
    if plan.axis is not None:
        joined_5M = jax.lax.psum(joined_5M, plan.axis)
    mass_M, moment_M, squares_M, picked_M, total_M = joined_5M
    log_mass_M = jnp.log(mass_M)
    return LmHead(
        logp_BT=(picked_M - top_M) * inverse - log_mass_M,
        entropy_BT=log_mass_M - moment_M / mass_M * inverse,
        hit_BT=(picked_M >= top_M).astype(jnp.float32),
        mean_logit_BT=total_M / (plan.valid or tokens),
        lse_BT=top_M * inverse + log_mass_M,
        log_sum_sq_BT=jnp.log(squares_M) - 2 * log_mass_M,
    )


def _sums(plan, blocks, hidden_MD, vocab_VD, target_M, inverse, bound) -> Sums:
    """(8, M) each; of the total, zeros unless there is a soft cap."""
    (M, D), V = hidden_MD.shape, vocab_VD.shape[0]
    tiles = pl.cdiv(V, blocks.tokens)
    rows, tokens = blocks
    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    kinds = len(Sums._fields)
    sums = pl.pallas_call(
        partial(
            _kernel,
            soft_cap=plan.soft_cap,
            ragged=plan.ragged(V, tokens),
            chunk=plan.chunk,
            looped=plan.looped,
        ),
        grid=(M // rows, tiles + 1),
        in_specs=[
            scalar,
            scalar,
            pl.BlockSpec((rows, D), lambda i, j: (i, 0)),
            # The last step has no tile of its own; it forms one that nobody folds.
            pl.BlockSpec((tokens, D), lambda i, j: (jnp.minimum(j, tiles - 1), 0)),
            pl.BlockSpec((1, rows), lambda i, j: (0, i)),
        ],
        out_specs=pl.BlockSpec((kinds, 8, rows), lambda i, j: (0, 0, i)),
        out_shape=jax.ShapeDtypeStruct((kinds, 8, M), jnp.float32),
        scratch_shapes=[
            pltpu.VMEM((tokens, rows), jnp.float32),
            pltpu.VMEM((8, rows), jnp.float32),
            pltpu.VMEM((kinds, 8, rows), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=plan.vmem_limit(),
        ),
        interpret=plan.interpret,
        name="lm_head_forward",
    )(
        jnp.reshape(inverse * LOG2_E, (1,)),
        jnp.reshape(bound, (1,)),
        hidden_MD,
        vocab_VD,
        target_M[None],
    )
    return Sums(*sums)


def _kernel(
    slope_ref,
    bound_ref,
    hidden_ref,
    vocab_ref,
    target_ref,
    out_ref,
    tile_ref,
    top_ref,
    sums_ref,
    *,
    soft_cap: float | None,
    ragged: bool,
    chunk: int,
    looped: bool,
):
    """Folds the tile of the step before, and forms one."""
    j = pl.program_id(1)
    tokens, rows = tile_ref.shape
    at_8M = jax.lax.broadcasted_iota(jnp.int32, (8, rows), 0)
    target_8M = target_ref[...] - (j - 1) * tokens - at_8M
    size = chunks(tokens, chunk)[0].stop

    def part(at, sums: Sums):
        for k in range(0, size, 8):
            x_8M, here_8M = tile_ref[pl.ds(at + k, 8)], target_8M == at + k
            sums = _fold(sums, x_8M, here_8M, slope_ref[0], soft_cap, ragged)
        x = logits_tile(vocab_ref[pl.ds(at, size)], hidden_ref[...])
        x = x if soft_cap is None else soft_cap * jnp.tanh(x / soft_cap)
        tile_ref[pl.ds(at, size)] = x
        return sums, _top(x)

    def again(c, carry):
        sums, top_8M = part(c * size, carry[0])
        return sums, jnp.maximum(carry[1], top_8M)

    sums = _rescale(Sums(*(sums_ref[k] for k in range(6))), top_ref[...], slope_ref[0])
    if looped:
        least_8M = jnp.full((8, rows), PADDING, jnp.float32)
        carry = jax.lax.fori_loop(0, tokens // size, again, (sums, least_8M))
        sums, top_ref[...] = carry
    else:
        tops = []
        for at in range(0, tokens, size):
            sums, top_8M = part(at, sums)
            tops.append(top_8M)
        top_ref[...] = _top(jnp.concatenate(tops))
    if ragged:

        @pl.when((j + 1) * tokens > bound_ref[0])
        def _():
            row = jax.lax.broadcasted_iota(jnp.int32, (tokens, rows), 0)
            x = jnp.where(row < bound_ref[0] - j * tokens, tile_ref[...], PADDING)
            tile_ref[...] = x
            top_ref[...] = _top(x)

    # What the first step folds is nobody's tile.
    for k, x_8M in enumerate(sums):
        sums_ref[k] = jnp.where(j > 0, x_8M, PADDING if k == 0 else 0.0)

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        out_ref[...] = sums_ref[...]


def _rescale(sums: Sums, top_8M, slope) -> Sums:
    """To the largest logit yet. slope: log2(e) / temperature."""
    top_8M = jnp.maximum(sums.top, top_8M)
    down_8M = sums.top - top_8M
    weight_8M = jnp.exp2(down_8M * slope)
    return sums._replace(
        top=top_8M,
        mass=weight_8M * sums.mass,
        moment=weight_8M * (sums.moment + sums.mass * down_8M),
        squares=weight_8M * weight_8M * sums.squares,
    )


def _fold(sums: Sums, x_8M, here_8M, slope, soft_cap, ragged: bool) -> Sums:
    """One more token of the vocabulary for every sublane."""
    below_8M = x_8M - sums.top
    e_8M = jnp.exp2(below_8M * slope)
    total_8M = sums.total
    if soft_cap is not None:
        there = x_8M > PADDING
        total_8M += jnp.where(there, x_8M, 0.0) if ragged else x_8M
    return Sums(
        top=sums.top,
        mass=sums.mass + e_8M,
        moment=sums.moment + e_8M * below_8M,
        squares=sums.squares + e_8M * e_8M,
        picked=jnp.where(here_8M, x_8M, sums.picked),
        total=total_8M,
    )


def _top(x) -> jax.Array:
    """The largest of every eighth row."""
    top_8M = x[:8]
    for k in range(8, x.shape[0], 8):
        top_8M = jnp.maximum(top_8M, x[k : k + 8])
    return top_8M
