"""Rows whose answers are there already, for a judge to be held against."""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

from jaxloop.prompts.dataset import Dataset, JsonlData
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Pair, Prompt, Rollout

CANDIDATES, BETTER = "candidates", "better"
"""Columns: the texts of a prompt's answers, and which of them (from 0) is known to be
the best one."""


@dataclass(frozen=True)
class CandidateData(JsonlData):
    """`JsonlData` whose pairs are held-out prompts with two answers each, the better
    one in either place. Rows of `test` have no answers: a model is to write them."""

    def missing(
        self,
        *,
        train: bool,
        test: bool,
        demonstrations: bool,
        examples: Literal["pairs", "labelled"] | None = None,
    ) -> list[str]:
        """One sentence where there is nothing to judge."""
        if self.pairs or not test:
            test = False
        elif not self.test:
            return [
                "data.pairs is empty: give data.pairs=FILE, rows with `chosen` and "
                "`rejected`; or data.test=FILE, questions that the model answers itself"
            ]
        return super().missing(
            train=train, test=test, demonstrations=demonstrations, examples=examples
        )

    def load(self, tokenizer: Tokenizer) -> Dataset:
        data = super().load(tokenizer)
        return replace(
            data, pairs=[], test=[*data.test, *map(self._prompt, data.pairs)]
        )

    def _prompt(self, pair: Pair) -> Prompt:
        used = (self.chosen_field, self.rejected_field)
        columns = {k: v for k, v in pair.prompt.columns.items() if k not in used}
        # In an order that knows nothing of the label, nor of other rows.
        texts = sorted((pair.chosen.text, pair.rejected.text), key=_digest)
        columns |= {CANDIDATES: tuple(texts), BETTER: texts.index(pair.chosen.text)}
        return replace(pair.prompt, columns=columns)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def candidates(prompt: Prompt, tokenizer: Tokenizer) -> tuple[Rollout, ...]:
    """The answers that the row has; () where it has none."""
    return tuple(
        Rollout(prompt.id, i, tokenizer.encode(text), text, (), (), "eos")
        for i, text in enumerate(prompt.columns.get(CANDIDATES, ()))
    )
