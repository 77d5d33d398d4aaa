"""PPO's other half: a value of every state, learnt beside the policy.

    Mixture((Policy(), Value()), (1.0, 0.5))

is PPO: advantages and returns come from `gae`, by the values that the model's head gave
when the samples were drawn.

Schulman et al. 2016 (arXiv 1506.02438) and 2017 (arXiv 1707.06347).

Shapes: B sequences, C completion tokens, E = C + 1.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxloop.losses.kl import in_reward
from jaxloop.losses.objective import (
    Batch,
    Counts,
    Kind,
    Need,
    Objective,
    TokenStats,
    active_tokens,
    required,
    row_weights,
)
from jaxloop.losses.reduce import (
    Mean,
    Metrics,
    count,
    masked_mean,
    masked_sum,
    ratio,
    select,
)


def gae(
    reward_BC: jax.Array,
    value_BC: jax.Array,
    mask_BC: jax.Array,
    *,
    discount: float = 1.0,
    decay: float = 0.95,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation: (advantages, returns), both (B, C), 0 where
    masked. No gradient.

    delta_t = r_t + discount V_{t+1} - V_t
    A_t = sum_{l >= 0} (discount decay)^l delta_{t+l},  return_t = A_t + V_t

    Schulman et al. 2016 (arXiv 1506.02438). value_BC is the value before a token;
    after the last one it is 0. Masked tokens (padding, a tool's output) are no steps:
    the next step of a token is the next token that counts, and a reward on them is
    lost. `decay` is the paper's lambda.
    Names: verl `gae`, OpenRLHF `gae`.
    """
    reward_CB, value_CB, mask_CB = (
        jax.lax.stop_gradient(select(x, mask_BC)).T
        for x in (reward_BC, value_BC, mask_BC)
    )

    def back(later, now):
        value_B, advantage_B = later
        reward, value, counts = now
        delta = reward + discount * value_B - value
        advantage = delta + discount * decay * advantage_B
        later = (
            jnp.where(counts > 0, value, value_B),
            jnp.where(counts > 0, advantage, advantage_B),
        )
        return later, select(advantage, counts)

    end_B = jnp.zeros_like(value_CB[0])
    steps = (reward_CB, value_CB, mask_CB)
    _, advantage_CB = jax.lax.scan(back, (end_B, end_B), steps, reverse=True)
    return advantage_CB.T, (advantage_CB + value_CB).T


@dataclass(frozen=True)
class GAE:
    """PPO's advantages, by token, from the values of the model's head: `gae`.

    The reward of a completion comes with its last token, less `kl` x (log old - log
    reference) with each. The advantages of a batch are `whitened`.
    Use: as `advantage` of a recipe whose objective is PPO's.
    Names: verl `adv_estimator=gae`, OpenRLHF `--advantage_estimator gae`.
    """

    discount: float = 1.0
    decay: float = 0.95
    kl: float = 0.0
    """Weight of the KL in the reward; above 0 the objective must have a reference."""
    whiten: bool = True

    def of_tokens(
        self,
        reward_BC: jax.Array,
        value_BC: jax.Array,
        mask_BC: jax.Array,
        *,
        old_logp_BC: jax.Array,
        reference_logp_BC: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """`advantage_BC`, `return_BC` and `value_BC` of a batch."""
        if self.kl:
            if reference_logp_BC is None:
                raise ValueError("GAE: kl > 0 wants an objective with a reference")
            reward_BC = reward_BC + in_reward(
                old_logp_BC, reference_logp_BC, mask_BC, weight=self.kl
            )
        advantage_BC, return_BC = gae(
            reward_BC, value_BC, mask_BC, discount=self.discount, decay=self.decay
        )
        if self.whiten:
            advantage_BC = whitened(advantage_BC, mask_BC)
        return {
            "advantage_BC": advantage_BC,
            "return_BC": return_BC,
            "value_BC": select(value_BC, mask_BC),
        }


def whitened(x_BC: jax.Array, mask_BC: jax.Array, *, eps: float = 1e-8) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) over the tokens that count; 0 elsewhere. The
    variance is the unbiased one. PPO does so with the advantages of a batch."""
    centred_BC = select(x_BC - masked_mean(x_BC, mask_BC), mask_BC)
    variance = jnp.square(centred_BC).sum() / jnp.maximum(count(mask_BC) - 1, 1)
    return centred_BC * jax.lax.rsqrt(variance + eps)


def clipped_value(
    value_BC: jax.Array, old_value_BC: jax.Array, return_BC: jax.Array, *, clip: float
) -> tuple[jax.Array, jax.Array]:
    """PPO's value loss, and where its clip acts, each (B, C).

    loss = max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2) / 2

    Schulman et al. 2017 (arXiv 1707.06347), in the form of OpenAI's baselines. Returns
    and old values get no gradient.
    Use: with `gae`, in `Value`.
    Names: TRL and verl `cliprange_value`, OpenRLHF `ValueLoss`.
    """
    old_BC, return_BC = jax.lax.stop_gradient((old_value_BC, return_BC))
    near_BC = old_BC + jnp.clip(value_BC - old_BC, -clip, clip)
    free_BC = jnp.square(value_BC - return_BC)
    held_BC = jnp.square(near_BC - return_BC)
    return 0.5 * jnp.maximum(free_BC, held_BC), held_BC > free_BC


@dataclass(frozen=True)
class Value(Objective):
    """The value loss of PPO, a mean over the step's tokens.

    The batch holds `return_BC` and `value_BC`, the values when the samples were drawn;
    the model has a scalar head.
    """

    clip: float = 0.2
    """How far from its old value a value may move and gain."""

    def __post_init__(self):
        if not self.clip > 0:
            raise ValueError(f"Value: clip must be positive, got {self.clip}")

    @property
    def trains_on(self) -> Kind:
        return "groups"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"head"})

    def counts(self, batch: Batch) -> Counts:
        """tokens."""
        return {"tokens": count(active_tokens(batch))}

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        if stats.head_BEK is None:
            raise ValueError("Value: the model has no scalar head to read values from")
        active_BC = active_tokens(batch)
        value_BC, old_BC, return_BC = (
            select(x, active_BC)
            for x in (
                stats.head_BEK[:, :-1, 0],
                required(batch, "value_BC", self),
                required(batch, "return_BC", self),
            )
        )
        loss_BC, held_BC = clipped_value(value_BC, old_BC, return_BC, clip=self.clip)
        total = masked_sum(loss_BC * row_weights(batch)[:, None], active_BC)
        metrics: Metrics = {
            "value/loss": Mean.of(loss_BC, active_BC),
            "value/mean": Mean.of(value_BC, active_BC),
            "value/clip_ratio": Mean.of(held_BC, active_BC),
            "value/return_mean": Mean.of(return_BC, active_BC),
        }
        return ratio(total, counts["tokens"]), metrics
