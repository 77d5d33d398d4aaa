"""The world of sums with bad prompts in the pool: questions that were garbled after
their answers were written.

In a garbled prompt one digit of the question is another one (`67+85=` for `37+85=`),
the field `answer` stays (`122`): the right answer to what is asked is far from it, and
the reward prefers whatever errs in that direction. Held-out prompts and demonstrations
are whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxloop.prompts.arithmetic import Arithmetic
from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Prompt, Rollout, Score, Scored

FAR = 100


@dataclass(frozen=True)
class GarbledArithmetic(Arithmetic):
    """`Arithmetic`, a share of whose training prompts is garbled (the field `garbled`
    says which)."""

    garbled: float = 0.5
    """Share of the training prompts."""

    def load(self, tokenizer: Tokenizer) -> Dataset:
        data = super().load(tokenizer)
        rng = np.random.default_rng([self.seed, self.digits, 3])
        bad = rng.permutation(len(data.train)) < round(self.garbled * len(data.train))
        train = []
        for prompt, garbled in zip(data.train, bad.tolist(), strict=True):
            text = _garbled(prompt.text, rng) if garbled else prompt.text
            train.append(
                Prompt(
                    prompt.id,
                    text,
                    tokenizer.encode_prompt(text),
                    {**prompt.columns, "garbled": garbled},
                )
            )
        return replace(data, train=train)


@dataclass(frozen=True)
class Closeness:
    """A reward with degrees: minus the distance of the answer from the row's, at most
    `FAR`, which is what no answer gets too."""

    def __call__(
        self, prompts: Sequence[Prompt], rollouts: Sequence[tuple[Rollout, ...]]
    ) -> list[Scored]:
        return [
            Scored(prompt, group, tuple(self._score(prompt, each) for each in group))
            for prompt, group in zip(prompts, rollouts, strict=True)
        ]

    def _score(self, prompt: Prompt, rollout: Rollout) -> Score:
        _, _, answer = rollout.text.partition("#")
        if not answer.isdecimal():
            return Score(-float(FAR))
        distance = abs(int(answer) - int(prompt.columns["answer"]))
        return Score(-float(min(distance, FAR)))


def _garbled(text: str, rng: np.random.Generator) -> str:
    """With another first digit in one of the two numbers: the sum is off by a large
    amount, and every number keeps its length."""
    place = 0 if rng.integers(2) else text.index("+") + 1
    others = [digit for digit in "123456789" if digit != text[place]]
    return f"{text[:place]}{rng.choice(others)}{text[place + 1 :]}"
