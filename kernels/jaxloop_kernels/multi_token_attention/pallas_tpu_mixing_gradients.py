"""What the backward kernels do with one tile, step by step.

`scratch` is `pallas_tpu_mixing_backward.Scratch`, which says what is where. Only the
pass `keys` has `scratch.after`.

Shapes: M heads of a group, R rows mixed at once, w window of a block.
"""

import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxloop_kernels.multi_token_attention import pairing
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_layout import LANES
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_taps import (
    convolve,
    convolve_back,
    lagged_rows,
)
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_tile import (
    PAD,
    Tile,
    all_heads,
    by_rows_view,
    columns,
    dot,
    each,
    kv_head,
    masked_scores,
    mix,
    owned,
    padded_rows_of,
    phase_rows_of,
    rows_of,
    store_rows,
    wide,
)


def _lanes(stat_ref, at):
    """(M R, 128) of row `at` of a block of statistics, a lane like another."""
    row = stat_ref[0, 0, 0, pl.ds(at, 1)]
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _across(tile: Tile, x):
    """(M R, block_k) of (M R, 128)."""
    return jnp.concatenate([x] * tile.cut.windows, axis=1)


def probabilities(tile, inputs, saved, scratch, at, phase):
    score = masked_scores(tile, inputs, scratch.score, scratch.seen, at)
    lse = _across(tile, _lanes(saved.lse, at))
    score = score.astype(tile.dtype).astype(jnp.float32)  # as the forward kernel keeps
    prob = jnp.exp2(score - lse)
    scratch.prob[at] = prob.astype(tile.dtype)
    if scratch.after is None:
        return
    if tile.mix_first:
        prob = mix(tile, inputs.post_mix, prob)
    if scratch.before is None:
        store_rows(tile, scratch.after, rows_of(tile, at), prob)
    else:
        store_rows(tile, scratch.before, padded_rows_of(tile, at, phase), prob)


def through_values(tile, inputs, saved, scratch, m):
    """Step 8 backward: d out . v."""
    value = inputs.v[0, kv_head(tile, inputs.v, m)]
    bar = dot(saved.out_bar[0, m], value, (1, 1))
    for w in range(tile.cut.windows):
        part = bar[:, w * LANES : (w + 1) * LANES]
        if scratch.bar is None or not tile.mix_first:
            scratch.grad[m, w] = part.astype(scratch.grad.dtype)
            continue
        part = jnp.where(scratch.seen[w] > 0, part, 0.0)
        for phase in range(tile.cut.phases):
            here = pl.ds(phase * (tile.phase_rows + PAD), tile.phase_rows)
            scratch.bar[m, w, here] = part[phase_rows_of(tile, phase)]


def convolved(tile, inputs, scratch, m):
    """Step 6 once more: what is mixed, or multiplies the values."""
    for phase in range(tile.cut.phases):
        rows = phase_rows_of(tile, phase)
        prob = convolve(tile, inputs, scratch.before, m, phase) * scratch.seen[:, rows]
        scratch.after[m, :, rows] = prob.astype(scratch.after.dtype)


def through_late_mix(tile, inputs, grads, scratch, at, phase):
    """Step 7 backward where it comes after the convolution, then step 6's mask."""
    rows = rows_of(tile, at)
    bar = by_rows_view(tile, scratch.grad, rows)
    if scratch.after is not None:
        prob = by_rows_view(tile, scratch.after, rows)
        _add_outer(tile, grads.post_mix, bar, prob)
        store_rows(tile, scratch.after, rows, mix(tile, inputs.post_mix, prob))
    bar = mix(tile, inputs.post_mix, bar, side=0)
    bar = jnp.where(all_heads(tile, wide(scratch.seen, rows)) > 0, bar, 0.0)
    store_rows(tile, scratch.bar, padded_rows_of(tile, at, phase, pad=0), bar)


def _add_outer(tile, ref, bar, x):
    """Gradient of a mix's matrix: of the tile's rows, sum over keys of bar x."""
    if ref is not None:
        ref[0, 0, 0] += dot(bar.astype(tile.dtype), x.astype(tile.dtype), (1, 1))


