"""The dataset types of TRL (its `dataset_formats.md`): rows checked and made typed.

Each type comes in two formats: standard (strings) and conversational (lists of
messages, `{"role": ..., "content": ...}`). A parser takes a row and the names of its
fields, and raises DataError with the row's place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxloop.prompts.jsonl import DataError, Row
from jaxloop.prompts.template import has_field, required

Messages = tuple[Mapping[str, Any], ...]
Content = str | Messages
RowType = Literal[
    "language modeling",
    "prompt-only",
    "prompt-completion",
    "preference",
    "unpaired preference",
    "stepwise supervision",
]

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@dataclass(frozen=True)
class Fields:
    """What the parts of a row are called in the data; paths as in `template.py`."""

    prompt: str = "prompt"
    completion: str = "completion"
    chosen: str = "chosen"
    rejected: str = "rejected"
    label: str = "label"
    completions: str = "completions"
    labels: str = "labels"
    text: str = "text"
    messages: str = "messages"
    margin: str = "margin"


@dataclass(frozen=True)
class TextRow:
    """Language modeling: the whole `text` is learned."""

    text: Content


@dataclass(frozen=True)
class CompletionRow:
    """Prompt and completion."""

    prompt: Content
    completion: Content


@dataclass(frozen=True)
class PreferenceRow:
    """Two completions of a prompt. `margin` says by how much the first is better."""

    prompt: Content
    chosen: Content
    rejected: Content
    margin: float | None = None


@dataclass(frozen=True)
class UnpairedRow:
    """A completion and whether it is good."""

    prompt: Content
    completion: Content
    label: bool


@dataclass(frozen=True)
class StepsRow:
    """A solution in steps and whether each is right."""

    prompt: str
    completions: tuple[str, ...]
    labels: tuple[bool, ...]


def row_type(row: Row, fields: Fields) -> RowType:
    """Which of the six types the row's fields make it, the most specific first.
    DataError where they make none."""

    def has(*names: str) -> bool:
        return all(has_field(row, getattr(fields, name)) for name in names)

    if has("chosen", "rejected"):
        return "preference"
    if has("prompt", "completions", "labels"):
        return "stepwise supervision"
    if has("prompt", "completion", "label"):
        return "unpaired preference"
    if has("prompt", "completion"):
        return "prompt-completion"
    if has("messages") or has("text"):
        return "language modeling"
    if has("prompt"):
        return "prompt-only"
    raise DataError(
        f"{row.place}: none of the dataset types has the fields "
        f"{', '.join(map(str, row.values)) or '(none)'}; say what they are called, for "
        "example data.prompt_field=question data.completion_field=answer"
    )


def parse_text(row: Row, fields: Fields) -> TextRow:
    """A language modeling row: `messages`, or `text`."""
    if has_field(row, fields.messages):
        return TextRow(_conversation(row, fields.messages))
    return TextRow(_content(row, fields.text))


def parse_prompt(row: Row, fields: Fields) -> Content:
    """The prompt of a row of any type that has one."""
    return _prompt(row, fields)


def parse_completion(row: Row, fields: Fields) -> CompletionRow:
    """A prompt-completion row."""
    prompt = _prompt(row, fields)
    completion = completion_at(row, fields.completion, prompt)
    return CompletionRow(prompt, completion)


def parse_preference(row: Row, fields: Fields) -> PreferenceRow:
    """A preference row; without a prompt field the prompt is what chosen and rejected
    begin with (`split_prompt`)."""
    margin = None
    if has_field(row, fields.margin):
        margin = float(required(row, fields.margin, (int, float), "a number"))
    if has_field(row, fields.prompt):
        prompt = _prompt(row, fields)
        chosen = completion_at(row, fields.chosen, prompt)
        rejected = completion_at(row, fields.rejected, prompt)
        return PreferenceRow(prompt, chosen, rejected, margin)
    chosen = _content(row, fields.chosen)
    rejected = _content(row, fields.rejected)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(
            f"{row.place}: {fields.chosen!r} and {fields.rejected!r} must both be "
            "strings or both be lists of messages"
        )
    try:
        prompt, chosen, rejected = split_prompt(chosen, rejected)
    except ValueError as error:
        raise DataError(f"{row.place}: {error}") from error
    for path, rest in ((fields.chosen, chosen), (fields.rejected, rejected)):
        if isinstance(rest, str) and not rest.strip():
            raise DataError(f"{row.place}: the completion in {path!r} is empty")
    return PreferenceRow(prompt, chosen, rejected, margin)


def parse_unpaired(row: Row, fields: Fields) -> UnpairedRow:
    """An unpaired preference row."""
    prompt = _prompt(row, fields)
    completion = completion_at(row, fields.completion, prompt)
    label = required(row, fields.label, bool, "true or false")
    return UnpairedRow(prompt, completion, label)


def parse_steps(row: Row, fields: Fields) -> StepsRow:
    """A stepwise supervision row."""
    prompt = required(row, fields.prompt, str, "a string")
    steps = _list_of(row, fields.completions, str, "strings")
    labels = _list_of(row, fields.labels, bool, "true or false")
    if len(steps) != len(labels):
        raise DataError(
            f"{row.place}: {len(steps)} {fields.completions} but {len(labels)} "
            f"{fields.labels}"
        )
    return StepsRow(prompt, steps, labels)


def parse_row(row: Row, fields: Fields):
    """The row by its own type (`row_type`); a prompt-only row gives its prompt."""
    parsers = {
        "language modeling": parse_text,
        "prompt-only": parse_prompt,
        "prompt-completion": parse_completion,
        "preference": parse_preference,
        "unpaired preference": parse_unpaired,
        "stepwise supervision": parse_steps,
    }
    return parsers[row_type(row, fields)](row, fields)


def completion_at(row: Row, path: str, prompt: Content) -> Content:
    """The completion at `path`, in the format of its prompt: after a conversation a
    string is the assistant's message."""
    completion = _content(row, path)
    if isinstance(completion, str) and not isinstance(prompt, str):
        return ({"role": "assistant", "content": completion},)
    if not isinstance(completion, str) and isinstance(prompt, str):
        raise DataError(
            f"{row.place}: {path!r} is a conversation but the prompt is a string"
        )
    return completion


