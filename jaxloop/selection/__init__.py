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
    rewards_of,
)
from jaxloop.selection.consistency import (
    RankConsistency,
    kendall,
    spearman,
    top_order,
)
from jaxloop.selection.filters import (
    AnswerConsistency,
    MinVote,
    PassRate,
    drop_identical,
    pair_metrics,
)
from jaxloop.selection.grouping import groups
from jaxloop.selection.joint_order import (
    JointOrder,
    JointScore,
    joint_score_rewards,
)
from jaxloop.selection.judge_pairs import JudgePairs
from jaxloop.selection.length_control import (
    TierLength,
    ZLength,
    characters,
    token_count,
)
from jaxloop.selection.overlap import Decontaminate, Dedupe
from jaxloop.selection.pool_filters import RIP, MinimumScore, RIPBounds
from jaxloop.selection.pseudo_labels import (
    FirstAgreement,
    PseudoLabels,
    label_weights,
    vote_matrix,
)
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
from jaxloop.selection.streams import LabelBalanced, Streams
from jaxloop.selection.weights import Uniform, VoteMargin

__all__ = [
    "GDPO",
    "OPO",
    "RIP",
    "AllCorrect",
    "AnswerConsistency",
    "BestWorst",
    "CorrectIncorrect",
    "Decontaminate",
    "Dedupe",
    "FirstAgreement",
    "GroupAdvantage",
    "JointOrder",
    "JointScore",
    "JudgePairs",
    "LabelBalanced",
    "Labels",
    "LeaveOneOut",
    "MaxRL",
    "MinVote",
    "MinimumScore",
    "NegativeOffset",
    "Overlong",
    "PassAtK",
    "PassRate",
    "PerRole",
    "PromptWeight",
    "PseudoLabels",
    "RIPBounds",
    "RankConsistency",
    "ReinforcePlusPlus",
    "Streams",
    "TierLength",
    "TopOne",
    "Uniform",
    "VoteClusters",
    "VoteMargin",
    "ZLength",
    "by_segment",
    "characters",
    "drop_identical",
    "group_advantages",
    "groups",
    "joint_score_rewards",
    "kendall",
    "label_weights",
    "pair_metrics",
    "process_advantages",
    "rewards_of",
    "spearman",
    "to_go",
    "token_count",
    "top_order",
    "vote_matrix",
]
