"""Logits in chunks of time, forward and backward: [B, T, V] is never held.

The backward pass forms the logits of each chunk again; what is kept between the passes
is (B, T), not (B, T, V). Chunks are cut along T: the batch axis stays cut over the mesh
as it came.

Shapes: B batch, T time, D width, V vocabulary, K choices, C time steps of a chunk,
M = B * C rows of a chunk, P parts into which the mesh cuts the batch. Under `shards`
B and V are a device's own, and ids count from the first of all rows.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloop_kernels.lm_head.passes import Arrays, Passes, Shards, run
from jaxloop_kernels.lm_head.reference import LmHead, TopTokens, mask_padding

LOGITS = 2**25
"""How many logits a device holds at once, unless one time step alone has more."""


class Plan(NamedTuple):
    """What is fixed at trace time."""

    soft_cap: float | None
    valid: int | None
    chunk: int
    parts: int
    axis: str | None = None
    """The mesh axis, if any, that cuts the vocabulary."""


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
    chunk: int | None = None,
    parts: int = 1,
) -> LmHead:
    """See `jaxloop_kernels.lm_head.lm_head`."""
    if shards is None:
        plan = _plan(hidden_BTD, vocab_VD, soft_cap, valid, chunk, parts)
    else:
        parts, cuts = shards.sizes()
        plan = _plan(hidden_BTD, vocab_VD, soft_cap, valid, chunk, parts, cuts)
        plan = plan._replace(parts=1, axis=shards.vocab)
    inverse = _inverse(temperature)
    arrays = Arrays(hidden_BTD, vocab_VD, target_BT, choices_BTK, inverse)
    return run(Passes(_forward, _backward, plan), shards, arrays)


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


def _plan(hidden_BTD, vocab_VD, soft_cap, valid, chunk, parts, cuts=1) -> Plan:
    if hidden_BTD.dtype == jnp.float64:
        raise NotImplementedError("lm_head xla: float64; the reference takes it")
    B, T, _ = hidden_BTD.shape
    if chunk is None:
        chunk = max(1, LOGITS // (B // parts * vocab_VD.shape[0] // cuts))
    chunks = -(-T // chunk)
    return Plan(soft_cap, valid, chunk=-(-T // chunks), parts=parts)


def _inverse(temperature) -> jax.Array:
    return jax.lax.stop_gradient(1.0 / jnp.asarray(temperature, jnp.float32))


def _forward(plan: Plan, arrays: Arrays) -> LmHead:
    hidden_BTD, vocab_VD, target_BT, choices_BTK, inverse = arrays
    weight_VD = vocab_VD.astype(hidden_BTD.dtype)
    tokens = plan.valid or vocab_VD.shape[0] * _size(plan)
    valid = _valid(plan, vocab_VD)

    def rows_stats(_, rows):
        hidden_MD, target_M, choices_MK = rows
        logit_MV, _ = _logits(hidden_MD, weight_VD, plan.soft_cap)
        mean_logit_M = _total(plan, mask_padding(logit_MV, valid, 0.0)) / tokens
        scaled_MV = mask_padding(logit_MV, valid) * inverse
        picked_M = _pick(plan, scaled_MV, target_M[:, None])[:, 0]
        top_M = _max(plan, scaled_MV)
        lse_M = top_M + jnp.log(_total(plan, jnp.exp(scaled_MV - top_M[:, None])))
        logp_MV = scaled_MV - lse_M[:, None]
        p_MV = jnp.exp(logp_MV)
        choice_logp_MK = None
        if choices_MK is not None:
            choice_logp_MK = _pick(plan, logp_MV, choices_MK)
        return (), LmHead(
            logp_BT=picked_M - lse_M,
            entropy_BT=-_total(plan, p_MV * logp_MV),
            hit_BT=(picked_M >= top_M).astype(jnp.float32),
            mean_logit_BT=mean_logit_M,
            lse_BT=lse_M,
            # Some p is at least 1 / V: what underflows is nothing beside its square.
            log_sum_sq_BT=jnp.log(_total(plan, p_MV * p_MV)),
            choice_logp_BTK=choice_logp_MK,
        )

    with jax.named_scope("lm_head"):
        chunks = _cut(plan, (hidden_BTD, target_BT, choices_BTK))
        return _join(plan, _scan(rows_stats, (), chunks)[1], target_BT.shape)


def _backward(plan: Plan, arrays: Arrays, lse_BT, entropy_BT, bar: LmHead):
    hidden_BTD, vocab_VD, target_BT, choices_BTK, inverse = arrays
    weight_VD = vocab_VD.astype(hidden_BTD.dtype)
    V, D = vocab_VD.shape
    first, valid = _first(plan, vocab_VD), _valid(plan, vocab_VD)

    def rows_gradient(bar_PVD, rows):
        hidden_MD, target_M, choices_MK, choice_bar_MK, *stats = rows
        lse_M1, entropy_M1, logp_bar_M1, entropy_bar_M1, lse_bar_M1 = (
            stat_M[:, None] for stat_M in stats
        )
        logit_MV, slope_MV = _logits(hidden_MD, weight_VD, plan.soft_cap)
        logp_MV = mask_padding(logit_MV, valid) * inverse - lse_M1
        # d lse = p, d logp = onehot - p, d entropy = -p (log p + entropy)
        entropy_slope_MV = entropy_bar_M1 * (logp_MV + entropy_M1)
        normaliser_bar_M1 = lse_bar_M1 - logp_bar_M1
        if choices_MK is not None:
            normaliser_bar_M1 -= choice_bar_MK.sum(axis=-1, keepdims=True)
        bar_MV = jnp.exp(logp_MV) * (normaliser_bar_M1 - entropy_slope_MV)
        here_MV = jnp.arange(V) == target_M[:, None] - first
        bar_MV += jnp.where(here_MV, logp_bar_M1, 0.0)
        if choices_MK is not None:
            bar_MV = _add_at(bar_MV, choices_MK - first, choice_bar_MK)
        bar_MV = (bar_MV * (inverse * slope_MV)).astype(hidden_MD.dtype)
        hidden_bar_MD = _einsum("MV,VD->MD", bar_MV, weight_VD)
        if plan.axis is not None:
            hidden_bar_MD = jax.lax.psum(hidden_bar_MD, plan.axis)
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
    return hidden_bar_BTD, bar_PVD.sum(axis=0)


_einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _logits(hidden_MD, weight_VD, soft_cap: float | None):
    """The logits and their slope in the products before the soft cap."""
    logit_MV = _einsum("MD,VD->MV", hidden_MD, weight_VD)
    if soft_cap is None:
        return logit_MV, 1.0
    tanh_MV = jnp.tanh(logit_MV / soft_cap)
    return soft_cap * tanh_MV, 1.0 - tanh_MV**2


def _size(plan: Plan) -> int:
    """How many devices share the vocabulary."""
    return jax.lax.axis_size(plan.axis) if plan.axis else 1


def _first(plan: Plan, vocab_VD) -> jax.Array | int:
    """The id of this device's first row."""
    return jax.lax.axis_index(plan.axis) * vocab_VD.shape[0] if plan.axis else 0


