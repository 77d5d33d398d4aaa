"""Logits in chunks of time, forward and backward: [B, T, V] is never held.

The backward pass forms the logits of each chunk again; what is kept between the passes
is (B, T), not (B, T, V). Chunks are cut along T: the batch axis stays cut over the mesh
as it came.

Shapes: B batch, T time, D width, V vocabulary, K choices, C time steps of a chunk,
M = B * C rows of a chunk, P parts into which the mesh cuts the batch.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloop_kernels.lm_head.reference import LmHead, TopTokens, mask_padding

LOGITS = 2**25
"""How many logits a device holds at once, unless one time step alone has more."""


class Plan(NamedTuple):
    """What is fixed at trace time."""

    soft_cap: float | None
    valid: int | None
    chunk: int
    parts: int


def lm_head(
    hidden_BTD: jax.Array,
    vocab_VD: jax.Array,
    target_BT: jax.Array,
    choices_BTK: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 1.0,
    soft_cap: float | None = None,
    valid: int | None = None,
    chunk: int | None = None,
    parts: int = 1,
) -> LmHead:
    """See `jaxloop_kernels.lm_head.lm_head`."""
    plan = _plan(hidden_BTD, vocab_VD, soft_cap, valid, chunk, parts)
    return _lm_head(
        plan, hidden_BTD, vocab_VD, target_BT, choices_BTK, _inverse(temperature)
    )


def top_tokens(
    hidden_BTD: jax.Array,
    vocab_VD: jax.Array,
    count: int,
    *,
    temperature: float | jax.Array = 1.0,
    soft_cap: float | None = None,
    valid: int | None = None,
    chunk: int | None = None,
    parts: int = 1,
) -> TopTokens:
    """See `jaxloop_kernels.lm_head.top_tokens`."""
    plan = _plan(hidden_BTD, vocab_VD, soft_cap, valid, chunk, parts)
    hidden_BTD, vocab_VD = jax.lax.stop_gradient((hidden_BTD, vocab_VD))
    weight_VD, inverse = vocab_VD.astype(hidden_BTD.dtype), _inverse(temperature)

    def rows_top(_, hidden_MD):
        logit_MV, _ = _logits(hidden_MD, weight_VD, plan.soft_cap)
        scaled_MV = mask_padding(logit_MV, plan.valid) * inverse
        top_MK, ids_MK = jax.lax.top_k(scaled_MV, count)
        lse_M1 = jax.nn.logsumexp(scaled_MV, axis=-1, keepdims=True)
        return (), TopTokens(ids_MK, top_MK - lse_M1)

    with jax.named_scope("top_tokens"):
        tops = _scan(rows_top, (), _cut(plan, hidden_BTD))[1]
        B, T, _ = hidden_BTD.shape
        return _join(plan, tops, (B, T))


def _plan(hidden_BTD, vocab_VD, soft_cap, valid, chunk, parts) -> Plan:
    if hidden_BTD.dtype == jnp.float64:
        raise NotImplementedError("lm_head xla: float64; the reference takes it")
    B, T, _ = hidden_BTD.shape
    if chunk is None:
        chunk = max(1, LOGITS // (B // parts * vocab_VD.shape[0]))
    chunks = -(-T // chunk)
    return Plan(soft_cap, valid, chunk=-(-T // chunks), parts=parts)


def _inverse(temperature) -> jax.Array:
    return jax.lax.stop_gradient(1.0 / jnp.asarray(temperature, jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lm_head(plan: Plan, hidden_BTD, vocab_VD, target_BT, choices_BTK, inverse):
    return _forward(plan, hidden_BTD, vocab_VD, target_BT, choices_BTK, inverse)[0]


def _forward(plan: Plan, hidden_BTD, vocab_VD, target_BT, choices_BTK, inverse):
    weight_VD = vocab_VD.astype(hidden_BTD.dtype)

    def rows_stats(_, rows):
        hidden_MD, target_M, choices_MK = rows
        logit_MV, _ = _logits(hidden_MD, weight_VD, plan.soft_cap)
        mean_logit_M = logit_MV[:, : plan.valid].mean(axis=-1)
        scaled_MV = mask_padding(logit_MV, plan.valid) * inverse
        picked_M = jnp.take_along_axis(scaled_MV, target_M[:, None], axis=-1)[:, 0]
        lse_M = jax.nn.logsumexp(scaled_MV, axis=-1)
        logp_MV = scaled_MV - lse_M[:, None]
        choice_logp_MK = None
        if choices_MK is not None:
            choice_logp_MK = jnp.take_along_axis(logp_MV, choices_MK, axis=-1)
        return (), LmHead(
            logp_BT=picked_M - lse_M,
            entropy_BT=-jnp.sum(jnp.exp(logp_MV) * logp_MV, axis=-1),
            hit_BT=(picked_M >= scaled_MV.max(axis=-1)).astype(jnp.float32),
            mean_logit_BT=mean_logit_M,
            lse_BT=lse_M,
            log_sum_sq_BT=jax.nn.logsumexp(2 * logp_MV, axis=-1),
            choice_logp_BTK=choice_logp_MK,
        )

    with jax.named_scope("lm_head"):
        chunks = _cut(plan, (hidden_BTD, target_BT, choices_BTK))
        out = _join(plan, _scan(rows_stats, (), chunks)[1], target_BT.shape)
    arrays = (hidden_BTD, vocab_VD, target_BT, choices_BTK, inverse)
    return out, (*arrays, out.lse_BT, out.entropy_BT)


def _backward(plan: Plan, saved, bar: LmHead):
    hidden_BTD, vocab_VD, target_BT, choices_BTK, inverse, lse_BT, entropy_BT = saved
    weight_VD = vocab_VD.astype(hidden_BTD.dtype)
    V, D = vocab_VD.shape

    def rows_gradient(bar_PVD, rows):
        hidden_MD, target_M, choices_MK, choice_bar_MK, *stats = rows
        lse_M1, entropy_M1, logp_bar_M1, entropy_bar_M1, lse_bar_M1 = (
            stat_M[:, None] for stat_M in stats
        )
        logit_MV, slope_MV = _logits(hidden_MD, weight_VD, plan.soft_cap)
        logp_MV = mask_padding(logit_MV, plan.valid) * inverse - lse_M1
        # d lse = p, d logp = onehot - p, d entropy = -p (log p + entropy)
        entropy_slope_MV = entropy_bar_M1 * (logp_MV + entropy_M1)
        normaliser_bar_M1 = lse_bar_M1 - logp_bar_M1
        if choices_MK is not None:
            normaliser_bar_M1 -= choice_bar_MK.sum(axis=-1, keepdims=True)
        bar_MV = jnp.exp(logp_MV) * (normaliser_bar_M1 - entropy_slope_MV)
        bar_MV += jnp.where(jnp.arange(V) == target_M[:, None], logp_bar_M1, 0.0)
        if choices_MK is not None:
            bar_MV = _add_at(bar_MV, choices_MK, choice_bar_MK)
        bar_MV = (bar_MV * (inverse * slope_MV)).astype(hidden_MD.dtype)
        hidden_bar_MD = _einsum("MV,VD->MD", bar_MV, weight_VD)
        # One sum a part of the batch: parts meet once, after the last chunk.
        bar_PMV, hidden_PMD = (
            x.reshape(plan.parts, -1, x.shape[-1]) for x in (bar_MV, hidden_MD)
        )
        bar_PVD += _einsum("PMV,PMD->PVD", bar_PMV, hidden_PMD)
        return bar_PVD, hidden_bar_MD.astype(hidden_MD.dtype)

    with jax.named_scope("lm_head_backward"):
        choices = (choices_BTK, bar.choice_logp_BTK)
        stats = (lse_BT, entropy_BT, bar.logp_BT, bar.entropy_BT, bar.lse_BT)
        chunks = _cut(plan, (hidden_BTD, target_BT, *choices, *stats))
        zero_PVD = jnp.zeros((plan.parts, V, D), jnp.float32)
        bar_PVD, hidden_bar = _scan(rows_gradient, zero_PVD, chunks)
        hidden_bar_BTD = _join(plan, hidden_bar, target_BT.shape)
        vocab_bar_VD = bar_PVD.sum(axis=0).astype(vocab_VD.dtype)
    return hidden_bar_BTD, vocab_bar_VD, None, None, None


_lm_head.defvjp(_forward, _backward)

_einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _logits(hidden_MD, weight_VD, soft_cap: float | None):
    """The logits and their slope in the products before the soft cap."""
    logit_MV = _einsum("MD,VD->MV", hidden_MD, weight_VD)
    if soft_cap is None:
        return logit_MV, 1.0
    tanh_MV = jnp.tanh(logit_MV / soft_cap)
    return soft_cap * tanh_MV, 1.0 - tanh_MV**2


@jax.vmap
def _add_at(x_V, at_K, more_K):
    """A choice that occurs twice gets both."""
    return x_V.at[at_K].add(more_K)


def _cut(plan: Plan, tree):
    """(B, T, ...) arrays to (chunks, B * C, ...), T padded with zeros."""

    def cut(x):
        B, T, *rest = x.shape
        chunks = -(-T // plan.chunk)
        pad = [(0, 0), (0, chunks * plan.chunk - T)] + [(0, 0)] * len(rest)
        x = jnp.pad(x, pad).reshape(B, chunks, plan.chunk, *rest)
        return jnp.moveaxis(x, 1, 0).reshape(chunks, B * plan.chunk, *rest)

    return jax.tree.map(cut, tree)


def _join(plan: Plan, tree, shape: tuple[int, int]):
    """Undoes `_cut`."""
    B, T = shape

    def join(x):
        chunks, _, *rest = x.shape
        x = jnp.moveaxis(x.reshape(chunks, B, plan.chunk, *rest), 0, 1)
        return x.reshape(B, chunks * plan.chunk, *rest)[:, :T]

    return jax.tree.map(join, tree)


def _scan(body, carry, chunks):
    """`lax.scan`, without a loop where there is one chunk only."""
    if jax.tree.leaves(chunks)[0].shape[0] > 1:
        return jax.lax.scan(body, carry, chunks)
    carry, out = body(carry, jax.tree.map(lambda x: x[0], chunks))
    return carry, jax.tree.map(lambda x: x[None], out)
