"""Requests to a model that quote what others wrote: their tokens, and what must not be
in them."""

from jaxloop.prompts.tokenizer import Tokenizer


def request_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The tokens of a request: a user's message where the tokenizer has a chat
    template, else plain text."""
    if tokenizer.chat_template is None:
        return tokenizer.encode_prompt(text)
    message = {"role": "user", "content": text}
    return tokenizer.chat_ids([message], add_generation_prompt=True)


def reserved(tokenizer: Tokenizer) -> set[str]:
    """The special and other added tokens, as text, which no quotation may spell: role
    tokens are not special in all tokenizers. Runs of spaces are none of these."""
    added = {token.content for token in tokenizer.hf.added_tokens_decoder.values()}
    return {t for t in {*tokenizer.hf.all_special_tokens, *added} if t.strip()}
