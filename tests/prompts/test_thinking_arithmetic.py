"""The world of sums with thoughts."""

import re
from dataclasses import replace

import numpy as np
import pytest

from jaxloop.prompts.arithmetic import Problem, draw_problems
from jaxloop.prompts.thinking_arithmetic import ThinkingArithmetic, estimate
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.scoring import After

WORLD = ThinkingArithmetic(train=64, test=64, demonstrations=512, judgements=512)


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(WORLD.alphabet)


@pytest.fixture(scope="module")
def data(tokenizer):
    return WORLD.load(tokenizer)


def completions(data, tokenizer, mark: str) -> list[tuple[Problem, str]]:
    """(problem, completion) of the demonstrations whose prompts end in `mark`."""
    form = re.compile(rf"(\d+)\+(\d+){mark}([\d+=;#]+)")
    texts = [tokenizer.decode(d.token_ids) for d in data.demonstrations]
    found = [match for text in texts if (match := form.fullmatch(text))]
    return [(Problem(int(m[1]), int(m[2])), m[3]) for m in found]


def test_an_estimate_adds_what_is_rounded_to_tens():
    assert estimate(Problem(37, 85)) == "40+90=130#130"
    assert estimate(Problem(34, 26)) == "30+30=60#60"
    assert estimate(Problem(99, 95)) == "100+100=200#200"


def test_it_is_rarely_right():
    problems = draw_problems(np.random.default_rng(0), 2, 4000)
    right = sum(After("#")(estimate(p)) == p.answer for p in problems)
    assert 0.05 < right / len(problems) < 0.15


def test_it_is_known_both_how_to_think_and_how_to_answer_at_once(data, tokenizer):
    direct = completions(data, tokenizer, "=")
    assert len(direct) == WORLD.demonstrations
    assert all(re.fullmatch(r"#\d+", text) for _, text in direct)
    thoughts = completions(data, tokenizer, ":")
    assert len(thoughts) == WORLD.thoughts
    sound = sum(text == problem.working() for problem, text in thoughts)
    assert all(
        text in (problem.working(), estimate(problem)) for problem, text in thoughts
    )
    assert abs(sound / len(thoughts) - WORLD.sound) < 0.05


def test_the_prompts_alone_say_whether_to_think(data, tokenizer):
    direct = replace(WORLD, thinking=False).load(tokenizer)
    assert direct.demonstrations == data.demonstrations  # the same model comes out
    for with_thought, without in zip(data.train, direct.train, strict=True):
        assert with_thought.text == without.text[:-1] + ":"
        assert with_thought.token_ids == tokenizer.encode(with_thought.text)
        assert with_thought.columns == without.columns
    assert [p.id for p in data.test] == [p.id for p in direct.test]
    assert data.test[-1] == direct.test[-1]  # a judge prompt


def test_estimates_are_among_those_that_are_judged(data):
    wrong = estimated = 0
    for prompt in data.test[WORLD.test :]:
        a, b, given = map(int, re.split(r"[+?]", prompt.text[:-1]))
        if prompt.columns["answer"] == "N":
            wrong += 1
            estimated += str(given) == After("#")(estimate(Problem(a, b)))
    assert 0.1 < estimated / wrong < 0.6
