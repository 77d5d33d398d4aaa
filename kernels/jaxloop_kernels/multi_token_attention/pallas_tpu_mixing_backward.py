"""The backward kernels of Multi-Token Attention with head mixes.

Three passes over the visible tiles; each rebuilds a tile's probabilities from scores
and log-sum-exp:

- `delta`: sum over keys of prob * d prob, for each row and head. With anything after
  the softmax that is not sum(out * d out) of the head: it needs a pass of its own;
- `queries`: d q and d band, for each block of rows over its keys;
- `keys`: d k and d v, for each block of keys over its rows, and the gradients of the
  mixes and of the convolution's matrices over everything.

A tile's part of d prob counts only the rows and keys that the tile has as its own; what
they owe to rows and keys that it has as foreign ones is added up after the kernels, as
everything from there on is linear in it. The one term that is not, prob * delta, is
taken where row and key both are the tile's own.
"""

from functools import partial
from math import log
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_gradients import (
    add_delta,
    convolved,
    probabilities,
    through_band,
    through_late_mix,
    through_scores,
    through_softmax,
    through_taps,
    through_values,
    write_delta,
)
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_layout import (
    FIRST,
    LANES,
    LAST,
    by_keys,
    by_rows,
    sum_rows,
)
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_tile import (
    Inputs,
    Tile,
    clear_padding,
    each,
    each_rows,
    masks,
    meets_band,
    score_tile,
    specs,
    stats_by_row,
    stats_of_rows,
)

Pass = Literal["delta", "queries", "keys"]


class Saved(NamedTuple):
    """What the passes take beside the inputs of the forward kernel."""

    out_bar: Any
    """(B, N, I, H)."""
    lse: Any
    """(B, G, blocks of rows, blocks of R rows, M R)."""
    delta: Any = None
    """The same; None in the pass that finds it."""
    taps_back: Any = None
    """(N, A 128, 128): each of the taps' matrices transposed."""


class Grads(NamedTuple):
    """Outputs of the passes, each has its own; names as those of `Inputs`."""

    delta: Any = None
    q: Any = None
    band: Any = None
    k: Any = None
    v: Any = None
    pre_mix: Any = None
    taps: Any = None
    post_mix: Any = None


class Scratch(NamedTuple):
    seen: Any
    near: Any
    score: Any
    """By head, then the gradient of the same."""
    prob: Any
    """By rows: (blocks of R rows, M R, block_k)."""
    grad: Any
    """By head: what goes back through the values, then before the convolution."""
    bar: Any
    """Padded below: gradient of the convolution's output. None without one."""
    before: Any
    """Padded above: the convolution's input. Pass `keys` only, as `after`."""
    after: Any
    """By head: what multiplies the values."""
    delta: Any
    """By rows, a lane for itself."""
    q: Any
    band: Any
    k: Any
    v: Any


def backward(
    tile: Tile, inputs: Inputs, lse, out_bar, *, vmem: int, interpret
) -> Inputs:
    """Gradients of the inputs, None for those of segments."""
    saved = Saved(out_bar, lse, taps_back=_transposed(inputs.taps))
    call = partial(_call, tile, inputs, vmem=vmem, interpret=interpret)
    delta = call("delta", saved).delta
    saved = saved._replace(delta=_of_all_blocks(tile, delta))
    queries, keys = call("queries", saved), call("keys", saved)

    def of_all(x, like, factor=1.0):
        if x is not None:
            x = factor * x.sum(axis=0).reshape(like.shape)
            return x.astype(like.dtype)

    return Inputs(
        q=queries.q,
        k=keys.k,
        v=keys.v,
        band=queries.band,
        pre_mix=of_all(keys.pre_mix, inputs.pre_mix, log(2)),
        taps=of_all(keys.taps, inputs.taps),
        post_mix=of_all(keys.post_mix, inputs.post_mix),
    )


def _transposed(taps):
    if taps is None:
        return None
    square = taps.reshape(taps.shape[0], -1, LANES, LANES)
    return square.mT.reshape(taps.shape)


def _of_all_blocks(tile: Tile, delta):
    """A row's parts from all blocks that have it, added up and given back to each."""
    cut = tile.cut
    if not cut.lags:
        return delta
    total_BNI1 = sum_rows(cut, stats_by_row(tile, delta))
    return stats_of_rows(tile, total_BNI1)


def _call(tile: Tile, inputs: Inputs, name: Pass, saved: Saved, *, vmem, interpret):
    steps = by_keys(tile.cut) if name == "keys" else by_rows(tile.cut)
    B, N = inputs.q.shape[:2]
    shapes, out_specs = _outputs(tile, inputs, saved, name)
    (grads,) = pl.pallas_call(
        partial(_kernel, tile, name),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(steps),
            grid=(B, N // tile.heads, len(steps.q)),
            in_specs=[specs(tile, inputs), _saved_specs(tile, inputs, saved)],
            out_specs=[out_specs],
            scratch_shapes=[_scratch(tile, inputs, name)],
        ),
        out_shape=[shapes],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=vmem,
        ),
        interpret=interpret,
        name=f"mta_mixing_{name}",
    )(*steps, inputs, saved)
    return grads


def _saved_specs(tile: Tile, inputs: Inputs, saved: Saved) -> Saved:
    like = specs(tile, inputs)
    stat = _stat_spec(tile)
    H = saved.out_bar.shape[-1]
    rows = (1, tile.heads, tile.cut.block_q, H)
    return Saved(
        out_bar=pl.BlockSpec(rows, lambda b, g, s, q, *_: (b, g, q[s], 0)),
        lse=stat,
        delta=None if saved.delta is None else stat,
        taps_back=like.taps,
    )


