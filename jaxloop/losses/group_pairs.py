"""Learning from groups by preferences: every better answer against every worse one.

Shapes: B rows, of which P = B x B pairs (i better, j worse); others as in
`objective.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxloop.losses.objective import (
    Batch,
    Counts,
    Kind,
    TokenStats,
    active_tokens,
    required,
    row_weights,
    token_weights,
    valid_rows,
)
from jaxloop.losses.pair_objective import PairObjective
from jaxloop.losses.pairs import Pairs
from jaxloop.losses.pairwise import drift_metrics, log_probability_metrics
from jaxloop.losses.reduce import Mean, Metrics, count, masked_sum, ratio, select


@dataclass(frozen=True)
class GroupPairs(PairObjective):
    """All (better, worse) pairs of a prompt: a mean over them, then over prompts.

    GroupDPO of Lanchantin et al. 2025 (arXiv 2506.21495). The batch is one of groups:
    `group_B`, `reward_B` (NaN: unscored). It shares that batch with a policy gradient
    in `Mixture((Policy(), GroupPairs()), (1.0, 0.01))`. A prompt is weighted by its
    better rows' `weight_B`. A loss that asks for `target_P` is given sigmoid(reward_i -
    reward_j), one that asks for `margin_P` the difference itself. A group must not be
    split over micro-batches.
    """

    whole_groups: ClassVar[bool] = True
    """A group's rows must all be in one micro-batch."""
    gap: float = 0.0
    """A pair is one where the better reward is higher by more than this."""

    def __post_init__(self):
        super().__post_init__()
        self.not_negative("gap")
        if self.asks("previous_P2"):
            raise ValueError("GroupPairs: its batches have no second reference")

    @property
    def trains_on(self) -> Kind:
        return "groups"

    def counts(self, batch: Batch) -> Counts:
        """prompts: those with at least one pair."""
        return {"prompts": self._shares(batch).sum().round()}

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        active_BC = active_tokens(batch)
        logp_BC = select(stats.logp_BC, active_BC)
        reference_BC = jnp.zeros_like(logp_BC)
        if "reference" in self.needs:
            reference_BC = required(batch, "reference_logp_BC", self)
            reference_BC = select(reference_BC, active_BC)
        weight_BC = token_weights(batch, active_BC)
        pairs = Pairs(
            policy_P2=_all_pairs((weight_BC * logp_BC).sum(axis=1)),
            reference_P2=_all_pairs((weight_BC * reference_BC).sum(axis=1)),
            tokens_P2=_all_pairs(count(active_BC, axis=1)),
        )
        share_P = self._shares(batch).reshape(-1)
        better_P2 = _all_pairs(self._rewards(batch))
        higher_P = better_P2[:, 0] - better_P2[:, 1]
        inputs = {
            "valid_P": share_P > 0,
            "margin_P": higher_P,
            "target_P": jax.nn.sigmoid(higher_P),
        }
        loss_P, logged_P = self.pair_losses(pairs, inputs)
        nll_P = -pairs.per_token(pairs.policy_P2)[:, 0]
        weight_P = _all_pairs(row_weights(batch))[:, 0] * share_P
        total = masked_sum(weight_P * (loss_P + self.nll * nll_P), share_P)
        logged_P |= log_probability_metrics(_all_pairs(logp_BC.sum(axis=1)))
        if "reference" in self.needs:
            drift_B = (logp_BC - reference_BC).sum(axis=1)
            logged_P |= drift_metrics(_all_pairs(drift_B))
        metrics: Metrics = {k: _mean(x, share_P) for k, x in logged_P.items()}
        metrics["entropy"] = Mean.of(stats.entropy_BC, active_BC)
        return ratio(total, counts["prompts"]), metrics

    def _rewards(self, batch: Batch) -> jax.Array:
        """(B,): 0 where unscored or not valid."""
        reward_B = required(batch, "reward_B", self)
        return select(reward_B, valid_rows(batch) & jnp.isfinite(reward_B))

    def _shares(self, batch: Batch) -> jax.Array:
        """(B, B): 1 / (pairs of the prompt) where i is the better answer and j the
        worse one, else 0. The shares of a prompt add up to 1."""
        group_B = required(batch, "group_B", self)
        scored_B = valid_rows(batch) & jnp.isfinite(required(batch, "reward_B", self))
        reward_B = self._rewards(batch)
        same_BB = group_B[:, None] == group_B
        pair_BB = same_BB & scored_B[:, None] & scored_B
        pair_BB &= reward_B[:, None] > reward_B + self.gap
        wins_B = count(pair_BB, axis=1)
        pairs_B = (same_BB * wins_B).sum(axis=1)
        return ratio(pair_BB * 1.0, pairs_B[:, None])


def _all_pairs(x_B: jax.Array) -> jax.Array:
    """(P, 2): x_i and x_j."""
    rows = x_B.shape[0]
    return jnp.stack([jnp.repeat(x_B, rows), jnp.tile(x_B, rows)], axis=1)


def _mean(x_P: jax.Array, share_P: jax.Array) -> Mean:
    """A mean over prompts of the mean over their pairs."""
    x_P = jax.lax.stop_gradient(x_P)
    return Mean(masked_sum(x_P * share_P, share_P), share_P.sum())
