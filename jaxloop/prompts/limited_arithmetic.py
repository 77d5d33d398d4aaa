"""The world of sums with length limits: an instruction that anybody can check.

A prompt is `37+85=`, or `<3:37+85=`, which allows an answer of at most three parts with
`;` between them. An answer works the sum out, `7+5=12;3+8+1=12#122`, and may go on to
say the result again, `7+5=12;3+8+1=12#122;122;122`. Of two answers the fuller one is
preferred, as it often is by people. Some demonstrations heed their limit, the others
are as without one, so a model that imitates them often says too much.
"""

from dataclasses import dataclass, replace

import numpy as np

from jaxloop.prompts.arithmetic import Arithmetic, Problem, demonstration
from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.demonstrations import with_eos
from jaxloop.prompts.length_limits import limited_prompt, violates, with_limits
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Demonstration, Pair, Prompt, Rollout

INSTRUCTION = "<{limit}:"


def parts(text: str) -> int:
    """What is limited in this world."""
    return text.count(";") + 1


def violations(prompt: Prompt, rollout: Rollout) -> float:
    """1 for an answer of more parts than its prompt allows, else 0."""
    return float(violates(prompt, rollout.text, parts))


def full_answer(problem: Problem, repeats: int) -> str:
    """The working, and the result `repeats` times again."""
    return problem.working() + f";{problem.answer}" * repeats


@dataclass(frozen=True)
class LimitedArithmetic(Arithmetic):
    """`Arithmetic` with a pair of right answers to each training problem.

    Of the held-out problems there are copies with a limit: their field `set` is
    "limits", their `limit` the number.
    """

    test: int = 256
    repeats: int = 3
    """How often the result is said again at most."""
    fullest: float = 0.6
    """Share of the demonstrations that say it that often; the others vary evenly."""
    limited: float = 0.7
    """Share of the demonstrations whose prompts have a limit."""
    heeded: float = 0.4
    """Share of these that give the fullest answer that the limit allows; the others are
    as without one."""
    augmented: bool = True
    """Whether each pair has a copy with a limit beside it, as LIFT-DPO wants it."""

    def __post_init__(self):
        if self.repeats < 1:
            raise ValueError(
                f"data.repeats = {self.repeats} must be at least 1: answers would all "
                "be of one length"
            )

    @property
    def alphabet(self) -> str:
        return super().alphabet + "<:"

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the longest prompt, of one with a limit of two figures."""
        return super().prompt_tokens + 4

    @property
    def completion_tokens(self) -> int:
        return super().completion_tokens + self.repeats * (self.digits + 2)

    def load(self, tokenizer: Tokenizer) -> Dataset:
        _, train, test, shown = self._split()
        rng = np.random.default_rng([self.seed, self.digits, 3])
        prompts = self._prompts("train", train, tokenizer)
        held_out = self._prompts("test", test, tokenizer)
        pairs = [
            self._pair(prompt, problem, rng, tokenizer)
            for prompt, problem in zip(prompts, train, strict=True)
        ]
        answers = [
            self._demonstration(f"demonstration:{i}", problem, rng, tokenizer)
            for i, problem in enumerate(shown)
        ]
        limited = [self._with_limit(prompt, rng, tokenizer) for prompt in held_out]
        data = Dataset(prompts, [*held_out, *limited], answers, pairs)
        if not self.augmented:
            return data
        pairs, note = with_limits(
            pairs, tokenizer, rng, instruction=INSTRUCTION, count=parts
        )
        return replace(data, pairs=pairs, notes=[note])

    def _demonstration(
        self, id: str, problem: Problem, rng: np.random.Generator, tokenizer: Tokenizer
    ) -> Demonstration:
        fullest = rng.random() < self.fullest
        repeats = self.repeats if fullest else int(rng.integers(self.repeats))
        asked = problem.text
        if rng.random() < self.limited:
            limit = self._limit(rng)
            asked = INSTRUCTION.replace("{limit}", str(limit)) + asked
            if rng.random() < self.heeded:
                repeats = limit - self.digits
        return demonstration(id, asked, full_answer(problem, repeats), tokenizer)

    def _pair(
        self,
        prompt: Prompt,
        problem: Problem,
        rng: np.random.Generator,
        tokenizer: Tokenizer,
    ) -> Pair:
        repeats = rng.choice(self.repeats + 1, 2, replace=False)
        texts = [full_answer(problem, n) for n in sorted(repeats, reverse=True)]
        fuller, shorter = (
            Rollout(
                prompt.id,
                index,
                with_eos(tokenizer.encode(text), tokenizer),
                text,
                logps=(),
                drawn_logps=(),
                stop="eos",
            )
            for index, text in enumerate(texts)
        )
        return Pair(prompt, fuller, shorter, 1.0, 0.0, reason="the fuller answer")

    def _with_limit(
        self, prompt: Prompt, rng: np.random.Generator, tokenizer: Tokenizer
    ) -> Prompt:
        made = limited_prompt(prompt, self._limit(rng), tokenizer, INSTRUCTION)
        return replace(made, columns={**made.columns, "set": "limits"})

    def _limit(self, rng: np.random.Generator) -> int:
        """From what the working takes to what allows every answer."""
        return self.digits + int(rng.integers(self.repeats + 1))
