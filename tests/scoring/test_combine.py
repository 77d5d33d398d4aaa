"""Votes, sums, the shuffled control, and what is logged of scores."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxloop.records import Score, Scored
from jaxloop.scoring import (
    After,
    Exact,
    Format,
    Judge,
    Letter,
    MajorityVote,
    MetaJudged,
    Numeric,
    Shuffled,
    Sum,
    check,
    score_metrics,
    score_warnings,
)
from jaxloop.scoring.scorer import bind
from tests.scoring.samples import prompt, rollouts, run


@dataclass(frozen=True)
class Given:
    """Scores given beforehand, by text."""

    scores: dict

    def __call__(self, prompts, rollouts):
        return [
            Scored(p, group, tuple(self.scores[r.text] for r in group))
            for p, group in zip(prompts, rollouts, strict=True)
        ]


def test_votes():
    texts = ("#5", "5.0 #5.0", "#6", "no", "#", "x#5 ", "#6", "#7")
    scores = run(MajorityVote(After("#")), *texts)
    assert [s.votes for s in scores] == [3, 3, 2, None, None, 3, 2, 1]
    assert [s.value for s in scores] == [
        3 / 8,
        3 / 8,
        1 / 4,
        None,
        None,
        3 / 8,
        0.25,
        0.125,
    ]
    assert [s.status == "unscored" for s in scores] == [v.votes is None for v in scores]
    assert [s.answer for s in scores] == ["5", "5", "6", None, None, "5", "6", "7"]


def test_votes_of_letters_and_of_nobody():
    assert [s.votes for s in run(MajorityVote(Letter()), "A", "B", "(B)")] == [1, 2, 2]
    assert {s.status for s in run(MajorityVote(), "a", "b")} == {"unscored"}


@given(
    st.lists(st.sampled_from(["1", "1.0", "2", "three", ""]), min_size=1), st.randoms()
)
def test_votes_do_not_depend_on_the_order(texts, random):
    order = list(range(len(texts)))
    random.shuffle(order)
    scores = run(MajorityVote(), *texts)
    moved = run(MajorityVote(), *(texts[i] for i in order))
    assert moved == tuple(scores[i] for i in order)
    known = {s.answer: s.votes for s in scores if s.votes}
    assert sum(known.values()) == sum(s.status == "scored" for s in scores)


def test_sum_of_weighted_scores():
    both = Sum((Numeric(), Format("^The")), weights=(1.0, 0.25))
    scores = run(both, "The 5", "5", "The 6", "six", answer=5)
    assert [s.value for s in scores] == [1.25, 1, 0.25, 0]
    assert scores[0].components == {"numeric": 1.0, "format": 1.0}
    assert [s.answer for s in scores] == ["5", "5", "6", None]
    with pytest.raises(ValueError, match="column 'answer' is missing"):
        check(both, [prompt()])


def test_a_part_that_failed_fails_the_sum_and_one_that_does_not_apply_is_left_out():
    first = {"a": Score(None, "unscored"), "b": Score(None, "nan"), "c": Score(1.0)}
    second = {"a": Score(2.0), "b": Score(2.0), "c": Score(None, "timeout")}
    scores = run(Sum((Given(first), Given(second))), "a", "b", "c")
    assert [(s.value, s.status) for s in scores] == [
        (2.0, "scored"),
        (None, "nan"),
        (None, "timeout"),
    ]
    nobody = Given({"a": Score(None, "unscored")})
    assert run(Sum((nobody, nobody)), "a")[0].status == "unscored"


@pytest.mark.parametrize("arguments", [((),), ((Exact(),), (1.0, 2.0))])
def test_sums_that_do_not_add_up_are_refused(arguments):
    with pytest.raises(ValueError, match="Sum"):
        Sum(*arguments)


def test_equal_component_names_are_refused():
    with pytest.raises(ValueError, match="exact"):
        run(Sum((Exact(), Exact())), "a", answer="a")


def batch(count=20, samples=4):
    prompts = [prompt(f"p{i}", answer=str(i)) for i in range(count)]
    texts = [[str(i), *"x" * (samples - 1)] for i in range(count)]
    groups = [rollouts(p, *t) for p, t in zip(prompts, texts, strict=True)]
    return prompts, groups


def shape_of(scored):
    return np.array([[score.value for score in row.scores] for row in scored])


def test_shuffled_keeps_the_scores_and_loses_whose_they_are():
    prompts, groups = batch()
    true = shape_of(Exact()(prompts, groups))
    scored = Shuffled(Exact())(prompts, groups)
    dealt = shape_of(scored)
    assert dealt.sum() == true.sum() == 20
    assert (dealt != true).any()
    assert [row.rollouts for row in scored] == groups
    # 20 ones dealt over 80 places: the first column, all right before, has about 5.
    assert dealt[:, 0].sum() < 12
    assert (shape_of(Shuffled(Exact())(prompts, groups)) == dealt).all()
    assert (shape_of(Shuffled(Exact(), seed=1)(prompts, groups)) != dealt).any()


def test_shuffled_does_not_depend_on_the_order_of_prompts():
    prompts, groups = batch()
    dealt = shape_of(Shuffled(Exact())(prompts, groups))
    back = shape_of(Shuffled(Exact())(prompts[::-1], groups[::-1]))
    assert (back[::-1] == dealt).all()


def scored_of(*rows):
    """Rows of scores; None is unscored, a str another status."""

    def score(value):
        if value is None or isinstance(value, str):
            return Score(None, value or "unscored")  # pyright: ignore
        return Score(value, components={"exact": value})

    prompts = [prompt(str(i)) for i in range(len(rows))]
    return [
        Scored(p, rollouts(p, *"x" * len(row)), tuple(map(score, row)))
        for p, row in zip(prompts, rows, strict=True)
    ]


def test_reward_metrics():
    rows = scored_of([1.0, 0.0, 0.0, 1.0], [1.0, 1.0, "nan", None], [0.1] * 4)
    metrics = score_metrics([*rows, *scored_of(["error", "timeout", "error", None])])
    assert metrics["reward"] == pytest.approx((0.5 + 1 + 0.1) / 3)
    assert metrics["reward_std"] == pytest.approx(np.std([1, 0, 0, 1], ddof=1) / 4)
    assert metrics["frac_reward_zero_std"] == 3 / 4
    assert metrics["rewards/exact/mean"] == pytest.approx(4.4 / 10)
    assert metrics["rewards/exact/std"] == pytest.approx(
        np.std([1, 0, 0, 1, 1, 1, *[0.1] * 4], ddof=1)
    )
    counts = {k: v for k, v in metrics.items() if k.startswith("scores/")}
    assert counts == {
        "scores/unscored": 2,
        "scores/nan": 1,
        "scores/error": 2,
        "scores/timeout": 1,
        "scores/total": 16,
    }


def test_one_scored_sample_has_no_spread_and_nothing_scored_no_reward():
    assert score_metrics(scored_of([1.0, None]))["frac_reward_zero_std"] == 1
    metrics = score_metrics(scored_of([None, "nan"]))
    assert "reward" not in metrics
    assert all(np.isfinite(value) for value in metrics.values())


def test_length_metrics():
    p = prompt()
    group = rollouts(p, "aa", "aaaa") + rollouts(p, "a" * 9, stop="length")
    metrics = score_metrics([Scored(p, group, (Score(1.0),) * 3)])
    lengths = {k.removeprefix("completions/"): v for k, v in metrics.items()}
    assert lengths["mean_length"] == pytest.approx(6)
    assert (lengths["min_length"], lengths["max_length"]) == (3, 10)
    assert lengths["clipped_ratio"] == pytest.approx(1 / 3)
    assert lengths["mean_terminated_length"] == 4
    assert lengths["min_terminated_length"] == 3
    assert lengths["max_terminated_length"] == 5
    cut = score_metrics([Scored(p, group[2:], (Score(1.0),))])
    assert cut["completions/clipped_ratio"] == 1
    assert cut["completions/mean_terminated_length"] == 0


def test_warnings_say_what_keeps_a_run_from_learning():
    good = score_metrics(scored_of([1.0, 0.0]))
    assert score_warnings(good) == []
    cut = good | {"completions/clipped_ratio": 0.31}
    assert "max_new_tokens" in score_warnings(cut)[0]
    assert "nothing to learn" in score_warnings(score_metrics(scored_of([1.0, 1.0])))[0]
    late = score_warnings(score_metrics(scored_of([1.0, 0.0, "timeout"])))
    assert late == ["33% of the completions have the score 'timeout'"]


def test_two_judges_of_one_name_are_found_at_once():
    judge = Judge(template="{question}{answer}")
    with pytest.raises(ValueError, match="2 parts call their scores 'judge'"):
        Sum((judge, Shuffled(replace(judge, by="first"))))
    with pytest.raises(ValueError, match="'meta_judge'"):
        Sum((MetaJudged(), replace(judge, name="meta_judge")))
    both = Sum((judge, replace(judge, name="other")))
    assert bind(both, object()).scorers[1].scorer.name == "other"  # pyright: ignore
