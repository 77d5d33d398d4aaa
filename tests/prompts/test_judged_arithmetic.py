"""The world of sums with judging."""

import re

import pytest

from jaxloop.prompts.arithmetic import Arithmetic, Problem
from jaxloop.prompts.judged_arithmetic import (
    JudgedArithmetic,
    judge_text,
    judgement,
    read_verdict,
    verdict,
)
from jaxloop.prompts.tokenizer import character_tokenizer

WORLD = JudgedArithmetic()


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(WORLD.alphabet)


@pytest.fixture(scope="module")
def data(tokenizer):
    return WORLD.load(tokenizer)


def test_a_judgement_works_the_sum_out_and_compares():
    problem = Problem(37, 85)
    assert judge_text(problem, "112") == "37+85?112="
    assert judgement(problem, "112") == "7+5=12;3+8+1=12#122|11.21x22.N"
    assert judgement(problem, "122") == "7+5=12;3+8+1=12#122|11.22.22.Y"
    assert judgement(problem, "98") == "7+5=12;3+8+1=12#122|10x29x28xN"
    assert judgement(problem, "122", worked=False) == "Y"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7+5=12#12|11.22.Y", 1.0),
        ("7+5=12#12|11.21xN", 0.0),
        ("N", 0.0),
        ("", None),
        ("11.22.", None),
        ("11.22.Y#", None),
        ("22YN", None),
    ],
)
def test_verdicts_are_read_at_the_end(text, value):
    assert read_verdict(text, 1) == (None if value is None else (value,))


def test_the_sums_are_those_of_the_world_without_judging(data, tokenizer):
    plain = Arithmetic().load(tokenizer)
    assert data.train == plain.train
    assert data.test[:512] == plain.test
    shown = {d.token_ids for d in data.demonstrations}
    assert {d.token_ids for d in plain.demonstrations} <= shown


def test_judge_prompts_are_of_held_out_problems_half_of_them_right(data):
    prompts = [p for p in data.test if p.columns.get("set") == "verdicts"]
    assert len(prompts) == 256
    held_out = {p.columns["problem"] for p in data.test if "problem" in p.columns}
    right = 0
    for prompt in prompts:
        question, given = re.fullmatch(r"(.+)\?(\d+)=", prompt.text).groups()
        problem = Problem(*map(int, question.split("+")))
        assert question in held_out
        assert abs(int(given) - int(problem.answer)) <= WORLD.guess_error
        assert prompt.columns["answer"] == verdict(problem, given)
        right += prompt.columns["answer"] == "Y"
    assert 0.4 < right / len(prompts) < 0.6


def test_every_judgement_that_is_shown_is_right_and_fits(data, tokenizer):
    texts = [tokenizer.decode(d.token_ids) for d in data.demonstrations]
    judgements = [text for text in texts if "?" in text]
    assert len(judgements) == 2048
    for text in judgements:
        a, b, given, said = re.fullmatch(r"(\d+)\+(\d+)\?(\d+)=(.+)", text).groups()
        problem = Problem(int(a), int(b))
        assert said == judgement(problem, given)
        assert len(said) < WORLD.judgement_tokens
    longest = max(len(d.token_ids) for d in data.demonstrations)
    assert longest <= WORLD.judge_prompt_tokens + WORLD.judgement_tokens
