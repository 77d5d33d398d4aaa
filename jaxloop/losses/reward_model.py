"""Reward models: what a scalar head should say of completions and of their steps.

A loss is a function `(outputs, *, ...) -> (loss, metrics)`, entry by entry. The name of
its first argument says what it looks at, and so what the mean is over:

- `reward_P2`: the outputs after the last tokens of pairs (chosen, rejected); pairs;
- `output_BK`: the outputs after the last token of each completion; scored completions;
- `output_BCK`: the outputs after each token; labelled tokens.

`margin_P`, `target_B` and `step_BC` come from the batch, numbers from `RewardModel`. A
metric named `reward` is logged as TRL's `min_reward`, `mean_reward`, `max_reward`.

Shapes: P pairs, row 2i chosen and row 2i + 1 rejected; K outputs of the head; others as
in `objective.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxloop.losses import keywords
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
    valid_rows,
)
from jaxloop.losses.pairs import by_pair
from jaxloop.losses.reduce import (
    Max,
    Mean,
    Metrics,
    Min,
    count,
    masked_sum,
    ratio,
    select,
)

RewardMetrics = dict[str, jax.Array]
Loss = tuple[jax.Array, RewardMetrics]


def bradley_terry(reward_P2: jax.Array, *, centring: float = 0.0) -> Loss:
    """The chosen completion wins with probability sigmoid(r_w - r_l).

    loss = -log sigmoid(r_w - r_l) + centring (r_w + r_l)^2

    Ouyang et al. 2022 (arXiv 2203.02155); centring of Eisenstein et al. 2023 (arXiv
    2312.09244), there 0.01.
    Use: for pairs.
    Names: TRL `RewardTrainer` (`center_rewards_coefficient`), OpenRLHF `PairWiseLoss`.
    """
    no_margin_P = jnp.zeros_like(reward_P2[:, 0])
    return bradley_terry_margin(reward_P2, margin_P=no_margin_P, centring=centring)


def bradley_terry_margin(
    reward_P2: jax.Array, *, margin_P: jax.Array, centring: float = 0.0
) -> Loss:
    """Bradley-Terry where a pair must win by its `margin_B`.

    loss = -log sigmoid(r_w - r_l - margin) + centring (r_w + r_l)^2

    Touvron et al. 2023 (Llama 2, arXiv 2307.09288).
    Use: when annotators, or scores, say by how much the chosen one is better.
    Names: TRL `RewardTrainer` with a column `margin`, OpenRLHF `PairWiseLoss`.
    """
    gap_P = reward_P2[:, 0] - reward_P2[:, 1]
    loss_P = -jax.nn.log_sigmoid(gap_P - jax.lax.stop_gradient(margin_P))
    loss_P = loss_P + centring * reward_P2.sum(axis=1) ** 2
    return loss_P, {"reward": reward_P2, "accuracy": gap_P > 0, "margin": gap_P}


def regression(output_BK: jax.Array, *, target_B: jax.Array) -> Loss:
    """The head's first output meets a score.

    loss = (r - target)^2

    Least squares, as on the attributes of HelpSteer2 (Wang et al. 2024, arXiv
    2406.08673).
    Use: when completions have scores on a scale with equal steps.
    Names: -.
    """
    reward_B = output_BK[:, 0]
    error_B = reward_B - jax.lax.stop_gradient(target_B)
    return error_B**2, {"reward": reward_B, "absolute_error": jnp.abs(error_B)}


def ordinal(output_BK: jax.Array, *, target_B: jax.Array) -> Loss:
    """Grades 0 ... K: output k says whether the grade is above k.

    loss = -sum_k [t > k] log sigmoid(o_k) + [t <= k] log sigmoid(-o_k), k = 0 ... K - 1

    Cao et al. 2019 (CORAL, arXiv 1901.07884), but each threshold has weights of its own
    where CORAL shares all but an offset. The reward is the expected grade, sum_k
    sigmoid(o_k).
    Use: for grades whose steps are not equal, such as stars.
    Names: -.
    """
    grade_K = jnp.arange(output_BK.shape[1])
    above_BK = jax.lax.stop_gradient(target_B)[:, None] > grade_K
    signed_BK = jnp.where(above_BK, output_BK, -output_BK)
    reward_B = jax.nn.sigmoid(output_BK).sum(axis=1)
    right_B = (output_BK > 0).sum(axis=1) == above_BK.sum(axis=1)
    loss_B = -jax.nn.log_sigmoid(signed_BK).sum(axis=1)
    return loss_B, {"reward": reward_B, "accuracy": right_B}


def process(output_BCK: jax.Array, *, step_BC: jax.Array) -> Loss:
    """Is the solution right so far? A verdict after each labelled token.

    loss_t = -y_t log sigmoid(o_t) - (1 - y_t) log sigmoid(-o_t), y_t = the label of the
    step that ends with token t, within [0, 1]

    Lightman et al. 2023 (arXiv 2305.20050), with two classes; labels between 0 and 1
    are rates of success from there (Wang et al. 2023, Math-Shepherd, arXiv 2312.08935).
    Use: for step rewards; for token rewards label every token.
    Names: TRL's former `PRMTrainer`, OpenRLHF `PRMLoss`.
    """
    logit_BC = output_BCK[:, :, 0]
    label_BC = jax.lax.stop_gradient(step_BC)
    loss_BC = -label_BC * jax.nn.log_sigmoid(logit_BC)
    loss_BC = loss_BC - (1 - label_BC) * jax.nn.log_sigmoid(-logit_BC)
    right_BC = (logit_BC > 0) == (label_BC > 0.5)
    return loss_BC, {"reward": jax.nn.sigmoid(logit_BC), "accuracy": right_BC}


LABELS = {
    "reward_P2": {"margin_P": "margin_B"},
    "output_BK": {"target_B": "target_B"},
    "output_BCK": {"step_BC": "step_BC"},
}
"""What a loss may ask for beside what it looks at, and its key in the batch."""


@dataclass(frozen=True)
class RewardModel(Objective):
    """A mean over pairs, completions or labelled tokens of the step of weight x loss.

    Rewards are the head's outputs after the last token of a completion that counts;
    for an empty one, after its prompt. What is labelled NaN is left out.
    """

    loss: Callable[..., Loss] = bradley_terry
    """A function of `jaxloop.losses.reward_model`, or your own."""
    centring: float | None = None
    """Weight of (r_w + r_l)^2, which keeps rewards near 0. None: that of the loss."""

    def __post_init__(self):
        if self.centring is not None and not self.centring >= 0:
            raise ValueError(
                f"RewardModel: centring must not be negative, got {self.centring}"
            )
        if self._seen not in LABELS:
            raise ValueError(
                f"RewardModel: the first argument of {keywords.title(self.loss)} is "
                f"{self._seen!r}; it says what is looked at: {', '.join(LABELS)}"
            )
        self._numbers()

    @property
    def trains_on(self) -> Kind:
        return "pairs" if self._seen == "reward_P2" else "labelled"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"head"})

    @property
    def _seen(self) -> str:
        return keywords.first_argument(self.loss)

    def _numbers(self) -> dict[str, float]:
        return keywords.numbers(self, self.loss, ("centring",), LABELS[self._seen])

    def counts(self, batch: Batch) -> Counts:
        """entries: pairs, completions or labelled tokens."""
        return {"entries": count(self._labels(batch)[0])}

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        counted, labels = self._labels(batch)
        loss, logged = self.loss(
            self._outputs(stats, batch, counted), **self._numbers(), **labels
        )
        weight = row_weights(batch)
        if self._seen == "reward_P2":
            weight = by_pair(weight)[:, 0]
        total = masked_sum(_widen(weight, loss) * loss, counted)
        metrics: Metrics = {}
        for name, x in logged.items():
            spread = name == "reward"
            metrics |= _spread(x, counted) if spread else {name: Mean.of(x, counted)}
        return ratio(total, counts["entries"]), metrics

    def _entries(self, batch: Batch) -> jax.Array:
        """What there is to look at: pairs, completions or tokens, bool."""
        if self._seen == "reward_P2":
            return by_pair(valid_rows(batch)).all(axis=1)
        if self._seen == "output_BK":
            return valid_rows(batch)
        return active_tokens(batch)

    def _labels(self, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(which entries count, what else the loss asks for of them)."""
        counted = self._entries(batch)
        asked, labels = keywords.asked(self.loss), {}
        for name, key in LABELS[self._seen].items():
            if name in asked:
                label = required(batch, key, self)
                labels[name] = by_pair(label)[:, 0] if name == "margin_P" else label
                counted &= jnp.isfinite(labels[name])
        return counted, {name: select(x, counted) for name, x in labels.items()}

    def _outputs(self, stats: TokenStats, batch: Batch, counted) -> jax.Array:
        """What the loss looks at, 0 where it does not count."""
        if stats.head_BEK is None:
            raise ValueError("RewardModel needs a model with a scalar head")
        if self._seen == "output_BCK":
            return select(stats.head_BEK[:, 1:], counted[:, :, None])
        output_BK = last_outputs(stats.head_BEK, active_tokens(batch))
        if self._seen == "output_BK":
            return select(output_BK, counted[:, None])
        return select(by_pair(output_BK[:, 0]), counted[:, None])


def last_outputs(head_BEK: jax.Array, active_BC: jax.Array) -> jax.Array:
    """(B, K): the head's outputs after the last token that counts."""
    place_C = jnp.arange(1, active_BC.shape[1] + 1)
    last_B = jnp.where(active_BC, place_C, 0).max(axis=1)
    return jnp.take_along_axis(head_BEK, last_B[:, None, None], axis=1)[:, 0]


def _widen(weight: jax.Array, like: jax.Array) -> jax.Array:
    """With as many axes as `like`."""
    return weight.reshape(weight.shape + (1,) * (like.ndim - weight.ndim))


def _spread(reward: jax.Array, counted: jax.Array) -> Metrics:
    mask = jnp.broadcast_to(_widen(counted, reward), reward.shape)
    return {
        "min_reward": Min.of(reward, mask),
        "mean_reward": Mean.of(reward, mask),
        "max_reward": Max.of(reward, mask),
    }