def _valid(plan: Plan, vocab_VD) -> jax.Array | int | None:
    """`plan.valid`, counted from this device's first row."""
    return None if plan.valid is None else plan.valid - _first(plan, vocab_VD)


def _total(plan: Plan, x_MV) -> jax.Array:
    x_M = x_MV.sum(axis=-1)
    return jax.lax.psum(x_M, plan.axis) if plan.axis else x_M


def _max(plan: Plan, x_MV) -> jax.Array:
    x_M = x_MV.max(axis=-1)
    return jax.lax.pmax(x_M, plan.axis) if plan.axis else x_M


def _pick(plan: Plan, x_MV, ids_MK) -> jax.Array:
    """x at the ids, on whichever device each is."""
    if plan.axis is None:
        return jnp.take_along_axis(x_MV, ids_MK, axis=-1)
    at_MK = ids_MK - _first(plan, x_MV.T)
    x_MK = jnp.take_along_axis(x_MV, at_MK, axis=-1, mode="fill", fill_value=0.0)
    x_MK = jnp.where(at_MK >= 0, x_MK, 0.0)  # negative ids count from the end
    return jax.lax.psum(x_MK, plan.axis)


@jax.vmap
def _add_at(x_V, at_K, more_K):
    """A choice that occurs twice gets both; one that is not here goes nowhere."""
    at_K = jnp.where(at_K < 0, x_V.shape[0], at_K)
    return x_V.at[at_K].add(more_K, mode="drop")


def _cut(plan: Plan, tree):
    """(B, T, ...) arrays to (chunks, B * C, ...), T padded with zeros."""

    def cut(x):
        B, T, *rest = x.shape
        chunks = -(-T // plan.chunk)
        pad = [(0, 0), (0, chunks * plan.chunk - T)] + [(0, 0)] * len(rest)
        x = jnp.pad(x, pad).reshape(B, chunks, plan.chunk, *rest)
        return jnp.moveaxis(x, 1, 0).reshape(chunks, B * plan.chunk, *rest)

    return jax.tree.map(cut, tree)


def _join(plan: Plan, tree, shape: tuple[int, ...]):
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
