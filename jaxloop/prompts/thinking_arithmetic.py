"""The world of sums with thoughts: asked to think, a model writes its working first.

A prompt is `37+85:`, and a completion a thought, the marker `#` and the response:
`7+5=12;3+8+1=12#122`. Asked without a thought, `37+85=`, the model answers at once,
`#122`. The thoughts that it is shown are mostly estimates, `40+90=130#130`, and the
response follows from them. So thinking hurts a model that imitates them, until it
learns which thoughts lead to good responses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxloop.prompts.arithmetic import Problem, demonstration
from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.judged_arithmetic import JudgedArithmetic
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Prompt


def thought_text(problem: Problem) -> str:
    """`37+85:`."""
    return f"{problem.question}:"


def estimate(problem: Problem) -> str:
    """A thought that rounds both numbers to tens, 5 upwards, and the response that it
    leads to: `40+90=130#130`. Rarely right: where what was rounded cancels out."""
    a, b = ((number + 5) // 10 * 10 for number in problem)
    return f"{a}+{b}={a + b}#{a + b}"


@dataclass(frozen=True)
class ThinkingArithmetic(JudgedArithmetic):
    """`JudgedArithmetic` whose model is shown answers at once and after a thought.

    Its judge prompts have the response, a number, and no thought. The problems of both
    kinds of answers and of the judgements are the same.
    """

    train: int = 1536
    test: int = 256
    direct: float = 1.0
    """Of the demonstrations without a thought, all answer at once."""
    guess_error: int = 0
    judge_test: int = 128
    thoughts: int = 2048
    """Answers with thoughts to imitate."""
    sound: float = 0.4
    """Share of these that work the sum out; the others estimate."""
    thinking: bool = True
    """Whether the prompts ask for a thought."""

    def load(self, tokenizer: Tokenizer) -> Dataset:
        data = super().load(tokenizer)
        *_, shown = self._split()
        rng = np.random.default_rng([self.seed, self.digits, 2])
        problems = [shown[i % len(shown)] for i in range(self.thoughts)]
        sound = rng.random(len(problems)) < self.sound
        thoughts = [
            demonstration(
                f"thought:{i}",
                thought_text(problem),
                problem.working() if right else estimate(problem),
                tokenizer,
            )
            for i, (problem, right) in enumerate(zip(problems, sound, strict=True))
        ]
        mixed = [*data.demonstrations, *thoughts]
        order = rng.permutation(len(mixed))
        return replace(data, demonstrations=[mixed[i] for i in order])

    def _given(self, problem: Problem, rng: np.random.Generator) -> str:
        """As a wrong number, what an estimate leads to as often as a near one."""
        given = super()._given(problem, rng)
        estimated = estimate(problem).partition("#")[2]
        swap = problem.answer not in (given, estimated) and rng.random() < 0.5
        return estimated if swap else given

    def _prompts(
        self, split: str, problems: Sequence[Problem], tokenizer: Tokenizer
    ) -> list[Prompt]:
        prompts = super()._prompts(split, problems, tokenizer)
        if not self.thinking:
            return prompts
        texts = [thought_text(problem) for problem in problems]
        return [
            replace(prompt, text=text, token_ids=tokenizer.encode_prompt(text))
            for prompt, text in zip(prompts, texts, strict=True)
        ]
