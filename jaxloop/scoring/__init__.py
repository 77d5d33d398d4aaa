"""Rollouts -> scores: verifiers, votes, and functions of the user's own."""

from jaxloop.scoring.answers import (
    After,
    Extractor,
    Hashes,
    LastNumber,
    Letter,
    Regex,
    WholeText,
    canonical,
    number,
)
from jaxloop.scoring.combine import Shuffled, Sum
from jaxloop.scoring.functions import Function
from jaxloop.scoring.likelihood import ImplicitReward, RewardHead
from jaxloop.scoring.metrics import score_metrics, score_warnings
from jaxloop.scoring.pool import PoolError
from jaxloop.scoring.scorer import Scorer, check, close
from jaxloop.scoring.verifiers import GSM8K, Exact, Format, MultipleChoice, Numeric
from jaxloop.scoring.vote import MajorityVote

__all__ = [
    "GSM8K",
    "After",
    "Exact",
    "Extractor",
    "Format",
    "Function",
    "Hashes",
    "ImplicitReward",
    "LastNumber",
    "Letter",
    "MajorityVote",
    "MultipleChoice",
    "Numeric",
    "PoolError",
    "Regex",
    "RewardHead",
    "Scorer",
    "Shuffled",
    "Sum",
    "WholeText",
    "canonical",
    "check",
    "close",
    "number",
    "score_metrics",
    "score_warnings",
]
