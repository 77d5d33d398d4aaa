"""Token losses of supervised training: log-probabilities in, one loss a token out."""

import jax


def nll(logp_BC: jax.Array) -> jax.Array:
    """Negative log-likelihood, nats a token."""
    return -logp_BC
