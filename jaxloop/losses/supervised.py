"""Imitation: a mean over the trained tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxloop.losses import sft
from jaxloop.losses.objective import (
    Batch,
    Counts,
    Kind,
    Objective,
    TokenStats,
    active_tokens,
    row_weights,
    token_weights,
)
from jaxloop.losses.reduce import Mean, Metrics, count, masked_sum, ratio, select

TokenLoss = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Supervised(Objective):
    """A mean over all trained tokens of the step, each with its weight.

    `weight_B` weighs sequences, `weight_BC` tokens; a weight below 0 turns imitation
    into avoidance. Tokens of a repeated sentence (`repeat_BC`, int32: how many tokens
    back the same one stands; 0: no repeat) are not imitated, but held down by
    `sft.anti_repetition`.
    """

    loss: TokenLoss = sft.nll
    """The loss of a token, from its log-probability: a function of
    `jaxloop.losses.sft`, or your own."""
    negative: TokenLoss = sft.unlikelihood
    """The loss of a token of negative weight, times the weight's size."""
    decay: float = 0.5
    """The part of its last probability that a repeated token may have."""

    def __post_init__(self):
        if not 0 <= self.decay <= 1:
            raise ValueError(f"Supervised: decay must be in [0, 1], got {self.decay}")

    @property
    def trains_on(self) -> Kind:
        return "demonstrations"

    def counts(self, batch: Batch) -> Counts:
        """tokens."""
        return {"tokens": count(active_tokens(batch))}

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        active_BC = active_tokens(batch)
        logp_BC = select(stats.logp_BC, active_BC)
        weight_BC = loss_weights(batch)
        metrics: Metrics = {
            "entropy": Mean.of(stats.entropy_BC, active_BC),
            "mean_token_accuracy": Mean.of(stats.hit_BC, active_BC),
        }
        loss_BC = self.loss(logp_BC)
        if "repeat_BC" in batch:
            repeats_BC = active_BC & (batch["repeat_BC"] > 0)
            avoid_BC = self._avoided(logp_BC, active_BC, batch["repeat_BC"])
            loss_BC = jnp.where(repeats_BC, avoid_BC, loss_BC)
            metrics["repeats/probability"] = Mean.of(jnp.exp(logp_BC), repeats_BC)
        loss_BC = jnp.where(weight_BC < 0, self.negative(logp_BC), loss_BC)
        total = masked_sum(loss_BC * jnp.abs(weight_BC), active_BC)
        return ratio(total, counts["tokens"]), metrics

    def _avoided(self, logp_BC, active_BC, repeat_BC) -> jax.Array:
        """The loss of repeats; 0 where the repeat before was not scored."""
        source_BC = jnp.arange(repeat_BC.shape[1]) - repeat_BC
        inside_BC = (source_BC >= 0) & (repeat_BC > 0)
        source_BC = jnp.where(inside_BC, source_BC, 0)
        earlier_logp_BC = jnp.take_along_axis(logp_BC, source_BC, axis=1)
        loss_BC = sft.anti_repetition(logp_BC, earlier_logp_BC, decay=self.decay)
        known_BC = inside_BC & jnp.take_along_axis(active_BC, source_BC, axis=1)
        return select(loss_BC, known_BC)


def loss_weights(batch: Batch) -> jax.Array:
    """(B, C): weights of sequences times weights of tokens. No gradient."""
    return row_weights(batch)[:, None] * token_weights(batch, active_tokens(batch))
