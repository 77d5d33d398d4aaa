"""Scores where gold answers are missing: how many samples of the prompt agree."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

from jaxloop.records import Prompt, Rollout, Score, Scored
from jaxloop.scoring import scorer as scorers
from jaxloop.scoring.answers import Extractor, LastNumber, canonical
from jaxloop.scoring.scorer import Groups, Scorer


@dataclass(frozen=True)
class MajorityVote:
    """V(y)/k: the share of the prompt's k samples whose answer is that of y.

    Self-consistency as a reward (Prasad et al. 2024, ScPO, section 2). k counts every
    sample; those without an answer get no vote and stay unscored. A recipe's `extra`
    samples neither vote nor count: theirs is the share that the others give to their
    answer, often 0.
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
        voting = [not rollout.extra for rollout in group]
        votes = Counter(compress(answers, voting))

        def score(answer: str | None) -> Score:
            if answer is None:
                return Score(None, "unscored")
            share = votes[answer] / sum(voting)
            return Score(share, "scored", answer, votes[answer], {"vote": share})

        return tuple(score(answer) for answer in answers)


@dataclass(frozen=True)
class GoldOrVote:
    """Gold answers where there are any, votes where there are none: semi-supervised
    ScPO (Prasad et al. 2024, arXiv 2411.04109).

    A gold answer has the votes of all k samples: a correct completion (above a half, in
    the eyes of `gold`) gets k, any other none. So on such prompts the parts that count
    votes do what IRPO does: `VoteClusters` sets correct against incorrect, `VoteMargin`
    weighs that pair 1, and `MinVote` asks for one correct sample.
    """

    gold: Scorer
    """What verifies the completions of rows with an answer."""
    vote: Scorer = field(default_factory=MajorityVote)
    """What counts votes on the others."""
    column: str = "answer"
    """The row's field that is missing, null or empty where there is no gold answer."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        scorers.check(self.gold, [p for p in prompts if self._known(p)])
        scorers.check(self.vote, [p for p in prompts if not self._known(p)])

    def close(self) -> None:
        scorers.close(self.gold)
        scorers.close(self.vote)

    def __call__(self, prompts: Sequence[Prompt], rollouts: Groups) -> list[Scored]:
        groups = list(zip(prompts, rollouts, strict=True))
        known = [(p, group) for p, group in groups if self._known(p)]
        gold = iter(self.gold([p for p, _ in known], [group for _, group in known]))
        return [
            _elected(next(gold)) if self._known(p) else self.vote([p], [group])[0]
            for p, group in groups
        ]

    def _known(self, prompt: Prompt) -> bool:
        return prompt.columns.get(self.column) not in (None, "")


def _elected(row: Scored) -> Scored:
    """Verified completions with the votes that a gold answer has."""
    voters = sum(not rollout.extra for rollout in row.rollouts)

    def elected(score: Score) -> Score:
        if score.value is None:
            return score
        votes = voters if score.value > 0.5 else 0
        return replace(score, answer=score.answer or "", votes=votes)

    return replace(row, scores=tuple(map(elected, row.scores)))
