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
from jaxloop.scoring.endpoint import Endpoint
from jaxloop.scoring.first_vote import FirstVote
from jaxloop.scoring.functions import Function
from jaxloop.scoring.judge import Judge, both_orders
from jaxloop.scoring.judge_metrics import judge_metrics
from jaxloop.scoring.label_match import LabelMatch, Said
from jaxloop.scoring.likelihood import ImplicitReward, RewardHead
from jaxloop.scoring.meta_judge import MetaJudged
from jaxloop.scoring.metrics import score_metrics, score_warnings
from jaxloop.scoring.p_true import PTrue
from jaxloop.scoring.panel import Panel
from jaxloop.scoring.pool import PoolError
from jaxloop.scoring.previous import WithPrevious
from jaxloop.scoring.ratings import BradleyTerry, pivot_scores, win_rates
from jaxloop.scoring.routed import Routed
from jaxloop.scoring.scorer import Scorer, check, close
from jaxloop.scoring.verdicts import Marked, Points, Tagged, Verdict, YesNo
from jaxloop.scoring.verifiers import GSM8K, Exact, Format, MultipleChoice, Numeric
from jaxloop.scoring.vote import GoldOrVote, MajorityVote
from jaxloop.scoring.writer import Placed

__all__ = [
    "GSM8K",
    "After",
    "BradleyTerry",
    "Endpoint",
    "Exact",
    "Extractor",
    "FirstVote",
    "Format",
    "Function",
    "GoldOrVote",
    "Hashes",
    "ImplicitReward",
    "Judge",
    "LabelMatch",
    "LastNumber",
    "Letter",
    "MajorityVote",
    "Marked",
    "MetaJudged",
    "MultipleChoice",
    "Numeric",
    "PTrue",
    "Panel",
    "Placed",
    "Points",
    "PoolError",
    "Regex",
    "RewardHead",
    "Routed",
    "Said",
    "Scorer",
    "Shuffled",
    "Sum",
    "Tagged",
    "Verdict",
    "WholeText",
    "WithPrevious",
    "YesNo",
    "both_orders",
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
