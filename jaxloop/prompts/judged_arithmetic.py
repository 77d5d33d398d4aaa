"""The world of sums with judging: the same model answers, and says whether answers are
right.

A judge prompt is `37+85?112=`: a problem and a number that somebody gave. A judgement
works the sum out, sets it digit by digit against that number (truth first, then `.`
where the digits are equal and `x` where not) and ends in a verdict:
`7+5=12;3+8+1=12#122|11.21x22.N`. A model that works learns to judge; one that says the
verdict at once is near chance, for which there is `worked`.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from jaxloop.prompts.arithmetic import Arithmetic, Problem, demonstration
from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Demonstration, Prompt

JUDGE_TEMPLATE = "{question}?{answer}="
"""What a judge of this world reads; the question is the column `problem`."""

META_TEMPLATE = "{question}?{answer}:{judgement_A}{judgement_B}="
"""What a meta-judge of this world reads: of the judgements it sees the verdicts."""
_VERDICT = re.compile(r"(?:^|[.x])([YNAB])$")
VALUES = {1: {"Y": (1.0,), "N": (0.0,)}, 2: {"A": (1.0, 0.0), "B": (0.0, 1.0)}}


def read_verdict(text: str, shown: int) -> tuple[float, ...] | None:
    """The parser of this world's judgements: 1 for Y and 0 for N; of two, 1 for the one
    that is named, A or B, and 0 for the other. None where there is no such verdict."""
    found = _VERDICT.search(text)
    return VALUES[shown].get(found[1]) if found else None


def judge_text(problem: Problem, given: str) -> str:
    """`37+85?112=`."""
    return JUDGE_TEMPLATE.format(question=problem.question, answer=given)


def meta_text(problem: Problem, given: str, verdicts: str) -> str:
    """`37+85?112:YN=`: which of two verdicts on a number is right?"""
    return META_TEMPLATE.format(
        question=problem.question,
        answer=given,
        judgement_A=verdicts[0],
        judgement_B=verdicts[1],
    )


def verdict(problem: Problem, given: str) -> str:
    """`Y` or `N`."""
    return "Y" if given == problem.answer else "N"


def judgement(
    problem: Problem, given: str, *, worked: bool = True, verdicts: str = ""
) -> str:
    """A right judgement, with the working or without; of two `verdicts` it names the
    right one, `A` or `B`."""
    end = verdict(problem, given)
    if verdicts:
        end = "AB"[verdicts.index(end)]
    if not worked:
        return end
    return f"{problem.working()}|{compared(problem.answer, given)}{end}"


def compared(answer: str, given: str) -> str:
    """Digit by digit, truth first: `11.21x22.`."""
    width = max(len(answer), len(given))
    digits = zip(answer.zfill(width), given.zfill(width), strict=True)
    return "".join(f"{x}{y}{'.' if x == y else 'x'}" for x, y in digits)


@dataclass(frozen=True)
class JudgedArithmetic(Arithmetic):
    """`Arithmetic` with demonstrations of judging, and judge prompts to measure it by.

    Half of the numbers that are judged are right, the others near. The judgements that
    are shown are about the problems that are shown solved. Of the held-out problems
    there are judge prompts too: their field `set` is "verdicts", their `answer` the
    verdict.
    """

    judgements: int = 2048
    """Judgements to imitate."""
    judge_test: int = 256
    """Held-out judge prompts."""
    meta_judgements: int = 0
    """Judgements of two verdicts to imitate."""
    worked: bool = True
    """Whether judgements are worked out; verdicts alone are a control."""

    @property
    def alphabet(self) -> str:
        return super().alphabet + "?|.xYN:AB"

    @property
    def judge_prompt_tokens(self) -> int:
        return self.prompt_tokens + self.digits + 2

    @property
    def judgement_tokens(self) -> int:
        """Tokens of the longest right judgement, its end included."""
        return self.completion_tokens + 3 * (self.digits + 1) + 2

    def load(self, tokenizer: Tokenizer) -> Dataset:
        data = super().load(tokenizer)
        _, _, test, shown = self._split()
        rng = np.random.default_rng([self.seed, self.digits, 1])
        judged = [shown[i % len(shown)] for i in range(self.judgements)]
        judgements = [
            self._judgement(f"judgement:{i}", problem, rng, tokenizer)
            for i, problem in enumerate(judged)
        ]
        judged = [shown[i % len(shown)] for i in range(self.meta_judgements)]
        judgements += [
            self._judgement(f"meta:{i}", problem, rng, tokenizer, meta=True)
            for i, problem in enumerate(judged)
        ]
        mixed = [*data.demonstrations, *judgements]
        held_out = [
            self._judge_prompt(f"judge:{i}", problem, rng, tokenizer)
            for i, problem in enumerate(test[: self.judge_test])
        ]
        return replace(
            data,
            test=[*data.test, *held_out],
            demonstrations=[mixed[i] for i in rng.permutation(len(mixed))],
        )

    def _judgement(
        self,
        id: str,
        problem: Problem,
        rng: np.random.Generator,
        tokenizer: Tokenizer,
        *,
        meta: bool = False,
    ) -> Demonstration:
        given = self._given(problem, rng)
        verdicts = str(rng.choice(("YN", "NY"))) if meta else ""
        text = judgement(problem, given, worked=self.worked, verdicts=verdicts)
        asked = judge_text(problem, given)
        if meta:
            asked = meta_text(problem, given, verdicts)
        return demonstration(id, asked, text, tokenizer)

    def _judge_prompt(
        self, id: str, problem: Problem, rng: np.random.Generator, tokenizer: Tokenizer
    ) -> Prompt:
        given = self._given(problem, rng)
        text = judge_text(problem, given)
        columns = {"answer": verdict(problem, given), "set": "verdicts"}
        return Prompt(id, text, tokenizer.encode_prompt(text), columns)

    def _given(self, problem: Problem, rng: np.random.Generator) -> str:
        """The number to be judged: right half of the time, else near."""
        right = rng.random() < 0.5
        size = rng.integers(1, max(self.guess_error, 1) + 1)
        error = 0 if right else size * rng.choice((-1, 1))
        return str(abs(problem.a + problem.b + error))
