"""The forward kernel of Multi-Token Attention with head mixes.

A mix of probabilities needs each head's sum over all keys first. So every block of rows
goes over its keys twice: the first sweep finds log-sum-exp and lays by the mixed scores
of the block's rows (of these rows only, so they grow with T), the second takes them up
again. Vector memory holds the scores of two blocks of keys, the others wait in the
device's memory; as the second sweep comes back from the last keys to the first, those
two are the ones that it begins with. Each copy has the step between to be done.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_layout import (
    FIRST,
    LANES,
    LAST,
    by_rows,
    last_block,
)
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_taps import (
    convolve_phases,
    joint_taps,
    paired_taps,
)
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_tile import (
    NEVER,
    Inputs,
    Tile,
    by_rows_view,
    clear_padding,
    dot,
    each,
    each_rows,
    kv_head,
    masked_scores,
    masks,
    mix,
    padded_rows_of,
    phase_rows_of,
    rows_of,
    score_tile,
    specs,
    store_rows,
    wide,
)


class Scratch(NamedTuple):
    tile: Any
    """By head: scores, later what multiplies the values."""
    seen: Any
    """(w, rows, 128) {0, 1}: visible."""
    near: Any
    """(w, rows, 128) {0, 1}: in the band; None without a band."""
    top: Any
    """By rows, a lane for itself: largest score, after the first sweep log-sum-exp."""
    sum: Any
    """The same of 2**(score - top)."""
    out: Any
    """(M, rows, H) float32."""
    prob: Any
    """Padded; None without a convolution after the softmax."""
    kept: Any
    """(2, blocks of R rows, M R, block_k): scores, even blocks of keys in the first."""
    copied: Any
    """A semaphore each of the two."""


def forward(tile: Tile, inputs: Inputs, *, vmem: int, interpret):
    """Output (B, N, I, H) in v's dtype, and log-sum-exp by rows, float32:
    (B, G, blocks of rows, blocks of R rows, M R)."""
    cut, M = tile.cut, tile.heads
    B, N = inputs.q.shape[:2]
    if tile.late == "joint":
        inputs = inputs._replace(taps=joint_taps(cut, inputs.taps))
    elif tile.late == "pairs":
        inputs = inputs._replace(taps=paired_taps(inputs.taps))
    H = inputs.v.shape[-1]
    blocks, MR, _ = tile.mixed_shape
    away = (B, N // M, max(1, cut.k_blocks - 2), blocks, MR, cut.block_k)
    steps = by_rows(cut, sweeps=2)
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(steps),
        grid=(B, N // M, len(steps.q)),
        in_specs=[specs(tile, inputs, "two")],
        out_specs=[
            pl.BlockSpec(
                (1, M, cut.block_q, H), lambda b, g, s, q, *_: (b, g, q[s], 0)
            ),
            pl.BlockSpec(
                (1, 1, 1, blocks, MR), lambda b, g, s, q, *_: (b, g, q[s], 0, 0)
            ),
            pl.BlockSpec(memory_space=pl.ANY),
        ],
        scratch_shapes=[_scratch(tile, inputs, H)],
    )
    out, lse, _ = pl.pallas_call(
        partial(_kernel, tile),
        grid_spec=grid_spec,
        out_shape=[
            jax.ShapeDtypeStruct((B, N, cut.rows, H), inputs.v.dtype),
            jax.ShapeDtypeStruct((B, N // M, cut.q_blocks, blocks, MR), jnp.float32),
            jax.ShapeDtypeStruct(away, tile.dtype),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=vmem,
        ),
        interpret=interpret,
        name="mta_mixing_forward",
    )(*steps, inputs)
    return out, lse


def _scratch(tile: Tile, inputs: Inputs, H: int) -> Scratch:
    cut, f32 = tile.cut, jnp.float32
    blocks, MR, _ = tile.mixed_shape
    mask = pltpu.VMEM((cut.windows, cut.block_q, LANES), f32)
    return Scratch(
        tile=pltpu.VMEM(tile.tile_shape, tile.stored),
        seen=mask,
        near=None if inputs.band is None else mask,
        top=pltpu.VMEM(tile.mixed_shape, f32),
        sum=pltpu.VMEM(tile.mixed_shape, f32),
        out=pltpu.VMEM((tile.heads, cut.block_q, H), f32),
        prob=None if inputs.taps is None else pltpu.VMEM(tile.padded_shape, f32),
        kept=pltpu.VMEM((2, blocks, MR, cut.block_k), tile.dtype),
        copied=pltpu.SemaphoreType.DMA((2,)),
    )


def _kernel(tile: Tile, qs, ks, sweeps, edges, inputs, out_ref, lse_ref, away, scratch):
    s = pl.program_id(2)
    q, k, sweep, edge = qs[s], ks[s], sweeps[s], edges[s]
    away = away.at[pl.program_id(0), pl.program_id(1)]
    slot = lax.rem(k, 2)
    # The last two blocks of keys stay, those before them are laid by.
    first_to_stay = last_block(tile.cut, q) - 1

    def copy(k, *, back: bool):
        slot = lax.rem(k, 2)
        kept, laid_by = scratch.kept.at[slot], away.at[k]
        source, target = (laid_by, kept) if back else (kept, laid_by)
        return pltpu.make_async_copy(source, target, scratch.copied.at[slot])

    @pl.when((sweep == 0) & (edge % 2 == FIRST))
    def start():
        scratch.top[...] = jnp.full_like(scratch.top, NEVER)
        scratch.sum[...] = jnp.zeros_like(scratch.sum)
        scratch.out[...] = jnp.zeros_like(scratch.out)
        if scratch.prob is not None:
            clear_padding(tile, scratch.prob)

    @pl.when((sweep == 0) & (k >= 2))
    def room_for_scores():
        copy(k - 2, back=False).wait()

    @pl.when(sweep == 0)
    def first_sweep():
        masks(tile, inputs, q, k, scratch.seen, scratch.near)
        score_tile(tile, inputs, scratch.near, scratch.tile, q, k)
        each_rows(tile, partial(_add_sums, tile, inputs, scratch, slot), 8)

    @pl.when((sweep == 0) & (k < first_to_stay))
    def lay_by():
        copy(k, back=False).start()

    @pl.when((sweep == 0) & (edge >= LAST))
    def sums():
        each(
            tile, tile.mixed_shape[0], partial(_log_sum_exp, tile, scratch, lse_ref), 4
        )

    @pl.when((sweep == 1) & (k > 0) & (k <= first_to_stay))
    def take_up():
        copy(k - 1, back=True).start()

    @pl.when((sweep == 1) & (k < first_to_stay))
    def scores_there():
        copy(k, back=True).wait()

    @pl.when(sweep == 1)
    def second_sweep():
        masks(tile, inputs, q, k, scratch.seen, None)
        each_rows(tile, partial(_probabilities, tile, inputs, scratch, slot), 8)
        _values(tile, inputs, scratch)

    @pl.when((sweep == 1) & (edge >= LAST))
    def finish():
        out_ref[0] = scratch.out[...].astype(out_ref.dtype)


def _add_sums(tile: Tile, inputs, scratch, slot, at, _):
    score = masked_scores(tile, inputs, scratch.tile, scratch.seen, at)
    scratch.kept[slot, at] = score.astype(tile.dtype)
    columns = [score[:, w * LANES : (w + 1) * LANES] for w in range(tile.cut.windows)]
    old = top = scratch.top[at]
    for column in columns:
        top = jnp.maximum(top, column)
    total = scratch.sum[at] * jnp.exp2(old - top)
    for column in columns:
        total += jnp.exp2(column - top)
    scratch.top[at], scratch.sum[at] = top, total


def _log_sum_exp(tile: Tile, scratch, lse_ref, at):
    """Over the lanes that are not foreign; a row that sees nothing gets -NEVER."""
    # Lanes down: sums over them are sums of whole registers.
    top, total = scratch.top[at].T, scratch.sum[at].T
    lane = jax.lax.broadcasted_iota(jnp.int32, top.shape, 0)
    reach = tile.cut.reach
    top = jnp.where((lane >= reach) & (lane < LANES - reach), top, NEVER)
    largest = top.max(axis=0, keepdims=True)
    total = jnp.where(top > NEVER, total * jnp.exp2(top - largest), 0.0)
    total = total.sum(axis=0, keepdims=True)
    lse = jnp.where(largest > NEVER, largest + jnp.log2(total), -NEVER)
    lse_ref[0, 0, 0, pl.ds(at, 1)] = lse
    scratch.top[at] = jnp.broadcast_to(lse, top.shape).T


def _probabilities(tile: Tile, inputs, scratch, slot, at, phase):
    score = scratch.kept[slot, at]
    lse = scratch.top[at]
    prob = jnp.concatenate(
        [
            jnp.exp2(score[:, w * LANES : (w + 1) * LANES].astype(jnp.float32) - lse)
            for w in range(tile.cut.windows)
        ],
        axis=1,
    )
    if tile.mix_first:
        prob = mix(tile, inputs.post_mix, prob)
    if inputs.taps is None:
        store_rows(tile, scratch.tile, rows_of(tile, at), prob)
    else:
        store_rows(tile, scratch.prob, padded_rows_of(tile, at, phase), prob)


def _values(tile: Tile, inputs, scratch):
    """Steps 6 to 8 of a tile, added to the output."""
    if inputs.taps is not None:
        each(tile, tile.heads, partial(_convolve_head, tile, inputs, scratch), 8)
        if not tile.mix_first:
            each_rows(tile, partial(_mix_rows, tile, inputs, scratch), 8)

    def head(m):
        value = inputs.v[0, kv_head(tile, inputs.v, m)]
        prob = wide(scratch.tile.at[m])
        scratch.out[m] += dot(prob.astype(tile.dtype), value)

    each(tile, tile.heads, head, 8)


def _convolve_head(tile: Tile, inputs, scratch, m):
    for phase, prob in enumerate(convolve_phases(tile, inputs, scratch.prob, m)):
        rows = phase_rows_of(tile, phase)
        prob = prob * scratch.seen[:, rows]
        scratch.tile[m, :, rows] = prob.astype(scratch.tile.dtype)


def _mix_rows(tile: Tile, inputs, scratch, at, _):
    rows = rows_of(tile, at)
    prob = mix(tile, inputs.post_mix, by_rows_view(tile, scratch.tile, rows))
    store_rows(tile, scratch.tile, rows, prob)
