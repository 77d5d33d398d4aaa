"""Objectives: token statistics of a micro-batch in, its share of the step's loss out.

One frozen dataclass a family; what varies inside a family is a function or a number.
The sum over a micro-batch is divided by the counts of the whole optimiser step, so
neither accumulation nor sharding changes the loss.

A batch is a dict of arrays whose first axis is B, sequences:

- `mask_BC` (bool or float, > 0 counts): the completion tokens that are trained on.
- `valid_B` (optional): rows that count; one that does not adds exactly nothing, neither
  to the loss nor to a denominator, whatever its numbers are.
- `weight_B` (optional): multiplies the loss of a sequence, or of a pair (both its rows
  carry the pair's), not the denominator. `weight_BC` (optional, supervised only): the
  same by token, where a row holds several packed sequences.
- `reference_logp_BC`, `old_logp_BC`, `sampler_logp_BC`: log-probabilities, nats,
  float32. The sampler's is of the untruncated distribution.
- `advantage_B`.

Shapes: B sequences, C completion tokens (padded), P pairs: row 2i chosen, 2i + 1
rejected.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxloop.losses import policy, preference, sft
from jaxloop.losses.reduce import (
    Max,
    Mean,
    Metrics,
    Min,
    count,
    masked_mean,
    masked_sum,
    ratio,
    select,
)

Batch = Mapping[str, jax.Array]
Counts = dict[str, jax.Array]


@struct.dataclass
class TokenStats:
    """What the model says of each completion token, (B, C) float32."""

    logp_BC: jax.Array
    entropy_BC: jax.Array
    hit_BC: jax.Array
    mean_logit_BC: jax.Array


class Objective(Protocol):
    """What the training step asks of an objective."""

    @property
    def needs_reference(self) -> bool:
        """Whether batches must carry `reference_logp_BC`."""
        ...

    @property
    def temperature_from_sampling(self) -> bool:
        """Whether log-probabilities are taken at the sampling temperature, or at 1."""
        ...

    def counts(self, batch: Batch) -> Counts:
        """Denominators, from masks alone. The caller adds them up over the step."""
        ...

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        """(this micro-batch's share of the loss, metrics of this micro-batch)."""
        ...


def valid_rows(batch: Batch) -> jax.Array:
    """(B,) bool."""
    return jnp.broadcast_to(batch.get("valid_B", True), batch["mask_BC"].shape[:1]) > 0


def active_tokens(batch: Batch) -> jax.Array:
    """(B, C) bool: tokens that count, of rows that count."""
    return (batch["mask_BC"] > 0) & valid_rows(batch)[:, None]


def _required(batch: Batch, key: str, objective) -> jax.Array:
    if key not in batch:
        name = type(objective).__name__
        raise ValueError(f"{name} needs {key!r} in the batch; it has {sorted(batch)}")
    return batch[key]


def _weights(batch: Batch) -> jax.Array:
    weight_B = batch.get("weight_B", jnp.ones(batch["mask_BC"].shape[:1]))
    return select(jax.lax.stop_gradient(weight_B), valid_rows(batch))


@dataclass(frozen=True)
class Supervised:
    """A mean over all trained tokens of the step."""

    loss: Callable[[jax.Array], jax.Array] = sft.nll
    """The loss of a token, from its log-probability."""

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def temperature_from_sampling(self) -> bool:
        return False

    def counts(self, batch: Batch) -> Counts:
        """tokens."""
        return {"tokens": count(active_tokens(batch))}

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        active_BC = active_tokens(batch)
        loss_BC = self.loss(select(stats.logp_BC, active_BC))
        weight_BC = batch.get("weight_BC", _weights(batch)[:, None])
        total = masked_sum(loss_BC * jax.lax.stop_gradient(weight_BC), active_BC)
        metrics: Metrics = {
            "entropy": Mean.of(stats.entropy_BC, active_BC),
            "mean_token_accuracy": Mean.of(stats.hit_BC, active_BC),
        }
        return ratio(total, counts["tokens"]), metrics


@dataclass(frozen=True)
class Pairwise:
    """A mean over the step's valid pairs of weight x (preference loss + nll term).

    DPO as it stands. With nll = 1 the objective of IRPO (Pang et al. 2024, arXiv
    2404.19733): the likelihood of the chosen completion over its own length. With
    weights in the batch that of ScPO (Prasad et al. 2024, arXiv 2411.04109).
    """

    loss: Callable[..., tuple[jax.Array, preference.PairMetrics]] = preference.sigmoid
    """The loss of a pair: a function of `jaxloop.losses.preference`."""
    beta: float = 0.1
    """Scale of the implicit reward, beta x log(policy / reference)."""
    nll: float = 0.0
    """Weight of the chosen completion's negative log-likelihood a token."""

    def __post_init__(self):
        if not self.beta > 0:
            raise ValueError(f"Pairwise: beta must be positive, got {self.beta}")
        if not self.nll >= 0:
            raise ValueError(f"Pairwise: nll must not be negative, got {self.nll}")

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def temperature_from_sampling(self) -> bool:
        return False

    def counts(self, batch: Batch) -> Counts:
        """pairs: those both of whose rows are valid."""
        return {"pairs": count(_valid_pairs(batch))}

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        reference_BC = _required(batch, "reference_logp_BC", self)
        valid_P = _valid_pairs(batch)
        both_B = jnp.repeat(valid_P, 2)
        active_BC = (batch["mask_BC"] > 0) & both_B[:, None]
        pairs = preference.Pairs(
            policy_P2=masked_sum(stats.logp_BC, active_BC, axis=1).reshape(-1, 2),
            reference_P2=masked_sum(reference_BC, active_BC, axis=1).reshape(-1, 2),
            tokens_P2=count(active_BC, axis=1).reshape(-1, 2),
        )
        loss_P, pair_metrics = self.loss(pairs, beta=self.beta)
        nll_P = -ratio(pairs.policy_P2[:, 0], pairs.tokens_P2[:, 0])
        if self.nll:
            loss_P = loss_P + self.nll * nll_P
        total = masked_sum(_weights(batch).reshape(-1, 2)[:, 0] * loss_P, valid_P)
        logged_P = pair_metrics | {
            "logps/chosen": pairs.policy_P2[:, 0],
            "logps/rejected": pairs.policy_P2[:, 1],
            "nll_loss": nll_P,
        }
        metrics: Metrics = {name: Mean.of(x, valid_P) for name, x in logged_P.items()}
        metrics |= _side_metrics(stats, active_BC)
        return ratio(total, counts["pairs"]), metrics


def _valid_pairs(batch: Batch) -> jax.Array:
    rows = batch["mask_BC"].shape[0]
    if rows % 2:
        raise ValueError(f"Pairwise wants rows chosen, rejected, ...; got {rows} rows")
    return valid_rows(batch).reshape(-1, 2).all(axis=1)


def _side_metrics(stats: TokenStats, active_BC: jax.Array) -> Metrics:
    """Token means, some of one side only."""

    def side(x_BC, which: int):
        # Not x_BC[which::2]: the reshape leaves a batch cut over the mesh where it is.
        return x_BC.reshape(-1, 2, x_BC.shape[1])[:, which]

    return {
        "entropy": Mean.of(stats.entropy_BC, active_BC),
        "mean_token_accuracy": Mean.of(side(stats.hit_BC, 0), side(active_BC, 0)),
        "logits/chosen": Mean.of(side(stats.mean_logit_BC, 0), side(active_BC, 0)),
        "logits/rejected": Mean.of(side(stats.mean_logit_BC, 1), side(active_BC, 1)),
    }


@dataclass(frozen=True)
class Policy:
    """The clipped policy gradient of the GRPO family, with a KL to a reference or none.

    `old_logp_BC` are the log-probabilities under the weights before this batch's first
    update. Without them the form is the purely on-policy one: the ratio is 1, its
    gradient that of logp.
    """

    clip_low: float = 0.2
    """How far below 1 the probability ratio may push (epsilon)."""
    clip_high: float = 0.2
    """How far above 1 the probability ratio may push (epsilon_high; DAPO: 0.28)."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Divide by the step's tokens (dapo), by each sequence's own length and then by the
    sequences (grpo), or by sequences x max_completion_length (dr_grpo)."""
    max_completion_length: int = 512
    """The length that aggregation "constant" divides by; sampling's max_new_tokens."""
    kl: float = 0.0
    """Weight of the KL divergence from the reference (TRL's beta; k3 estimator). 0: no
    reference is needed."""
    kl_bias_correction: bool = True
    """Multiply the KL by the probability ratio, which makes its gradient unbiased."""

    def __post_init__(self):
        wrong = [
            f"{name} = {getattr(self, name)} must {rule}"
            for name, rule, holds in (
                ("clip_low", "be within [0, 1]", 0 <= self.clip_low <= 1),
                ("clip_high", "not be negative", self.clip_high >= 0),
                ("kl", "not be negative", self.kl >= 0),
                ("max_completion_length", "be >= 1", self.max_completion_length >= 1),
                (
                    "aggregation",
                    "be token, sequence or constant",
                    self.aggregation in ("token", "sequence", "constant"),
                ),
            )
            if not holds
        ]
        if wrong:
            raise ValueError("Policy: " + "; ".join(wrong))

    @property
    def needs_reference(self) -> bool:
        return self.kl > 0

    @property
    def temperature_from_sampling(self) -> bool:
        return True

    def counts(self, batch: Batch) -> Counts:
        """tokens: those that count. sequences: valid rows, empty ones included."""
        return {
            "tokens": count(active_tokens(batch)),
            "sequences": count(valid_rows(batch)),
        }

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        active_BC = active_tokens(batch)
        valid_B = valid_rows(batch)
        logp_BC = select(stats.logp_BC, active_BC)
        old_BC = jax.lax.stop_gradient(logp_BC)
        if "old_logp_BC" in batch:
            old_BC = select(batch["old_logp_BC"], active_BC)
        advantage_B = select(_required(batch, "advantage_B", self), valid_B)
        clips = policy.clipped(
            logp_BC,
            old_BC,
            advantage_B,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )
        metrics = _clip_metrics(clips, active_BC, valid_B)
        metrics["entropy"] = Mean.of(stats.entropy_BC, active_BC)
        policy_total = self._total(clips.loss_BC, batch)
        here = self._denominator(self.counts(batch))
        metrics["policy_loss"] = Mean(jax.lax.stop_gradient(policy_total), here)
        total = policy_total
        if self.kl:
            reference_BC = _required(batch, "reference_logp_BC", self)
            kl_BC = policy.k3(logp_BC, select(reference_BC, active_BC))
            metrics["kl"] = Mean.of(kl_BC, active_BC)
            if self.kl_bias_correction:
                kl_BC = kl_BC * clips.ratio_BC
            total = total + self.kl * self._total(kl_BC, batch)
        if "sampler_logp_BC" in batch:
            metrics |= _sampler_metrics(old_BC, batch["sampler_logp_BC"], active_BC)
        return ratio(total, self._denominator(counts)), metrics

    def _total(self, x_BC: jax.Array, batch: Batch) -> jax.Array:
        """The micro-batch's numerator under the aggregation."""
        weighted_BC = x_BC * _weights(batch)[:, None]
        active_BC = active_tokens(batch)
        if self.aggregation == "sequence":
            return masked_mean(weighted_BC, active_BC, axis=1).sum()
        return masked_sum(weighted_BC, active_BC)

    def _denominator(self, counts: Counts) -> jax.Array:
        if self.aggregation == "token":
            return counts["tokens"]
        if self.aggregation == "sequence":
            return counts["sequences"]
        return counts["sequences"] * self.max_completion_length


def _clip_metrics(clips: policy.Clipped, active_BC, valid_B) -> Metrics:
    """Shares of tokens that the clip acts on; min and max are over sequences."""
    region_BC = clips.low_BC | clips.high_BC
    low_B = masked_mean(clips.low_BC.astype(jnp.float32), active_BC, axis=1)
    high_B = masked_mean(clips.high_BC.astype(jnp.float32), active_BC, axis=1)
    return {
        "clip_ratio/low_mean": Mean.of(clips.low_BC, active_BC),
        "clip_ratio/low_min": Min.of(low_B, valid_B),
        "clip_ratio/high_mean": Mean.of(clips.high_BC, active_BC),
        "clip_ratio/high_max": Max.of(high_B, valid_B),
        "clip_ratio/region_mean": Mean.of(region_BC, active_BC),
    }


def _sampler_metrics(old_BC, sampler_BC, active_BC) -> Metrics:
    """How far the sampler's log-probabilities are from the trainer's.

    A token whose sampler log-probability is missing (NaN) is left out.
    """
    known_BC = active_BC & jnp.isfinite(sampler_BC)
    gap_BC = jax.lax.stop_gradient(select(old_BC - sampler_BC, known_BC))
    size_BC = jnp.abs(gap_BC)
    importance_BC = jnp.exp(policy.limited(gap_BC))
    return {
        "sampling/sampling_logp_difference/mean": Mean.of(size_BC, known_BC),
        "sampling/sampling_logp_difference/max": Max.of(size_BC, known_BC),
        "sampling/importance_sampling_ratio/min": Min.of(importance_BC, known_BC),
        "sampling/importance_sampling_ratio/mean": Mean.of(importance_BC, known_BC),
        "sampling/importance_sampling_ratio/max": Max.of(importance_BC, known_BC),
    }
