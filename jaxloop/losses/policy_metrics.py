"""What is logged of a policy-gradient step beside its loss. No gradient.

Shapes as in `objective.py`; "or (B, 1)": one value a sequence.
"""

import jax
import jax.numpy as jnp

from jaxloop.losses.off_policy import gap
from jaxloop.losses.policy import Term, Tokens, limited
from jaxloop.losses.reduce import Max, Mean, Metrics, Min, masked_mean


def ratio_metrics(tokens: Tokens, term: Term) -> Metrics:
    """How far the policy is from the old one, and where the clip acts (looking at the
    ratio before any bound; min and max are over sequences)."""
    mask_BC = tokens.mask_BC
    size_BC = jnp.abs(tokens.log_ratio_BC)
    metrics: Metrics = {
        "ratio/log_mean": Mean.of(size_BC, mask_BC),
        "ratio/log_max": Max.of(size_BC, mask_BC),
    }
    metrics |= {name: token_mean(x_BC, mask_BC) for name, x_BC in term.metrics.items()}
    if term.low_BC is None or term.high_BC is None:
        return metrics
    region_BC = term.low_BC | term.high_BC
    low_B, high_B = _by_row(term.low_BC, mask_BC), _by_row(term.high_BC, mask_BC)
    some_B = mask_BC.any(axis=1)
    return metrics | {
        "clip_ratio/low_mean": token_mean(term.low_BC, mask_BC),
        "clip_ratio/low_min": Min.of(low_B, some_B),
        "clip_ratio/high_mean": token_mean(term.high_BC, mask_BC),
        "clip_ratio/high_max": Max.of(high_B, some_B),
        "clip_ratio/region_mean": token_mean(region_BC, mask_BC),
    }


def sampler_metrics(
    tokens: Tokens, sampler_BC: jax.Array | None, correction_BC: jax.Array | None
) -> Metrics:
    """How far the sampler's log-probabilities are from the old ones, and the weights
    that make up for it (without a correction the bare ratios).

    A token whose sampler log-probability is missing (NaN) is left out.
    """
    if sampler_BC is None:
        return {}
    known_BC = tokens.mask_BC & jnp.isfinite(sampler_BC)
    gap_BC = gap(tokens.old_logp_BC, sampler_BC, tokens.mask_BC)
    weight_BC = jnp.exp(limited(gap_BC))
    if correction_BC is not None:
        weight_BC = jnp.broadcast_to(correction_BC, known_BC.shape)
    size_BC = jnp.abs(gap_BC)
    return {
        "sampling/sampling_logp_difference/mean": Mean.of(size_BC, known_BC),
        "sampling/sampling_logp_difference/max": Max.of(size_BC, known_BC),
        "sampling/importance_sampling_ratio/min": Min.of(weight_BC, known_BC),
        "sampling/importance_sampling_ratio/mean": Mean.of(weight_BC, known_BC),
        "sampling/importance_sampling_ratio/max": Max.of(weight_BC, known_BC),
    }


def token_mean(x_BC: jax.Array, mask_BC: jax.Array) -> Mean:
    """Over tokens; where there is one value a sequence, over sequences with tokens."""
    if x_BC.shape != mask_BC.shape:
        mask_BC = mask_BC.any(axis=1, keepdims=True)
    return Mean.of(x_BC, mask_BC)


def _by_row(x_BC: jax.Array, mask_BC: jax.Array) -> jax.Array:
    """(B,): the mean over a sequence's tokens."""
    x_BC = jnp.broadcast_to(x_BC, mask_BC.shape).astype(jnp.float32)
    return masked_mean(x_BC, mask_BC, axis=1)
