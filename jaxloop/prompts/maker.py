"""Prompt makers: a model is shown some prompts and writes another one.

A maker is pure: from seed prompts and a generator it makes requests, and of what a
model answers it makes a record, or says why not. The loop asks the model
(`jaxloop/loop/writing.py`).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter

import numpy as np

from jaxloop.records import Prompt, Rollout
from jaxloop.sampling.settings import Sampling
from jaxloop.text import TextPool, words

Parse = Callable[[str], tuple[str, Mapping[str, str]] | None]
"""A model's text -> (the prompt in it, further columns), or None."""
Shown = tuple[str, str]
"""Id and text of a prompt that a request shows."""

BEYOND_TEXT = (
    *("image", "images", "picture", "pictures", "photo", "video", "audio", "music"),
    *("graph", "graphs", "map", "maps", "plot", "draw", "diagram", "flowchart"),
    *("file", "files"),
)
"""Words of requests that a model of text cannot serve: in the spirit of Self-Instruct's
list (Wang et al. 2022, arXiv 2212.10560; recalled, not checked against the paper)."""


@dataclass(frozen=True)
class Request:
    """What a model is asked, and the prompts in it."""

    id: str
    text: str
    shown: tuple[Shown, ...]


@dataclass(frozen=True)
class Written:
    """A prompt that a model wrote, with the columns that it wrote beside it."""

    id: str
    text: str
    columns: Mapping[str, str]
    shown: tuple[Shown, ...]


@dataclass(frozen=True)
class Tags:
    """What stands between `<name>` and `</name>`: the prompt's and each column's, which
    is called like its tag. None where one of them is missing, empty or there twice."""

    prompt: str = "request"
    columns: tuple[str, ...] = ()

    def __call__(self, text: str) -> tuple[str, dict[str, str]] | None:
        found = {name: _between(text, name) for name in (self.prompt, *self.columns)}
        if not all(found.values()):
            return None
        return found.pop(self.prompt), found


def _between(text: str, name: str) -> str:
    _, opened, rest = text.partition(f"<{name}>")
    inside, closed, rest = rest.partition(f"</{name}>")
    again = f"<{name}>" in inside + rest or f"</{name}>" in rest
    return inside.strip() if opened and closed and not again else ""


@dataclass(frozen=True)
class Screen:
    """Which prompts are no use, by their words alone."""

    fewest_words: int = 3
    most_words: int = 150
    keywords: tuple[str, ...] = BEYOND_TEXT
    """Whole words, in any case, that a prompt must not hold."""
    alike: float = 0.7
    """The least ROUGE-L with an earlier prompt, seeds included, that makes it a
    repetition; 1 is the same text, 0.7 what Self-Instruct takes."""

    def __post_init__(self):
        if not 0 < self.alike <= 1:
            raise ValueError(f"Screen: alike = {self.alike} must be within (0, 1]")

    def problem(self, text: str, earlier: TextPool) -> str | None:
        """Why the text is no use, in a word, or None."""
        found = words(text)
        if len(found) < self.fewest_words:
            return "too_short"
        if len(found) > self.most_words:
            return "too_long"
        if not {keyword.casefold() for keyword in self.keywords}.isdisjoint(found):
            return "keyword"
        if earlier.find(text, self.alike) is not None:
            return "alike"
        return None


