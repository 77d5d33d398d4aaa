"""Token terms of the policy-gradient losses (the GRPO family).

Log-probabilities are per token, (B, C), in nats, at the sampling temperature;
advantages one a sequence. Nothing here knows masks: entries that do not count come as
zeros, which give finite values, and whoever sums leaves them out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are held within +-20 (as verl does): beyond, exp leaves float32 soon."""


class Clipped(NamedTuple):
    """The clipped surrogate and what is logged of it, each (B, C)."""

    loss_BC: jax.Array
    ratio_BC: jax.Array
    """policy / old, not clipped."""
    low_BC: jax.Array
    """Where the lower clip acts: ratio < 1 - clip_low and advantage < 0."""
    high_BC: jax.Array
    """Where the upper clip acts: ratio > 1 + clip_high and advantage > 0."""


def clipped(
    logp_BC: jax.Array,
    old_logp_BC: jax.Array,
    advantage_B: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
) -> Clipped:
    """-min(w A, clip(w, 1 - clip_low, 1 + clip_high) A) a token, w = policy / old.

    Schulman et al. 2017 (arXiv 1707.06347), equation 7, with GRPO's advantage (Shao
    et al. 2024, arXiv 2402.03300) and DAPO's two bounds (Yu et al. 2025, arXiv
    2503.14476).
    Old log-probabilities and advantages get no gradient.
    """
    advantage_B1 = jax.lax.stop_gradient(advantage_B)[:, None]
    ratio_BC = jnp.exp(limited(logp_BC - jax.lax.stop_gradient(old_logp_BC)))
    inside_BC = jnp.clip(ratio_BC, 1.0 - clip_low, 1.0 + clip_high)
    gain_BC = jnp.minimum(ratio_BC * advantage_B1, inside_BC * advantage_B1)
    return Clipped(
        loss_BC=-gain_BC,
        ratio_BC=ratio_BC,
        low_BC=(ratio_BC < 1.0 - clip_low) & (advantage_B1 < 0),
        high_BC=(ratio_BC > 1.0 + clip_high) & (advantage_B1 > 0),
    )


def k3(logp_BC: jax.Array, reference_logp_BC: jax.Array) -> jax.Array:
    """KL(policy, reference) by Schulman's third estimator, per token; never negative.

    exp(x) - x - 1 with x = log reference - log policy, x at most 20.
    """
    x_BC = jax.lax.stop_gradient(reference_logp_BC) - logp_BC
    x_BC = jnp.minimum(x_BC, LOG_RATIO_LIMIT)
    return jnp.expm1(x_BC) - x_BC


def limited(log_ratio: jax.Array) -> jax.Array:
    """Within +-LOG_RATIO_LIMIT; no gradient from beyond."""
    return jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
