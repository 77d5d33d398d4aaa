"""Learning from groups: advantages and the policy gradient.

Shapes as in `objective.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp

from jaxloop.losses import keywords, policy
from jaxloop.losses.kl import k2, k3, k3_straight
from jaxloop.losses.objective import (
    Batch,
    Counts,
    Kind,
    Memory,
    Need,
    Objective,
    TokenStats,
    active_tokens,
    required,
    row_weights,
    valid_rows,
)
from jaxloop.losses.off_policy import OffPolicy, strayed
from jaxloop.losses.policy import Aggregation, Level, Term, Tokens
from jaxloop.losses.policy_metrics import ratio_metrics, sampler_metrics, token_mean
from jaxloop.losses.reduce import (
    Mean,
    Metrics,
    count,
    masked_mean,
    masked_sum,
    ratio,
    select,
)

NUMBERS = (
    *("clip_low", "clip_high", "delta", "level", "penalty"),
    *("tau_pos", "tau_neg", "k_pos", "lam_pos", "k_neg", "lam_neg"),
)
"""The fields of `Policy` that are arguments of its term."""


@dataclass(frozen=True)
class Policy(Objective):
    """The policy gradient of the GRPO family: a term a token, and what goes with it.

    As it stands TRL's default: `dapo` with both bounds 0.2, no KL. `advantage_B` of the
    batch is pushed, or `advantage_BC` by token; `mask_BC` says which tokens (turns,
    spans, not a tool's output) are trained on. `old_logp_BC` are the log-probabilities
    under the weights before this batch's first update. Without them the form is the
    purely on-policy one: the ratio is 1, its gradient that of logp. With `opposed_B`
    the loss is a sum over several labels (`PseudoLabels`); which tokens have strayed
    (`off_policy`) then goes by the sum of their advantages.
    """

    loss: policy.TermFunction = policy.clipped
    """The loss of a token: a function of `jaxloop.losses.policy`. The next eleven
    fields are its arguments; none takes the function's own value."""
    clip_low: float | None = None
    """How far below 1 the probability ratio may push (epsilon; `clipped`: 0.2)."""
    clip_high: float | None = None
    """How far above 1 the probability ratio may push (epsilon_high; `clipped`: 0.2,
    DAPO: 0.28); the cap itself for `cispo`."""
    delta: float | None = None
    """Bound on the ratio where advantages are negative (`two_sided`, `dual_clip`)."""
    level: Level | None = None
    """Whose ratio it is: a token's, or a sequence's as the mean ("sequence") or the sum
    ("sum") of its tokens' log-ratios."""
    penalty: float | None = None
    """Weight of the squared log-ratio (`dppo`)."""
    tau_pos: float | None = None
    """Temperature of the gate where advantages are positive (`sapo`)."""
    tau_neg: float | None = None
    """Temperature of the gate where they are not (`sapo`)."""
    k_pos: float | None = None
    """Exponent of the ratio where advantages are not negative (`vespo`)."""
    lam_pos: float | None = None
    """Decay in the ratio where advantages are not negative (`vespo`)."""
    k_neg: float | None = None
    """Exponent of the ratio where advantages are negative (`vespo`)."""
    lam_neg: float | None = None
    """Decay in the ratio where advantages are negative (`vespo`)."""
    aggregation: Aggregation | None = None
    """Divide by the step's tokens ("token": dapo), by each sequence's own length and
    then by the sequences ("sequence": grpo), by sequences x max_completion_length
    ("constant": dr_grpo), or by the sequences ("sum": luspo). None takes the term's
    own, "token" for most. TRL's bnpo divides by the tokens of each micro-batch: its
    loss depends on how a step is cut, which none does here. Where a step is one
    micro-batch it is "token"."""
    max_completion_length: int = 512
    """The length that aggregation "constant" divides by; sampling's max_new_tokens."""
    kl: float = 0.0
    """Weight of the KL divergence from the reference (TRL's beta). 0: no reference is
    needed."""
    kl_estimator: Callable[[jax.Array, jax.Array], jax.Array] = k3
    """The KL of a token: a function of `jaxloop.losses.kl`."""
    kl_bias_correction: bool = True
    """Multiply the KL by the probability ratio, which makes its gradient unbiased (that
    of k2 and k3_straight is so already: turn it off with them)."""
    kl_limit: float | None = None
    """Hold the KL of a token within +- this (verl: 10)."""
    entropy: float = 0.0
    """Weight of the entropy bonus, a mean over tokens whatever the aggregation is;
    where it starts with an `entropy_target`."""
    entropy_target: float | None = None
    """Raise the bonus' weight by `entropy_step` after a step whose entropy (nats a
    token) is at most this, lower it after others; the bonus acts only after the
    former (0.2 in TRL)."""
    entropy_step: float = 0.005
    """How much the weight of the bonus moves in a step."""
    entropy_range: tuple[float, float] = (0.0, 1.0)
    """Within which the weight of the bonus moves."""
    top_entropy: float = 1.0
    """Train on this share of a micro-batch's tokens, those of the highest entropy, on
    all devices together (0.2 in Wang et al. 2025, arXiv 2506.01939). Sequence ratios
    and denominators are still over all tokens; how a step is cut into micro-batches
    then matters."""
    off_policy: OffPolicy | None = None
    """Correct for the gap between sampler and trainer."""
    bypass: bool = False
    """Take ratios to the sampler's own log-probabilities instead of `old_logp_BC`."""
    mask_truncated: bool = False
    """Leave completions out that ended at the length limit."""

    def __post_init__(self):
        self._numbers()
        wrong = [
            f"{name} = {getattr(self, name)} must {rule}"
            for name, rule, holds in self._rules()
            if not holds
        ]
        if wrong:
            raise ValueError("Policy: " + "; ".join(wrong))

    def _rules(self):
        """(field, what it must, whether it does)."""
        low, high = self.clip_low, self.clip_high
        levels, ways = get_args(Level), get_args(Aggregation)
        least, most = self.entropy_range
        corrected = self.off_policy is not None
        twice = self.kl_bias_correction and self.kl_estimator in (k2, k3_straight)
        return (
            ("clip_low", "be within [0, 1]", low is None or 0 <= low <= 1),
            ("clip_high", "not be negative", high is None or high >= 0),
            ("level", f"be one of {levels}", self.level in (None, *levels)),
            ("aggregation", f"be one of {ways}", self.aggregation in (None, *ways)),
            ("max_completion_length", "be >= 1", self.max_completion_length >= 1),
            ("kl", "not be negative", self.kl >= 0),
            ("kl_limit", "be positive", self.kl_limit is None or self.kl_limit > 0),
            ("kl_bias_correction", "be off with k2's gradient", not twice),
            ("entropy_range", "be (low, high)", least <= most),
            ("top_entropy", "be within (0, 1]", 0 < self.top_entropy <= 1),
            ("bypass", "be off with off_policy", not (self.bypass and corrected)),
        )

    @property
    def trains_on(self) -> Kind:
        return "groups"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"advantage", "reference"} if self.kl else {"advantage"})

    @property
    def temperature_from_sampling(self) -> bool:
        return True

    def memory(self) -> Memory:
        """With `entropy_target`: the bonus' weight and the last step's entropy."""
        if self.entropy_target is None:
            return {}
        return {
            "entropy_coef": jnp.float32(self.entropy),
            "last_entropy": jnp.float32(jnp.inf),
        }

    def remember(self, memory: Memory, figures: Mapping[str, jax.Array]) -> Memory:
        """Moves the weight of the bonus (Skywork-OR1, arXiv 2505.22312)."""
        assert self.entropy_target is not None
        entropy = figures["entropy/top" if self.top_entropy < 1 else "entropy"]
        known = jnp.isfinite(entropy)  # a step may have no token
        step = jnp.where(entropy <= self.entropy_target, 1.0, -1.0) * self.entropy_step
        moved = jnp.clip(memory["entropy_coef"] + step, *self.entropy_range)
        return {
            "entropy_coef": jnp.where(known, moved, memory["entropy_coef"]),
            "last_entropy": jnp.where(known, entropy, memory["last_entropy"]),
        }

    def counts(self, batch: Batch) -> Counts:
        """tokens: those that count. sequences: valid rows, empty ones included."""
        return {
            "tokens": count(self._active(batch)),
            "sequences": count(valid_rows(batch)),
        }

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        tokens = self._tokens(stats, batch)
        mask_BC = tokens.mask_BC
        correction_BC = self._correction(tokens, batch)
        kept_BC = self._kept(stats.entropy_BC, mask_BC)
        term = self._term(tokens, correction_BC)
        if "opposed_B" in batch:
            left_BC = self._both_ways(tokens, correction_BC, batch)
            term = replace(term, loss_BC=term.loss_BC + left_BC)
        metrics = ratio_metrics(tokens, term) | sampler_metrics(
            tokens, batch.get("sampler_logp_BC"), correction_BC
        )
        pushed_BC, strayed_BC = kept_BC, self._strayed(tokens, batch)
        if strayed_BC is not None:
            metrics["off_policy/strayed"] = token_mean(strayed_BC, mask_BC)
            pushed_BC = kept_BC & ~strayed_BC
        total = self._total(select(term.loss_BC, pushed_BC), mask_BC, batch)
        here = self._denominator(self.counts(batch))
        metrics["policy_loss"] = Mean(jax.lax.stop_gradient(total), here)
        if self.kl:
            reference_BC = required(batch, "reference_logp_BC", self)
            kl_BC = self._kl(tokens.logp_BC, select(reference_BC, mask_BC))
            metrics["kl"] = Mean.of(kl_BC, mask_BC)
            if self.kl_bias_correction:
                kl_BC = kl_BC * term.ratio_BC
            total = total + self.kl * self._total(kl_BC, mask_BC, batch)
        entropies = stats.entropy_BC, kept_BC, mask_BC
        bonus, logged = self._bonus(*entropies, batch, counts)
        return ratio(total, self._denominator(counts)) - bonus, metrics | logged

    def _numbers(self) -> dict:
        """The term's arguments."""
        return keywords.numbers(self, self.loss, NUMBERS, given=("correction_BC",))

    def _active(self, batch: Batch) -> jax.Array:
        active_BC = active_tokens(batch)
        if self.mask_truncated:
            active_BC &= (required(batch, "truncated_B", self) <= 0)[:, None]
        return active_BC

    def _tokens(self, stats: TokenStats, batch: Batch) -> Tokens:
        """What the term sees: zeros where masked, constants but for logp."""
        active_BC = self._active(batch)
        logp_BC = select(stats.logp_BC, active_BC)
        old_BC = logp_BC
        if self.bypass:
            sampler_BC = required(batch, "sampler_logp_BC", self)
            old_BC = jnp.where(jnp.isfinite(sampler_BC), sampler_BC, logp_BC)
        elif "old_logp_BC" in batch:
            old_BC = batch["old_logp_BC"]
        if "advantage_BC" in batch:
            advantage_BC = select(batch["advantage_BC"], active_BC)
        else:
            advantage_B = required(batch, "advantage_B", self)
            advantage_BC = select(advantage_B, valid_rows(batch))[:, None]
        constants = jax.lax.stop_gradient((select(old_BC, active_BC), advantage_BC))
        return Tokens(logp_BC, *constants, active_BC)

    def _correction(self, tokens: Tokens, batch: Batch) -> jax.Array | None:
        """Off-policy weights, (B, C) or (B, 1): to the distribution drawn from, which
        is the sampler's where nothing was truncated."""
        if self.off_policy is None or self.off_policy.weight is None:
            return None
        known = "drawn_logp_BC" if "drawn_logp_BC" in batch else "sampler_logp_BC"
        return self.off_policy.weights(tokens, required(batch, known, self))

    def _strayed(self, tokens: Tokens, batch: Batch) -> jax.Array | None:
        """Where the policy has left a completion of negative advantage behind."""
        if self.off_policy is None or self.off_policy.stray_threshold is None:
            return None
        sampler_BC = batch.get("sampler_logp_BC", tokens.old_logp_BC)
        return strayed(tokens, sampler_BC, threshold=self.off_policy.stray_threshold)

    def _term(self, tokens: Tokens, correction_BC: jax.Array | None) -> Term:
        """The term, its loss times the off-policy weights."""
        if correction_BC is None:
            return self.loss(tokens, **self._numbers())
        if "correction_BC" in keywords.asked(self.loss):
            return self.loss(tokens, **self._numbers(), correction_BC=correction_BC)
        term = self.loss(tokens, **self._numbers())
        return replace(term, loss_BC=term.loss_BC * correction_BC)

    def _both_ways(
        self, tokens: Tokens, correction_BC: jax.Array | None, batch: Batch
    ) -> jax.Array:
        """What the labels of a pseudo-labelled prompt add to the loss of their sum."""
        opposed_B = select(batch["opposed_B"], valid_rows(batch))
        opposed_B1 = jax.lax.stop_gradient(opposed_B)[:, None]
        term = partial(self._term, correction_BC=correction_BC)
        return policy.both_ways(term, tokens, opposed_B1)

    def _kept(self, entropy_BC: jax.Array, mask_BC: jax.Array) -> jax.Array:
        """The tokens of highest entropy, (B, C) bool."""
        if self.top_entropy == 1.0:
            return mask_BC
        entropy_BC = jax.lax.stop_gradient(entropy_BC)
        known_BC = jnp.where(mask_BC, entropy_BC, jnp.nan)
        return known_BC >= jnp.nanquantile(known_BC, 1.0 - self.top_entropy)

    def _kl(self, logp_BC: jax.Array, reference_BC: jax.Array) -> jax.Array:
        kl_BC = self.kl_estimator(logp_BC, reference_BC)
        if self.kl_limit is None:
            return kl_BC
        return jnp.clip(kl_BC, -self.kl_limit, self.kl_limit)

    def _bonus(
        self,
        entropy_BC: jax.Array,
        kept_BC: jax.Array,
        mask_BC: jax.Array,
        batch: Batch,
        counts: Counts,
    ) -> tuple[jax.Array | float, Metrics]:
        """The micro-batch's share of weight x mean entropy of the kept tokens."""
        metrics: Metrics = {"entropy": Mean.of(entropy_BC, mask_BC)}
        if self.top_entropy < 1.0:
            metrics["entropy/top"] = Mean.of(entropy_BC, kept_BC)
        if not self.entropy and self.entropy_target is None:
            return 0.0, metrics
        coefficient = acting = jnp.float32(self.entropy)
        if self.entropy_target is not None:
            coefficient = required(batch, "entropy_coef", self)
            low = required(batch, "last_entropy", self) <= self.entropy_target
            acting = jnp.where(low, coefficient, 0.0)
        metrics["entropy_coef"] = Mean(coefficient, jnp.float32(1.0))
        # Masks know nothing of entropy: the kept tokens stand for all that count.
        share = ratio(count(mask_BC), counts["tokens"])
        return acting * share * masked_mean(entropy_BC, kept_BC), metrics

    def _total(self, x_BC: jax.Array, mask_BC: jax.Array, batch: Batch) -> jax.Array:
        """The micro-batch's numerator under the aggregation; x is (B, C) or (B, 1)."""
        weight_BC = row_weights(batch)[:, None]
        if "weight_BC" in batch:
            by_token_BC = jax.lax.stop_gradient(batch["weight_BC"])
            weight_BC = weight_BC * select(by_token_BC, mask_BC)
        x_BC = jnp.broadcast_to(x_BC * weight_BC, mask_BC.shape)
        if self._way() == "sequence":
            return masked_mean(x_BC, mask_BC, axis=1).sum()
        return masked_sum(x_BC, mask_BC)

    def _denominator(self, counts: Counts) -> jax.Array:
        if self._way() == "token":
            return counts["tokens"]
        if self._way() == "constant":
            return counts["sequences"] * self.max_completion_length
        return counts["sequences"]

    def _way(self) -> Aggregation:
        return self.aggregation or policy.aggregation_of(self.loss)
