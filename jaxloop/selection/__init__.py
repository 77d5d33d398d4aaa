"""Scores -> what is learnt from: pairs, demonstrations, or groups with advantages."""

from jaxloop.selection.advantages import (
    GroupAdvantage,
    group_advantages,
    groups,
    rewards_of,
)
from jaxloop.selection.filters import MinVote, PassRate, drop_identical, pair_metrics
from jaxloop.selection.selectors import (
    AllCorrect,
    BestWorst,
    CorrectIncorrect,
    TopOne,
    VoteClusters,
)
from jaxloop.selection.weights import Uniform, VoteMargin

__all__ = [
    "AllCorrect",
    "BestWorst",
    "CorrectIncorrect",
    "GroupAdvantage",
    "MinVote",
    "PassRate",
    "TopOne",
    "Uniform",
    "VoteClusters",
    "VoteMargin",
    "drop_identical",
    "group_advantages",
    "groups",
    "pair_metrics",
    "rewards_of",
]
