"""Scores that a model gives without writing anything: likelihoods and scalar heads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxloop.models.huggingface import read_shape, resolve_model_path
from jaxloop.records import Prompt, Rollout, Score, Scored
from jaxloop.scoring.scorer import Groups, Models, OfModels, score_each

Item = tuple[Prompt, Rollout]


class Valued(OfModels):
    """A scorer to which models say one number of each completion."""

    name: str
    """What the score is called in records and metrics."""

    def values(self, models: Models, items: Sequence[Item]) -> np.ndarray:
        """(N,)."""
        raise NotImplementedError

    def score(
        self, models: Models, prompts: Sequence[Prompt], rollouts: Groups
    ) -> list[Scored]:
        items = [
            (prompt, rollout)
            for prompt, group in zip(prompts, rollouts, strict=True)
            for rollout in group
        ]
        values = iter(self.values(models, items).tolist())
        return score_each(prompts, rollouts, lambda *_: self._score(next(values)))

    def _score(self, value: float) -> Score:
        if not np.isfinite(value):
            return Score(None, "nan")
        return Score(value, components={self.name: value})


@dataclass(frozen=True)
class ImplicitReward(Valued):
    """beta x log(policy / reference) of a completion: what training has taught the
    policy to prefer, as a reward (Rafailov et al. 2023, arXiv 2305.18290, section 4; as
    a reward for the next round: DICE, arXiv 2406.09760)."""

    beta: float = 0.1
    """The beta that the policy was trained with."""
    normalise: bool = False
    """Divide by the number of tokens."""
    name: str = "implicit_reward"
    """What the score is called in records and metrics."""
    against: str = "first"
    """The reference: the "first" model, which the recipe starts from, or a directory
    with one of the policy's shape and tokenizer."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """ValueError for a directory without a model."""
        if self.against != "first":
            read_shape(resolve_model_path(self.against))

    def values(self, models: Models, items: Sequence[Item]) -> np.ndarray:
        gap_N = models.logps(items) - models.logps(items, by=self.against)
        if self.normalise:
            gap_N = gap_N / [max(len(rollout.token_ids), 1) for _, rollout in items]
        return self.beta * gap_N


@dataclass(frozen=True)
class RewardHead(Valued):
    """What a reward model's scalar head says after the last token."""

    path: str = ""
    """A Hugging Face directory with a `score.weight` and the policy's tokenizer; empty
    is the head of the policy itself."""
    name: str = "reward_model"
    """What the score is called in records and metrics; two in one `Sum` want two."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """ValueError for a directory without a model that has a head."""
        if self.path and not read_shape(resolve_model_path(self.path)).outputs:
            raise ValueError(f"RewardHead: {self.path} has no scalar head")

    def values(self, models: Models, items: Sequence[Item]) -> np.ndarray:
        return models.outputs(items, path=self.path)[:, 0]
