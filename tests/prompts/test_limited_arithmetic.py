"""The world of sums with length limits."""

import re
from dataclasses import replace

import pytest

from jaxloop.prompts.arithmetic import Problem
from jaxloop.prompts.limited_arithmetic import (
    LimitedArithmetic,
    full_answer,
    parts,
    violations,
)
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.records import Rollout

WORLD = LimitedArithmetic(train=300, test=100, demonstrations=600)


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(WORLD.alphabet)


@pytest.fixture(scope="module")
def data(tokenizer):
    return WORLD.load(tokenizer)


def test_fuller_answers_say_the_result_again():
    problem = Problem(37, 85)
    assert full_answer(problem, 0) == problem.working()
    assert full_answer(problem, 2) == "7+5=12;3+8+1=12#122;122;122"
    assert [parts(full_answer(problem, n)) for n in range(4)] == [2, 3, 4, 5]
    with pytest.raises(ValueError, match="repeats = 0 must be at least 1"):
        LimitedArithmetic(repeats=0)


def test_half_of_the_held_out_prompts_have_a_limit(data, tokenizer):
    plain, limited = data.test[: WORLD.test], data.test[WORLD.test :]
    assert len(limited) == WORLD.test
    for free, bound in zip(plain, limited, strict=True):
        limit = bound.columns["limit"]
        assert bound.text == f"<{limit}:{free.text}"
        assert bound.token_ids == tokenizer.encode(bound.text)
        assert len(bound.token_ids) <= WORLD.prompt_tokens
        assert bound.columns["answer"] == free.columns["answer"]
        assert (bound.columns["set"], "set" in free.columns) == ("limits", False)
    seen = {prompt.columns["limit"] for prompt in limited}
    assert seen == {2, 3, 4, 5}  # from the working alone to every answer


def test_a_longer_answer_than_allowed_violates(data):
    free, bound = data.test[0], data.test[WORLD.test]
    limit = bound.columns["limit"]

    def answer(count):
        return Rollout("p", 0, (), "1;" * (count - 1) + "1", (), (), "eos")

    assert violations(bound, answer(limit)) == 0.0
    assert violations(bound, answer(limit + 1)) == 1.0
    assert violations(free, answer(99)) == 0.0


def test_some_demonstrations_heed_their_limit(data, tokenizer):
    limits, over = 0, []
    longest = 0
    for demonstration in data.demonstrations:
        text = tokenizer.decode(demonstration.token_ids)
        match = re.fullmatch(r"(?:<(\d):)?(\d+)\+(\d+)=(.+)", text)
        problem = Problem(int(match[2]), int(match[3]))
        assert match[4] in [full_answer(problem, n) for n in range(4)]
        longest = max(longest, sum(demonstration.mask))
        if match[1]:
            limits += 1
            over.append(parts(match[4]) > int(match[1]))
    assert longest <= WORLD.completion_tokens
    assert abs(limits / len(data.demonstrations) - WORLD.limited) < 0.1
    assert 0.2 < sum(over) / len(over) < 0.6


def test_the_fuller_answer_is_preferred_until_a_limit_forbids_it(data, tokenizer):
    own, limited = data.pairs[::2], data.pairs[1::2]
    assert len(own) == len(limited) == WORLD.train
    for pair, bound in zip(own, limited, strict=True):
        assert parts(pair.chosen.text) > parts(pair.rejected.text)
        assert pair.chosen.token_ids[:-1] == tokenizer.encode(pair.chosen.text)
        assert violations(bound.prompt, bound.chosen) == 0.0
        kept = bound.chosen.text == pair.chosen.text
        assert kept == (violations(bound.prompt, pair.chosen) == 0.0)
    turned = sum(len(b.chosen.text) < len(b.rejected.text) for b in limited)
    assert 0.3 < turned / len(limited) < 0.7


def test_the_control_has_the_same_pairs_without_limits(data, tokenizer):
    control = replace(WORLD, augmented=False).load(tokenizer)
    assert control.pairs == data.pairs[::2]
    assert control.test == data.test
    assert control.demonstrations == data.demonstrations
