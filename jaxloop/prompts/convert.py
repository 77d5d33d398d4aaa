"""One row to one record: the prompt, demonstration or pair that settings make of it.

Plain text is tokenised as it is, conversations by the chat template; which of the two
the settings and the row's format say, and nothing is guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxloop.prompts import demonstrations, schema
from jaxloop.prompts.jsonl import Row
from jaxloop.prompts.schema import Content, Fields, Messages
from jaxloop.prompts.template import fill, get_field, has_field, required
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Demonstration, Labelled, Pair, Prompt, Rollout


@dataclass(frozen=True)
class Conversion:
    """How rows are read; the settings are those of `JsonlData`. Every method takes a
    row and the id of its record, and raises ValueError where the row does not fit."""

    tokenizer: Tokenizer
    fields: Fields = field(default_factory=Fields)
    template: str = ""
    completion_template: str = ""
    chat: bool | None = None
    system: str = ""
    answer_field: str = ""
    train_on: demonstrations.TrainOn = "completion"

    def prompt(self, row: Row, id: str) -> Prompt:
        """The prompt of a row; its other fields are the columns that scorers get."""
        return self._tokenised(self._prompt_content(row), row, id)

    def demonstration(self, row: Row, id: str) -> tuple[Demonstration, str]:
        """(the demonstration of a row, the text of its prompt): of prompt and
        completion, or else of `messages` or `text` (whose prompt is empty)."""
        has_completion = self.completion_template or has_field(
            row, self.fields.completion
        )
        if has_completion and (self.template or has_field(row, self.fields.prompt)):
            return self._completed(row, id)
        if schema.row_type(row, self.fields) != "language modeling":
            get_field(row, self.fields.completion)  # says which fields are near
            raise ValueError(f"no completion under {self.fields.completion!r}")
        content = schema.parse_text(row, self.fields).text
        if isinstance(content, str):
            return demonstrations.from_text(id, content, self.tokenizer), ""
        messages = self._conversation(content)
        if messages is None:
            raise ValueError("data.chat=false, but the row is a conversation")
        made = demonstrations.from_conversation(
            id,
            messages,
            self.tokenizer,
            train_on=self.train_on,
            **_template_kwargs(row),
        )
        roles = [message["role"] for message in messages]
        first = roles.index("assistant") if "assistant" in roles else 0
        return made, self._chat_text(messages[:first], row) if first else ""

    def pair(self, row: Row, id: str) -> Pair | str:
        """The pair of a preference row, or in a few words why it is of no use."""
        if self.template:
            content: Content = fill(self.template, row)
            parsed = schema.PreferenceRow(
                content,
                schema.completion_at(row, self.fields.chosen, content),
                schema.completion_at(row, self.fields.rejected, content),
            )
        else:
            parsed = schema.parse_preference(row, self.fields)
        sides = parsed.chosen, parsed.rejected
        if any(schema.has_more_turns(parsed.prompt, side) for side in sides):
            return "completions that hold the other side's turns too"
        prompt = self._tokenised(parsed.prompt, row, id)
        chosen, rejected = (
            self._offline(prompt, side, row, index) for index, side in enumerate(sides)
        )
        if chosen.token_ids == rejected.token_ids:
            return "chosen equal to rejected"
        score = 1.0 if parsed.margin is None else parsed.margin
        return Pair(prompt, chosen, rejected, score, 0.0, reason="data")

    def labelled(self, row: Row, id: str) -> Labelled:
        """The completion of an unpaired preference row, or of a stepwise supervision
        row, whose steps are joined as they are; its label is then that of all steps."""
        if schema.row_type(row, self.fields) == "stepwise supervision":
            return self._stepwise(schema.parse_steps(row, self.fields), row, id)
        if self.template:
            content: Content = fill(self.template, row)
            completion = schema.completion_at(row, self.fields.completion, content)
            label = required(row, self.fields.label, bool, "true or false")
            parsed = schema.UnpairedRow(content, completion, label)
        else:
            parsed = schema.parse_unpaired(row, self.fields)
        if schema.has_more_turns(parsed.prompt, parsed.completion):
            raise ValueError("the completion holds the other side's turns too")
        prompt = self._tokenised(parsed.prompt, row, id)
        rollout = self._offline(prompt, parsed.completion, row, 0)
        return Labelled(prompt, rollout, float(parsed.label))

    def _stepwise(self, parsed: schema.StepsRow, row: Row, id: str) -> Labelled:
        prompt = self._tokenised(parsed.prompt, row, id)
        if prompt.messages is not None:
            raise ValueError("data.chat=true, but steps are plain text")
        # Each step is tokenised apart, so that its end falls between two tokens.
        parts = [self.tokenizer.encode(step) for step in parsed.completions]
        if not all(parts):
            raise ValueError("a step has no tokens")
        ends = np.cumsum([len(part) for part in parts]).tolist()
        joined = [token for part in parts for token in part]
        ids = demonstrations.with_eos(joined, self.tokenizer)
        text = "".join(parsed.completions)
        rollout = Rollout(prompt.id, 0, ids, text, (), (), "eos")
        steps = tuple(zip(ends, map(float, parsed.labels), strict=True))
        return Labelled(prompt, rollout, float(all(parsed.labels)), steps=steps)

    def _prompt_content(self, row: Row) -> Content:
        if self.template:
            return fill(self.template, row)
        return schema.parse_prompt(row, self.fields)

    def _tokenised(self, content: Content, row: Row, id: str) -> Prompt:
        used = () if self.template else (self.fields.prompt,)
        columns = schema.columns_of(row, *used)
        if self.answer_field:
            columns["answer"] = get_field(row, self.answer_field)
        messages = self._conversation(content)
        if messages is None:
            text = self._plain_text(content)
            if not text.strip():
                raise ValueError("the prompt is empty")
            return Prompt(id, text, self.tokenizer.encode_prompt(text), columns)
        text = self._chat_text(messages, row)
        return Prompt(id, text, self.tokenizer.encode(text), columns, messages)

    def _chat_text(self, messages: Messages, row: Row) -> str:
        return self.tokenizer.chat_text(
            messages, add_generation_prompt=True, **_template_kwargs(row)
        )

    def _conversation(self, content: Content) -> Messages | None:
        """The messages that go through the chat template; None for plain text."""
        if self.chat is False or (self.chat is None and isinstance(content, str)):
            if self.system:
                raise ValueError(
                    "data.system needs a conversation, but this prompt is plain text; "
                    "data.chat=true makes it the user's message"
                )
            return None
        if isinstance(content, str):
            content = ({"role": "user", "content": content},)
        if self.system and content[0]["role"] != "system":
            content = ({"role": "system", "content": self.system}, *content)
        return content

    def _plain_text(self, content: Content) -> str:
        if isinstance(content, str):
            return content
        if len(content) == 1 and isinstance(content[0]["content"], str):
            return content[0]["content"]
        raise ValueError(
            f"data.chat=false, but the prompt is a conversation of {len(content)} "
            "messages, and how to write it as plain text is not for us to guess"
        )

    def _completed(self, row: Row, id: str) -> tuple[Demonstration, str]:
        content = self._prompt_content(row)
        if self.completion_template:
            completion: Content = fill(self.completion_template, row)
        else:
            completion = schema.completion_at(row, self.fields.completion, content)
        prompt = self._tokenised(content, row, id)
        if prompt.messages is None:
            text = demonstrations.completion_text(completion)
            made = demonstrations.from_completion(
                id,
                prompt.token_ids,
                self.tokenizer.encode(text),
                self.tokenizer,
                train_on=self.train_on,
            )
            return made, prompt.text
        made = demonstrations.from_conversation(
            id,
            (*prompt.messages, *_messages(completion)),
            self.tokenizer,
            first=len(prompt.messages),
            train_on=self.train_on,
            **_template_kwargs(row),
        )
        return made, prompt.text

    def _offline(self, prompt: Prompt, side: Content, row: Row, index: int) -> Rollout:
        """A completion that no sampler wrote: it has no log-probabilities."""
        text = demonstrations.completion_text(side)
        if prompt.messages is None:
            ids = demonstrations.with_eos(self.tokenizer.encode(text), self.tokenizer)
            return Rollout(prompt.id, index, ids, text, (), (), "eos")
        _, ids, others = demonstrations.conversation_completion(
            prompt.messages,
            _messages(side),
            self.tokenizer,
            **_template_kwargs(row),
        )
        return Rollout(prompt.id, index, ids, text, (), (), "eos", masked=others)


def _messages(completion: Content) -> Messages:
    if isinstance(completion, str):
        return ({"role": "assistant", "content": completion},)
    return completion


def _template_kwargs(row: Row) -> dict[str, Any]:
    """What a row hands to the chat template, by TRL's names for it."""
    found: dict[str, Any] = {}
    if has_field(row, "chat_template_kwargs"):
        given = required(row, "chat_template_kwargs", Mapping, "an object")
        found |= {str(name): value for name, value in given.items()}
    if has_field(row, "tools"):
        found["tools"] = required(row, "tools", list, "a list")
    return found
