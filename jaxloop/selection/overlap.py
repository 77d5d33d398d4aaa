"""Filters that look at the prompts' own text: duplicates, and what leaks a test.

`column` is the field of the data's row that holds the bare question. Without it the
prompt's text is read, template and all, which makes prompts of one chat template look
more alike than they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxloop.records import Scored
from jaxloop.selection.advantages import column_of
from jaxloop.text import TextPool, ngrams, tokens, words


@dataclass(frozen=True)
class Dedupe:
    """The first of prompts that are alike: their ROUGE-L is at least `threshold`.

    1 drops only the same text in other spacing or case; 0.7 is what Self-Instruct
    (Wang et al. 2022, arXiv 2212.10560) takes. A prompt is compared with those kept
    before it.
    """

    threshold: float = 0.7
    column: str = ""

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise ValueError(
                f"Dedupe: threshold = {self.threshold} must be within (0, 1]"
            )

    def __call__(self, scored: Sequence[Scored]) -> tuple[list[Scored], int]:
        pool, kept = TextPool(), []
        for row in scored:
            text = _text(row, self.column, self)
            if pool.find(text, self.threshold) is None:
                pool.add(text)
                kept.append(row)
        return kept, len(scored) - len(kept)


@dataclass(frozen=True)
class Decontaminate:
    """Prompts that share no run of `n` words with a text held out.

    13 words are those of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C; as
    recalled, not checked against the paper). Case and punctuation hide nothing. A text
    of fewer words is only found where a prompt is the same text, marks included.
    """

    against: tuple[str, ...]
    n: int = 13
    column: str = ""

    def __post_init__(self):
        if self.n < 1:
            raise ValueError(f"Decontaminate: n = {self.n} must be at least 1")

    @cached_property
    def _runs(self) -> set[tuple[str, ...]]:
        return {run for text in self.against for run in ngrams(words(text), self.n)}

    @cached_property
    def _short(self) -> set[tuple[str, ...]]:
        short = (text for text in self.against if len(words(text)) < self.n)
        return {tuple(tokens(text)) for text in short}

    def __call__(self, scored: Sequence[Scored]) -> tuple[list[Scored], int]:
        kept = [row for row in scored if not self.leaks(_text(row, self.column, self))]
        return kept, len(scored) - len(kept)

    def leaks(self, text: str) -> bool:
        """Whether the text holds a run of a text held out, or is one of them."""
        runs = ngrams(words(text), self.n)
        return not runs.isdisjoint(self._runs) or tuple(tokens(text)) in self._short


def _text(row: Scored, column: str, asks: object) -> str:
    return str(column_of(row, column, asks)) if column else row.prompt.text
