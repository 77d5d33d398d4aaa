"""How far the model that a recipe started from agrees with itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from jaxloop.records import Prompt, Score, Scored
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring.scorer import Groups, Models, OfModels
from jaxloop.scoring.vote import MajorityVote


@dataclass(frozen=True)
class FirstVote(OfModels):
    """The votes, and beside them how far the model that the recipe started from agrees
    with itself on the prompt: the most votes of its samples, over their number.

    That share is a component of each score, under `name`, for `FirstAgreement`
    (RESTRAIN, arXiv 2510.02172). It costs samples of the first model for each prompt
    each time that the prompt comes up; they are the same ones each time.
    """

    vote: MajorityVote = field(default_factory=MajorityVote)
    sampling: Sampling = field(default_factory=Sampling)
    """How the first model's samples are drawn."""
    by: str = "first"
    """Whose agreement it is: the "first" model, or a directory with another."""
    name: str = "first_vote"

    def score(
        self, models: Models, prompts: Sequence[Prompt], rollouts: Groups
    ) -> list[Scored]:
        drawn = models.write(prompts, self.sampling, by=self.by)
        first = self.vote(prompts, drawn)
        rows = zip(self.vote(prompts, rollouts), first, strict=True)
        return [self._with_share(row, most_voted(of_first)) for row, of_first in rows]

    def _with_share(self, row: Scored, share: float) -> Scored:
        def named(score: Score) -> Score:
            return replace(score, components={**score.components, self.name: share})

        scores = (named(s) if s.value is not None else s for s in row.scores)
        return replace(row, scores=tuple(scores))


def most_voted(row: Scored) -> float:
    """The share of a prompt's samples that give its most frequent answer."""
    return max((s.value for s in row.scores if s.value is not None), default=0.0)
