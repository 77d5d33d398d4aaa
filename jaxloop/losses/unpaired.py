"""Learning from single completions that are each good or bad.

A loss is a function `(examples, *, ...) -> (loss_N, metrics)`, in the form of
`preference.py`. What it wants beside the examples it names: `beta`; `kl`, the mean
log-ratio of mismatched completions; `delta`, the mean reward of the steps before.

In the formulas h is an example's log-ratio policy / reference, summed over tokens, and
y = 1 where it is desirable, else -1.

Shapes: N examples; others as in `objective.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from jaxloop.losses import keywords
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
    token_weights,
    valid_rows,
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

ExampleMetrics = dict[str, jax.Array]


@struct.dataclass
class Examples:
    """Completions with a verdict; log-probabilities are sums over their tokens."""

    policy_N: jax.Array
    """Under the model in training."""
    reference_N: jax.Array
    """Under the reference, no gradient."""
    tokens_N: jax.Array
    """How many tokens were summed; may be 0."""
    desirable_N: jax.Array
    """bool."""

    @property
    def log_ratio_N(self) -> jax.Array:
        """log policy - log reference: h."""
        return self.policy_N - jax.lax.stop_gradient(self.reference_N)

    @property
    def sign_N(self) -> jax.Array:
        """1 where desirable, else -1."""
        return jnp.where(self.desirable_N, 1.0, -1.0)


def kto(
    examples: Examples, *, beta: float, kl: jax.Array
) -> tuple[jax.Array, ExampleMetrics]:
    """Kahneman-Tversky optimisation: gains and losses against a reference point.

    loss = 1 - sigmoid(y beta (h - z0)), z0 = max(0, mean h of mismatched pairs of
    prompt and completion), no gradient

    Ethayarajh et al. 2024 (arXiv 2402.01306), equation 7. z0 is that of the
    micro-batch, so it depends on how a batch is split.
    Use: with thumbs up and down instead of pairs.
    Names: TRL `kto`, OpenRLHF `KTOLoss`.
    """
    reference_point = jnp.maximum(jax.lax.stop_gradient(kl), 0.0)
    utility_N = beta * (examples.log_ratio_N - reference_point)
    return jax.nn.sigmoid(-examples.sign_N * utility_N), {}


def apo_zero_unpaired(
    examples: Examples, *, beta: float
) -> tuple[jax.Array, ExampleMetrics]:
    """Anchored: KTO with the reference itself as the reference point.

    loss = 1 - sigmoid(y beta h)

    D'Oosterlinck et al. 2024 (arXiv 2408.06266), equation 7, unpaired.
    Use: like KTO, without the cost of mismatched completions.
    Names: TRL `apo_zero_unpaired`.
    """
    return jax.nn.sigmoid(-examples.sign_N * beta * examples.log_ratio_N), {}


def bco(
    examples: Examples, *, beta: float, delta: jax.Array
) -> tuple[jax.Array, ExampleMetrics]:
    """Binary classifier optimisation: is the implicit reward above the usual one?

    loss = -log sigmoid(y (beta h - delta)), delta = mean of beta h over the steps
    before, no gradient

    Jung et al. 2024 (arXiv 2404.04656), without their density ratio (give it as
    `weight_B`). The first step has delta = 0, which is exact where policy = reference.
    Use: with thumbs up and down whose prompts are alike.
    Names: TRL's former `BCOTrainer` (its delta takes in the present batch).
    """
    shifted_N = beta * examples.log_ratio_N - jax.lax.stop_gradient(delta)
    return -jax.nn.log_sigmoid(examples.sign_N * shifted_N), {}


@dataclass(frozen=True)
class Unpaired(Objective):
    """A mean over the step's valid examples of weight x loss; `label_B` > 0 is good.

    A loss that asks for `kl` makes rows come in twos: row 2i an example, row 2i + 1 its
    prompt with the completion of another one, which serves for z0 only.
    """

    loss: Callable[..., tuple[jax.Array, ExampleMetrics]] = kto
    """A function of `jaxloop.losses.unpaired`, or your own."""
    beta: float = 0.1
    """Scale of the implicit reward, beta x log(policy / reference)."""
    desirable_weight: float = 1.0
    """Multiplies the loss of desirable examples."""
    undesirable_weight: float = 1.0
    """Multiplies that of the others: to balance their numbers."""

    def __post_init__(self):
        if not self.beta > 0:
            raise ValueError(f"Unpaired: beta must be positive, got {self.beta}")
        for name in ("desirable_weight", "undesirable_weight"):
            if not (value := getattr(self, name)) >= 0:
                raise ValueError(f"Unpaired: {name} must not be negative, got {value}")
        keywords.numbers(self, self.loss, ("beta",), ("kl", "delta"))

    @property
    def trains_on(self) -> Kind:
        return "labelled"

    @property
    def needs(self) -> frozenset[Need]:
        needs: list[Need] = ["reference"]
        if self._asks("kl"):
            needs.append("mismatch")
        return frozenset(needs)

    def _asks(self, name: str) -> bool:
        return name in keywords.asked(self.loss)

    def memory(self) -> Memory:
        """delta: the mean reward of the steps so far; delta_steps: their number."""
        if not self._asks("delta"):
            return {}
        return {"delta": jnp.zeros(()), "delta_steps": jnp.zeros(())}

    def remember(self, memory: Memory, figures: Mapping[str, jax.Array]) -> Memory:
        """A running mean; steps without an example, whose mean is NaN, leave it."""
        reward = figures["rewards/mean"]
        steps = memory["delta_steps"] + jnp.isfinite(reward)
        news = jnp.where(jnp.isfinite(reward), reward - memory["delta"], 0.0)
        delta = memory["delta"] + news / jnp.maximum(steps, 1.0)
        return {"delta": delta, "delta_steps": steps}

    def counts(self, batch: Batch) -> Counts:
        """examples: valid ones, mismatched rows not among them."""
        return {"examples": count(self._examples(valid_rows(batch)))}

    def _examples(self, x_B: jax.Array) -> jax.Array:
        """The rows that are examples."""
        if not self._asks("kl"):
            return x_B
        if x_B.shape[0] % 2:
            raise ValueError(
                "Unpaired wants rows example, mismatched completion, ...; got "
                f"{x_B.shape[0]} rows"
            )
        return x_B.reshape(-1, 2, *x_B.shape[1:])[:, 0]

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        active_BC = active_tokens(batch)
        logp_BC = select(stats.logp_BC, active_BC)
        reference_BC = required(batch, "reference_logp_BC", self)
        reference_BC = select(jax.lax.stop_gradient(reference_BC), active_BC)
        weight_BC = token_weights(batch, active_BC)
        policy_B = (weight_BC * logp_BC).sum(axis=1)
        reference_B = (weight_BC * reference_BC).sum(axis=1)
        desirable_B = required(batch, "label_B", self) > 0
        examples = Examples(
            policy_N=self._examples(policy_B),
            reference_N=self._examples(reference_B),
            tokens_N=self._examples(count(active_BC, axis=1)),
            desirable_N=self._examples(desirable_B),
        )
        given = self._given(policy_B - reference_B, batch)
        numbers = keywords.numbers(self, self.loss, ("beta",), ("kl", "delta"))
        loss_N, own = self.loss(examples, **numbers, **given)
        valid_N = self._examples(valid_rows(batch))
        weight_N = self._examples(row_weights(batch)) * jnp.where(
            examples.desirable_N, self.desirable_weight, self.undesirable_weight
        )
        total = masked_sum(weight_N * loss_N, valid_N)
        metrics: Metrics = {name: Mean.of(x, jnp.ones(())) for name, x in given.items()}
        metrics |= {name: Mean.of(x, valid_N) for name, x in own.items()}
        metrics |= self._metrics(examples, logp_BC, reference_BC, valid_N)
        active_NC = self._examples(active_BC)
        logits = {"logits": self._examples(stats.mean_logit_BC)}
        metrics |= _sides(logits, active_NC, examples.desirable_N[:, None])
        metrics["entropy"] = Mean.of(self._examples(stats.entropy_BC), active_NC)
        return ratio(total, counts["examples"]), metrics

    def _metrics(self, examples: Examples, logp_BC, reference_BC, valid_N) -> Metrics:
        """Rewards as the loss sees them; plain sums over tokens, whatever weights."""
        reward_N = self.beta * examples.log_ratio_N
        named = {
            "rewards": reward_N,
            "logps": self._examples(logp_BC.sum(axis=1)),
            "drift": self._examples((logp_BC - reference_BC).sum(axis=1)),
        }
        sides = _sides(named, valid_N, examples.desirable_N)
        margin = Difference(sides["rewards/chosen"], sides["rewards/rejected"])
        metrics: Metrics = {"rewards/margins": margin, **sides}
        return metrics | {"rewards/mean": Mean.of(reward_N, valid_N)}

    def _given(self, log_ratio_B, batch: Batch) -> dict[str, jax.Array]:
        """kl and delta, as far as the loss asks for them."""
        given = {}
        if self._asks("kl"):
            mismatched_N, valid_N = (
                x_B.reshape(-1, 2)[:, 1] for x_B in (log_ratio_B, valid_rows(batch))
            )
            mean = masked_mean(jax.lax.stop_gradient(mismatched_N), valid_N)
            given["kl"] = jnp.maximum(mean, 0.0)
        if self._asks("delta"):
            given["delta"] = batch.get("delta", jnp.zeros(()))
        return given


def _sides(named: dict[str, jax.Array], counted, desirable) -> dict[str, Mean]:
    """Means over desirable entries (`/chosen`) and over the others (`/rejected`)."""
    metrics = {}
    for name, x in named.items():
        metrics[f"{name}/chosen"] = Mean.of(x, counted & desirable)
        metrics[f"{name}/rejected"] = Mean.of(x, counted & ~desirable)
    return metrics


@struct.dataclass
class Difference:
    """One mean less another, each over its own entries."""

    of: Mean
    less: Mean

    def merge(self, other: "Difference") -> "Difference":
        return Difference(self.of.merge(other.of), self.less.merge(other.less))

    def collapse(self) -> "Difference":
        """Merges along the first axis."""
        return Difference(self.of.collapse(), self.less.collapse())

    def value(self) -> jax.Array:
        """NaN unless both counted something."""
        return self.of.value() - self.less.value()
