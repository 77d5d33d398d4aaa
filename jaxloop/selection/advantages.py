"""Rewards of groups -> advantages, for the policy-gradient objectives.

P prompts, G samples each. NaN marks an unscored sample (or none at all): it gets
advantage 0 and has no part in any mean or std. Every std is the unbiased one; all is
computed in float64 and given back in float32.

An advantage is called with rewards_PG; one that looks at more than rewards (components,
lengths, roles) has a method `of_scored(scored)` instead. `shaping.py` has what goes
around an advantage.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from jaxloop.records import Rollout, Score, Scored
from jaxloop.selection.selectors import CORRECT

Scale = Literal["group", "batch", "none"]


class OfScored(Protocol):
    """An advantage that looks at the scored prompts themselves."""

    def of_scored(self, scored: Sequence[Scored]) -> np.ndarray:
        """advantages_PG, 0 where unscored; G is the most samples of a prompt."""
        ...


Advantage = Callable[[np.ndarray], np.ndarray] | OfScored


def group_advantages(
    rewards_PG: np.ndarray, *, scale: Scale = "group", eps: float = 1e-4
) -> np.ndarray:
    """(r - mean of the group) / (std + eps); float32, (P, G), no NaN.

    The std is the unbiased one of the group (GRPO, Shao et al. 2024, with TRL's choices
    of std and eps) or of the whole batch; "none" does not divide (Dr. GRPO, Liu et al.
    2025). A group of equal rewards, or with one scored sample, gets exact zeros.
    """
    return _scaled(_checked(rewards_PG), scale, eps).astype(np.float32)


@dataclass(frozen=True)
class GroupAdvantage:
    """How much better than its group, in stds: GRPO, or Dr. GRPO without the stds.

    A = (r - mean of the group) / (std + eps)

    Shao et al. 2024 (arXiv 2402.03300); scale "batch" takes the std of all rewards of
    the batch (arXiv 2508.08221), "none" does not divide (Dr. GRPO, arXiv 2503.20783).
    Use: first.
    Names: TRL `scale_rewards`, verl `grpo` (with `norm_adv_by_std_in_grpo`), OpenRLHF
    `group_norm` and `dr_grpo`.
    """

    scale: Scale = "group"
    eps: float = 1e-4

    def __post_init__(self):
        if self.scale not in get_args(Scale):
            raise ValueError(
                f"GroupAdvantage: scale {self.scale!r} is none of {get_args(Scale)}"
            )

    def __call__(self, rewards_PG: np.ndarray) -> np.ndarray:
        return group_advantages(rewards_PG, scale=self.scale, eps=self.eps)


@dataclass(frozen=True)
class LeaveOneOut:
    """How much better than the mean of the group's others: RLOO.

    A = r - (sum of the group - r) / (n - 1)

    Ahmadian et al. 2024 (arXiv 2402.14740). n counts the scored samples. `whiten`
    brings the batch to mean 0 and std 1.
    Use: with few samples a prompt; the baseline is unbiased.
    Names: TRL `RLOOTrainer` (`normalize_advantages`), verl `rloo`, OpenRLHF `rloo`.
    """

    whiten: bool = False
    eps: float = 1e-4

    def __call__(self, rewards_PG: np.ndarray) -> np.ndarray:
        rewards_PG = _checked(rewards_PG)
        n_P1 = (~np.isnan(rewards_PG)).sum(axis=1, keepdims=True)
        advantages_PG = _centred(rewards_PG) * n_P1 / np.maximum(n_P1 - 1, 1)
        if self.whiten:
            several_PG = ~np.isnan(rewards_PG) & (n_P1 > 1)
            advantages_PG = _whitened(advantages_PG, several_PG, self.eps)
        return advantages_PG.astype(np.float32)


@dataclass(frozen=True)
class ReinforcePlusPlus:
    """How much better than the batch, in its stds: REINFORCE++.

    A = (x - mean of the batch's x) / (std of the batch's x + eps)
    x = r, or with `group_baseline` r - mean of the group

    Hu et al. 2025 (arXiv 2501.03262). Whitened over samples, not over their tokens.
    Without the baseline the advantages of a group do not sum to 0, and one sample a
    prompt is enough.
    Use: with many prompts and few samples of each.
    Names: verl `reinforce_plus_plus`, `reinforce_plus_plus_baseline`, OpenRLHF
    `reinforce`, `reinforce_baseline`.
    """

    group_baseline: bool = False
    eps: float = 1e-4

    def __call__(self, rewards_PG: np.ndarray) -> np.ndarray:
        rewards_PG = _checked(rewards_PG)
        known_PG = ~np.isnan(rewards_PG)
        if self.group_baseline:
            known_PG &= known_PG.sum(axis=1, keepdims=True) > 1
            rewards_PG = _centred(rewards_PG)
        return _whitened(rewards_PG, known_PG, self.eps).astype(np.float32)


@dataclass(frozen=True)
class MaxRL:
    """How much better than its group, over the group's mean: hard prompts count more.

    A = (r - mean of the group) / mean of the group

    Maximum likelihood reinforcement learning, Tajwar et al. 2026 (arXiv 2602.02710).
    For rewards that are not negative; a group without any reward gets zeros.
    Use: with 0/1 rewards, to raise pass@k on hard prompts.
    Names: -.
    """

    def __call__(self, rewards_PG: np.ndarray) -> np.ndarray:
        rewards_PG = _checked(rewards_PG)
        if (rewards_PG < 0).any():
            raise ValueError("MaxRL: divides by mean rewards, which must not be < 0")
        mean_P1 = _mean(rewards_PG)
        centred_PG = _centred(rewards_PG)
        return (centred_PG / np.where(mean_P1 > 0, mean_P1, 1.0)).astype(np.float32)


@dataclass(frozen=True)
class PassAtK:
    """What a sample adds to the chance that one of k is correct.

    A = 1 - mu                                      for the correct
    A = 1 - mu - C(bad - 1, k - 1) / C(n - 1, k - 1)   for the others
    mu = 1 - C(bad, k) / C(n, k), the group's pass@k

    ParaGator's candidate stage (arXiv 2603.18886), bad of n scored samples being wrong;
    mu is chosen such that a group sums to 0. k = 1 is Dr. GRPO; bad < k, or n < k,
    gives zeros. Correct is a reward above `threshold`.
    Use: when samples are aggregated, or only the best of k counts.
    Names: - (verl's `grpo_passk` is another estimator).
    """

    k: int
    threshold: float = CORRECT

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"PassAtK: k = {self.k} must be at least 1")

    def __call__(self, rewards_PG: np.ndarray) -> np.ndarray:
        rewards_PG = _checked(rewards_PG)
        if rewards_PG.shape[1] < self.k:
            raise ValueError(
                f"PassAtK: k = {self.k} of {rewards_PG.shape[1]} samples a prompt"
            )
        advantages_PG = np.zeros(rewards_PG.shape)
        for row_G, out_G in zip(rewards_PG, advantages_PG, strict=True):
            known_G = ~np.isnan(row_G)
            good_G = known_G & (row_G > self.threshold)
            right, wrong = self._values(known_G.sum(), (known_G & ~good_G).sum())
            out_G[known_G] = np.where(good_G, right, wrong)[known_G]
        return advantages_PG.astype(np.float32)

    def _values(self, n: int, bad: int) -> tuple[float, float]:
        """Of a correct and of a wrong sample."""
        n, bad, k = int(n), int(bad), self.k
        if n < k or bad < k:
            return 0.0, 0.0
        none_right = math.comb(bad, k) / math.comb(n, k)
        lost = math.comb(bad - 1, k - 1) / math.comb(n - 1, k - 1)
        return none_right, none_right - lost


@dataclass(frozen=True)
class OPO:
    """How much better than the mean of the group's tokens: long samples weigh more.

    A = r - sum_i L_i r_i / sum_i L_i, L_i the tokens of sample i

    Hao et al. 2025, the optimal baseline if a token's gradients are alike (arXiv
    2505.23585). The advantages of a group do not sum to 0.
    Use: strictly on-policy, without KL, with lengths that differ much.
    Names: verl `opo`.
    """

    def of_scored(self, scored: Sequence[Scored]) -> np.ndarray:
        rewards_PG, lengths_PG = _checked(rewards_of(scored)), lengths_of(scored)
        known_PG = ~np.isnan(rewards_PG)
        lengths_PG = np.where(known_PG, lengths_PG, 0.0)
        total_P1 = np.maximum(lengths_PG.sum(axis=1, keepdims=True), 1.0)
        weighted_PG = lengths_PG * np.where(known_PG, rewards_PG, 0.0)
        baseline_P1 = weighted_PG.sum(axis=1, keepdims=True) / total_P1
        advantages_PG = np.where(_differ(rewards_PG), rewards_PG - baseline_P1, 0.0)
        return advantages_PG.astype(np.float32)


@dataclass(frozen=True)
class GDPO:
    """Several rewards, each brought to one scale in its group before they are added.

    x = sum_k weight_k (r_k - mean of the group's r_k) / (std + eps)
    A = (x - mean of the batch's x) / (std + eps)

    Group reward-decoupled normalisation (arXiv 2601.05242). r_k is the component of
    that name in the scores; a sample that lacks one gets 0 for it.
    Use: in place of a sum of rewards of different scale, which the largest rules.
    Names: TRL `multi_objective_aggregation="normalize_then_sum"`, verl `gdpo`.
    """

    components: tuple[str, ...]
    weights: tuple[float, ...] = ()
    """One a component; 1 where none are given."""
    eps: float = 1e-4

    def __post_init__(self):
        if not self.components:
            raise ValueError("GDPO: no components named")
        if self.weights and len(self.weights) != len(self.components):
            raise ValueError(
                f"GDPO: {len(self.weights)} weights for {len(self.components)} "
                "components"
            )

    def of_scored(self, scored: Sequence[Scored]) -> np.ndarray:
        weights = self.weights or (1.0,) * len(self.components)
        sum_PG = np.zeros_like(rewards_of(scored))
        named_PG = np.zeros(sum_PG.shape, bool)
        for name, weight in zip(self.components, weights, strict=True):
            rewards_PG = _checked(components_of(scored, name))
            sum_PG += weight * _scaled(rewards_PG, "group", self.eps)
            named_PG |= ~np.isnan(rewards_PG)
        known_PG = named_PG & ~np.isnan(rewards_of(scored))
        return _whitened(sum_PG, known_PG, self.eps).astype(np.float32)


@dataclass(frozen=True)
class PerRole:
    """How much better than all samples of the same role in the batch.

    A = r - mean over the role

    SPICE (arXiv 2510.24684). The role is a column of the prompts' data.
    Use: when one model plays several roles whose rewards differ in level.
    Names: -.
    """

    column: str = "role"

    def of_scored(self, scored: Sequence[Scored]) -> np.ndarray:
        rewards_PG = _checked(rewards_of(scored))
        roles_P = np.array([str(column_of(row, self.column, self)) for row in scored])
        advantages_PG = np.zeros(rewards_PG.shape)
        for role in np.unique(roles_P):
            role_P = roles_P == role
            flat_1N = rewards_PG[role_P].reshape(1, -1)
            advantages_PG[role_P] = _centred(flat_1N).reshape(role_P.sum(), -1)
        return advantages_PG.astype(np.float32)


def rewards_of(scored: Sequence[Scored]) -> np.ndarray:
    """rewards_PG, float64: NaN where unscored, and where a prompt has fewer than G."""
    return _table(scored, lambda rollout, score: score.value)


def lengths_of(scored: Sequence[Scored]) -> np.ndarray:
    """Tokens of each sample, (P, G) float64; NaN where a prompt has fewer than G."""
    return _table(scored, lambda rollout, score: len(rollout.token_ids))


def components_of(scored: Sequence[Scored], name: str) -> np.ndarray:
    """One component of the scores, (P, G) float64; NaN where a score lacks it.
    ValueError if all of them do."""
    known = {key for row in scored for score in row.scores for key in score.components}
    if name not in known:
        raise ValueError(
            f"no score has a component {name!r}; there are {sorted(known)}"
        )
    return _table(scored, lambda rollout, score: score.components.get(name))


def column_of(row: Scored, column: str, asks: object):
    """That column of the prompt's data; ValueError where it has none."""
    if column not in row.prompt.columns:
        raise ValueError(
            f"{type(asks).__name__}: prompt {row.prompt.id!r} has no column "
            f"{column!r}; it has {sorted(row.prompt.columns)}"
        )
    return row.prompt.columns[column]


def advantages_of(scored: Sequence[Scored], advantage: Advantage) -> np.ndarray:
    """advantages_PG, by whichever of its two forms the advantage has."""
    of_scored = getattr(advantage, "of_scored", None)
    if of_scored is not None:
        return of_scored(scored)
    assert callable(advantage), f"{advantage} is not an advantage"
    return advantage(rewards_of(scored))


def _table(
    scored: Sequence[Scored], entry: Callable[[Rollout, Score], float | None]
) -> np.ndarray:
    widest = max((len(row.scores) for row in scored), default=0)
    table_PG = np.full((len(scored), widest), np.nan)
    for i, row in enumerate(scored):
        for j, score in enumerate(row.scores):
            value = entry(row.rollouts[j], score)
            if value is not None:
                table_PG[i, j] = value
    return table_PG


def _checked(rewards_PG: np.ndarray) -> np.ndarray:
    rewards_PG = np.asarray(rewards_PG, np.float64)
    if np.isinf(rewards_PG).any():
        raise ValueError("rewards hold an infinity; unscored samples are NaN")
    return rewards_PG


def _mean(rewards_PG: np.ndarray) -> np.ndarray:
    """Of each group, (P, 1); 0 where nothing is scored."""
    known_PG = ~np.isnan(rewards_PG)
    total_P1 = np.where(known_PG, rewards_PG, 0.0).sum(axis=1, keepdims=True)
    return total_P1 / np.maximum(known_PG.sum(axis=1, keepdims=True), 1)


def _differ(rewards_PG: np.ndarray) -> np.ndarray:
    """Scored samples of groups whose rewards are not all equal, bool (P, G)."""
    known_PG = ~np.isnan(rewards_PG)
    high_P1 = np.where(known_PG, rewards_PG, -np.inf).max(axis=1, keepdims=True)
    low_P1 = np.where(known_PG, rewards_PG, np.inf).min(axis=1, keepdims=True)
    return known_PG & (high_P1 > low_P1)


def _centred(rewards_PG: np.ndarray) -> np.ndarray:
    """r - mean of the group. Exact zeros in a group of equal rewards: its mean is off
    by rounding, which a division by eps would enlarge."""
    return np.where(_differ(rewards_PG), rewards_PG - _mean(rewards_PG), 0.0)


def _scaled(rewards_PG: np.ndarray, scale: Scale, eps: float) -> np.ndarray:
    centred_PG = _centred(rewards_PG)
    if scale == "none":
        return centred_PG
    if scale == "batch":
        return centred_PG / (_std(rewards_PG[~np.isnan(rewards_PG)]) + eps)
    n_P1 = (~np.isnan(rewards_PG)).sum(axis=1, keepdims=True)
    squares_P1 = np.square(centred_PG).sum(axis=1, keepdims=True)
    return centred_PG / (np.sqrt(squares_P1 / np.maximum(n_P1 - 1, 1)) + eps)


def _whitened(x_PG: np.ndarray, known_PG: np.ndarray, eps: float) -> np.ndarray:
    """(x - mean) / (std + eps) over the known ones of the batch; 0 elsewhere."""
    known_N = x_PG[known_PG]
    if len(known_N) == 0:
        return np.zeros(x_PG.shape)
    return np.where(known_PG, (x_PG - known_N.mean()) / (_std(known_N) + eps), 0.0)


def _std(x_N: np.ndarray) -> float:
    return float(np.std(x_N, ddof=1)) if len(x_N) > 1 else 0.0
