"""Scorers by kind of prompt."""

from dataclasses import replace

import pytest

from jaxloop.scoring import Exact, ImplicitReward, Judge, Numeric, Routed, Sum
from jaxloop.scoring.scorer import bind, check
from tests.scoring import samples

ROUTED = Routed((("words", Exact()),), Numeric())


def test_each_prompt_goes_to_its_scorer_and_the_order_stays():
    prompts = [
        samples.prompt("a", answer="7"),
        samples.prompt("b", answer="seven", set="words"),
        samples.prompt("c", answer="8", set="other"),
    ]
    rollouts = [samples.rollouts(prompt, "7.0", "seven") for prompt in prompts]
    scored = ROUTED(prompts, rollouts)
    assert [row.prompt.id for row in scored] == ["a", "b", "c"]
    found = [[score.value for score in row.scores] for row in scored]
    assert found == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert [set(row.scores[0].components) for row in scored] == [
        {"numeric"},
        {"exact"},
        {"numeric"},
    ]


def test_rows_are_checked_by_their_own_scorer():
    check(ROUTED, [samples.prompt(answer="word", set="words")])
    with pytest.raises(ValueError, match="answer"):
        check(ROUTED, [samples.prompt(answer="word")])


def test_models_reach_the_parts():
    routed = Routed((("a", ImplicitReward()),), ImplicitReward())
    assert bind(routed, object()).routes[0][1].models is not None  # pyright: ignore


def test_different_judges_of_one_name_are_found_at_once():
    judge = Judge(template="{question}{answer}")
    other = replace(judge, by="first")
    with pytest.raises(ValueError, match=r"Routed: different judges .* 'judge'"):
        Routed((("a", judge),), Sum((Numeric(), other)))
    Routed((("a", judge), ("b", judge)), replace(other, name="other"))
