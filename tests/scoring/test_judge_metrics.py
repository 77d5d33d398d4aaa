"""Judge health, against cases worked out by hand."""

import numpy as np
import pytest

from jaxloop.evaluation.accuracy import evaluation_metrics
from jaxloop.records import Judgement, Prompt, Rollout, Score, Scored
from jaxloop.scoring.judge_metrics import judge_metrics
from jaxloop.scoring.metrics import judge_warnings
from tests.scoring import samples

REQUEST = Prompt("request", "text", (1,))


def judgement(of, *values, judge="judge") -> Judgement:
    answers = tuple(
        Rollout("request", i, (1,), "", (), (), "eos") for i in range(len(values))
    )
    return Judgement(REQUEST, of, answers, values, judge=judge)


def row(scores, judgements=(), truths=(), texts=None) -> Scored:
    asked = samples.prompt()
    texts = texts or ["x"] * len(scores)
    parts = [{} if value is None else {"judge": value} for value in scores]
    for part, truth in zip(parts, truths, strict=False):
        part["judge_truth"] = truth
    return Scored(
        asked,
        samples.rollouts(asked, *texts),
        tuple(
            Score(value, "unscored" if value is None else "scored", components=part)
            for value, part in zip(scores, parts, strict=True)
        ),
        tuple(judgements) or (judgement((0,), (1.0,)),),
    )


def test_without_a_judge_there_is_nothing():
    asked = samples.prompt()
    assert (
        judge_metrics([Scored(asked, samples.rollouts(asked, "a"), (Score(1.0),))])
        == {}
    )


def test_shares():
    rows = [
        row([5.0, 5.0, None], [judgement((0,), (5.0,), None, None)]),
        row([2.0, 5.0], [judgement((0,), (2.0,))]),
    ]
    metrics = judge_metrics(rows)
    assert metrics["judge/invalid_frac"] == pytest.approx(2 / 4)
    assert metrics["judge/unjudged_frac"] == pytest.approx(1 / 5)
    assert metrics["judge/mean"] == pytest.approx(17 / 4)
    assert metrics["judge/std"] == pytest.approx(np.std([5, 5, 2, 5], ddof=1))
    assert metrics["judge/saturated_frac"] == pytest.approx(3 / 4)
    assert metrics["judge/tied_frac"] == pytest.approx(1 / 2)
    assert "judge/accuracy" not in metrics
    assert "judge/swap_agreement" not in metrics


def test_length_is_seen_within_prompts_only():
    longer = row([1.0, 2.0], texts=["x", "xxxx"])
    shorter = row([7.0, 6.0], texts=["x", "xxxx"])
    assert judge_metrics([longer])["judge/length_corr"] == pytest.approx(1.0)
    assert judge_metrics([longer, shorter])["judge/length_corr"] == pytest.approx(0.0)


def test_both_orders():
    first, second = (1.0, 0.0), (0.0, 1.0)
    consistent = [judgement((0, 1), first), judgement((1, 0), second)]
    placed = [judgement((0, 1), first), judgement((1, 0), first)]
    metrics = judge_metrics([row([1.0, 0.0], consistent), row([0.5, 0.5], placed)])
    assert metrics["judge/swap_agreement"] == pytest.approx(1 / 2)
    assert metrics["judge/first_bias"] == pytest.approx((3 - 1) / 4)


def test_against_the_truth():
    metrics = judge_metrics(
        [
            row([0.9, 0.2, 0.2], truths=[1.0, 0.0, 1.0]),
            row([0.5, 0.1], truths=[0.0, 0.0]),
        ]
    )
    # In order: (0, 1); tied: (2, 1). On the right side: 0, 1, 4; undecided: 3.
    assert metrics["judge/agreement"] == pytest.approx(1.5 / 2)
    assert metrics["judge/accuracy"] == pytest.approx(3.5 / 5)
    graded = judge_metrics([row([5.0, 1.0], truths=[1.0, 0.0])])
    assert graded["judge/agreement"] == 1.0
    assert "judge/accuracy" not in graded


def test_judges_are_told_apart():
    both = [judgement((0,), None), judgement((0,), (1.0,), judge="other")]
    metrics = judge_metrics([row([1.0], both)])
    assert metrics["judge/invalid_frac"] == 1.0
    assert metrics["other/invalid_frac"] == 0.0


def test_grades_are_no_shares_whatever_a_single_prompt_has():
    rows = [row([1.0, 1.0], truths=[0.0, 0.0]), row([5.0, 5.0], truths=[1.0, 1.0])]
    assert "judge/accuracy" not in judge_metrics(rows)


def test_prompts_that_went_to_another_scorer_are_not_its_business():
    asked = samples.prompt()
    other = Scored(asked, samples.rollouts(asked, "a"), (Score(1.0),))
    assert judge_metrics([row([1.0]), other])["judge/unjudged_frac"] == 0.0


def test_an_invalid_judgement_is_left_out_of_the_evaluation():
    metrics = evaluation_metrics([row([4.0]), row([None])])
    assert metrics["eval/accuracy"] == 4.0
    asked = samples.prompt()
    unread = Scored(asked, samples.rollouts(asked, "a"), (Score(None, "unscored"),))
    assert evaluation_metrics([unread])["eval/accuracy"] == 0.0
    assert "eval/accuracy" not in evaluation_metrics([row([None]), row([None])])


def test_a_single_score_is_tied_with_none():
    held_out = [row([3.0]), row([5.0]), row([4.0, None])]
    assert "judge/tied_frac" not in judge_metrics(held_out)
    assert judge_warnings(judge_metrics(held_out)) == []
    assert judge_metrics([*held_out, row([4.0, 4.0])])["judge/tied_frac"] == 1.0


def test_judges_of_which_nothing_can_be_learned_are_said():
    silent = [row([None, None], [judgement((0,), None), judgement((1,), None)])]
    (said,) = judge_warnings(judge_metrics(silent))
    assert "judge: not one of its judgements could be read" in said
    (said,) = judge_warnings(judge_metrics([row([3.0, 3.0]), row([5.0, 5.0])]))
    assert "the same score" in said
    assert judge_warnings(judge_metrics([row([3.0, 3.0]), row([5.0, 4.0])])) == []


def test_sets_are_measured_apart():
    named = samples.prompt(set="verdicts")
    other = Scored(named, samples.rollouts(named, "a"), (Score(0.0),))
    metrics = evaluation_metrics([row([1.0]), other])
    assert metrics["eval/accuracy"] == 1.0
    assert metrics["eval/verdicts/accuracy"] == 0.0


def test_what_was_too_long_to_ask_is_counted():
    found = judge_metrics(
        [
            row([3.0], [judgement((0,), (3.0,))]),
            row([None], [judgement((0,))]),
        ]
    )
    assert found["judge/too_long_frac"] == 0.5
    assert found["judge/invalid_frac"] == 0.0
    assert found["judge/unjudged_frac"] == 0.5
    nothing = judge_metrics([row([None], [judgement((0,))])])
    assert nothing["judge/too_long_frac"] == 1.0
    assert "judge/invalid_frac" not in nothing
