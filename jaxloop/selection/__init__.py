"""Scores -> what is learnt from: pairs, demonstrations, or groups with advantages."""

from jaxloop.selection.advantages import (
    GDPO,
    OPO,
    GroupAdvantage,
    LeaveOneOut,
    MaxRL,
    PassAtK,
    PerRole,
    ReinforcePlusPlus,
    group_advantages,
    groups,
    rewards_of,
)
from jaxloop.selection.filters import MinVote, PassRate, drop_identical, pair_metrics
from jaxloop.selection.selectors import (
    AllCorrect,
    BestWorst,
    CorrectIncorrect,
    Labels,
    TopOne,
    VoteClusters,
)
from jaxloop.selection.shaping import (
    NegativeOffset,
    Overlong,
    PromptWeight,
    by_segment,
    process_advantages,
    to_go,
)
from jaxloop.selection.weights import Uniform, VoteMargin

__all__ = [
    "GDPO",
    "OPO",
    "AllCorrect",
    "BestWorst",
    "CorrectIncorrect",
    "GroupAdvantage",
    "Labels",
    "LeaveOneOut",
    "MaxRL",
    "MinVote",
    "NegativeOffset",
    "Overlong",
    "PassAtK",
    "PassRate",
    "PerRole",
    "PromptWeight",
    "ReinforcePlusPlus",
    "TopOne",
    "Uniform",
    "VoteClusters",
    "VoteMargin",
    "by_segment",
    "drop_identical",
    "group_advantages",
    "groups",
    "pair_metrics",
    "process_advantages",
    "rewards_of",
    "to_go",
]
