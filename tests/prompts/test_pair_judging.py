"""The world of pairs of sums."""

import re
from dataclasses import replace

import numpy as np
import pytest

from jaxloop.prompts.arithmetic import Problem
from jaxloop.prompts.judged_arithmetic import JudgedArithmetic, read_verdict
from jaxloop.prompts.pair_judging import SumPairs, near, pair_judgement
from jaxloop.prompts.tokenizer import character_tokenizer

WORLD = SumPairs(train=128, test=64, demonstrations=512)
TOKENIZER = character_tokenizer(JudgedArithmetic().alphabet)


def shown(world: SumPairs) -> list[tuple[str, str]]:
    """(request, judgement) of each demonstration."""
    demonstrations = world.load(TOKENIZER).demonstrations
    cut = [d.mask.index(1) for d in demonstrations]
    return [
        (TOKENIZER.decode(d.token_ids[:at]), TOKENIZER.decode(d.token_ids[at:]))
        for d, at in zip(demonstrations, cut, strict=True)
    ]


def right(request: str) -> str:
    a, b, *given = map(int, re.findall(r"\d+", request))
    if len(given) == 1:
        return "Y" if given == [a + b] else "N"
    return "AB"[given.index(a + b)]


def test_a_judgement_sets_the_sum_against_both_numbers():
    problem = Problem(37, 85)
    told = pair_judgement(problem, ["112", "122"])
    assert told == "7+5=12;3+8+1=12#122|11.21x22.:11.22.22.B"
    assert pair_judgement(problem, ["122", "98"]).endswith("11.22.22.:10x29x28xA")
    assert pair_judgement(problem, ["112"]) == "7+5=12;3+8+1=12#122|11.21x22.N"


@pytest.mark.parametrize("problem", [Problem(37, 85), Problem(10, 99), Problem(9, 1)])
def test_a_near_problem_has_another_sum_and_as_many_digits(problem):
    rng = np.random.default_rng(0)
    for _ in range(50):
        other = near(problem, rng)
        apart = [abs(x - y) for x, y in zip(problem, other, strict=True)]
        assert sorted(apart)[0] == 0
        assert sum(apart) in (1, 10)
        assert [len(str(x)) for x in other] == [len(str(x)) for x in problem]


def test_the_better_completion_is_right_and_the_worse_is_not():
    for split in ("train", "test"):
        for pair in replace(WORLD, split=split).load(TOKENIZER).pairs:
            a, b = map(int, pair.prompt.columns["problem"].split("+"))
            assert pair.chosen.text == f"#{a + b}"
            assert pair.rejected.text != pair.chosen.text


def test_problems_of_the_splits_and_the_demonstrations_are_apart():
    train = {p.prompt.text for p in WORLD.load(TOKENIZER).pairs}
    test = {p.prompt.text for p in replace(WORLD, split="test").load(TOKENIZER).pairs}
    learnt = {request.split("?")[0] + "=" for request, _ in shown(WORLD)}
    assert (len(train), len(test), len(learnt)) == (128, 64, 512)
    assert not train & test
    assert not (train | test) & learnt


@pytest.mark.parametrize("count", [1, 2])
def test_worked_judgements_are_right_and_guesses_favour_the_first(count):
    told = shown(replace(WORLD, shown=count))
    worked = [(asked, said) for asked, said in told if len(said) > 1]
    assert all(said[-1] == right(asked) for asked, said in worked)
    assert all(read_verdict(said, count) is not None for _, said in told)
    guesses = [(asked, said) for asked, said in told if len(said) == 1]
    assert 0.5 < len(guesses) / len(told) < 0.7
    firsts = [said in "AY" for _, said in guesses]
    assert 0.7 < np.mean(firsts) < 0.9
    hits = [said == right(asked) for asked, said in guesses]
    assert 0.35 < np.mean(hits) < 0.65


def test_the_same_seed_gives_the_same_and_another_other_pairs():
    def texts(world):
        return [pair.prompt.text for pair in world.load(TOKENIZER).pairs]

    assert texts(WORLD) == texts(replace(WORLD))
    assert texts(WORLD) != texts(replace(WORLD, seed=1))
