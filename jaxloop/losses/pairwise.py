"""Learning from pairs: a preference loss and what goes with it.

Shapes: P pairs; row 2i chosen, row 2i + 1 rejected; others as in `objective.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxloop.losses import keywords, pair_terms
from jaxloop.losses.objective import (
    Batch,
    Counts,
    Need,
    TokenStats,
    required,
    row_weights,
    token_weights,
    valid_rows,
)
from jaxloop.losses.pair_objective import PairObjective
from jaxloop.losses.pairs import PairMetrics, Pairs, by_pair
from jaxloop.losses.reduce import Mean, Metrics, count, masked_sum, ratio, select


@dataclass(frozen=True)
class Pairwise(PairObjective):
    """A mean over the step's valid pairs of weight x (preference loss + other terms).

    DPO as it stands. With nll = 1 the objective of IRPO (Pang et al. 2024, arXiv
    2404.19733), with weights in the batch besides that of ScPO (Prasad et al. 2024,
    arXiv 2411.04109), with sft = 1 RPO. Token weights in the batch, `weight_BC`,
    multiply the log-ratio and the likelihood of each token. Lengths are those of the
    masks in any case.
    """

    sft: float = 0.0
    """Weight of the chosen tokens' negative log-likelihood, a mean over all chosen
    tokens of the step (RPO; TRL's `sft`). Alone with `loss=reference_free.none`."""
    ld_alpha: float = 1.0
    """Weight of tokens beyond the length of the shorter completion (LD-DPO)."""
    edit_alpha: float = 1.0
    """Weight of tokens that both completions have, outside of the spans in which they
    differ (`pair_terms.edit_weights`)."""
    wpo: Callable[[TokenStats, jax.Array], jax.Array] | None = None
    """Weights of the preference loss: `pair_terms.wpo` or `wpo_plain`. TRL multiplies
    its `sft` term by them as well."""
    token_regulariser: float = 0.0
    """Weight of T-REG's term. The token rewards, `token_reward_BC` in the batch, are
    made by the `contrast` of a recipe or of the offline stage."""
    optimism: float = 0.0
    """Weight of SELM's term (its alpha)."""

    def __post_init__(self):
        super().__post_init__()
        self.not_negative("sft", "token_regulariser", "optimism")
        for name in ("ld_alpha", "edit_alpha"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"Pairwise: {name} must be within [0, 1], got {value}")
        if self.wpo is not None and "valid_P" in keywords.asked(self.loss):
            raise ValueError(
                f"Pairwise: {keywords.title(self.loss)} matches completions across the "
                "batch, so that no loss belongs to one pair; leave wpo out"
            )

    @property
    def uses(self) -> tuple[str, ...]:
        return ("beta",) if self.token_regulariser or self.optimism else ()

    @property
    def needs(self) -> frozenset[Need]:
        terms: list[Need] = []
        if self.token_regulariser or self.optimism:
            terms.append("reference")
        if self.token_regulariser:
            terms.append("token_reward")
        if self.edit_alpha != 1:
            terms.append("edits")
        return super().needs.union(terms)

    def counts(self, batch: Batch) -> Counts:
        """pairs: those both of whose rows are valid; chosen_tokens: theirs."""
        tokens_P2 = by_pair(count(_pair_tokens(batch), axis=1))
        return {
            "pairs": count(_valid_pairs(batch)),
            "chosen_tokens": tokens_P2[:, 0].sum(),
        }

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        valid_P, active_BC = _valid_pairs(batch), _pair_tokens(batch)
        logp_BC = select(stats.logp_BC, active_BC)
        reference_BC = self._reference(batch, active_BC)
        weight_BC = token_weights(batch, active_BC)
        length_BC = pair_terms.length_weights(active_BC, ld_alpha=self.ld_alpha)
        share_BC = weight_BC * length_BC
        if self.edit_alpha != 1:
            edited_BC = select(required(batch, "edited_BC", self), active_BC)
            share_BC *= pair_terms.edit_weights(edited_BC, edit_alpha=self.edit_alpha)
        pairs = Pairs(
            policy_P2=_sums(share_BC * logp_BC),
            reference_P2=_sums(share_BC * reference_BC),
            tokens_P2=_sums(active_BC * 1.0),
        )
        inputs = self._inputs(batch, active_BC, share_BC)
        loss_P, logged_P = self.pair_losses(pairs, inputs)
        if self.wpo is not None:
            loss_P = loss_P * self.wpo(stats, active_BC)
        loss_P = loss_P + self._terms(logp_BC - reference_BC, pairs, batch, active_BC)
        nll_P = -_sums(weight_BC * logp_BC)[:, 0]
        loss_P = loss_P + self.nll * ratio(nll_P, pairs.tokens_P2[:, 0])

        weight_P = by_pair(row_weights(batch))[:, 0]
        loss = ratio(masked_sum(weight_P * loss_P, valid_P), counts["pairs"])
        if self.sft:
            likelihood = masked_sum(weight_P * nll_P, valid_P)
            loss = loss + self.sft * ratio(likelihood, counts["chosen_tokens"])
        logged_P |= log_probability_metrics(_sums(logp_BC))
        if "reference" in self.needs:
            logged_P |= drift_metrics(_sums(logp_BC - reference_BC))
        metrics: Metrics = {name: Mean.of(x, valid_P) for name, x in logged_P.items()}
        return loss, metrics | _token_metrics(stats, active_BC)

    def _terms(self, log_ratio_BC, pairs: Pairs, batch: Batch, active_BC) -> jax.Array:
        """T-REG's and SELM's terms, by their weights, (P,)."""
        total_P = jnp.zeros_like(pairs.policy_P2[:, 0])
        if self.token_regulariser:
            reward_BC = select(required(batch, "token_reward_BC", self), active_BC)
            term_P = pair_terms.token_regulariser(
                log_ratio_BC, reward_BC, active_BC, beta=self.beta
            )
            total_P = total_P + self.token_regulariser * term_P
        if self.optimism:
            term_P = pair_terms.optimism(pairs.log_ratio_P2, beta=self.beta)
            total_P = total_P + self.optimism * term_P
        return total_P

    def _reference(self, batch: Batch, active_BC: jax.Array) -> jax.Array:
        """Zeros where nothing looks at a reference."""
        if "reference" not in self.needs:
            return jnp.zeros(active_BC.shape)
        reference_BC = required(batch, "reference_logp_BC", self)
        return select(jax.lax.stop_gradient(reference_BC), active_BC)

    def _inputs(self, batch: Batch, active_BC, share_BC) -> dict[str, jax.Array]:
        """What a loss may ask for by name, as far as the batch has it."""
        valid_P = _valid_pairs(batch)
        inputs = {"valid_P": valid_P}
        for name, key in (("target_P", "target_B"), ("margin_P", "margin_B")):
            if self.asks(name) or key in batch:
                x_B = required(batch, key, self)
                inputs[name] = select(by_pair(x_B)[:, 0], valid_P)
        if self.asks("previous_P2"):
            previous_BC = select(required(batch, "previous_logp_BC", self), active_BC)
            inputs["previous_P2"] = _sums(share_BC * previous_BC)
        return inputs


def _valid_pairs(batch: Batch) -> jax.Array:
    return by_pair(valid_rows(batch)).all(axis=1)


def _pair_tokens(batch: Batch) -> jax.Array:
    """(B, C) bool: tokens that count, of pairs that count."""
    return (batch["mask_BC"] > 0) & jnp.repeat(_valid_pairs(batch), 2)[:, None]


def _sums(x_BC: jax.Array) -> jax.Array:
    return by_pair(x_BC.sum(axis=1))


def log_probability_metrics(policy_P2: jax.Array) -> PairMetrics:
    """Sums over tokens, whatever weights the loss gives them."""
    return {"logps/chosen": policy_P2[:, 0], "logps/rejected": policy_P2[:, 1]}


def drift_metrics(log_ratio_P2: jax.Array) -> PairMetrics:
    """How far both sides have come from the reference, in nats: when both fall, the
    margin grows at the cost of what should be learnt."""
    return {"drift/chosen": log_ratio_P2[:, 0], "drift/rejected": log_ratio_P2[:, 1]}


def _token_metrics(stats: TokenStats, active_BC) -> Metrics:
    """Token means, some of one side only."""

    def mean(x_BC, which: int):
        return Mean.of(by_pair(x_BC)[:, which], by_pair(active_BC)[:, which])

    return {
        "entropy": Mean.of(stats.entropy_BC, active_BC),
        "mean_token_accuracy": mean(stats.hit_BC, 0),
        "logits/chosen": mean(stats.mean_logit_BC, 0),
        "logits/rejected": mean(stats.mean_logit_BC, 1),
        "nll_loss": mean(-stats.logp_BC, 0),
    }
