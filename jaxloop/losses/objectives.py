"""All objectives, to import from one place."""

from jaxloop.losses.distillation import Distill
from jaxloop.losses.group_pairs import GroupPairs
from jaxloop.losses.objective import Mixture, Objective
from jaxloop.losses.off_policy import OffPolicy
from jaxloop.losses.pairwise import Pairwise
from jaxloop.losses.policy_gradient import Policy
from jaxloop.losses.ppo import GAE, Value
from jaxloop.losses.reward_model import RewardModel
from jaxloop.losses.supervised import Supervised
from jaxloop.losses.unpaired import Unpaired

__all__ = [
    "GAE",
    "Distill",
    "GroupPairs",
    "Mixture",
    "Objective",
    "OffPolicy",
    "Pairwise",
    "Policy",
    "RewardModel",
    "Supervised",
    "Unpaired",
    "Value",
]