def through_taps(tile, inputs, saved, grads, scratch, m):
    """Step 6 backward, and the gradients of its matrices and of the values."""
    if scratch.bar is not None and scratch.after is not None and tile.mix_first:
        convolved(tile, inputs, scratch, m)
    if scratch.after is not None:
        prob = wide(scratch.after.at[m]).astype(tile.dtype)
        kv = kv_head(tile, inputs.v, m)
        scratch.v[kv] += dot(prob, saved.out_bar[0, m], (0, 0))
    if scratch.bar is None:
        return
    for phase in range(tile.cut.phases):
        if scratch.before is not None:
            x = lagged_rows(tile, inputs, scratch.before, m, phase)
            start = phase * (tile.phase_rows + PAD)
            bar = scratch.bar[m, :, start : start + tile.phase_rows]
            bar = bar.reshape(-1, LANES).astype(tile.dtype)
            grads.taps[0, 0, m] += dot(x, bar, (0, 0))
        bar = convolve_back(tile, inputs, saved.taps_back, scratch.bar, m, phase)
        rows = phase_rows_of(tile, phase)
        scratch.grad[m, :, rows] = bar.astype(scratch.grad.dtype)


def _prob_bar(tile, inputs, scratch, at):
    """(M R, block_k) float32: d prob of step 5, and what comes back to an early mix."""
    bar = by_rows_view(tile, scratch.grad, rows_of(tile, at))
    if tile.mix_first:
        return mix(tile, inputs.post_mix, bar, side=0), bar
    return bar.astype(jnp.float32), None


def add_delta(tile, inputs, scratch, at, _):
    bar, _ = _prob_bar(tile, inputs, scratch, at)
    both = bar * scratch.prob[at].astype(jnp.float32)
    for w in range(tile.cut.windows):
        scratch.delta[at] += both[:, w * LANES : (w + 1) * LANES]


def write_delta(tile, scratch, delta_ref):
    def rows(at):
        total = scratch.delta[at].T.sum(axis=0, keepdims=True)
        delta_ref[0, 0, 0, pl.ds(at, 1)] = total

    each(tile, tile.mixed_shape[0], rows)


def through_softmax(tile, inputs, saved, grads, scratch, at, phase):
    """Steps 5 and 4 backward."""
    rows, prob = rows_of(tile, at), scratch.prob[at]
    bar, mixed_bar = _prob_bar(tile, inputs, scratch, at)
    if scratch.after is not None and tile.mix_first:
        _add_outer(tile, grads.post_mix, mixed_bar, prob)
    delta = _across(tile, _lanes(saved.delta, at))
    own = all_heads(tile, owned(tile, at, phase))
    bar = prob.astype(jnp.float32) * (bar - jnp.where(own, delta, 0.0))
    if scratch.after is not None:
        _add_outer(tile, grads.pre_mix, bar, by_rows_view(tile, scratch.score, rows))
    store_rows(tile, scratch.score, rows, mix(tile, inputs.pre_mix, bar, side=0))


def through_scores(tile, inputs, scratch, m):
    """The products of step 3, widened, backward."""
    rows = jnp.split(wide(scratch.score.at[m]), tile.shared)
    bars = pairing.split(rows, tile.shared)
    kv = kv_head(tile, inputs.k, m)
    for e, bar in zip(columns(tile, inputs.k), bars, strict=True):
        bar = bar.astype(tile.dtype)
        if scratch.q is not None:
            scratch.q[m, :, e] += dot(bar, inputs.k[0, kv, :, e])
        if scratch.k is not None:
            scratch.k[kv, :, e] += dot(bar, inputs.q[0, m, :, e], (0, 0))


def through_band(tile, scratch, m):
    """What step 3 subtracts near the diagonal, backward."""
    for w in range(tile.cut.windows):
        part = scratch.score[m, w].astype(jnp.float32)
        scratch.band[m] -= part * scratch.near[w]
