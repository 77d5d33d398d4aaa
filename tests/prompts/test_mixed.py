"""Data sets of several kinds of prompts."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest

from jaxloop.prompts.arithmetic import Arithmetic
from jaxloop.prompts.dataset import Dataset, JsonlData
from jaxloop.prompts.mixed import Mixed, Unlabelled, spread
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.records import Prompt

TOKENIZER = character_tokenizer("0123456789+=;#")


@dataclass(frozen=True)
class Counted:
    """So many prompts, with the same ids whatever the data set."""

    train: int
    test: int = 4

    def load(self, tokenizer) -> Dataset:
        def prompts(split: str, count: int) -> list[Prompt]:
            return [
                Prompt(f"{split}:{i}", str(i), (1,), {"i": i}) for i in range(count)
            ]

        return Dataset(
            train=prompts("train", self.train), test=prompts("test", self.test)
        )


def sets(prompts) -> Counter:
    return Counter(prompt.columns.get("set", "") for prompt in prompts)


def test_each_prompt_says_where_it_is_from_and_none_is_lost():
    data = Mixed((Counted(6), Counted(3, 2)), ("", "judged")).load(TOKENIZER)
    assert sets(data.train) == {"": 6, "judged": 3}
    assert sets(data.test) == {"": 4, "judged": 2}
    for split in (data.train, data.test):
        assert len({prompt.id for prompt in split}) == len(split)
        assert sets(split[: len(split) // 2]).keys() == {"", "judged"}  # any part has
    assert [p.columns["i"] for p in data.train if not p.columns.get("set")] == [
        *range(6)
    ]


def test_weights_are_the_shares_of_the_training_prompts():
    mixed = Mixed((Counted(50), Counted(10)), ("a", "b"), (2.0, 1.0))
    data = mixed.load(TOKENIZER)
    assert sets(data.train) == {"a": 20, "b": 10}
    assert sets(data.test) == {"a": 4, "b": 4}
    assert any("20 of 50" in note for note in data.notes)
    assert data == mixed.load(TOKENIZER)


def test_items_are_spread_evenly_and_in_order():
    assert spread([[1, 2, 3, 4], ["a", "b"], []]) == [1, "a", 2, 3, "b", 4]


def test_what_a_source_lacks_names_its_place(write_jsonl):
    file = str(write_jsonl([{"prompt": "1+1="}]))
    mixed = Mixed((JsonlData(train=file), JsonlData()), ("", "judged"))
    (problem,) = mixed.missing(train=True, test=False, demonstrations=False)
    assert "data.sources.1.train=FILE" in problem
    with pytest.raises(ValueError, match=r"data\.sources\.1: .*no source"):
        mixed.load(TOKENIZER)


@pytest.mark.parametrize(
    ("names", "weights", "words"),
    [
        (("a",), (), "2 sources and the names"),
        (("a", "a"), (), "give each its own"),
        (("a", "b"), (1.0,), "weights"),
        (("a", "b"), (1.0, 0.0), "above 0"),
    ],
)
def test_names_and_weights_belong_to_sources(names, weights, words):
    with pytest.raises(ValueError, match=words):
        Mixed((Counted(1), Counted(1)), names, weights)


def test_a_share_of_the_answers_is_taken_away():
    world = Arithmetic(train=64, test=8, demonstrations=8)
    whole = world.load(TOKENIZER)
    data = Unlabelled(world, share=0.25).load(TOKENIZER)
    assert sets(data.train) == {"": 48, "unlabelled": 16}
    for prompt, before in zip(data.train, whole.train, strict=True):
        hidden = prompt.columns.get("set") == "unlabelled"
        assert ("answer" in prompt.columns) != hidden
        assert replace(prompt, columns={}) == replace(before, columns={})
    assert data.test == whole.test
    assert Unlabelled(world, share=0).load(TOKENIZER) == whole
    with pytest.raises(ValueError, match="share"):
        Unlabelled(world, share=2)
