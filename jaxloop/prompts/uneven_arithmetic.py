"""The world of sums of two sizes, for learning from votes: the majority is mostly right
on short sums and mostly wrong on long ones.

Short sums (`37+85=`) are as in `Arithmetic`. A direct answer to a long one (`137+285=`)
is an estimate: the two numbers' hundreds, and none, one or two hundred more (`#300`,
`#400`, `#500`). Estimates are common, wrong, and few enough to win votes; the working
is right, rare, and that of short sums with one step more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxloop.prompts.arithmetic import (
    Arithmetic,
    Problem,
    demonstration,
    draw_problems,
)
from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Demonstration


def estimate(problem: Problem, more: int) -> str:
    """A direct answer, rounded to the first digit of the numbers, and `more` of these:
    `#400` for 137+285 and 1."""
    unit = 10 ** (len(str(problem.a)) - 1)
    return f"#{(problem.a // unit + problem.b // unit + more) * unit}"


@dataclass(frozen=True)
class UnevenArithmetic(Arithmetic):
    """`Arithmetic` with sums beside its own that are one digit longer.

    Held-out long sums have the field `set` = "long".
    """

    train: int = 512
    """Short prompts to sample from."""
    test: int = 256
    """Short held-out prompts."""
    demonstrations: int = 1024
    """Short solutions to imitate."""
    direct: float = 0.5
    """Share of these that guess."""
    long_train: int = 1024
    """Long prompts to sample from."""
    long_test: int = 256
    """Long held-out prompts."""
    long_demonstrations: int = 2048
    """Long solutions to imitate."""
    long_direct: float = 0.75
    """Share of these that estimate."""
    estimates: int = 3
    """Different estimates of a sum."""

    @property
    def prompt_tokens(self) -> int:
        return super().prompt_tokens + 2

    @property
    def completion_tokens(self) -> int:
        return super().completion_tokens + 10

    def load(self, tokenizer: Tokenizer) -> Dataset:
        data = super().load(tokenizer)
        rng = np.random.default_rng([self.seed, self.digits, 2])
        border = self.long_train + self.long_test
        problems = draw_problems(
            rng, self.digits + 1, border + self.long_demonstrations
        )
        held_out = self._prompts(
            "long-test", problems[self.long_train : border], tokenizer
        )
        mixed = [
            *data.demonstrations,
            *self._long_demonstrations(problems[border:], rng, tokenizer),
        ]
        return replace(
            data,
            train=[
                *data.train,
                *self._prompts("long", problems[: self.long_train], tokenizer),
            ],
            test=[
                *data.test,
                *(replace(p, columns={**p.columns, "set": "long"}) for p in held_out),
            ],
            demonstrations=[mixed[i] for i in rng.permutation(len(mixed))],
        )

    def _long_demonstrations(
        self,
        problems: Sequence[Problem],
        rng: np.random.Generator,
        tokenizer: Tokenizer,
    ) -> list[Demonstration]:
        direct = round(self.long_direct * len(problems))
        more = rng.integers(0, self.estimates, direct)
        texts = [estimate(p, m) for p, m in zip(problems, more, strict=False)]
        texts += [problem.working() for problem in problems[direct:]]
        shown = zip(problems, texts, strict=True)
        return [
            demonstration(f"long:{i}", problem.text, text, tokenizer)
            for i, (problem, text) in enumerate(shown)
        ]
