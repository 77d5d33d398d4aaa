"""Panels, against scores worked out by hand."""

from dataclasses import dataclass

import numpy as np
import pytest

from jaxloop.records import Score, Scored
from jaxloop.scoring import Judge, Sum
from jaxloop.scoring.judge_metrics import judge_metrics
from jaxloop.scoring.panel import Panel, majority, mean, standardised
from jaxloop.scoring.scorer import bind
from tests.scoring import samples
from tests.scoring.test_judge import Scripted

NAN = np.nan


@dataclass(frozen=True)
class Says:
    """Gives these scores; a text is a status."""

    values: tuple
    name: str

    def __call__(self, prompts, rollouts):
        told = iter(self.values)

        def score(value) -> Score:
            if isinstance(value, str):
                return Score(None, value)  # pyright: ignore[reportArgumentType]
            return Score(value, components={self.name: value})

        return [
            Scored(prompt, group, tuple(score(next(told)) for _ in group))
            for prompt, group in zip(prompts, rollouts, strict=True)
        ]


def pooled(*judges: tuple, **settings):
    prompts = [samples.prompt(name) for name in "pq"]
    groups = [samples.rollouts(prompt, "a", "b") for prompt in prompts]
    panel = Panel(tuple(Says(j, f"j{i}") for i, j in enumerate(judges)), **settings)
    return [score for row in panel(prompts, groups) for score in row.scores]


def test_the_mean_is_over_those_that_have_a_score():
    scores = pooled((1, 2, 3, "unscored"), (3, 2, "unscored", 5), (5, 2, 4, 1))
    assert [s.value for s in scores] == [3.0, 2.0, 3.5, 3.0]
    apart = [s.components["panel_disagreement"] for s in scores]
    np.testing.assert_allclose(apart, [np.std([1, 3, 5]), 0, 0.5, 2.0])
    assert scores[3].components == {
        "j1": 5, "j2": 1, "panel": 3.0, "panel_disagreement": 2.0
    }  # fmt: skip


def test_where_all_fail_there_is_no_score():
    scores = pooled(("unscored", "timeout", 1, 1), ("unscored", "unscored", 1, 1))
    assert [s.value for s in scores] == [None, None, 1.0, 1.0]
    assert [s.status for s in scores][:2] == ["unscored", "timeout"]


def test_the_majority():
    scores_JN = np.array([[1, 0, 4, NAN], [1, 1, 2, NAN], [0, NAN, 2, NAN]])
    np.testing.assert_array_equal(majority(scores_JN), [1, 0.5, 2, NAN])
    scores = pooled((1, 1, 0, 0), (1, 0, 0, 1), (0, 0, 1, 1), pool=majority)
    assert [s.value for s in scores] == [1.0, 0.0, 0.0, 1.0]


def test_scales_do_not_matter_once_standardised():
    small, large = (0.1, 0.2, 0.3, 0.4), (40, 10, 20, 30)
    ours = [s.value for s in pooled(small, large, standardised=True)]
    scaled = tuple(1000 * value - 7 for value in small)
    theirs = [s.value for s in pooled(scaled, large, standardised=True)]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert pooled(small, large)[0].value != pytest.approx(
        pooled(scaled, large)[0].value
    )


def test_a_judge_that_always_ties_has_no_say_in_a_standardised_panel():
    scores_JN = np.array([[5.0, 5.0, 5.0], [1.0, 2.0, 3.0], [NAN, NAN, NAN]])
    same_JN = standardised(scores_JN)
    np.testing.assert_array_equal(same_JN[0], 0)
    assert np.isnan(same_JN[2]).all()
    np.testing.assert_allclose([same_JN[1].mean(), same_JN[1].std()], [0, 1])
    assert np.isnan(mean(same_JN[2:])).all()


def test_a_sum_is_no_mean():
    """Why a panel is not a `Sum`: what is missing there counts as 0."""
    judges = Says((1, 1, 1, 1), "a"), Says((1, 1, 1, "unscored"), "b")
    prompts = [samples.prompt(name) for name in "pq"]
    groups = [samples.rollouts(prompt, "a", "b") for prompt in prompts]
    (_, last) = Sum(judges)(prompts, groups)
    assert [s.value for s in last.scores] == [2.0, 1.0]
    (_, last) = Panel(judges)(prompts, groups)
    assert [s.value for s in last.scores] == [1.0, 1.0]


def test_judges_keep_their_judgements_and_their_health():
    def judge(name: str) -> Judge:
        return Judge(template=name + "{question}{answer}", guarded=False, name=name)

    model = Scripted(lambda text: ["Score: 4"] if text.startswith("one") else ["hm"])
    asked = samples.prompt()
    panel = bind(Panel((judge("one"), judge("two"))), model)
    row = panel([asked], [samples.rollouts(asked, "a", "b")])[0]
    assert [s.value for s in row.scores] == [4.0, 4.0]
    assert [j.judge for j in row.judgements] == ["one", "one", "two", "two"]
    metrics = judge_metrics([row])
    assert (metrics["one/invalid_frac"], metrics["two/invalid_frac"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("judges", "says"),
    [((), "no judges"), ((Judge(), Judge()), "'judge'"), ((Judge(name="panel"),), "2")],
)
def test_what_cannot_be_is_refused(judges, says):
    with pytest.raises(ValueError, match=says):
        Panel(judges)
