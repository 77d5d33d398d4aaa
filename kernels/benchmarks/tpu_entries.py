"""What `tpu_schedule.py` measures: ops, their shapes and their block sizes.

An op is a function from a shape and block sizes to a function and its abstract
arguments. Layouts are those that the op's own callers have.

Shapes: B batch, T time, N query heads, K kv heads, H head size, D width, V vocabulary,
M rows of hidden states.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tpu_paged
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from tpu_op import Blocks, Op, bf16

from jaxloop_kernels.attention import pallas_tpu as attention
from jaxloop_kernels.lm_head import pallas_tpu as lm_head
from jaxloop_kernels.multi_token_attention import (
    identity,
    pallas_tpu,
    reference,
)
from jaxloop_kernels.multi_token_attention import pallas_tpu_mixing as mixing
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_inputs import (
    convolved,
    cut_inputs,
)
from jaxloop_kernels.paged_attention.shapes import SHAPES as PAGED
from jaxloop_kernels.schedule import tracing_for


class Heads(NamedTuple):
    B: int
    T: int
    N: int
    K: int
    H: int


ATTENTION = {
    "2k": Heads(B=1, T=2048, N=8, K=8, H=128),
    "8k": Heads(B=1, T=8192, N=8, K=8, H=128),
    "880m": Heads(B=2, T=2048, N=16, K=16, H=96),
    "llama": Heads(B=1, T=8192, N=32, K=8, H=128),
}


class Product(NamedTuple):
    M: int
    D: int
    V: int


LM_HEAD = {
    "qwen-0.5b": Product(M=2048, D=896, V=151_936),
    "qwen-8b": Product(M=2048, D=4096, V=151_936),
}


def backward(fn: Callable, count: int = 3) -> Callable:
    """Gradients of fn in its first arguments, with the forward pass that they need."""

    def summed(*args):
        return fn(*args).astype(jnp.float32).sum()

    return jax.grad(summed, tuple(range(count)))


def _splash(shape: Heads, blocks: Blocks, chip: str):
    """jax's splash attention, causal, in its own layout."""
    B, T, N, K, H = shape
    q, k = blocks.get("block_q", 512), blocks.get("block_k", 512)
    compute = blocks.get("block_compute", k)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=q,
        block_kv=k,
        block_kv_compute=compute,
        block_q_dkv=q,
        block_kv_dkv=k,
        block_kv_dkv_compute=compute,
        block_q_dq=None if blocks.get("fused") else q,
        block_kv_dq=None if blocks.get("fused") else k,
        use_fused_bwd_kernel=bool(blocks.get("fused")),
    )
    mask = splash_attention_mask.CausalMask((T, T))
    fn = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * N),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
    )
    if B == 1:
        return fn, (bf16(N, T, H), bf16(K, T, H), bf16(K, T, H))
    return jax.vmap(fn), (bf16(B, N, T, H), bf16(B, K, T, H), bf16(B, K, T, H))


def _splash_backward(shape: Heads, blocks: Blocks, chip: str):
    fn, args = _splash(shape, blocks, chip)
    return backward(fn), args


def _product(shape: Product, blocks: Blocks, chip: str):
    def logits(hidden_MD, vocab_VD):
        return jnp.einsum("MD,VD->MV", hidden_MD, vocab_VD)

    return logits, (bf16(shape.M, shape.D), bf16(shape.V, shape.D))


def _lm_head(shape: Product, blocks: Blocks, chip: str):
    """All of its numbers."""

    def all_of(hidden_MD, vocab_VD, target_M):
        arrays = (hidden_MD[None], vocab_VD, target_M[None])
        how: dict[str, Any] = {"interpret": False, **blocks}
        return lm_head.lm_head(*arrays, **how)

    target_M = jax.ShapeDtypeStruct((shape.M,), jnp.int32)
    return all_of, (bf16(shape.M, shape.D), bf16(shape.V, shape.D), target_M)


