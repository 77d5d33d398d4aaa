"""A world small enough to check: sums that a tiny model can learn to work out.

A prompt is `37+85=`. A completion either works the sum out, digit by digit from the
right with the carry as third number, `7+5=12;3+8+1=12#122`, or says a number at once,
`#122`. The demonstrations show both styles, but the direct ones are guesses near the
truth: a model that imitates them is mediocre, and finds out by reward that working
pays.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxloop.prompts import demonstrations
from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Demonstration, Prompt, Rollout

ALPHABET = "0123456789+=;#"


class Problem(NamedTuple):
    """The sum of two numbers."""

    a: int
    b: int

    @property
    def question(self) -> str:
        return f"{self.a}+{self.b}"

    @property
    def text(self) -> str:
        return f"{self.question}="

    @property
    def answer(self) -> str:
        return str(self.a + self.b)

    def working(self) -> str:
        """A right solution, digit by digit: `7+5=12;3+8+1=12#122`."""
        steps, carry = [], 0
        digits = zip(reversed(str(self.a)), reversed(str(self.b)), strict=True)
        for place, (x, y) in enumerate(digits):
            total = int(x) + int(y) + carry
            third = f"+{carry}" if place else ""
            steps.append(f"{x}+{y}{third}={total}")
            carry = total // 10
        return f"{';'.join(steps)}#{self.answer}"

    def guess(self, error: int) -> str:
        """A direct answer that is off by `error`: `#120`."""
        return f"#{max(self.a + self.b + error, 0)}"


@dataclass(frozen=True)
class Arithmetic:
    """Sums of two numbers of `digits` digits each, one token a character.

    Train, demonstration and test problems are disjoint, `a+b` and `b+a` counting as the
    same problem. Every prompt has `prompt_tokens` tokens, and no right completion is
    longer than `completion_tokens`.
    """

    digits: int = 2
    """Digits of each number."""
    train: int = 1024
    """Prompts to sample from."""
    test: int = 512
    """Held-out prompts."""
    demonstrations: int = 2048
    """Solutions to imitate."""
    direct: float = 0.6
    """Share of the demonstrations that guess."""
    guess_error: int = 5
    """Guesses are off by a uniform integer between minus and plus this."""
    seed: int = 0
    """Same seed, same problems."""

    @property
    def alphabet(self) -> str:
        """All characters of prompts and completions."""
        return ALPHABET

    @property
    def prompt_tokens(self) -> int:
        return 2 * self.digits + 2

    @property
    def completion_tokens(self) -> int:
        """Tokens of the longest right completion, its end included."""
        return 10 * self.digits

    def load(self, tokenizer: Tokenizer) -> Dataset:
        """The problems as records; `columns` are `answer` ("122") and `problem`
        ("37+85"). ValueError where there are not so many different problems."""
        rng, train, test, shown = self._split()
        guesses = round(self.direct * len(shown))
        errors = rng.integers(-self.guess_error, self.guess_error + 1, guesses)
        texts = [p.guess(e) for p, e in zip(shown, errors, strict=False)]
        texts += [p.working() for p in shown[guesses:]]
        return Dataset(
            train=self._prompts("train", train, tokenizer),
            test=self._prompts("test", test, tokenizer),
            demonstrations=[
                demonstration(f"demonstration:{i}", shown[i].text, texts[i], tokenizer)
                for i in rng.permutation(len(texts))
            ],
        )

    def _split(
        self,
    ) -> tuple[np.random.Generator, list[Problem], list[Problem], list[Problem]]:
        """(a generator that has drawn them, the problems of train, test and
        demonstrations)."""
        counts = self.train, self.test, self.demonstrations
        rng = np.random.default_rng([self.seed, self.digits])
        problems = draw_problems(rng, self.digits, sum(counts))
        border = self.train + self.test
        return (
            rng,
            problems[: self.train],
            problems[self.train : border],
            problems[border:],
        )

    def _prompts(
        self, split: str, problems: Sequence[Problem], tokenizer: Tokenizer
    ) -> list[Prompt]:
        return [
            Prompt(
                id=f"{split}:{i}",
                text=problem.text,
                token_ids=tokenizer.encode_prompt(problem.text),
                columns={"answer": problem.answer, "problem": problem.question},
            )
            for i, problem in enumerate(problems)
        ]


def draw_problems(rng: np.random.Generator, digits: int, count: int) -> list[Problem]:
    """`count` problems, no two with the same two numbers, each in a random order.

    Numbers have exactly `digits` digits and do not begin with 0. ValueError where there
    are fewer than `count`.
    """
    low, numbers = 10 ** (digits - 1), 9 * 10 ** (digits - 1)
    total = numbers * (numbers + 1) // 2
    if count > total:
        raise ValueError(
            f"data: train + test + demonstrations = {count}, but there are only "
            f"{total} different sums of two numbers with {digits} digits; ask for "
            "fewer, or raise data.digits"
        )
    problems = []
    for k in rng.choice(total, count, replace=False):
        # k counts the pairs i <= j row by row: k = j (j + 1) / 2 + i.
        j = (math.isqrt(8 * int(k) + 1) - 1) // 2
        i = int(k) - j * (j + 1) // 2
        pair = (low + i, low + j)
        problems.append(Problem(*(pair if rng.integers(2) else pair[::-1])))
    return problems


def is_direct(completion: str) -> bool:
    """Whether a completion answers without working."""
    return completion.startswith("#")


def direct_share(prompt: Prompt, rollout: Rollout) -> float:
    """1 for a direct answer, else 0; averaged it is the share of direct answers."""
    return float(is_direct(rollout.text))


def demonstration(
    id: str, text: str, completion: str, tokenizer: Tokenizer
) -> Demonstration:
    """A completion of a text, as a record."""
    return demonstrations.from_completion(
        id, tokenizer.encode_prompt(text), tokenizer.encode(completion), tokenizer
    )
