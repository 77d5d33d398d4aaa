"""Data sets with prompts of several kinds, which a row's field `set` tells apart.

`Routed` finds a prompt's scorer by that field, and evaluation measures each kind by
itself (`eval/SET/accuracy`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Prompt


@dataclass(frozen=True)
class Mixed:
    """Several data sets as one: problems that a verifier checks among instructions that
    a judge scores, say (Lanchantin et al. 2025, arXiv 2506.21495).

    Each prompt gets the name of its source as the field `set`, unless it has one. The
    sources are spread evenly over the whole, so that its first prompts are a mixture
    too; which of them meet in a batch is drawn by the schedule as always.
    """

    sources: tuple[Any, ...]
    """The data sets."""
    names: tuple[str, ...]
    """One a source; an empty one leaves that source's prompts without a `set`."""
    weights: tuple[float, ...] = ()
    """Shares of the training prompts, one a source: as many are taken, from the front
    of each, as there are in these proportions. None takes all there are."""

    def __post_init__(self):
        count = len(self.sources)
        if len(set(self.names)) != count or len(self.names) != count:
            raise ValueError(
                f"Mixed: {count} sources and the names {self.names}: give each its own"
            )
        if self.weights and (len(self.weights) != count or min(self.weights) <= 0):
            raise ValueError(
                f"Mixed: weights {self.weights} for {count} sources: give each one "
                "above 0"
            )

    def missing(self, **wanted) -> list[str]:
        """What the sources lack, each of which must have all that is wanted."""
        asks = [getattr(source, "missing", None) for source in self.sources]
        return [
            problem.replace("data.", f"data.sources.{place}.")
            for place, ask in enumerate(asks)
            for problem in (ask(**wanted) if ask else [])
        ]

    def load(self, tokenizer: Tokenizer) -> Dataset:
        """The mixture. ValueError as the sources' own, with the source's place."""
        parts = []
        for place, (name, source) in enumerate(
            zip(self.names, self.sources, strict=True)
        ):
            try:
                parts.append(_named(source.load(tokenizer), name))
            except ValueError as error:
                raise ValueError(f"data.sources.{place}: {error}") from error
        train, notes = self._shares([part.train for part in parts])
        return Dataset(
            train=spread(train),
            test=spread([part.test for part in parts]),
            demonstrations=spread([part.demonstrations for part in parts]),
            pairs=spread([part.pairs for part in parts]),
            labelled=spread([part.labelled for part in parts]),
            notes=[note for part in parts for note in part.notes] + notes,
        )

    def _shares(self, parts: list[list[Prompt]]) -> tuple[list[list[Prompt]], list]:
        """Of each source the prompts that are taken, and what is said of it."""
        if not self.weights:
            return parts, []
        unit = min(len(p) / w for p, w in zip(parts, self.weights, strict=True))
        taken = [
            part[: int(unit * weight + 1e-9)]
            for part, weight in zip(parts, self.weights, strict=True)
        ]
        notes = [
            f"data.sources.{place}: {len(used)} of {len(part)} prompts are mixed in"
            for place, (part, used) in enumerate(zip(parts, taken, strict=True))
        ]
        return taken, notes


@dataclass(frozen=True)
class Unlabelled:
    """A data set in which a share of the training prompts have lost their answers, to
    learn from both kinds. These have the `set` "unlabelled"."""

    data: Any
    share: float = 0.5
    """Of the training prompts."""
    column: str = "answer"
    """The field that is taken away."""
    seed: int = 0
    """Decides which prompts lose it."""

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"Unlabelled: share = {self.share} is not within [0, 1]")

    def missing(self, **wanted) -> list[str]:
        ask = getattr(self.data, "missing", None)
        found = [] if ask is None else ask(**wanted)
        return [problem.replace("data.", "data.data.") for problem in found]

    def load(self, tokenizer: Tokenizer) -> Dataset:
        found = self.data.load(tokenizer)
        count = round(self.share * len(found.train))
        rng = np.random.default_rng(self.seed)
        hidden = set(rng.permutation(len(found.train))[:count].tolist())
        train = [
            self._hidden(prompt) if place in hidden else prompt
            for place, prompt in enumerate(found.train)
        ]
        return replace(found, train=train)

    def _hidden(self, prompt: Prompt) -> Prompt:
        columns = {n: x for n, x in prompt.columns.items() if n != self.column}
        return replace(prompt, columns=columns | {"set": "unlabelled"})


def spread(lists: Sequence[Sequence]) -> list:
    """One list in which the items of each follow in order, spread evenly."""
    places = [
        ((2 * i + 1) / (2 * len(items)), which, i)
        for which, items in enumerate(lists)
        for i in range(len(items))
    ]
    return [lists[which][i] for _, which, i in sorted(places)]


def _named(data: Dataset, name: str) -> Dataset:
    """The data with ids of its own, and its prompts marked as of that set."""
    if not name:
        return data

    def marked(prompt: Prompt) -> Prompt:
        columns = {"set": name} | dict(prompt.columns)
        return replace(prompt, id=f"{name}/{prompt.id}", columns=columns)

    return replace(
        data, train=list(map(marked, data.train)), test=list(map(marked, data.test))
    )
