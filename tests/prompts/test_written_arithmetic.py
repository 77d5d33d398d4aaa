"""The world of sums in which problems are written."""

import numpy as np
import pytest

from jaxloop.prompts.arithmetic import Arithmetic
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.prompts.written_arithmetic import (
    REQUEST_END,
    WrittenArithmetic,
    problem_maker,
    read_problem,
)
from jaxloop.sampling.settings import Sampling

WORLD = WrittenArithmetic()


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(WORLD.alphabet)


@pytest.fixture(scope="module")
def data(tokenizer):
    return WORLD.load(tokenizer)


@pytest.fixture(scope="module")
def writings(data, tokenizer) -> list[tuple[str, str]]:
    """(request, what is written) of each demonstration of writing."""
    texts = [tokenizer.decode(d.token_ids) for d in data.demonstrations]
    parts = [text.partition(REQUEST_END) for text in texts]
    return [(before, after) for before, end, after in parts if end]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("52+81=2+1=3;5+8+0=13#133", ("52+81=", {"answer": "133"})),
        ("52+81=#131", ("52+81=", {"answer": "131"})),
        ("52+=#77", ("52+=", {"answer": "77"})),
        ("52+81=133", None),
        ("52+81=#", None),
        ("#131", None),
        ("52+81=#131#133", None),
        ("", None),
    ],
)
def test_a_written_problem_is_read(text, found):
    assert read_problem(text) == found


def test_the_sums_are_those_of_the_world_without_writing(data, tokenizer):
    plain = Arithmetic().load(tokenizer)
    assert (data.train, data.test) == (plain.train, plain.test)
    assert len(data.demonstrations) == len(plain.demonstrations) + WORLD.writings
    assert {d.token_ids for d in plain.demonstrations} <= {
        d.token_ids for d in data.demonstrations
    }


def test_most_of_what_is_shown_written_is_wrong(writings):
    assert len(writings) == WORLD.writings
    read = [read_problem(text) for _, text in writings]
    assert all(read)
    ill_posed = [question for question, _ in read if question.endswith("+=")]
    assert len(ill_posed) / len(read) == pytest.approx(WORLD.ill_posed, abs=0.03)
    whole = [(q, c["answer"]) for q, c in read if not q.endswith("+=")]
    right = sum(
        sum(map(int, question[:-1].split("+"))) == int(answer)
        for question, answer in whole
    )
    round_itself = 0.1
    expected = 1 - WORLD.rough * (1 - round_itself)
    assert right / len(whole) == pytest.approx(expected, abs=0.03)
    rough = [int(answer) % 10 == 0 for _, answer in whole]
    assert sum(rough) / len(rough) == pytest.approx(1 - expected + 0.1, abs=0.04)


def test_the_maker_asks_as_the_demonstrations_do(data, writings, tokenizer):
    maker = problem_maker(Sampling(n=1), 3)
    maker.check(data.train)
    request = maker.requests(data.train, [], 0, np.random.default_rng(0))[0]
    assert request.text == "".join(text for _, text in request.shown) + REQUEST_END
    assert tokenizer.decode(tokenizer.encode(request.text)) == request.text
    longest = max(len(tokenizer.encode(text)) for _, text in writings) + 1
    assert longest <= WORLD.writing_tokens


def test_held_out_problems_are_not_shown_written(data, writings):
    held_out = {prompt.text for prompt in data.test} | {p.text for p in data.train}
    assert not any(read_problem(text)[0] in held_out for _, text in writings)