def split_prompt(
    chosen: Content, rejected: Content
) -> tuple[Content, Content, Content]:
    """(prompt, chosen, rejected) of two texts or conversations that begin alike.

    The prompt is the longest common beginning: whole messages of conversations, whole
    turns of transcripts (`\\n\\nHuman:` and `\\n\\nAssistant:`, as in HH-RLHF), else
    characters, a space before the difference left to the completions. ValueError where
    nothing is common.
    """
    length = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        length += 1
    if isinstance(chosen, str) and isinstance(rejected, str):
        length = _cut_text(chosen, length)
    else:
        last = min(len(chosen), len(rejected)) - 1
        length = min(
            length, last
        )  # equal conversations: the last message differs least
    if length <= 0:
        raise ValueError("chosen and rejected begin differently, so there is no prompt")
    return chosen[:length], chosen[length:], rejected[length:]


def _cut_text(chosen: str, length: int) -> int:
    turn = chosen.rfind(_ASSISTANT, 0, length)
    if chosen.lstrip().startswith(_HUMAN.strip()) and turn >= 0:
        return turn + len(_ASSISTANT)
    return length - 1 if chosen[length - 1 : length] == " " else length


def has_more_turns(prompt: Content, completion: Content) -> bool:
    """Whether the completion goes on to what others say: to a message that is not the
    assistant's or a tool's, or to another turn of a transcript."""
    if isinstance(completion, str):
        transcript = isinstance(prompt, str) and prompt.endswith(_ASSISTANT)
        return transcript and (_HUMAN in completion or _ASSISTANT in completion)
    return any(message["role"] not in ("assistant", "tool") for message in completion)


def _prompt(row: Row, fields: Fields) -> Content:
    prompt = _content(row, fields.prompt)
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        raise DataError(
            f"{row.place}: the conversation in {fields.prompt!r} ends with the "
            "assistant; a prompt ends with what it is to answer"
        )
    return prompt


def _content(row: Row, path: str) -> Content:
    value = required(row, path, (str, list, dict), "a string or a list of messages")
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{row.place}: the field {path!r} is empty")
        return value
    return _conversation(row, path)


def _conversation(row: Row, path: str) -> Messages:
    value = required(row, path, (list, dict), "a list of messages")
    if isinstance(value, dict):  # how TFDS gives a sequence of dictionaries
        value = _transposed(value, row, path)
    if not value:
        raise DataError(f"{row.place}: the conversation in {path!r} is empty")
    for i, message in enumerate(value):
        where = f"{row.place}: message {i} of {path!r}"
        if not isinstance(message, dict):
            raise DataError(f"{where} must be an object, it is {message!r:.80}")
        if not isinstance(message.get("role"), str):
            raise DataError(f"{where} needs a `role`; it has {sorted(message)}")
        content = message.get("content")
        # An assistant that calls tools may say nothing; parts are for the template.
        if not isinstance(content, str | list) and not message.get("tool_calls"):
            raise DataError(f"{where} needs a `content`; it has {sorted(message)}")
    return tuple(value)


def _transposed(value: dict, row: Row, path: str) -> list[dict]:
    columns = list(value.values())
    if not all(isinstance(column, list) for column in columns) or (
        len({len(column) for column in columns}) != 1
    ):
        raise DataError(
            f"{row.place}: the field {path!r} must be a string or a list of messages, "
            f"it is an object with the keys {sorted(value)}"
        )
    return [
        dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)
    ]


def _list_of(row: Row, path: str, kind: type, words: str) -> tuple:
    values = required(row, path, list, f"a list of {words}")
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            raise DataError(
                f"{row.place}: item {i} of {path!r} must be {words}, it is "
                f"{value!r:.80}"
            )
    if not values:
        raise DataError(f"{row.place}: the list {path!r} is empty")
    return tuple(values)


def columns_of(row: Row, *used: str) -> dict[str, Any]:
    """The row's fields for scorers, which get them by name beside `prompt` and
    `completion`: all but those two and `used`."""
    left_out = {"prompt", "completion", *used}
    return {str(k): v for k, v in row.values.items() if k not in left_out}
