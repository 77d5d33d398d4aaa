"""Selectors made of selectors: several streams in one training, and equal labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxloop.records import Labelled, Pair, Prompt, Scored
from jaxloop.selection.advantages import column_of
from jaxloop.selection.selectors import Produces


@dataclass(frozen=True)
class Streams:
    """The pairs of each selector, one after the other: an actor's and a judge's, say.

    Meta-Rewarding trains on both at once (Wu et al. 2024, arXiv 2407.19594). A pair's
    reason begins with the name of its stream, and `counts` counts by it.
    """

    selectors: tuple[Any, ...]
    names: tuple[str, ...] = ()
    """One a selector; their classes' names where none are given."""

    def __post_init__(self):
        if not self.selectors or len(set(self._names())) != len(self.selectors):
            raise ValueError(
                f"Streams: {len(self.selectors)} selectors and the names "
                f"{self._names()}: give each one its own"
            )
        for each in self.selectors:
            if _produces(each) != "pairs":
                raise ValueError(
                    f"Streams: {type(each).__name__} makes {_produces(each)}, not pairs"
                )

    def _names(self) -> tuple[str, ...]:
        return self.names or tuple(type(each).__name__ for each in self.selectors)

    @property
    def produces(self) -> Produces:
        return "pairs"

    @property
    def pairs(self) -> int:
        """The most pairs that all of them make of one prompt."""
        return sum(_most_pairs(each) for each in self.selectors)

    def __call__(
        self, scored: Sequence[Scored], rng: np.random.Generator
    ) -> list[Pair]:
        return [
            replace(pair, reason=f"{name}: {pair.reason}")
            for name, each in zip(self._names(), self.selectors, strict=True)
            for pair in each(scored, rng)
        ]

    def counts(self, pairs: Sequence[Pair]) -> dict[str, int]:
        """How many of these pairs each stream gave."""
        return {
            name: sum(pair.reason.startswith(f"{name}: ") for pair in pairs)
            for name in self._names()
        }


@dataclass(frozen=True)
class LabelBalanced:
    """Equally many of what another selector makes for each gold label, drawn at random.

    Self-Taught Evaluators (Wang et al. 2024, arXiv 2408.02666): as many judgements of
    pairs whose first answer is the better one as of the others, or the judge learns to
    name one place. The label is a column of the prompts' data. A label that some prompt
    has and nothing was selected for leaves nothing of the others either.
    """

    selector: Any
    column: str = "label"

    @property
    def produces(self) -> Produces:
        return _produces(self.selector)

    @property
    def pairs(self) -> int:
        """The most pairs that the selector makes of one prompt."""
        return _most_pairs(self.selector)

    def __call__(self, scored: Sequence[Scored], rng: np.random.Generator) -> list:
        label_of = {
            row.prompt.id: str(column_of(row, self.column, self)) for row in scored
        }
        made = self.selector(scored, rng)
        by_label: dict[str, list[int]] = {label: [] for label in label_of.values()}
        for number, item in enumerate(made):
            if _prompt(item).id not in label_of:
                raise ValueError(
                    "LabelBalanced: its selector makes pairs of judgements, whose "
                    "prompts have no label; balance the other streams by themselves"
                )
            by_label[label_of[_prompt(item).id]].append(number)
        least = min(map(len, by_label.values()), default=0)
        kept = [
            numbers[i]
            for numbers in by_label.values()
            for i in rng.choice(len(numbers), least, replace=False)
        ]
        return [made[number] for number in sorted(kept)]


def _prompt(item: Pair | Labelled | tuple) -> Prompt:
    return item[0] if isinstance(item, tuple) else item.prompt


def _produces(selector) -> Produces:
    return getattr(selector, "produces", "pairs")


def _most_pairs(selector) -> int:
    return getattr(selector, "pairs", 1)
