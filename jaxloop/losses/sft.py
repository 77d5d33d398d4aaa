"""Token losses of supervised training: log-probabilities in, one loss a token out.

Shapes: B sequences, C completion tokens.
"""

import jax
import jax.numpy as jnp

from jaxloop.losses.numerics import log1mexp

NEARLY_CERTAIN = 1e-6
"""Probabilities that are pushed down count as at most 1 - 1e-6, for a finite loss."""


def nll(logp_BC: jax.Array) -> jax.Array:
    """Negative log-likelihood, nats a token.

    loss = -log p_t

    Maximum likelihood; no one paper.
    Use: to imitate demonstrations; the default.
    Names: TRL `nll` and `chunked_nll`.
    """
    return -logp_BC


def dft(logp_BC: jax.Array) -> jax.Array:
    """Dynamic fine-tuning: the likelihood, less for tokens the model finds unlikely.

    loss = -sg(p_t) log p_t

    Wu et al. 2025 (arXiv 2508.05629). The factor undoes the 1 / p_t in the gradient of
    the likelihood, which is what makes rare tokens dominate it.
    Use: when plain fine-tuning forgets more than it learns.
    Names: TRL `dft`.
    """
    return -jnp.exp(jax.lax.stop_gradient(logp_BC)) * logp_BC


def unlikelihood(logp_BC: jax.Array) -> jax.Array:
    """What not to say: the likelihood of anything else.

    loss = -log(1 - p_t), p_t at most 1 - 1e-6

    Welleck et al. 2019 (arXiv 1908.04319) (as recalled, not checked against the paper).
    Use: on tokens of negative weight, beside ordinary ones.
    Names: -.
    """
    return -log1mexp(jnp.minimum(logp_BC, -NEARLY_CERTAIN))


def anti_repetition(
    logp_BC: jax.Array, earlier_logp_BC: jax.Array, *, decay: float
) -> jax.Array:
    """A token of a repeat may have a part of the probability it had the time before.

    loss = -log(1 - max(0, p_t - decay sg(p'_t))), p'_t that of the same token in the
    previous repeat; the maximum at most 1 - 1e-6

    Xu et al. 2022, DITTO (arXiv 2206.02369) (as recalled, not checked against the
    paper); one-sided: a probability that has decayed further is left alone.
    Use: on sentences repeated on purpose, mixed with ordinary demonstrations.
    Names: -.
    """
    allowed_BC = decay * jnp.exp(jax.lax.stop_gradient(earlier_logp_BC))
    excess_BC = jnp.clip(jnp.exp(logp_BC) - allowed_BC, 0.0, 1.0 - NEARLY_CERTAIN)
    return -jnp.log1p(-excess_BC)
