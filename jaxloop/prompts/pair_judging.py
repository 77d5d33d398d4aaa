"""Pairs of sums to judge, without anybody's labels: the answer to a near problem is the
worse answer to this one.

A request is `37+85?112:122=`: a problem and two numbers, of which one is its sum and
the other that of a problem with one digit changed. A judgement works the sum out, sets
it against both numbers in turn (as in `judged_arithmetic`) and ends in the place of the
better one: `7+5=12;3+8+1=12#122|11.21x22.:11.22.22.B`. The demonstrations show that,
and more often a verdict at once, which is a guess that favours the first place: a judge
that imitates them is biased and mostly wrong, and finds out by reward that working
pays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxloop.prompts import demonstrations
from jaxloop.prompts.arithmetic import Problem, demonstration, draw_problems
from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.judged_arithmetic import JUDGE_TEMPLATE, compared, verdict
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Demonstration, Pair, Prompt, Rollout

PAIR_TEMPLATE = "{question}?{answer_A}:{answer_B}="
"""What a judge of pairs reads in this world."""


def near(problem: Problem, rng: np.random.Generator) -> Problem:
    """The problem with one digit of one number changed by one; no number becomes
    longer, shorter or 0 in front."""
    while True:
        numbers = [problem.a, problem.b]
        step = 10 ** int(rng.integers(len(str(problem.a))))
        numbers[rng.integers(2)] += step if rng.integers(2) else -step
        if all(len(str(x)) == len(str(problem.a)) for x in numbers):
            return Problem(*numbers)


def pair_judgement(problem: Problem, given: Sequence[str]) -> str:
    """A right judgement of one number, or of two, with its working."""
    sides = ":".join(compared(problem.answer, number) for number in given)
    return f"{problem.working()}|{sides}{right_verdict(problem, given)}"


def right_verdict(problem: Problem, given: Sequence[str]) -> str:
    """Of one number `Y` or `N`, of two the place of the right one, `A` or `B`."""
    if len(given) == 1:
        return verdict(problem, given[0])
    return "AB"[given.index(problem.answer)]


@dataclass(frozen=True)
class SumPairs:
    """Problems with the answer to a near one as their worse answer, one token a
    character; what a judge imitates first comes with the training pairs.

    Train, demonstration and test problems are disjoint, `a+b` and `b+a` counting as the
    same problem.
    """

    split: Literal["train", "test"] = "train"
    """Which problems `load` gives; the other settings must be equal in both."""
    digits: int = 2
    """Digits of each number."""
    train: int = 512
    """Pairs to train on."""
    test: int = 128
    """Held-out pairs."""
    demonstrations: int = 3072
    """Judgements to imitate."""
    shown: Literal[1, 2] = 2
    """How many numbers a judgement is about."""
    direct: float = 0.6
    """Share of the demonstrations that say a verdict at once."""
    first: float = 0.8
    """Share of these guesses that name the first place, or say yes."""
    seed: int = 0
    """Same seed, same problems."""

    def load(self, tokenizer: Tokenizer) -> Dataset:
        """Pairs whose column is `problem` ("37+85"); ValueError where there are not so
        many different problems."""
        counts = self.train, self.test, self.demonstrations
        rng = np.random.default_rng([self.seed, self.digits, 2])
        problems = draw_problems(rng, self.digits, sum(counts))
        pairs = [(problem, near(problem, rng).answer) for problem in problems]
        train, border = self.train, self.train + self.test
        if self.split == "test":
            return Dataset(pairs=self._pairs(pairs[train:border], tokenizer))
        shown = [
            self._demonstration(f"judgement:{i}", *pair, rng, tokenizer)
            for i, pair in enumerate(pairs[border:])
        ]
        return Dataset(
            pairs=self._pairs(pairs[:train], tokenizer), demonstrations=shown
        )

    def _pairs(
        self, pairs: Sequence[tuple[Problem, str]], tokenizer: Tokenizer
    ) -> list[Pair]:
        return [
            _pair(f"{self.split}:{i}", problem, worse, tokenizer)
            for i, (problem, worse) in enumerate(pairs)
        ]

    def _demonstration(
        self,
        id: str,
        problem: Problem,
        worse: str,
        rng: np.random.Generator,
        tokenizer: Tokenizer,
    ) -> Demonstration:
        given = [problem.answer, worse]
        if rng.integers(2):
            given.reverse()
        given = given[: self.shown]
        text = JUDGE_TEMPLATE if self.shown == 1 else PAIR_TEMPLATE
        fields = dict(zip(("answer_A", "answer_B"), given, strict=False))
        asked = text.format(question=problem.question, answer=given[0], **fields)
        told = pair_judgement(problem, given)
        if rng.random() < self.direct:
            told = ("YN" if self.shown == 1 else "AB")[rng.random() >= self.first]
        return demonstration(id, asked, told, tokenizer)


def _pair(id: str, problem: Problem, worse: str, tokenizer: Tokenizer) -> Pair:
    columns = {"problem": problem.question}
    prompt = Prompt(id, problem.text, tokenizer.encode_prompt(problem.text), columns)

    def given(index: int, number: str) -> Rollout:
        text = f"#{number}"
        ids = demonstrations.with_eos(tokenizer.encode(text), tokenizer)
        return Rollout(id, index, ids, text, (), (), "eos")

    chosen, rejected = given(0, problem.answer), given(1, worse)
    return Pair(prompt, chosen, rejected, 1.0, 0.0, reason="near problem")