def _lm_head_backward(shape: Product, blocks: Blocks, chip: str):
    fn, args = _lm_head(shape, blocks, chip)

    def trained(*arrays):
        out = fn(*arrays)
        return out.logp_BT + out.entropy_BT

    return backward(trained, count=2), args


def _mta(shape: Heads, **parts: Any) -> tuple:
    """Queries, keys, values and the named parts of `identity`."""
    B, T, N, K, H = shape
    parts = {"pre": None, "post": None} | parts
    mta = jax.eval_shape(lambda: identity(N, H, **parts))
    return bf16(B, T, N, H), bf16(B, T, K, H), bf16(B, T, K, H), mta


def _convolving(
    shape: Heads,
    blocks: Blocks,
    chip: str,
    rank: int | None = None,
    gradient: bool = False,
):
    """The kernels of the convolution before the softmax alone: XLA's part around them
    takes a minute to compile, the kernels seconds."""
    arrays = _mta(shape, **PRE)

    def inputs(*arrays):
        *qkv, mta = arrays
        q, k, v = (x.swapaxes(1, 2) for x in qkv)
        scale = shape.H**-0.5
        kernel, segments = mta.pre_NAC, None
        wide = pallas_tpu.widened_logits(plan, q, k, kernel, scale, rank, segments)
        return *wide, v

    with tracing_for(chip):
        sizes = blocks.get("block_q"), blocks.get("block_k")
        plan = pallas_tpu.plan_of(shape.T, arrays[-1], *sizes, False, rank)
        args = jax.eval_shape(inputs, *arrays)
        forward = partial(pallas_tpu.attend_forward, plan)
        out, saved = jax.eval_shape(forward, *args)
    if gradient:
        return partial(pallas_tpu.attend_backward, plan), (saved, out)
    return (lambda *args: forward(*args)[0]), args


def _mixing(shape: Heads, blocks: Blocks, chip: str, gradient: bool = False):
    """The kernels of the full stack alone, as `_convolving`."""
    arrays = _mta(shape, **FULL)
    scale = shape.H**-0.5
    with tracing_for(chip):
        how = {"order": "convolve_first", "interpret": False, **blocks}
        run = mixing.plan(*arrays, scale=scale, **how)
        tile = run.backward if gradient else run.forward

        def inputs(*arrays):
            return cut_inputs(tile, convolved(tile, *arrays, scale=scale))

        args = (jax.eval_shape(inputs, *arrays),)
        how = {"vmem": run.vmem, "interpret": False}
        kernels = partial(mixing.forward, tile, **how)
        if gradient:
            args = (*args, *reversed(jax.eval_shape(kernels, *args)))
            kernels = partial(mixing.backward, tile, **how)
    return kernels, args


def _mta_dense(shape: Heads, blocks: Blocks, chip: str):
    """The reference as XLA compiles it, with the scores of all heads in memory."""
    args = _mta(shape, **FULL)
    return partial(reference.core, scale=shape.H**-0.5, order="convolve_first"), args


def _attention(shape: Heads, blocks: Blocks, chip: str):
    B, T, N, K, H = shape
    core = partial(attention.core, scale=H**-0.5, interpret=False, **blocks)
    return core, (bf16(B, T, N, H), bf16(B, T, K, H), bf16(B, T, K, H))


def _attention_backward(shape: Heads, blocks: Blocks, chip: str):
    fn, args = _attention(shape, blocks, chip)
    return backward(fn), args


PRE = {"pre": (6, 11)}
FULL = {"pre": (6, 11), "post": (6, 11), "pre_group": 16, "post_group": 16}
SIXTEEN = {
    # Two rows: the kernel with mixes has one program a row, a v5p has two cores.
    "2k16": Heads(B=2, T=2048, N=16, K=16, H=128),
    "8k16": Heads(B=2, T=8192, N=16, K=16, H=128),
    "880m": ATTENTION["880m"],
}


def _keys(*sizes: int) -> tuple[Blocks, ...]:
    return tuple({"keys": size} for size in sizes)


def _choices(*pairs: tuple[int, int], **also: int) -> tuple[Blocks, ...]:
    return tuple({"block_q": q, "block_k": k} | also for q, k in pairs)


