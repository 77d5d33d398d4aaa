"""What composes with any pair loss: weights of pairs and of tokens, terms to add.

All work on the rows of pairs, row 2i chosen and row 2i + 1 rejected, and know masks.

Shapes: P pairs of B = 2 P rows, C completion tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.losses.divergence import EXPONENT_LIMIT
from jaxloop.losses.objective import TokenStats
from jaxloop.losses.pairs import by_pair
from jaxloop.losses.reduce import count, masked_mean


def wpo(stats: TokenStats, active_BC: jax.Array) -> jax.Array:
    """WPO's weight of a pair: how likely the policy in training is to say it itself.

    weight = w(y_w) w(y_l), w(y) = exp(mean_t (logp_t - log sum_v p_t(v)^2))

    Zhou et al. 2024 (arXiv 2406.11827), equation 2, aligned by sampling: a completion
    as surprising as a sampled one weighs 1. No gradient.
    Use: with pairs that came from other models, as if they were the policy's own.
    Names: TRL `use_weighting`.
    """
    return _pair_weight(stats.logp_BC - stats.log_sum_sq_BC, active_BC)


def wpo_plain(stats: TokenStats, active_BC: jax.Array) -> jax.Array:
    """WPO's weight without alignment, never above 1.

    weight = min(1, exp(mean_t logp_w + mean_t logp_l))

    Zhou et al. 2024 (arXiv 2406.11827). No gradient.
    Use: to reproduce open-instruct; sampled completions weigh far less than 1.
    Names: -.
    """
    return jnp.minimum(_pair_weight(stats.logp_BC, active_BC), 1.0)


def _pair_weight(score_BC: jax.Array, active_BC: jax.Array) -> jax.Array:
    mean_B = masked_mean(jax.lax.stop_gradient(score_BC), active_BC, axis=1)
    return jnp.exp(jnp.minimum(by_pair(mean_B).sum(axis=1), EXPONENT_LIMIT))


def length_weights(active_BC: jax.Array, *, ld_alpha: float) -> jax.Array:
    """LD-DPO's weights of tokens: what only the longer completion has counts for less.

    weight_t = 1 for t <= min(L_w, L_l), ld_alpha for later tokens

    Liu et al. 2024 (arXiv 2409.06411). The reference is weighted alike.
    Use: when the longer completion wins too often; 0.3 to 0.7 is usual.
    Names: TRL `ld_alpha`.
    """
    shared_P = by_pair(count(active_BC, axis=1)).min(axis=1)
    place_BC = jnp.cumsum(active_BC > 0, axis=1)
    shared_BC = place_BC <= jnp.repeat(shared_P, 2)[:, None]
    return jnp.where(shared_BC, 1.0, ld_alpha)


def edit_weights(edited_BC: jax.Array, *, edit_alpha: float) -> jax.Array:
    """Weights of tokens for pairs of which one completion is an edit of the other.

    weight_t = 1 inside of the spans in which the two differ, edit_alpha elsewhere

    edited_BC: 1 on the tokens of those spans; the loop finds them by matching the two
    completions' tokens. The reference is weighted alike; NLL terms are not weighted.
    After the error-injected self-editing of RISE (Xu et al. 2024, arXiv 2410.06638; as
    recalled), which has pairs that differ in an injected error; the weight is our own.
    Use: with pairs that differ in few tokens, where what they share drowns the error. 0
    leaves the edits alone.
    Names: -.
    """
    return jnp.where(edited_BC > 0, 1.0, edit_alpha)


def token_regulariser(
    log_ratio_BC: jax.Array,
    token_reward_BC: jax.Array,
    active_BC: jax.Array,
    *,
    beta: float,
) -> jax.Array:
    """T-REG's term: implicit token rewards stay near rewards that were given.

    term = mean over the tokens t of both completions of (beta h_t - r_t)^2,
    h_t the log-ratio of a token, r_t as by `contrastive_reward`, no gradient

    Zhou et al. 2024 (arXiv 2412.02685) (as recalled, not checked against the paper).
    Use: to tell DPO which tokens deserve the reward of the completion.
    Names: -.
    """
    gap_BC = beta * log_ratio_BC - jax.lax.stop_gradient(token_reward_BC)

    def pairs(x_BC):
        return x_BC.reshape(x_BC.shape[0] // 2, -1)

    return masked_mean(pairs(gap_BC**2), pairs(active_BC), axis=1)


def contrastive_reward(better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """T-REG's token rewards, by the model itself, within +-1/2. On the host.

    r_t = sigmoid(log pi(y_t | a prompt for a better answer)
                  - log pi(y_t | a prompt for a worse answer)) - 1/2

    Zhou et al. 2024 (arXiv 2412.02685) (as recalled, not checked against the paper).
    Use: with `token_regulariser`; `Contrast` holds the two prompts.
    Names: -.
    """
    return 0.5 * np.tanh(0.5 * (better - worse))  # the same, without overflow


def optimism(log_ratio_P2: jax.Array, *, beta: float) -> jax.Array:
    """SELM's term: what has been said already gives probability to what has not.

    term = beta (h_w + h_l) / 2

    Zhang et al. 2024 (arXiv 2405.19332) (as recalled, not checked against the paper).
    The pair's two completions stand for samples of the previous policy, where the paper
    has one sample a prompt; its weight alpha is near 0.001.
    Use: in online rounds, for answers not yet explored.
    Names: -.
    """
    return beta * log_ratio_P2.mean(axis=1)
