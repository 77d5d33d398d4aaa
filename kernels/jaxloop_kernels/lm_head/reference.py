"""The definition of correct: all logits at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LmHead(NamedTuple):
    """What training needs of the logits, each (B, T) in float32.

    All but `mean_logit` are of the distribution softmax(logits / temperature).
    """

    logp_BT: jax.Array
    """Log-probability of the target, in nats."""
    entropy_BT: jax.Array
    """In nats."""
    hit_BT: jax.Array
    """1 where no token is likelier than the target, else 0. No gradient."""
    mean_logit_BT: jax.Array
    """Mean over the vocabulary of the logits, before the temperature. No gradient."""
    lse_BT: jax.Array
    """log sum exp of the logits / temperature."""
    log_sum_sq_BT: jax.Array
    """log of the sum of the squared probabilities (0: certain). No gradient."""
    choice_logp_BTK: jax.Array | None = None
    """Log-probabilities of the choices; None where none were asked for."""


class TopTokens(NamedTuple):
    """The likeliest tokens of each position, in falling order. No gradient."""

    ids_BTK: jax.Array
    """int32."""
    logp_BTK: jax.Array
    """Log-probabilities among all tokens, in nats, float32."""


PADDING = -1e30  # of a logit; finite, so that 0 x log 0 is 0


def mask_padding(
    logit: jax.Array, valid: int | jax.Array | None, padding: float = PADDING
) -> jax.Array:
    """No probability for rows of the vocabulary from `valid` on (last axis)."""
    if valid is None:
        return logit
    return jnp.where(jnp.arange(logit.shape[-1]) < valid, logit, padding)


def lm_head(
    hidden_BTD: jax.Array,
    vocab_VD: jax.Array,
    target_BT: jax.Array,
    choices_BTK: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 1.0,
    soft_cap: float | None = None,
    valid: int | None = None,
) -> LmHead:
    """See `jaxloop_kernels.lm_head.lm_head`. Holds [B, T, V]; float64 stays float64."""
    logit_BTV = _logits(hidden_BTD, vocab_VD, soft_cap)
    mean_logit_BT = logit_BTV[..., :valid].mean(axis=-1)
    scaled_BTV = _scaled(logit_BTV, temperature, valid)
    logp_BTV = jax.nn.log_softmax(scaled_BTV)
    logp_BT = jnp.take_along_axis(logp_BTV, target_BT[..., None], axis=-1)[..., 0]
    choice_logp_BTK = None
    if choices_BTK is not None:
        choice_logp_BTK = jnp.take_along_axis(logp_BTV, choices_BTK, axis=-1)
    return LmHead(
        logp_BT=logp_BT,
        entropy_BT=-jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1),
        hit_BT=(logp_BT >= logp_BTV.max(axis=-1)).astype(logp_BT.dtype),
        mean_logit_BT=jax.lax.stop_gradient(mean_logit_BT),
        lse_BT=jax.nn.logsumexp(scaled_BTV, axis=-1),
        log_sum_sq_BT=jax.lax.stop_gradient(jax.nn.logsumexp(2 * logp_BTV, axis=-1)),
        choice_logp_BTK=choice_logp_BTK,
    )


def top_tokens(
    hidden_BTD: jax.Array,
    vocab_VD: jax.Array,
    count: int,
    *,
    temperature: float | jax.Array = 1.0,
    soft_cap: float | None = None,
    valid: int | None = None,
) -> TopTokens:
    """See `jaxloop_kernels.lm_head.top_tokens`. Holds [B, T, V]."""
    scaled_BTV = _scaled(_logits(hidden_BTD, vocab_VD, soft_cap), temperature, valid)
    logp_BTV = jax.lax.stop_gradient(jax.nn.log_softmax(scaled_BTV))
    logp_BTK, ids_BTK = jax.lax.top_k(logp_BTV, count)
    return TopTokens(ids_BTK, logp_BTK)


def _logits(hidden_BTD, vocab_VD, soft_cap: float | None) -> jax.Array:
    logit_BTV = jnp.einsum(
        "BTD,VD->BTV",
        hidden_BTD,
        vocab_VD.astype(hidden_BTD.dtype),
        preferred_element_type=jnp.promote_types(hidden_BTD.dtype, jnp.float32),
    )
    if soft_cap is not None:
        logit_BTV = soft_cap * jnp.tanh(logit_BTV / soft_cap)
    return logit_BTV


def _scaled(logit_BTV, temperature, valid: int | None) -> jax.Array:
    logit_BTV = mask_padding(logit_BTV, valid)
    temperature = jnp.asarray(temperature, logit_BTV.dtype)
    return logit_BTV / jax.lax.stop_gradient(temperature)