_SQUARES = _choices((512, 512), (512, 1024), (1024, 1024))
_SPLASH_BLOCKS = (
    *_SQUARES,
    *_choices((512, 1024), (1024, 1024), (2048, 2048), block_compute=512),
)

OPS: dict[str, Op] = {
    "splash": Op(_splash, ATTENTION | SIXTEEN, _SPLASH_BLOCKS),
    "splash_backward": Op(
        _splash_backward,
        ATTENTION | SIXTEEN,
        (*_SQUARES, *_choices((512, 512), (1024, 1024), fused=1)),
        only="_d(q|kv)_",
    ),
    "attention": Op(_attention, ATTENTION | SIXTEEN, _SQUARES, "splash"),
    "attention_backward": Op(
        _attention_backward,
        ATTENTION | SIXTEEN,
        _SQUARES,
        "splash_backward",
        only="_d(q|kv)_",
    ),
    "mta_pre": Op(
        _convolving,
        ATTENTION,
        ({}, *_choices((256, 512), (256, 1024), (512, 1024), (256, 256))),
        "splash",
    ),
    "mta_rank2": Op(
        partial(_convolving, rank=2),
        ATTENTION,
        ({}, *_choices((256, 512), (256, 1024), (512, 1024), (256, 256))),
        "splash",
    ),
    "mta_pre_backward": Op(
        partial(_convolving, gradient=True), ATTENTION, ({},), "splash_backward"
    ),
    "mta_full": Op(_mixing, SIXTEEN, ({},), "splash"),
    "mta_full_backward": Op(
        partial(_mixing, gradient=True), SIXTEEN, ({},), "splash_backward"
    ),
    "mta_dense": Op(_mta_dense, SIXTEEN, ({},), "splash"),
    "product": Op(_product, LM_HEAD),
    "lm_head": Op(
        _lm_head,
        LM_HEAD,
        ({}, {"chunk": 128}, {"chunk": 256}, {"chunk": 512}),
        "product",
        "forward",
    ),
    "lm_head_backward": Op(_lm_head_backward, LM_HEAD, ({},), "product", "backward"),
    "paged_jax": Op(
        tpu_paged.jax_first,
        tpu_paged.FULL,
        _keys(512, 1024, 2048, 4096),
        counts=tpu_paged.jax_first_counts,
    ),
    "paged_ragged": Op(
        tpu_paged.jax_ragged,
        tpu_paged.FULL,
        tuple(
            blocks | {"block_q": q} for q in (1, 4, 8) for blocks in _keys(512, 1024)
        ),
        counts=tpu_paged.jax_ragged_counts,
    ),
    "paged_attention": Op(
        tpu_paged.ours,
        tpu_paged.FULL | PAGED,
        _keys(512, 256, 1024),
        "paged_ragged",
        counts=tpu_paged.ours_counts,
    ),
}

Job = tuple[str, str, str, tuple[tuple[str, int], ...]]
"""Op, shape, chip, blocks."""


def jobs_of(op: str, shape: str, chip: str, given: Blocks, sweep: bool) -> list[Job]:
    """With the given blocks, else the op's own, the first of them or all."""
    choices = OPS[op].blocks
    chosen = [given] if given else list(choices) if sweep else [choices[0]]
    return [(op, shape, chip, tuple(sorted(blocks.items()))) for blocks in chosen]


COMPILED: dict[str, Any] = {
    "attention_backward": Heads(B=1, T=2048, N=2, K=1, H=128),
    "mta_pre": Heads(B=1, T=1024, N=2, K=2, H=96),
    "lm_head_backward": Product(M=2048, D=896, V=151_936),
    "paged_attention": next(iter(PAGED.values())),
}
"""Kernels of ours at a shape each that compiles in a few seconds: XLA's part around a
kernel takes most of the time, and grows with the heads; the kernel does not."""

FURTHER = ("mta_pre_backward", "mta_full", "mta_full_backward")
"""Compiled where there is time."""
