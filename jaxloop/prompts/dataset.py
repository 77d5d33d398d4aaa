"""Data files to what a run works on: prompts, demonstrations and pairs, in token ids.

Everything wrong with the data is said here, before anything compiles: one message that
names the place and the setting that would change it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from jaxloop.prompts.convert import Conversion
from jaxloop.prompts.demonstrations import TrainOn
from jaxloop.prompts.jsonl import (
    DataError,
    OnBadRow,
    Row,
    keep_good,
    parse_json,
    parse_jsonl,
)
from jaxloop.prompts.schema import Fields
from jaxloop.prompts.template import template_fields
from jaxloop.prompts.tfds import PREFIX, read_tfds
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Demonstration, Labelled, Pair, Prompt, to_json

OnLong = Literal["error", "filter", "truncate"]


@dataclass(frozen=True)
class Dataset:
    """What a run works on. `notes` are sentences for people: what was counted, dropped
    or cut on the way."""

    train: list[Prompt] = field(default_factory=list)
    test: list[Prompt] = field(default_factory=list)
    demonstrations: list[Demonstration] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    labelled: list[Labelled] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def contents(self) -> str:
        """All of it but the notes, as text that is equal where the data are."""
        parts = (self.train, self.test, self.demonstrations, self.pairs, self.labelled)
        return "\n".join(to_json(each) for part in parts for each in part)


@dataclass(frozen=True)
class JsonlData:
    """Prompts, demonstrations and pairs from files.

    A source is a JSONL file, a JSON file (`file.json`, `file.json#KEY` for the list
    under a key) or a prepared TensorFlow dataset (`tfds:NAME?split=SPLIT`). Fields are
    named by path: `turns.0` is the first item of the list `turns`.
    """

    train: str = ""
    """Source of the prompts that are sampled from."""
    test: str = ""
    """Source of the held-out prompts."""
    demonstrations: str = ""
    """Source of what the supervised stage imitates: prompt and completion, `text`, or
    `messages`; the word `train` takes the rows of `train`."""
    pairs: str = ""
    """Source of ready-made preference pairs."""
    labelled: str = ""
    """Source of completions with labels: unpaired preferences (`label`), or steps
    (`completions` and `labels`)."""
    prompt_field: str = "prompt"
    """Field of the prompt: a string or a list of messages."""
    completion_field: str = "completion"
    """Field of a demonstration's completion."""
    chosen_field: str = "chosen"
    """Field of a pair's better completion."""
    rejected_field: str = "rejected"
    """Field of a pair's worse completion."""
    label_field: str = "label"
    """Field that says whether a completion is good."""
    text_field: str = "text"
    """Field of a demonstration that is one text."""
    messages_field: str = "messages"
    """Field of a demonstration that is one conversation."""
    answer_field: str = ""
    """Field that scorers get under the name `answer`, where the data calls it else."""
    template: str = ""
    """Text of a prompt with the row's fields in it, for example
    `Question: {question}\\nAnswer:`; takes the place of `prompt_field`."""
    completion_template: str = ""
    """The same for a demonstration's completion, for example ` {answer}`."""
    chat: bool | None = None
    """Use the chat template: true makes a string prompt the user's message, false wants
    plain text; none does as the rows do (lists of messages are conversations)."""
    system: str = ""
    """System message in front of each conversation that has none."""
    train_on: TrainOn = "completion"
    """Which tokens of a demonstration are trained on."""
    max_prompt_tokens: int = 512
    """Longest prompt, in tokens."""
    on_long: OnLong = "error"
    """What happens to longer prompts; truncate keeps their end."""
    on_bad_row: OnBadRow = "error"
    """Whether a bad row stops the run or is left out and counted."""
    max_bad_fraction: float = 0.0
    """Largest fraction of rows that may be left out as bad."""
    max_dropped_fraction: float = 0.05
    """Largest fraction of pairs that may be of no use (chosen equal to rejected)."""
    allow_overlap: bool = False
    """Let test prompts occur among what is trained on."""

    def missing(
        self,
        *,
        train: bool,
        test: bool,
        demonstrations: bool,
        examples: Literal["pairs", "labelled"] | None = None,
    ) -> list[str]:
        """One sentence for each source that is needed but not given."""
        found = []
        if examples and not getattr(self, examples):
            found.append(
                f"data.{examples} is empty, but the `offline` stage trains on it: give "
                f"data.{examples}=FILE"
            )
        if not self.train and (train or self.demonstrations == "train"):
            found.append("data.train is empty: give data.train=FILE, the prompts")
        if not self.test and test:
            found.append("data.test is empty: give data.test=FILE, held-out prompts")
        if not self.demonstrations and demonstrations:
            found.append(
                "data.demonstrations is empty, but there is an `sft` stage: give "
                "data.demonstrations=FILE, or =train to imitate the rows of data.train"
            )
        return found

    def load(self, tokenizer: Tokenizer) -> Dataset:
        """Read, check and tokenise everything. ValueError where the data cannot
        serve, naming the place and the setting."""
        sources = (self.train, self.test, self.demonstrations, self.pairs)
        if not any((*sources, self.labelled)):
            raise ValueError("data: no source; give data.train=FILE or another of them")
        if self.demonstrations == "train" and not self.train:
            raise ValueError("data.demonstrations=train, but there is no data.train")
        for template in (self.template, self.completion_template):
            template_fields(template)
        return _Loader(self, self._conversion(tokenizer)).load()

    def _conversion(self, tokenizer: Tokenizer) -> Conversion:
        fields = Fields(
            prompt=self.prompt_field,
            completion=self.completion_field,
            chosen=self.chosen_field,
            rejected=self.rejected_field,
            label=self.label_field,
            text=self.text_field,
            messages=self.messages_field,
        )
        return Conversion(
            tokenizer=tokenizer,
            fields=fields,
            template=self.template,
            completion_template=self.completion_template,
            chat=self.chat,
            system=self.system,
            answer_field=self.answer_field,
            train_on=self.train_on,
        )


