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


PADDING = -1e30  # of a logit; finite, so that 0 x log 0 is 0


def mask_padding(logit: jax.Array, valid: int | None) -> jax.Array:
    """No probability for rows of the vocabulary from `valid` on (last axis)."""
    if valid is None:
        return logit
    return jnp.where(jnp.arange(logit.shape[-1]) < valid, logit, PADDING)


def lm_head(
    hidden_BTD: jax.Array,
    vocab_VD: jax.Array,
    target_BT: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    soft_cap: float | None = None,
    valid: int | None = None,
) -> LmHead:
    """See `jaxloop_kernels.lm_head.lm_head`. Holds [B, T, V]; float64 stays float64."""
    dtype = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    logit_BTV = jnp.einsum(
        "BTD,VD->BTV",
        hidden_BTD,
        vocab_VD.astype(hidden_BTD.dtype),
        preferred_element_type=dtype,
    )
    if soft_cap is not None:
        logit_BTV = soft_cap * jnp.tanh(logit_BTV / soft_cap)
    mean_logit_BT = logit_BTV[..., :valid].mean(axis=-1)
    logit_BTV = mask_padding(logit_BTV, valid)
    scaled_BTV = logit_BTV / jax.lax.stop_gradient(jnp.asarray(temperature, dtype))
    logp_BTV = jax.nn.log_softmax(scaled_BTV)
    logp_BT = jnp.take_along_axis(logp_BTV, target_BT[..., None], axis=-1)[..., 0]
    return LmHead(
        logp_BT=logp_BT,
        entropy_BT=-jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1),
        hit_BT=(logp_BT >= logp_BTV.max(axis=-1)).astype(dtype),
        mean_logit_BT=jax.lax.stop_gradient(mean_logit_BT),
        lse_BT=jax.nn.logsumexp(scaled_BTV, axis=-1),
    )
