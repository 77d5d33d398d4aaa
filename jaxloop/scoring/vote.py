"""Scores without gold answers: how many samples of the prompt agree."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxloop.records import Prompt, Rollout, Score, Scored
from jaxloop.scoring.answers import Extractor, LastNumber, canonical


@dataclass(frozen=True)
class MajorityVote:
    """V(y)/k: the share of the prompt's k samples whose answer is that of y.

    Self-consistency as a reward (Prasad et al. 2024, ScPO, section 2). k counts every
    sample; those without an answer get no vote and stay unscored.
    """

    extract: Extractor = field(default_factory=LastNumber)

    def __call__(
        self, prompts: Sequence[Prompt], rollouts: Sequence[tuple[Rollout, ...]]
    ) -> list[Scored]:
        return [
            Scored(prompt, group, self._scores(group))
            for prompt, group in zip(prompts, rollouts, strict=True)
        ]

    def _scores(self, group: tuple[Rollout, ...]) -> tuple[Score, ...]:
        found = [self.extract(rollout.text) for rollout in group]
        answers = [None if text is None else canonical(text) or None for text in found]
        votes = Counter(answers)

        def score(answer: str | None) -> Score:
            if answer is None:
                return Score(None, "unscored")
            share = votes[answer] / len(group)
            return Score(share, "scored", answer, votes[answer], {"vote": share})

        return tuple(score(answer) for answer in answers)
