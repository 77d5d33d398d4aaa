"""The world of sums of two sizes."""

import numpy as np
import pytest

from jaxloop.prompts.arithmetic import Arithmetic, Problem, is_direct
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.prompts.uneven_arithmetic import UnevenArithmetic, estimate
from jaxloop.records import Rollout
from jaxloop.scoring import After, MajorityVote, Numeric

SMALL = {"train": 60, "test": 40, "demonstrations": 200}
LONG = {"long_train": 80, "long_test": 30, "long_demonstrations": 300}
WORLD = UnevenArithmetic(**SMALL, **LONG)


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(WORLD.alphabet)


@pytest.fixture(scope="module")
def data(tokenizer):
    return WORLD.load(tokenizer)


def shown(data, tokenizer):
    """(numbers' length, completion) of each demonstration."""
    for each in data.demonstrations:
        question, _, completion = tokenizer.decode(each.token_ids).partition("=")
        yield question.index("+"), completion


def test_short_sums_are_those_of_the_world_without_long_ones(data, tokenizer):
    plain = Arithmetic(**SMALL, direct=WORLD.direct).load(tokenizer)
    assert data.train[:60] == plain.train
    assert data.test[:40] == plain.test
    assert {d.id for d in plain.demonstrations} < {d.id for d in data.demonstrations}


def test_long_ones_are_new_on_every_side(data, tokenizer):
    long = [p for p in [*data.train, *data.test] if p.text.index("+") == 3]
    assert len(long) == len({p.text for p in long}) == 110
    sides = {d.token_ids[:8] for d in data.demonstrations}
    assert not sides & {p.token_ids for p in long}
    sets = [p.columns.get("set", "") for p in data.test]
    assert sets == [""] * 40 + ["long"] * 30
    assert max(len(p.token_ids) for p in data.train) == WORLD.prompt_tokens


def test_the_shares_of_direct_answers(data, tokenizer):
    for digits, share in ((2, WORLD.direct), (3, WORLD.long_direct)):
        direct = [is_direct(c) for n, c in shown(data, tokenizer) if n == digits]
        assert np.mean(direct) == pytest.approx(share)


def test_an_estimate_is_wrong_and_one_of_few(data, tokenizer):
    assert [estimate(Problem(137, 285), k) for k in range(3)] == [
        "#300",
        "#400",
        "#500",
    ]
    long = [c for n, c in shown(data, tokenizer) if n == 3 and is_direct(c)]
    assert all(text.endswith("00") for text in long)


def test_estimates_win_the_votes_on_long_sums_where_working_would_be_right(data):
    """As many votes as the demonstrations have: working is right, and loses."""
    prompt = next(p for p in data.train if p.id.startswith("long"))
    a, b = (int(n) for n in prompt.columns["problem"].split("+"))
    problem = Problem(a, b)
    texts = [estimate(problem, k % 3) for k in range(12)] + [problem.working()] * 3
    group = tuple(
        Rollout(prompt.id, i, (1,), text, (), (), "eos") for i, text in enumerate(texts)
    )
    (voted,) = MajorityVote(After("#"))([prompt], [group])
    (gold,) = Numeric(extract=After("#"))([prompt], [group])
    assert [s.value for s in gold.scores] == [0.0] * 12 + [1.0] * 3
    assert voted.scores[0].votes > voted.scores[-1].votes


def test_the_longest_working_fits(data, tokenizer):
    longest = max(len(tokenizer.encode(c)) for _, c in shown(data, tokenizer))
    assert longest < WORLD.completion_tokens <= 32
    nines = Problem(999, 999).working()
    assert len(tokenizer.encode(nines)) + 1 == WORLD.completion_tokens


def test_the_same_seed_is_the_same_world(data, tokenizer):
    assert WORLD.load(tokenizer) == data
    other = UnevenArithmetic(**SMALL, **LONG, seed=1).load(tokenizer)
    assert other.train != data.train
