"""The world of sums with bad prompts among the good ones."""

import pytest

from jaxloop.prompts.arithmetic import Arithmetic
from jaxloop.prompts.garbled_arithmetic import Closeness, GarbledArithmetic
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.records import Prompt, Rollout

SIZES = {"train": 200, "test": 50, "demonstrations": 100}
WORLD = GarbledArithmetic(**SIZES, garbled=0.3)


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(WORLD.alphabet)


def total(text: str) -> int:
    return sum(map(int, text.rstrip("=").split("+")))


def test_the_stated_share_asks_for_something_else_than_its_answer(tokenizer):
    data, whole = WORLD.load(tokenizer), Arithmetic(**SIZES).load(tokenizer)
    off = 0
    for prompt, before in zip(data.train, whole.train, strict=True):
        answer = int(prompt.columns["answer"])
        assert prompt.columns["answer"] == before.columns["answer"]
        assert prompt.token_ids == tokenizer.encode_prompt(prompt.text)
        if not prompt.columns["garbled"]:
            assert prompt.text == before.text
            assert total(prompt.text) == answer
            continue
        off += 1
        changed = [x != y for x, y in zip(prompt.text, before.text, strict=True)]
        assert sum(changed) == 1
        assert abs(total(prompt.text) - answer) >= 10
    assert off == 60


def test_what_is_held_out_and_what_is_shown_is_whole(tokenizer):
    data, whole = WORLD.load(tokenizer), Arithmetic(**SIZES).load(tokenizer)
    assert data.test == whole.test
    assert data.demonstrations == whole.demonstrations


def test_the_same_seed_is_the_same_world(tokenizer):
    assert WORLD.load(tokenizer) == WORLD.load(tokenizer)
    other = GarbledArithmetic(**SIZES, seed=1).load(tokenizer)
    assert other.train != WORLD.load(tokenizer).train


@pytest.mark.parametrize(
    ("text", "value"),
    [("#122", 0), ("7+5=12;3+8+1=12#120", -2), ("#999", -100), ("", -100), ("#", -100)],
)
def test_closeness(text, value):
    prompt = Prompt("a", "37+85=", (1,), {"answer": "122"})
    group = (Rollout("a", 0, (1,), text, (), (), "eos"),)
    (row,) = Closeness()([prompt], [group])
    assert [score.value for score in row.scores] == [value]
