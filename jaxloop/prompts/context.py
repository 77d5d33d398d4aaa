"""A prompt behind a text of its row's own fields, for whoever may read more."""

import dataclasses

from jaxloop.prompts.jsonl import Row
from jaxloop.prompts.template import fill
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Prompt


def with_context(prompt: Prompt, context: str, tokenizer: Tokenizer) -> Prompt:
    """The prompt with `context` before it, behind the tokens that begin every text.

    `{path}` in the context is the row's field. DataError for one that is not there.
    """
    text = fill(context, Row(f"prompt {prompt.id!r}", 1, prompt.columns))
    bos = tokenizer.bos_ids
    if prompt.token_ids[: len(bos)] != bos:
        bos = ()
    ids = (*bos, *tokenizer.encode(text), *prompt.token_ids[len(bos) :])
    return dataclasses.replace(prompt, token_ids=ids)
