"""Estimators of KL(policy, reference) from the log-probabilities of sampled tokens.

A function `(logp_BC, reference_logp_BC) -> kl_BC`, nats a token; x = log policy - log
reference. The reference gets no gradient.

As terms of a loss they differ in what their gradients are on average over the policy's
own samples: k1's is 0, k2's that of KL(policy, reference), k3's that of KL(reference,
policy). Times the ratio policy / old (`Policy.kl_bias_correction`) k1 and k3 have the
right one too: of k3 it is x times that of log policy, as of k2.

Schulman 2020 ("Approximating KL divergence", joschu.net/blog/kl-approx.html).

Shapes: B sequences, C completion tokens.
"""

import jax
import jax.numpy as jnp

from jaxloop.losses.policy import LOG_RATIO_LIMIT, limited
from jaxloop.losses.reduce import select


def k1(logp_BC: jax.Array, reference_logp_BC: jax.Array) -> jax.Array:
    """The log-ratio: unbiased, of either sign.

    kl = x, within +-20

    Use: in the reward (`in_reward`).
    Names: verl `k1` or `kl`, open-instruct 0.
    """
    return limited(_x(logp_BC, reference_logp_BC))


def k2(logp_BC: jax.Array, reference_logp_BC: jax.Array) -> jax.Array:
    """Half the square of the log-ratio: biased, of small variance, never negative.

    kl = x^2 / 2, x within +-20

    Use: in the loss, for its gradient.
    Names: verl `k2` or `mse`, open-instruct 1.
    """
    return 0.5 * jnp.square(limited(_x(logp_BC, reference_logp_BC)))


def k3(logp_BC: jax.Array, reference_logp_BC: jax.Array) -> jax.Array:
    """Unbiased, of small variance, never negative.

    kl = exp(-x) - 1 + x, -x at most 20

    GRPO's (Shao et al. 2024, arXiv 2402.03300, equation 4).
    Use: in the loss, as nearly all do.
    Names: TRL's only one, verl `k3` or `low_var_kl`, open-instruct 2.
    """
    minus_x_BC = jnp.minimum(-_x(logp_BC, reference_logp_BC), LOG_RATIO_LIMIT)
    return jnp.expm1(minus_x_BC) - minus_x_BC


def k3_straight(logp_BC: jax.Array, reference_logp_BC: jax.Array) -> jax.Array:
    """k3's value with k2's gradient.

    kl = k2 + sg(k3 - k2)

    Use: to log k3 and to descend the KL itself.
    Names: verl `k3+`.
    """
    straight_BC = k2(logp_BC, reference_logp_BC)
    value_BC = k3(logp_BC, reference_logp_BC)
    return straight_BC + jax.lax.stop_gradient(value_BC - straight_BC)


def in_reward(
    old_logp_BC: jax.Array,
    reference_logp_BC: jax.Array,
    mask_BC: jax.Array,
    *,
    weight: float,
) -> jax.Array:
    """What a KL in the reward adds to the reward of each token, (B, C). No gradient.

    reward_t = -weight (log old_t - log reference_t)

    PPO adds it to the token rewards; RLOO adds its sum over the tokens,
    `in_reward(...).sum(1)`, to the reward of the completion, before the advantages.
    Names: TRL `beta` of RLOO, verl `use_kl_in_reward`.
    """
    penalty_BC = -weight * k1(old_logp_BC, reference_logp_BC)
    return jax.lax.stop_gradient(select(penalty_BC, mask_BC))


def _x(logp_BC: jax.Array, reference_logp_BC: jax.Array) -> jax.Array:
    return logp_BC - jax.lax.stop_gradient(reference_logp_BC)
