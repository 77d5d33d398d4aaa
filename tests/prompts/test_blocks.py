"""The block-finding task: one block, and only one, holds the query."""

import pytest

from jaxloop.prompts.blocks import ALPHABET, Blocks
from jaxloop.prompts.tokenizer import character_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(ALPHABET)


def parts(text: str) -> tuple[list[str], str]:
    blocks, query = text.split("#")
    return blocks.split("."), query


@pytest.mark.parametrize(
    "world",
    [
        Blocks(test=300, demonstrations=0),
        # Such long blocks that most other blocks have to be drawn again.
        Blocks(letters=20, query=2, blocks=6, test=50, demonstrations=0),
        Blocks(letters=3, query=3, blocks=9, test=100, demonstrations=0),
        Blocks(letters=4, query=1, blocks=1, test=20, demonstrations=0),
    ],
)
def test_exactly_one_block_holds_the_query(world, tokenizer):
    for prompt in world.load(tokenizer).test:
        blocks, query = parts(prompt.text)
        assert (len(blocks), len(query)) == (world.blocks, world.query)
        assert all(len(set(b)) == len(b) == world.letters for b in blocks)
        assert [b for b in blocks if set(query) <= set(b)] == [prompt.columns["answer"]]
        assert len(prompt.token_ids) == world.prompt_tokens


@pytest.mark.parametrize(("asked", "tokens"), [("all", 6), ("first", 2), ("last", 2)])
def test_what_is_asked_for(asked, tokens, tokenizer):
    world = Blocks(asked=asked, blocks=4, test=20, demonstrations=20)
    whole = Blocks(asked="all", blocks=4, test=20, demonstrations=0)
    data = world.load(tokenizer)
    pick = {"all": lambda b: b, "first": lambda b: b[0], "last": lambda b: b[-1]}[asked]
    answers = [p.columns["answer"] for p in data.test]
    block = [p.columns["answer"] for p in whole.load(tokenizer).test]
    assert answers == [pick(b) for b in block]
    for shown in data.demonstrations:
        # Only the answer and its end are trained on.
        assert shown.mask == (0,) * world.prompt_tokens + (1,) * tokens
        text = tokenizer.decode(shown.token_ids[: world.prompt_tokens])
        assert shown.token_ids[: world.prompt_tokens] == tokenizer.encode_prompt(text)
        blocks, query = parts(text)
        (held,) = (b for b in blocks if set(query) <= set(b))
        answer = tokenizer.decode(shown.token_ids[world.prompt_tokens :])
        assert answer == pick(held)
    assert world.completion_tokens == tokens


def test_place_and_order_of_the_query_are_random(tokenizer):
    world = Blocks(letters=5, blocks=4, test=400, demonstrations=0)
    places, orders = [0] * 4, set()
    for prompt in world.load(tokenizer).test:
        blocks, query = parts(prompt.text)
        block = prompt.columns["answer"]
        places[blocks.index(block)] += 1
        orders.add(tuple(block.index(letter) for letter in query))
    assert min(places) > 60  # 100 each on average, sd 9
    assert len(orders) == 20  # every ordered pair of the 5 letters


def test_a_seed_is_a_world(tokenizer):
    few = Blocks(blocks=3, test=5, demonstrations=5)
    assert few.load(tokenizer) == few.load(tokenizer)
    other = Blocks(blocks=3, test=5, demonstrations=5, seed=1).load(tokenizer)
    assert other.test != few.load(tokenizer).test


@pytest.mark.parametrize(
    "sizes", [{"query": 6}, {"query": 0}, {"letters": 27}, {"blocks": 0}]
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="Blocks: query"):
        Blocks(**sizes)


def test_a_query_that_every_block_would_hold_is_refused():
    with pytest.raises(ValueError, match="every block"):
        Blocks(letters=26, query=26)


def test_a_tokenizer_of_words_is_refused():
    class Words:
        bos_ids = ()

        def encode(self, text):
            return (len(text),)

        encode_prompt = encode

    with pytest.raises(ValueError, match="one token a character"):
        Blocks(test=1, demonstrations=1).load(Words())  # pyright: ignore
