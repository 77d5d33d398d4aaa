"""Judgements as rollouts to be scored: is the verdict right, or what does it say?

For training a judge on requests whose better completion is known (`JudgeTasks`). Here a
judgement that cannot be parsed is a wrong one: a judge in training must not gain by
evading.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxloop.records import Prompt, Rollout, Score, Scored
from jaxloop.scoring.scorer import Groups, column, score_each
from jaxloop.scoring.verdicts import Parser, Tagged, Verdict

LETTERS = "AB"
TIE = "tie"


@dataclass(frozen=True)
class LabelMatch:
    """1 for a judgement of two completions that names the better one, or gives it the
    higher number; 0 for a wrong one, a tie, and one that cannot be parsed.

    The answer is the place that is named ("A", "B" or "tie"), so that judgements can
    vote. Components: `invalid`, and of the others `first`, 1 where the first place is
    named and 0 where the second is.
    """

    parse: Parser = field(default_factory=Verdict)
    """Any of `jaxloop.scoring.verdicts` that speaks of two."""
    column: str = "label"
    """The row's field with the better completion's place, "A" or "B"."""

    def __post_init__(self):
        self.parse("", 2)

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            label = column(prompt, self.column)
            if label not in tuple(LETTERS):
                raise ValueError(
                    f"row {prompt.id!r}: {self.column!r} is {label!r}; a judgement of "
                    "two is about A or B"
                )

    def __call__(self, prompts: Sequence[Prompt], rollouts: Groups) -> list[Scored]:
        self.check(prompts)
        return score_each(prompts, rollouts, self._score)

    def _score(self, prompt: Prompt, rollout: Rollout) -> Score:
        values = self.parse(rollout.text, 2)
        if values is None:
            return Score(0.0, components={"invalid": 1.0})
        first, second = values
        named = TIE if first == second else LETTERS[int(second > first)]
        components = {"invalid": 0.0}
        if named != TIE:
            components["first"] = float(named == LETTERS[0])
        right = named == prompt.columns[self.column]
        return Score(float(right), answer=named, components=components)


@dataclass(frozen=True)
class Said:
    """The number that a judgement of one completion ends in; unscored where it cannot
    be parsed, which `JointScore` takes as wrong. Component: `invalid`."""

    parse: Parser = field(default_factory=Tagged)

    def __post_init__(self):
        self.parse("", 1)

    def __call__(self, prompts: Sequence[Prompt], rollouts: Groups) -> list[Scored]:
        return score_each(prompts, rollouts, self._score)

    def _score(self, prompt: Prompt, rollout: Rollout) -> Score:
        values = self.parse(rollout.text, 1)
        if values is None:
            return Score(None, "unscored", components={"invalid": 1.0})
        return Score(values[0], components={"invalid": 0.0})