def _stat_spec(tile: Tile):
    blocks, MR, _ = tile.mixed_shape
    block = (1, 1, 1, blocks, MR)
    return pl.BlockSpec(block, lambda b, g, s, q, *_: (b, g, q[s], 0, 0))


def _outputs(tile: Tile, inputs: Inputs, saved: Saved, name: Pass):
    """Shapes and blocks of a pass's gradients."""
    B, like = inputs.q.shape[0], specs(tile, inputs)

    def same(x):
        return None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype)

    def summed(x):
        """(B, groups, ...) float32: over all steps of a group."""
        if x is None:
            return None, None
        groups = inputs.q.shape[1] // tile.heads
        block = (x.shape[0] // groups, *x.shape[1:])
        shape = jax.ShapeDtypeStruct((B, groups, *block), jnp.float32)
        spec = pl.BlockSpec(
            (1, 1, *block),
            lambda b, g, *_: (b, g, 0, 0, 0),
            pipeline_mode=pl.Buffered(1),
        )
        return shape, spec

    if name == "delta":
        return Grads(delta=same(saved.lse)), Grads(delta=_stat_spec(tile))
    if name == "queries":
        shapes = Grads(q=same(inputs.q), band=same(inputs.band))
        return shapes, Grads(q=like.q, band=like.band)
    sums = {x: summed(getattr(inputs, x)) for x in ("pre_mix", "taps", "post_mix")}
    return (
        Grads(
            k=same(inputs.k), v=same(inputs.v), **{n: x for n, (x, _) in sums.items()}
        ),
        Grads(k=like.k, v=like.v, **{n: x for n, (_, x) in sums.items()}),
    )


def _scratch(tile: Tile, inputs: Inputs, name: Pass) -> Scratch:
    cut, f32 = tile.cut, jnp.float32
    blocks, MR, _ = tile.mixed_shape
    mask = pltpu.VMEM((cut.windows, cut.block_q, LANES), f32)
    by_head = pltpu.VMEM(tile.tile_shape, tile.stored)
    padded = None if inputs.taps is None else pltpu.VMEM(tile.padded_shape, f32)
    keys, queries = name == "keys", name == "queries"

    def of_keys(x):
        heads = x.shape[1] * tile.heads // inputs.q.shape[1]
        return pltpu.VMEM((heads, cut.block_k, x.shape[-1]), f32) if keys else None

    def of_rows(x):
        if x is not None and queries:
            rows = x.shape[2] // cut.q_blocks
            return pltpu.VMEM((tile.heads, rows, x.shape[-1]), f32)

    return Scratch(
        seen=mask,
        near=None if inputs.band is None else mask,
        score=by_head,
        prob=pltpu.VMEM((blocks, MR, cut.block_k), tile.dtype),
        grad=by_head,
        bar=padded,
        before=padded if keys else None,
        after=by_head if keys else None,
        delta=pltpu.VMEM(tile.mixed_shape, f32) if name == "delta" else None,
        q=of_rows(inputs.q),
        band=of_rows(inputs.band),
        k=of_keys(inputs.k),
        v=of_keys(inputs.v),
    )


def _kernel(tile, name: Pass, qs, ks, _, edges, inputs, saved, grads, scratch):
    s = pl.program_id(2)
    q, k, edge = qs[s], ks[s], edges[s]
    sums = {"delta": scratch.delta, "q": scratch.q, "band": scratch.band,
            "k": scratch.k, "v": scratch.v}  # fmt: skip
    sums = {key: ref for key, ref in sums.items() if ref is not None}

    @pl.when(s == 0)
    def start():
        for ref in (grads.pre_mix, grads.taps, grads.post_mix):
            if ref is not None:
                ref[...] = jnp.zeros_like(ref)
        if scratch.bar is not None:
            clear_padding(tile, scratch.bar, below=True)
        if scratch.before is not None:
            clear_padding(tile, scratch.before)

    @pl.when(edge % 2 == FIRST)
    def clear():
        for ref in sums.values():
            ref[...] = jnp.zeros_like(ref)

    def heads(body, *refs):
        each(tile, tile.heads, partial(body, tile, *refs), 2)

    def rows(body, *refs):
        each_rows(tile, partial(body, tile, *refs), 4)

    masks(tile, inputs, q, k, scratch.seen, scratch.near)
    score_tile(tile, inputs, scratch.near, scratch.score, q, k)
    rows(probabilities, inputs, saved, scratch)
    heads(through_values, inputs, saved, scratch)
    if not tile.mix_first:
        if name == "keys":
            heads(convolved, inputs, scratch)
        rows(through_late_mix, inputs, grads, scratch)
    heads(through_taps, inputs, saved, grads, scratch)
    if name == "delta":
        rows(add_delta, inputs, scratch)
    else:
        rows(through_softmax, inputs, saved, grads, scratch)
        heads(through_scores, inputs, scratch)
    if scratch.band is not None:

        @pl.when(meets_band(tile, q, k))
        def band():
            heads(through_band, scratch)

    @pl.when(edge >= LAST)
    def finish():
        if name == "delta":
            write_delta(tile, scratch, grads.delta)
            return
        # Scores are in bits, of which a nat has log2(e).
        factors = {"q": tile.scale * log(2), "k": tile.scale * log(2), "band": log(2)}
        for key, ref in sums.items():
            factor = factors.get(key, 1.0)
            out = getattr(grads, key)
            out[0] = (ref[...] * factor).astype(out.dtype)
