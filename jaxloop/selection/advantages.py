"""Rewards of groups -> advantages, for the policy-gradient objectives.

P prompts, G samples each. NaN marks an unscored sample (or none at all): it gets
advantage 0 and has no part in any mean or std.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from jaxloop.records import Group, Scored

Scale = Literal["group", "batch", "none"]
Advantage = Callable[[np.ndarray], np.ndarray]


def group_advantages(
    rewards_PG: np.ndarray, *, scale: Scale = "group", eps: float = 1e-4
) -> np.ndarray:
    """(r - mean of the group) / (std + eps); float32, (P, G), no NaN.

    The std is the unbiased one of the group (GRPO, Shao et al. 2024, with TRL's choices
    of std and eps) or of the whole batch; "none" does not divide (Dr. GRPO, Liu et al.
    2025). A group of equal rewards, or with one scored sample, gets exact zeros.
    """
    rewards_PG = np.asarray(rewards_PG, np.float64)
    if np.isinf(rewards_PG).any():
        raise ValueError("rewards hold an infinity; unscored samples are NaN")
    known_PG = ~np.isnan(rewards_PG)
    filled_PG = np.where(known_PG, rewards_PG, 0.0)
    count_P1 = known_PG.sum(axis=1, keepdims=True)
    mean_P1 = filled_PG.sum(axis=1, keepdims=True) / np.maximum(count_P1, 1)
    high_P1 = np.where(known_PG, rewards_PG, -np.inf).max(axis=1, keepdims=True)
    low_P1 = np.where(known_PG, rewards_PG, np.inf).min(axis=1, keepdims=True)
    # Equal rewards leave a mean off by rounding, which eps would then enlarge.
    teaches_PG = known_PG & (high_P1 > low_P1)
    centred_PG = np.where(teaches_PG, filled_PG - mean_P1, 0.0)
    if scale == "group":
        spread = np.sum(centred_PG**2, axis=1, keepdims=True)
        spread = np.sqrt(spread / np.maximum(count_P1 - 1, 1)) + eps
    elif scale == "batch":
        values = rewards_PG[known_PG]
        spread = (np.std(values, ddof=1) if len(values) > 1 else 0.0) + eps
    else:
        assert scale == "none", scale
        spread = 1.0
    return (centred_PG / spread).astype(np.float32)


@dataclass(frozen=True)
class GroupAdvantage:
    """`group_advantages` with its settings: scale "group", "batch" or "none"."""

    scale: Scale = "group"
    eps: float = 1e-4

    def __post_init__(self):
        if self.scale not in get_args(Scale):
            raise ValueError(
                f"GroupAdvantage: scale {self.scale!r} is none of {get_args(Scale)}"
            )

    def __call__(self, rewards_PG: np.ndarray) -> np.ndarray:
        return group_advantages(rewards_PG, scale=self.scale, eps=self.eps)


def rewards_of(scored: Sequence[Scored]) -> np.ndarray:
    """rewards_PG, float64: NaN where unscored, and where a prompt has fewer than G."""
    widest = max((len(row.scores) for row in scored), default=0)
    rewards_PG = np.full((len(scored), widest), np.nan)
    for i, row in enumerate(scored):
        for j, score in enumerate(row.scores):
            if score.value is not None:
                rewards_PG[i, j] = score.value
    return rewards_PG


def groups(scored: Sequence[Scored], advantage: Advantage) -> list[Group]:
    """Every prompt with its rollouts and their advantages, in the same order."""
    if not scored:
        return []
    advantages_PG = advantage(rewards_of(scored))
    return [
        Group(
            row.prompt,
            row.rollouts,
            row.scores,
            tuple(float(a) for a in advantages_G[: len(row.rollouts)]),
        )
        for row, advantages_G in zip(scored, advantages_PG, strict=True)
    ]
