"""Rows to sequences that are imitated: token ids and which of them are trained on.

Text and completion are tokenised apart and joined, so the border between them never
moves. In a conversation the border comes from the chat template: from its own marks of
what the assistant wrote, else from prefixes, and those are checked. What a tool said
is read by the model, and never trained on.
"""

from collections.abc import Sequence
from typing import Any, Literal

from jaxloop.prompts.schema import Content, Messages
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Demonstration

TrainOn = Literal["completion", "all"]


def from_text(id: str, text: str, tokenizer: Tokenizer) -> Demonstration:
    """A plain text with its end; all of it is trained on."""
    ids = (*tokenizer.encode_prompt(text), tokenizer.eos_ids[0])
    return Demonstration(id, ids, (1,) * len(ids))


def from_completion(
    id: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    tokenizer: Tokenizer,
    *,
    train_on: TrainOn = "completion",
) -> Demonstration:
    """Prompt, completion, end-of-sequence token (not twice). The mask is 1 on the
    completion and its end, or everywhere with `train_on="all"`."""
    ending = with_eos(completion_ids, tokenizer)
    mask = (int(train_on == "all"),) * len(prompt_ids) + (1,) * len(ending)
    return Demonstration(id, (*prompt_ids, *ending), mask)


def from_conversation(
    id: str,
    messages: Messages,
    tokenizer: Tokenizer,
    *,
    first: int = 0,
    train_on: TrainOn = "completion",
    **template_kwargs: Any,
) -> Demonstration:
    """A conversation in the chat template. The mask is 1 on what the assistant wrote
    from message `first` on, with the token that ends each of its turns.

    ValueError where nothing is trained on, or where the template has no generation
    marks and rewrites earlier messages (then no prefix is stable).
    """
    if train_on == "all":
        ids = tokenizer.chat_ids(
            messages, add_generation_prompt=False, **template_kwargs
        )
        return Demonstration(id, ids, (1,) * len(ids))
    ids, mask = _mark(messages, tokenizer, first, template_kwargs)
    if not any(mask):
        raise ValueError("the conversation holds nothing that the assistant wrote")
    if messages[-1]["role"] == "assistant" and ids[_last_one(mask)] not in (
        tokenizer.eos_ids
    ):
        # The template ends a turn without a token that stops the sampler.
        end = _last_one(mask) + 1
        ids, mask = (*ids[:end], tokenizer.eos_ids[0]), (*mask[:end], 1)
    return Demonstration(id, tuple(ids), tuple(mask))


def conversation_completion(
    prompt: Messages,
    completion: Messages,
    tokenizer: Tokenizer,
    **template_kwargs: Any,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]:
    """(prompt ids, completion ids with their end, spans of the completion that the
    assistant did not write) of a conversation in two parts.

    The spans, [start, end), are there where the completion has several messages: what
    tools said, and what the template writes between two turns. ValueError where the
    template rewrites the prompt once the completion follows, and for a completion that
    ends with another's message.
    """
    if (role := completion[-1]["role"]) != "assistant":
        raise ValueError(
            f"a completion ends with the assistant's message, not {role}'s"
        )
    prompt_ids = tokenizer.chat_ids(
        prompt, add_generation_prompt=True, **template_kwargs
    )
    ids = tokenizer.chat_ids(
        (*prompt, *completion), add_generation_prompt=False, **template_kwargs
    )
    _check_prefix(prompt_ids, ids, tokenizer, len(prompt))
    first = len(prompt_ids)
    end = _turn_end(ids, first, len(ids), tokenizer)
    completion_ids = with_eos(ids[first:end], tokenizer)
    if len(completion) == 1:
        return prompt_ids, completion_ids, ()
    _, mask = _mark((*prompt, *completion), tokenizer, len(prompt), template_kwargs)
    others = tuple(_runs([1 - m for m in mask[first:end]]))
    return prompt_ids, completion_ids, others


def with_eos(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """`ids` with an end-of-sequence token, unless they end with one."""
    if ids and ids[-1] in tokenizer.eos_ids:
        return tuple(ids)
    return (*ids, tokenizer.eos_ids[0])


def _mark(messages: Messages, tokenizer: Tokenizer, first: int, kwargs):
    """(ids, mask that is 1 on what the assistant wrote from message `first` on, with
    the token that ends each of its turns)."""
    mark = _marked if tokenizer.marks_generation else _by_prefixes
    return mark(messages, tokenizer, first, kwargs)


def _marked(messages: Messages, tokenizer: Tokenizer, first: int, kwargs):
    ids, marks = tokenizer.chat_mask(messages, **kwargs)
    mask, spans = [0] * len(ids), _runs(marks)
    written = [
        i for i, message in enumerate(messages) if message["role"] == "assistant"
    ]
    if first and len(spans) != len(written):
        raise ValueError(
            f"the chat template marks {len(spans)} spans, but the assistant wrote "
            f"{len(written)} messages: the completion cannot be told from the prompt"
        )
    for span, (start, end) in enumerate(spans):
        if first and written[span] < first:
            continue
        # Some templates mark the words but not the token that ends the turn.
        end += end < len(ids) and ids[end] in tokenizer.eos_ids
        mask[start:end] = [1] * (end - start)
    return ids, mask


def _by_prefixes(messages: Messages, tokenizer: Tokenizer, first: int, kwargs):
    def chat_ids(messages, generate):
        return tokenizer.chat_ids(messages, add_generation_prompt=generate, **kwargs)

    ids = chat_ids(messages, False)
    mask = [0] * len(ids)
    for i, message in enumerate(messages):
        if i < first or message["role"] != "assistant":
            continue
        before = ()
        if i:  # a template may refuse an empty conversation
            before = chat_ids(messages[:i], True)
        upto = chat_ids(messages[: i + 1], False)
        _check_prefix(before, upto, tokenizer, i)
        _check_prefix(upto, ids, tokenizer, i + 1)
        end = _turn_end(ids, len(before), len(upto), tokenizer)
        mask[len(before) : end] = [1] * (end - len(before))
    return ids, mask


def _turn_end(ids, start: int, end: int, tokenizer: Tokenizer) -> int:
    """Where the turn [start, end) stops for the sampler: after its last end token;
    what a template writes behind that (a line break) is never sampled."""
    for i in range(end - 1, start - 1, -1):
        if ids[i] in tokenizer.eos_ids:
            return i + 1
    return end


def _check_prefix(prefix, ids, tokenizer: Tokenizer, count: int) -> None:
    if tuple(ids[: len(prefix)]) == tuple(prefix):
        return
    pairs = zip(prefix, ids, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(ids))
    raise ValueError(
        f"the chat template's text of the first {count} messages is not the beginning "
        f"of its text of them all (they part at token {same}: "
        f"{tokenizer.hf.decode(prefix[same : same + 8])!r} against "
        f"{tokenizer.hf.decode(ids[same : same + 8])!r}); give one in "
        "tokenizer.chat_template that leaves earlier messages alone or, for "
        "demonstrations, one with {% generation %} marks"
    )


def _last_one(mask: Sequence[int]) -> int:
    return max(i for i, m in enumerate(mask) if m)


def _runs(marks: Sequence[int]) -> list[tuple[int, int]]:
    """[start, end) of each run of ones."""
    edges = [
        i
        for i, (a, b) in enumerate(zip((0, *marks), (*marks, 0), strict=True))
        if a != b
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))


def completion_text(completion: Content) -> str:
    """The words of a completion: of all its messages, for people and for comparing."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)
