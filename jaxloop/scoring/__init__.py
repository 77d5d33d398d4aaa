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
from jaxloop.scoring.judge import Judge
from jaxloop.scoring.judge_metrics import judge_metrics
from jaxloop.scoring.likelihood import ImplicitReward, RewardHead
from jaxloop.scoring.meta_judge import MetaJudged
from jaxloop.scoring.metrics import score_metrics, score_warnings
from jaxloop.scoring.pool import PoolError
from jaxloop.scoring.ratings import BradleyTerry, pivot_scores, win_rates
from jaxloop.scoring.routed import Routed
from jaxloop.scoring.scorer import Scorer, check, close
from jaxloop.scoring.verdicts import Marked, Points, Tagged, Verdict, YesNo
from jaxloop.scoring.verifiers import GSM8K, Exact, Format, MultipleChoice, Numeric
from jaxloop.scoring.vote import MajorityVote

__all__ = [
    "GSM8K",
    "After",
    "BradleyTerry",
    "Exact",
    "Extractor",
    "Format",
    "Function",
    "Hashes",
    "ImplicitReward",
    "Judge",
    "LastNumber",
    "Letter",
    "MajorityVote",
    "Marked",
    "MetaJudged",
    "MultipleChoice",
    "Numeric",
    "Points",
    "PoolError",
    "Regex",
    "RewardHead",
    "Routed",
    "Scorer",
    "Shuffled",
    "Sum",
    "Tagged",
    "Verdict",
    "WholeText",
    "YesNo",
    "canonical",
    "check",
    "close",
    "judge_metrics",
    "number",
    "pivot_scores",
    "score_metrics",
    "score_warnings",
    "win_rates",
]
