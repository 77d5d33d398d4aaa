"""Verifiers: 1.0 for a completion whose final answer is the gold one, else 0.0.

A completion without an answer is wrong, not unscored; its `Score.answer` is None. Gold
comes from a column of the data row. They run in this process: they are fast and cannot
hang, except for a pattern of the user's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from jaxloop.records import Prompt, Rollout, Score, Scored
from jaxloop.scoring.answers import (
    Extractor,
    Hashes,
    LastNumber,
    Letter,
    WholeText,
    canonical,
    compiled,
    number,
)
from jaxloop.scoring.scorer import column, score_each


@dataclass(frozen=True)
class Exact:
    """The extracted text is the gold text, letter for letter (space around it
    aside)."""

    gold: str = "answer"
    extract: Extractor = field(default_factory=WholeText)

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self.gold_of(prompt)

    def gold_of(self, prompt: Prompt) -> str:
        return str(column(prompt, self.gold)).strip()

    def __call__(
        self, prompts: Sequence[Prompt], rollouts: Sequence[tuple[Rollout, ...]]
    ) -> list[Scored]:
        def score(prompt: Prompt, rollout: Rollout) -> Score:
            answer = self.extract(rollout.text)
            right = answer is not None and answer.strip() == self.gold_of(prompt)
            return _score({"exact": right}, "exact", answer)

        return score_each(prompts, rollouts, score)


@dataclass(frozen=True)
class Numeric:
    """The extracted number equals the gold number: 1,200.50 is 1200.5 and 1/2 is 0.5.

    `tolerance` is the largest absolute difference; arithmetic is exact.
    """

    gold: str = "answer"
    extract: Extractor = field(default_factory=LastNumber)
    tolerance: float = 0.0

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self.gold_of(prompt)

    def gold_of(self, prompt: Prompt) -> Fraction:
        return _gold_number(prompt, self.gold, str)

    def __call__(
        self, prompts: Sequence[Prompt], rollouts: Sequence[tuple[Rollout, ...]]
    ) -> list[Scored]:
        def score(prompt: Prompt, rollout: Rollout) -> Score:
            gold = self.gold_of(prompt)
            answer = self.extract(rollout.text)
            value = None if answer is None else number(answer)
            right = value is not None and abs(value - gold) <= self.tolerance
            return _score({"numeric": right}, "numeric", answer)

        return score_each(prompts, rollouts, score)


@dataclass(frozen=True)
class GSM8K:
    """GSM8K (Cobbe et al. 2021): gold is the number after `#### ` of the worked answer.

    Both readings of a completion are reported as components: `strict`, the number after
    its first `#### `, and `flexible`, its last number. `score` says which one counts.
    """

    gold: str = "answer"
    score: Literal["strict", "flexible"] = "strict"

    def __post_init__(self):
        if self.score not in ("strict", "flexible"):
            raise ValueError(f"GSM8K: score {self.score!r} is not strict or flexible")

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self.gold_of(prompt)

    def gold_of(self, prompt: Prompt) -> Fraction:
        return _gold_number(prompt, self.gold, _worked)

    def __call__(
        self, prompts: Sequence[Prompt], rollouts: Sequence[tuple[Rollout, ...]]
    ) -> list[Scored]:
        def score(prompt: Prompt, rollout: Rollout) -> Score:
            gold = self.gold_of(prompt)
            answers = {
                "strict": Hashes()(rollout.text),
                "flexible": LastNumber()(rollout.text),
            }
            right = {
                name: answer is not None and number(answer) == gold
                for name, answer in answers.items()
            }
            return _score(right, self.score, answers[self.score])

        return score_each(prompts, rollouts, score)


@dataclass(frozen=True)
class MultipleChoice:
    """The letter chosen is the gold letter. Gold may be `B`, `(B)`, or the index 1."""

    gold: str = "answer"
    letters: str = "ABCDE"

    def __post_init__(self):
        Letter(self.letters)

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self.gold_of(prompt)

    def gold_of(self, prompt: Prompt) -> str:
        gold = column(prompt, self.gold)
        if isinstance(gold, int) and 0 <= gold < len(self.letters):
            return self.letters[gold]
        letter = str(gold).strip().strip("().")
        if len(letter) == 1 and letter in self.letters:
            return letter
        raise ValueError(
            f"row {prompt.id!r}: column {self.gold!r} holds {str(gold)[:80]!r}, not "
            f"one of the letters {self.letters!r} or an index into them"
        )

    def __call__(
        self, prompts: Sequence[Prompt], rollouts: Sequence[tuple[Rollout, ...]]
    ) -> list[Scored]:
        extract = Letter(self.letters)

        def score(prompt: Prompt, rollout: Rollout) -> Score:
            letter = extract(rollout.text)
            right = float(letter == self.gold_of(prompt))
            return Score(right, answer=letter, components={"multiple_choice": right})

        return score_each(prompts, rollouts, score)


@dataclass(frozen=True)
class Format:
    """1.0 where `pattern` is found in the completion, else 0.0; anchor it with ^ and $.

    Do not add it to a correctness score without thought: a policy can live on form
    alone. The pattern runs without a deadline, as that of `Regex` does.
    """

    pattern: str

    def __post_init__(self):
        compiled(self.pattern)

    def __call__(
        self, prompts: Sequence[Prompt], rollouts: Sequence[tuple[Rollout, ...]]
    ) -> list[Scored]:
        pattern = compiled(self.pattern)

        def score(prompt: Prompt, rollout: Rollout) -> Score:
            found = float(pattern.search(rollout.text) is not None)
            return Score(found, components={"format": found})

        return score_each(prompts, rollouts, score)


def _score(right: dict[str, bool], counts: str, answer: str | None) -> Score:
    return Score(
        float(right[counts]),
        answer=None if answer is None else canonical(answer),
        components={name: float(value) for name, value in right.items()},
    )


def _worked(gold: Any) -> str:
    """The final number of a worked GSM8K answer; a bare number stays as it is."""
    return Hashes()(str(gold)) or str(gold)


def _gold_number(prompt: Prompt, name: str, read: Callable[[Any], str]) -> Fraction:
    gold = column(prompt, name)
    value = number(read(gold))
    if value is None:
        raise ValueError(
            f"row {prompt.id!r}: column {name!r} holds {str(gold)[-80:]!r}, in which "
            "no final number was found"
        )
    return value