def read_source(source: str) -> Iterator[Row | DataError]:
    """The rows of a JSONL file, a JSON file or a TensorFlow dataset."""
    if source.startswith(PREFIX):
        return read_tfds(source)
    path, _, key = source.partition("#")
    if path.endswith(".json"):
        return parse_json(path, key)
    return parse_jsonl(source)


def check_vocabulary(tokenizer: Tokenizer, rows: int) -> None:
    """ValueError where some token has no row among the embedding's `rows`. More rows
    than tokens are padding, and fine."""
    if tokenizer.size > rows:
        raise ValueError(
            f"the tokenizer's largest token id is {tokenizer.size - 1}, but the model "
            f"embeds {rows} tokens (ids 0 to {rows - 1}): they do not belong together, "
            "see model.path and tokenizer.path"
        )


@dataclass(frozen=True)
class _Loader:
    """`JsonlData.load` in steps; `notes` grows on the way."""

    data: JsonlData
    conversion: Conversion
    notes: list[str] = field(default_factory=list)

    def load(self) -> Dataset:
        data = self.data
        source = data.demonstrations
        if source == "train":
            source = data.train
        train = self._prompts(data.train, "train")
        test = self._prompts(data.test, "test")
        demonstrations, shown = self._demonstrations(source)
        pairs = self._pairs(data.pairs)
        labelled = self._labelled(data.labelled)
        shown += [p.text for p in train]
        shown += [example.prompt.text for example in [*pairs, *labelled]]
        self._check_overlap(test, set(shown))
        if "strftime_now" in (self.conversion.tokenizer.chat_template or ""):
            self.notes.append(
                "the chat template writes today's date: prompts differ between days"
            )
        return Dataset(train, test, demonstrations, pairs, labelled, self.notes)

    def _prompts(self, source: str, split: str) -> list[Prompt]:
        if not source:
            return []
        prompts = self._read(source, self.conversion.prompt, split)
        prompts = self._fit(prompts, source)
        repeated = len(prompts) - len({prompt.text for prompt in prompts})
        if repeated:
            self.notes.append(
                f"{source}: {repeated} of {len(prompts)} prompts repeat an earlier one"
            )
        return prompts

    def _demonstrations(self, source: str) -> tuple[list[Demonstration], list[str]]:
        if not source:
            return [], []
        made = self._read(source, self.conversion.demonstration, "demonstration")
        return [d for d, _ in made], [text for _, text in made if text]

    def _pairs(self, source: str) -> list[Pair]:
        if not source:
            return []
        made = self._read(source, self.conversion.pair, "pair")
        dropped = Counter(reason for reason in made if isinstance(reason, str))
        for reason, count in dropped.items():
            self.notes.append(
                f"{source}: dropped {count} of {len(made)} rows: {reason}"
            )
        if dropped.total() > self.data.max_dropped_fraction * len(made):
            raise DataError(
                f"{source}: {dropped.total()} of {len(made)} pairs are no use "
                f"({', '.join(dropped)}); more than data.max_dropped_fraction="
                f"{self.data.max_dropped_fraction:g} allows"
            )
        return self._fitting([pair for pair in made if isinstance(pair, Pair)], source)

    def _labelled(self, source: str) -> list[Labelled]:
        if not source:
            return []
        made = self._read(source, self.conversion.labelled, "labelled")
        return self._fitting(made, source)

    def _fitting(self, examples: list, source: str) -> list:
        """Those whose prompts `_fit`, with the prompts that it leaves."""
        fitting = {e.id: e for e in self._fit([e.prompt for e in examples], source)}
        return [
            replace(example, prompt=fitting[example.prompt.id])
            for example in examples
            if example.prompt.id in fitting
        ]

    def _read(self, source: str, convert: Callable[[Row, str], Any], kind: str) -> list:
        def checked(row: Row):
            try:
                return convert(row, f"{kind}:{row.number}")
            except DataError:
                raise
            except ValueError as error:  # of the tokenizer or the chat template
                raise DataError(f"{row.place}: {error}") from error

        good, bad = keep_good(
            read_source(source),
            checked,
            on_bad_row=self.data.on_bad_row,
            max_bad_fraction=self.data.max_bad_fraction,
            source=source,
        )
        if bad:
            total = len(good) + len(bad)
            self.notes.append(
                f"{source}: left out {len(bad)} of {total} rows as bad; the first: "
                f"{bad[0]}"
            )
        return good

    def _fit(self, prompts: list[Prompt], source: str) -> list[Prompt]:
        """The prompts with at most `max_prompt_tokens`, as `on_long` says."""
        most, tokenizer = self.data.max_prompt_tokens, self.conversion.tokenizer
        lengths = np.array([len(prompt.token_ids) for prompt in prompts])
        long = int((lengths > most).sum())
        if not long:
            return prompts
        p50, p90, p99 = np.percentile(lengths, [50, 90, 99]).astype(int)
        count = (
            f"{source}: {long} of {len(prompts)} prompts are longer than "
            f"data.max_prompt_tokens={most} (half have at most {p50} tokens, 90 % "
            f"{p90}, 99 % {p99}, the longest {lengths.max()})"
        )
        if self.data.on_long == "error":
            raise DataError(
                f"{count}; raise it, or set data.on_long to filter or truncate"
            )
        if self.data.on_long == "filter":
            self.notes.append(f"{count}: left out")
            kept = [p for p in prompts if len(p.token_ids) <= most]
            if not kept:
                raise DataError(f"{count}, and data.on_long=filter leaves none")
            return kept
        self.notes.append(f"{count}: their beginnings cut off")
        return [_keep_end(prompt, most, tokenizer) for prompt in prompts]

    def _check_overlap(self, test: list[Prompt], learned: set[str]) -> None:
        both = [prompt for prompt in test if prompt.text in learned]
        if not both:
            return
        count = f"{len(both)} of {len(test)} test prompts are also trained on"
        if not self.data.allow_overlap:
            raise DataError(
                f"data.test: {count}, the first is {both[0].id} "
                f"({both[0].text[:80]!r}); take them out, or set "
                "data.allow_overlap=true"
            )
        self.notes.append(f"data.test: {count}")


def _keep_end(prompt: Prompt, most: int, tokenizer: Tokenizer) -> Prompt:
    """The last `most` tokens; the tokenizer's own prefix stays in front."""
    if len(prompt.token_ids) <= most:
        return prompt
    bos = tokenizer.bos_ids
    if prompt.token_ids[: len(bos)] != bos or len(bos) >= most:
        bos = ()
    ids = bos + prompt.token_ids[len(prompt.token_ids) - most + len(bos) :]
    return replace(prompt, token_ids=ids, text=tokenizer.decode(ids))
