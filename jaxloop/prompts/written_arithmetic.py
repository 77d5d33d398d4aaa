"""The world of sums in which the same model writes new problems with their answers.

A request shows two problems, `37+85=12+44=>`; what is written is a third with its
solution, `52+81=2+1=3;5+8+0=13#133`. The demonstrations of writing are careless: most
solutions are round numbers, `52+81=#130`, and some problems lack a number (`52+=`) and
have no answer at all. A model that is trained on what it writes learns to round; its
own samples can tell which answers to believe.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from jaxloop.prompts.arithmetic import Arithmetic, Problem, demonstration
from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.maker import Maker, Screen
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Demonstration
from jaxloop.sampling.settings import Sampling

REQUEST_END = ">"
_WRITTEN = re.compile(r"([0-9+]+=)[^#]*#([0-9]+)")


def read_problem(text: str) -> tuple[str, dict[str, str]] | None:
    """The parser of what is written in this world: the problem, and the number behind
    the mark as its `answer`."""
    found = _WRITTEN.fullmatch(text)
    return (found[1], {"answer": found[2]}) if found else None


def problem_maker(sampling: Sampling, count: int) -> Maker:
    """Shows two problems; only the same problem again is a repetition."""
    return Maker(
        count=count,
        template="{seeds}" + REQUEST_END,
        parse=read_problem,
        sampling=sampling,
        screen=Screen(fewest_words=1, keywords=(), alike=1.0),
    )


@dataclass(frozen=True)
class WrittenArithmetic(Arithmetic):
    """`Arithmetic` with demonstrations of writing problems.

    Those that are shown being written are those that are shown solved.
    """

    writings: int = 2048
    """Demonstrations of writing a problem."""
    ill_posed: float = 0.2
    """Share of them that lack a number."""
    rough: float = 0.85
    """Share of the others whose solution is the sum to the nearest ten."""

    @property
    def alphabet(self) -> str:
        return super().alphabet + REQUEST_END

    @property
    def writing_tokens(self) -> int:
        """Tokens of the longest problem with a right solution, its end included."""
        return self.prompt_tokens + self.completion_tokens

    def load(self, tokenizer: Tokenizer) -> Dataset:
        data = super().load(tokenizer)
        _, _, _, shown = self._split()
        rng = np.random.default_rng([self.seed, self.digits, 2])
        writings = [
            self._writing(f"writing:{i}", shown, rng, tokenizer)
            for i in range(self.writings)
        ]
        mixed = [*data.demonstrations, *writings]
        return replace(
            data, demonstrations=[mixed[i] for i in rng.permutation(len(mixed))]
        )

    def _writing(
        self,
        id: str,
        problems: list[Problem],
        rng: np.random.Generator,
        tokenizer: Tokenizer,
    ) -> Demonstration:
        first, second, new = (problems[i] for i in rng.choice(len(problems), 3, False))
        request = f"{first.text}{second.text}{REQUEST_END}"
        rounded = f"#{(new.a + new.b + 5) // 10 * 10}"
        if rng.random() < self.ill_posed:
            text = f"{new.a}+={rounded}"
        elif rng.random() < self.rough:
            text = f"{new.text}{rounded}"
        else:
            text = f"{new.text}{new.working()}"
        return demonstration(id, request, text, tokenizer)
