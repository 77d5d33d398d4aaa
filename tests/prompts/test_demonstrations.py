import dataclasses

import pytest

from jaxloop.prompts import demonstrations
from jaxloop.prompts.demonstrations import from_conversation
from jaxloop.records import Demonstration, Rollout

TALK = (
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "the end"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "no more"},
)


def trained(demonstration: Demonstration, tokenizer) -> str:
    pairs = zip(demonstration.token_ids, demonstration.mask, strict=True)
    return tokenizer.hf.decode([i for i, m in pairs if m])


def test_a_completion_is_trained_on_with_its_end(bpe):
    prompt, completion = bpe.encode_prompt("hello"), bpe.encode(" the end")
    made = demonstrations.from_completion("x", prompt, completion, bpe)
    assert made.token_ids == (*prompt, *completion, 2)
    assert made.mask == (0,) * len(prompt) + (1,) * (len(completion) + 1)
    again = demonstrations.from_completion("x", prompt, (*completion, 3), bpe)
    assert again.token_ids == (*prompt, *completion, 3)  # it had an end already
    both = demonstrations.from_completion("x", prompt, completion, bpe, train_on="all")
    assert both.token_ids == made.token_ids
    assert set(both.mask) == {1}


def test_a_text_is_trained_on_whole(bpe):
    made = demonstrations.from_text("x", "hello", bpe)
    assert made.token_ids == (0, *bpe.encode("hello"), 2)
    assert set(made.mask) == {1}


def test_marks_and_prefixes_agree(bpe, marked):
    by_prefix = from_conversation("x", TALK, bpe)
    assert from_conversation("x", TALK, marked) == by_prefix
    assert trained(by_prefix, bpe) == "the end<|im_end|>no more<|im_end|>"
    assert by_prefix.token_ids == bpe.chat_ids(TALK, add_generation_prompt=False)


@pytest.mark.parametrize("name", ["bpe", "marked"])
def test_only_the_completion_of_a_longer_conversation_is_trained_on(name, request):
    tokenizer = request.getfixturevalue(name)
    made = from_conversation("x", TALK, tokenizer, first=4)
    assert trained(made, tokenizer) == "no more<|im_end|>"
    whole = from_conversation("x", TALK, tokenizer, train_on="all")
    assert set(whole.mask) == {1}


def test_prompt_and_completion_join_to_the_whole_conversation(bpe):
    prompt, completion, others = demonstrations.conversation_completion(
        TALK[:4], TALK[4:], bpe
    )
    assert others == ()
    assert prompt == bpe.chat_ids(TALK[:4], add_generation_prompt=True)
    assert bpe.hf.decode(completion) == "no more<|im_end|>"
    made = from_conversation("x", TALK, bpe, first=4)
    assert made.token_ids[: len(prompt) + len(completion)] == prompt + completion


TOOLS = (
    {"role": "assistant", "content": "say"},
    {"role": "tool", "content": "hello"},
    {"role": "tool", "content": "hello"},
    {"role": "assistant", "content": "the end"},
)


@pytest.mark.parametrize("name", ["bpe", "marked"])
def test_what_tools_say_in_a_completion_is_masked(name, request):
    """In pairs and labelled completions as in demonstrations."""
    tokenizer = request.getfixturevalue(name)
    prompt, completion, others = demonstrations.conversation_completion(
        TALK[:2], TOOLS, tokenizer
    )
    read = [tokenizer.hf.decode(completion[start:end]) for start, end in others]
    tool = "<|im_start|>tool\nhello<|im_end|>\n"
    assert read == ["\n" + tool + tool + "<|im_start|>assistant\n"]
    learnt = Rollout("", 0, completion, "", (), (), "eos", masked=others)
    made = from_conversation("x", (*TALK[:2], *TOOLS), tokenizer)
    assert trained(made, tokenizer) == "say<|im_end|>the end<|im_end|>"
    ids = prompt + completion
    assert made.token_ids[: len(ids)] == ids
    assert made.mask[: len(ids)] == (0,) * len(prompt) + learnt.mask
    assert not any(made.mask[len(ids) :])
    with pytest.raises(ValueError, match="ends with the assistant's message, not tool"):
        demonstrations.conversation_completion(TALK[:2], TOOLS[:2], tokenizer)


# A template in the manner of reasoning models: earlier answers are cut.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}...{% else %}{{ m.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_prefix_that_is_not_stable_is_an_error(bpe):
    forgetful = dataclasses.replace(bpe, chat_template=FORGETFUL)
    with pytest.raises(ValueError, match="not the beginning of its text of them all"):
        from_conversation("x", TALK, forgetful)
    # The last answer alone is stable, and so is its border.
    made = from_conversation("x", TALK, forgetful, first=4)
    assert trained(made, forgetful) == "no more<|im_end|>"


def test_a_template_without_an_end_gets_one(bpe):
    endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    endless += "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = dataclasses.replace(bpe, chat_template=endless)
    made = from_conversation("x", TALK, tokenizer, first=4)
    assert made.token_ids[-1] == tokenizer.eos_ids[0]
    assert made.mask[-1] == 1
    assert trained(made, tokenizer).startswith("no more")


def test_marks_without_the_end_token_take_it_in(bpe):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
        "{% endfor %}"
    )
    tokenizer = dataclasses.replace(bpe, chat_template=template)
    made = from_conversation("x", TALK, tokenizer)
    assert trained(made, tokenizer) == "the end<|im_end|>no more<|im_end|>"


@pytest.mark.parametrize("name", ["bpe", "marked"])
def test_a_conversation_without_the_assistant_teaches_nothing(name, request):
    with pytest.raises(ValueError, match="nothing that the assistant wrote"):
        from_conversation("x", TALK[:2], request.getfixturevalue(name))
