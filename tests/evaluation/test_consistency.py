"""Measures over both prompts of a pair."""

import itertools

import pytest

from jaxloop.evaluation.accuracy import evaluation_metrics
from jaxloop.evaluation.consistency import order_consistency, ranking_accuracy
from jaxloop.records import Score, Scored
from jaxloop.scoring.label_match import LabelMatch, Said
from tests.scoring import samples

A, B, TIE, NOTHING = "[[A]]", "[[B]]", "[[C]]", ""


def both_orders(first: tuple[str, ...], second: tuple[str, ...], pair="1", **columns):
    prompts = [
        samples.prompt(f"{pair}{label}", label=label, pair=pair, **columns)
        for label in "AB"
    ]
    texts = zip(prompts, (first, second), strict=True)
    return LabelMatch()(prompts, [samples.rollouts(p, *t) for p, t in texts])


@pytest.mark.parametrize(
    ("first", "second", "consistent", "flips"),
    [
        (A, B, 1, 0),  # the better one in both orders
        (B, A, 0, 0),  # the worse one in both
        (A, A, 0, 1),
        (B, B, 0, 1),
        (TIE, TIE, 0, 0),
        (A, TIE, 0, 1),
        (A, NOTHING, 0, 1),
        (NOTHING, NOTHING, 0, 1),
    ],
)
def test_the_table_of_two_orders(first, second, consistent, flips):
    found = order_consistency(both_orders((first,), (second,)))
    assert found == {"consistent_accuracy": consistent, "flips": flips}


def test_a_constant_judge_is_half_right_and_always_flips():
    rows = [row for i in range(5) for row in both_orders((A,), (A,), pair=str(i))]
    metrics = evaluation_metrics(rows, summaries=(order_consistency,))
    assert metrics["eval/accuracy"] == 0.5
    assert metrics["eval/consistent_accuracy"] == 0.0
    assert metrics["eval/flips"] == 1.0


def test_the_order_of_prompts_and_of_a_pair_does_not_matter():
    rows = both_orders((A, B), (B, B), "1") + both_orders((A, A), (A, B), "2")
    found = {
        tuple(sorted(order_consistency(list(order)).items()))
        for order in itertools.permutations(rows)
    }
    # of four pairs of judgements two are right in both orders, two flip
    assert found == {(("consistent_accuracy", 0.5), ("flips", 0.5))}


def test_a_prompt_without_its_other_half_is_left_out():
    rows = both_orders((A,), (B,), "1") + both_orders((A,), (A,), "2")[:1]
    assert order_consistency(rows)["flips"] == 0.0
    assert order_consistency(rows[:1]) == {}
    assert ranking_accuracy([]) == {}


def test_sets_are_measured_by_themselves():
    rows = both_orders((A,), (B,), "1", set="chat")
    rows += both_orders((A,), (A,), "2", set="hard")
    metrics = evaluation_metrics(rows, summaries=(order_consistency,))
    assert metrics["eval/chat/flips"] == 0.0
    assert metrics["eval/hard/flips"] == 1.0


@pytest.mark.parametrize(
    ("better", "worse", "right", "tied"),
    [("7", "3", 1, 0), ("3", "7", 0, 0), ("5", "5", 0, 1), ("7", "?", 0, 0)],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_the_table_of_two_scores(better, worse, right, tied, swapped):
    prompts = [samples.prompt(f"{b}", pair="1", better=b) for b in (True, False)]
    texts = [f"<score>{number}</score>" for number in (better, worse)]
    groups = [samples.rollouts(p, t) for p, t in zip(prompts, texts, strict=True)]
    rows = Said()(prompts, groups)
    found = ranking_accuracy(rows[::-1] if swapped else rows)
    assert found == {"ranking_accuracy": right, "ties": tied}


def test_both_halves_must_have_equally_many_judgements():
    one, two = both_orders((A,), (B,))
    longer = Scored(two.prompt, two.rollouts * 2, (*two.scores, Score(0.0)))
    with pytest.raises(ValueError, match="argument"):
        order_consistency([one, longer])
