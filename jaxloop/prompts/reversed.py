"""Reverse training: a data set whose demonstrations are learned in both directions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from jaxloop.prompts import transforms
from jaxloop.prompts.dataset import Dataset
from jaxloop.prompts.demonstrations import from_text
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Demonstration


@dataclass(frozen=True)
class Reversed:
    """The data with the reverse of each demonstration beside it, shuffled with it by
    training like any other.

    Golovneva et al. 2024 (arXiv 2403.13799): a model that has read "A is B" then also
    knows that B is A. Each document is reversed as a whole.
    """

    data: Any
    """The data set to extend, for example a `JsonlData`."""
    mode: Literal["segments", "tokens", "words", "entities"] = "segments"
    """What keeps its order inside: segments of random length, single tokens, words (cut
    at spaces), or words and names. The last two work on the text."""
    longest: int = 25
    """Most tokens of a segment; no fewer than a name has."""
    marker: str = ""
    """Text between segments, for example ` [REV] `."""
    entities: Callable[[str], Iterable[tuple[int, int]]] | None = None
    """Finds names: [start, end) of each in a text, in characters."""
    seed: int = 0
    """Of the segments' lengths."""

    def __post_init__(self):
        if self.longest < 1:
            raise ValueError(f"Reversed: longest must be >= 1, got {self.longest}")
        if (self.mode == "entities") != (self.entities is not None):
            raise ValueError(
                "Reversed: mode entities and a function `entities` go along"
            )

    def missing(self, **wanted) -> list[str]:
        """What the data lacks; of demonstrations it needs some in any case."""
        ask = getattr(self.data, "missing", None)
        return [] if ask is None else ask(**wanted | {"demonstrations": True})

    def load(self, tokenizer: Tokenizer) -> Dataset:
        """The data set, with twice its demonstrations."""
        found = self.data.load(tokenizer)
        both = self._both(found.demonstrations, tokenizer)
        note = f"{len(found.demonstrations)} demonstrations have their reverse beside"
        return replace(found, demonstrations=both, notes=[*found.notes, note])

    def _both(self, demonstrations, tokenizer: Tokenizer) -> list[Demonstration]:
        if self.mode in ("words", "entities"):
            texts = [tokenizer.decode(d.token_ids) for d in demonstrations]
            pairs = zip(demonstrations, map(self._reverse_text, texts), strict=True)
            made = [
                (
                    d,
                    replace(
                        from_text(f"{d.id}:reversed", text, tokenizer), weight=d.weight
                    ),
                )
                for d, text in pairs
            ]
            return [d for pair in made for d in pair]
        fixed = {*tokenizer.bos_ids, *tokenizer.eos_ids}
        return transforms.with_reversed(
            demonstrations, self._reverse_ids(tokenizer), fixed=fixed
        )

    def _reverse_text(self, text: str) -> str:
        if self.entities is None:
            return transforms.reverse_words(text)
        return transforms.reverse_entities(text, self.entities(text))

    def _reverse_ids(self, tokenizer: Tokenizer):
        if self.mode == "tokens":
            return transforms.reverse_tokens
        rng, marker = np.random.default_rng(self.seed), tokenizer.encode(self.marker)
        return lambda ids: transforms.reverse_segments(
            ids, rng, longest=self.longest, marker=marker
        )
