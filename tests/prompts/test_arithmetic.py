import dataclasses
import re

import numpy as np
import pytest

from jaxloop.prompts.arithmetic import (
    ALPHABET,
    Arithmetic,
    Problem,
    direct_share,
    draw_problems,
    is_direct,
)
from jaxloop.records import Rollout

WORLD = Arithmetic(train=300, test=200, demonstrations=1000)


@pytest.fixture(scope="module")
def dataset(digits):
    return WORLD.load(digits)


def test_the_working_is_as_documented():
    assert Problem(37, 85).working() == "7+5=12;3+8+1=12#122"
    assert Problem(12, 13).working() == "2+3=5;1+1+0=2#25"
    assert Problem(37, 85).guess(-2) == "#120"
    assert Problem(1, 1).guess(-5) == "#0"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_working_is_right_and_the_lengths_are_bounds(count, digits):
    world = Arithmetic(digits=count)
    longest = 0
    for problem in draw_problems(np.random.default_rng(0), count, 45):
        *steps, last = problem.working().split(";")
        last, _, answer = last.partition("#")
        for step in [*steps, last]:
            terms, total = step.split("=")
            assert sum(map(int, terms.split("+"))) == int(total)
        assert int(answer) == problem.a + problem.b
        assert len(digits.encode(problem.text)) == world.prompt_tokens
        longest = max(longest, len(digits.encode(problem.working())) + 1)
    assert longest <= world.completion_tokens
    nines = Problem(*[10**count - 1] * 2)
    assert len(nines.working()) + 1 == world.completion_tokens


def problems_of(texts):
    """Unordered pairs of the numbers in `37+85=...`."""
    return [frozenset(map(int, re.match(r"(\d+)\+(\d+)=", t).groups())) for t in texts]


def test_no_problem_is_on_two_sides_in_either_order(dataset, digits):
    sides = [
        problems_of([prompt.text for prompt in dataset.train]),
        problems_of([prompt.text for prompt in dataset.test]),
        problems_of([digits.decode(d.token_ids) for d in dataset.demonstrations]),
    ]
    assert [len(side) for side in sides] == [300, 200, 1000]
    everything = [problem for side in sides for problem in side]
    assert len(set(everything)) == len(everything)


def test_all_different_sums_can_be_drawn_and_no_more():
    problems = draw_problems(np.random.default_rng(0), 1, 45)
    assert {frozenset(p) for p in problems} == {
        frozenset((a, b)) for a in range(1, 10) for b in range(1, 10)
    }
    with pytest.raises(ValueError, match="only 45 different sums"):
        draw_problems(np.random.default_rng(0), 1, 46)


def test_demonstrations_are_of_two_styles(dataset, digits):
    direct, errors = 0, set()
    for demonstration in dataset.demonstrations:
        ids, mask = demonstration.token_ids, demonstration.mask
        assert mask == (0,) * 6 + (1,) * (len(ids) - 6)
        assert ids[-1] == digits.eos_ids[0]
        problem = Problem(*map(int, digits.decode(ids[:5]).split("+")))
        completion = digits.decode(ids[6:])
        if is_direct(completion):
            direct += 1
            errors.add(int(completion[1:]) - int(problem.answer))
        else:
            assert completion == problem.working()
    assert direct == 600
    assert errors == set(range(-5, 6))
    first_half = [len(d.token_ids) < 12 for d in dataset.demonstrations[:500]]
    assert 250 < sum(first_half) < 350  # the styles are mixed


def test_prompts_hold_what_scorers_need(dataset, digits):
    prompt = dataset.test[0]
    a, b = prompt.text[:-1].split("+")
    assert prompt.columns == {"answer": str(int(a) + int(b)), "problem": f"{a}+{b}"}
    assert prompt.id == "test:0"
    assert prompt.token_ids == digits.encode(prompt.text)


def test_the_seed_decides(dataset, digits):
    assert WORLD.load(digits) == dataset
    other = dataclasses.replace(WORLD, seed=1).load(digits)
    assert other.test != dataset.test


def test_the_alphabet_is_enough_and_needed(dataset, digits):
    assert WORLD.alphabet == ALPHABET
    texts = [digits.decode(d.token_ids) for d in dataset.demonstrations]
    assert set("".join(texts)) == set(ALPHABET)


def test_the_share_of_direct_answers_is_a_measure(dataset):
    prompt = dataset.train[0]
    for text, expected in (("#122", 1.0), ("7+5=12#12", 0.0), ("", 0.0)):
        rollout = Rollout(prompt.id, 0, (), text, (), (), "length")
        assert direct_share(prompt, rollout) == expected