@dataclass(frozen=True)
class Maker:
    """A request that shows `shots` prompts, and a parser for what comes back."""

    count: int = 5000
    """Prompts wanted."""
    shots: int = 2
    """Prompts shown in a request."""
    template: str = "{seeds}"
    """What the model reads. Fields: {seeds}, the prompts shown, and {number}, that of
    the next one."""
    example: str = "{text}"
    """How a prompt is shown. Fields: {text} and {number}, counted from 1."""
    parse: Parse = field(default_factory=Tags)
    """From the model's text to the prompt in it and its columns, or None."""
    sampling: Sampling = field(default_factory=lambda: Sampling(n=1))
    """How the model writes; of more than one sample each is read by itself."""
    by: str = "policy"
    """Who writes: the "policy", the "first" model, or a directory (or hub id) with a
    model and its tokenizer."""
    column: str = ""
    """The field of the data's rows that is shown and written; empty shows the prompt's
    text and writes a field `prompt`."""
    screen: Screen = field(default_factory=Screen)
    patience: int = 4
    """Requests made at most for each prompt wanted; then there are fewer."""
    batch: int = 256
    """Requests at a time."""

    def __post_init__(self):
        name = type(self).__name__
        for part in ("count", "shots", "patience", "batch"):
            if getattr(self, part) < 1:
                raise ValueError(
                    f"{name}: {part} = {getattr(self, part)} must be at least 1"
                )
        check_template(name, "template", self.template, {"seeds"}, {"number"})
        check_template(name, "example", self.example, {"text"}, {"number"})

    def check(self, seeds: Sequence[Prompt]) -> None:
        """ValueError where requests cannot be made of these seeds."""
        name = type(self).__name__
        if len(seeds) < self.shots:
            raise ValueError(
                f"{name} shows {self.shots} prompts in a request, but the data has "
                f"{len(seeds)}: give more seeds in data.train, or lower "
                "prompts.maker.shots"
            )
        for prompt in seeds:
            if self.column and not isinstance(prompt.columns.get(self.column), str):
                raise ValueError(
                    f"{name}: row {prompt.id!r} has no text in the field "
                    f"{self.column!r} (prompts.maker.column); it has "
                    f"{', '.join(map(repr, prompt.columns)) or 'no fields'}"
                )

    def text_of(self, prompt: Prompt) -> str:
        """What is shown of a prompt: its column; else what the user says last."""
        if self.column:
            return prompt.columns[self.column].strip()
        last = prompt.messages[-1]["content"] if prompt.messages else prompt.text
        return str(last).strip()

    def requests(
        self,
        seeds: Sequence[Prompt],
        written: Sequence[Written],
        batch: int,
        rng: np.random.Generator,
    ) -> list[Request]:
        """The requests of batch number `batch`, given what is written so far; none
        where the maker is done."""
        left = self.patience * self.count - batch * self.batch
        if len(written) >= self.count or left <= 0:
            return []
        pool = [(prompt.id, self.text_of(prompt)) for prompt in seeds]
        made = [(prompt.id, prompt.text) for prompt in written]
        return [
            self.request(f"{batch}:{i}", self.picked(pool, made, rng))
            for i in range(min(self.batch, left))
        ]

    def picked(
        self,
        seeds: Sequence[Shown],
        written: Sequence[Shown],
        rng: np.random.Generator,
    ) -> list[Shown]:
        """What a request shows: no seed twice."""
        return [seeds[i] for i in rng.permutation(len(seeds))[: self.shots]]

    def request(self, place: str, shown: Sequence[Shown]) -> Request:
        """The id tells requests of other words apart, so that no answer to another one
        is taken for this one's."""
        seeds = "".join(
            self.example.format(number=number, text=text)
            for number, (_, text) in enumerate(shown, 1)
        )
        text = self.template.format(seeds=seeds, number=len(shown) + 1)
        code = hashlib.sha256(text.encode()).hexdigest()[:8]
        return Request(f"write:{place}:{code}", text, tuple(shown))

    def read(self, request: Request, rollout: Rollout) -> Written | str:
        """The record in what the model wrote, or in a word why there is none."""
        found = self.parse(rollout.text)
        if found is None:
            return "cut_off" if rollout.stop == "length" else "unparsed"
        text, columns = found
        return Written(f"{request.id}:{rollout.index}", text, columns, request.shown)

    def row(self, written: Written) -> dict:
        """A line of `prompts.jsonl`, which `JsonlData` reads as the seeds' own rows."""
        return {
            self.column or "prompt": written.text,
            **written.columns,
            "id": written.id,
            "written_by": self.by,
            "written_from": [id for id, _ in written.shown],
        }


def check_template(
    owner: str, name: str, template: str, needed: set[str], more: set[str]
) -> None:
    """ValueError unless it has the fields `needed`, and beside them only `more`."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{owner}: {name}: {error}; a brace is {{{{ or }}}}") from None
    used = {field for _, field, _, _ in parts if field is not None}
    plain = all(not (form or how) for _, _, form, how in parts)
    if not plain or not needed <= used <= needed | more:
        known = " and ".join(f"{{{field}}}" for field in sorted(needed))
        further = "".join(f", and may have {{{field}}}" for field in sorted(more))
        raise ValueError(
            f"{owner}: {name} must have the plain field {known}{further}; it has "
            f"{sorted(used)}; a brace itself is {{{{ or }}}}"
        )
