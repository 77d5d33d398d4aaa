"""What the model of the round before says of the same completions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxloop.records import Prompt, Score, Scored
from jaxloop.scoring import scorer as scorers
from jaxloop.scoring.parts import parts
from jaxloop.scoring.scorer import Groups, Models, OfModels


@dataclass(frozen=True)
class WithPrevious(OfModels):
    """The scores of a scorer that asks the policy and, beside each, what the same
    scorer says with the previous round's model in the policy's place.

    That one is the component `name` of the score, for `RankConsistency` (CREAM). In the
    first round the policy itself is asked twice: a judge draws its judgements anew, a
    likelihood says the same again.
    """

    scorer: Any
    """`Judge`, `ImplicitReward`, or another scorer that asks models and has a name."""
    name: str = "previous"

    def __post_init__(self):
        own = getattr(self.scorer, "name", None)
        if not isinstance(self.scorer, OfModels) or own in (None, self.name):
            raise ValueError(
                f"WithPrevious: {type(self.scorer).__name__} must be a scorer that "
                f"asks models, with a name other than {self.name!r}"
            )

    def check(self, prompts: Sequence[Prompt]) -> None:
        scorers.check(self.scorer, prompts)

    def close(self) -> None:
        scorers.close(self.scorer)

    def score(
        self, models: Models, prompts: Sequence[Prompt], rollouts: Groups
    ) -> list[Scored]:
        now = self.scorer.score(models, prompts, rollouts)
        earlier = replace(self.scorer, name=self.name)
        then = earlier.score(models.previous, prompts, rollouts)
        return [_beside(*rows) for rows in zip(now, then, strict=True)]


def looks_back(scorer: Any) -> bool:
    """Whether some part of the scorer asks the model of the round before."""
    return any(isinstance(part, WithPrevious) for _, part in parts(scorer))


def _beside(now: Scored, then: Scored) -> Scored:
    def both(score: Score, other: Score) -> Score:
        return replace(score, components={**score.components, **other.components})

    return replace(
        now,
        scores=tuple(map(both, now.scores, then.scores)),
        judgements=now.judgements + then.judgements,
    )
