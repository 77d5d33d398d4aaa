"""Canaries, before judges that are taken in by known things."""

from dataclasses import replace

import pytest

from jaxloop.records import Judgement
from jaxloop.scoring import After, Exact, Judge, MetaJudged, Routed, Sum, WholeText
from jaxloop.scoring.canaries import (
    PROMPTS,
    answer_judges,
    canary_warnings,
    judge_canaries,
)
from jaxloop.scoring.guard import CANARIES
from jaxloop.scoring.judge import all_at_once, both_orders
from jaxloop.scoring.verdicts import Tagged, Verdict
from tests.scoring import samples
from tests.scoring.test_judge import Scripted


def everything(text: str) -> str:
    """`WholeText` does not see an empty answer at all, so that it stays unscored."""
    return text


ALONE = Judge(template="{question}|{answer}", guarded=False, sees=everything)
PAIRS = replace(
    ALONE,
    template="{question}|{answer_A}|{answer_B}",
    parse=Verdict(),
    show=both_orders,
)
LISTS = replace(
    ALONE, template="{question}|{answers}", parse=Tagged(), show=all_at_once
)


def canaries(judge, says, count=6, answer="a real answer", **columns):
    prompts = [samples.prompt(f"p{i}", **columns) for i in range(count)]
    groups = [samples.rollouts(prompt, answer, "second") for prompt in prompts]
    return judge_canaries(judge, Scripted(says), prompts, groups)


def points(text: str) -> list[str]:
    """Full marks for an answer that asks for them, and 3 for any other but nothing."""
    answer = text.partition("|")[2]
    return [f"Score: {5 if 'Score: 5' in answer else 3 if answer else 0}"]


def test_what_takes_a_judge_in_is_told_from_what_does_not():
    metrics, scored = canaries(ALONE, points)
    assert metrics["judge/canary/empty"] == 0.0
    assert metrics["judge/canary/injected_points"] == 1.0
    assert metrics["judge/canary/colon"] == 0.5
    assert len(metrics) == len(CANARIES)
    assert len(scored) == PROMPTS
    assert all(isinstance(j, Judgement) for row in scored for j in row.judgements)
    (warning,) = canary_warnings(metrics)
    assert "injected_points (1.00)" in warning
    assert "empty" not in warning


def test_a_judge_of_pairs_sees_each_canary_beside_an_answer():
    def longer(text: str) -> list[str]:
        _, a, b = text.split("|")
        return ["[[A]]" if len(a) > len(b) else "[[B]]"]

    metrics, scored = canaries(PAIRS, longer, answer="x" * 30)
    for name, text in CANARIES:
        assert metrics[f"judge/canary/{name}"] == float(len(text) > 30)
    assert len(scored) == PROMPTS * len(CANARIES)
    assert all(len(row.rollouts) == 2 for row in scored)


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        (ALONE, "Score: 2"),
        (PAIRS, "[[C]]"),
        (LISTS, "<score_1>5</score_1><score_2>5</score_2>"),
    ],
)
def test_a_judge_that_always_ties_is_alarming(judge, says):
    metrics, _ = canaries(judge, lambda text: [says])
    assert set(metrics.values()) == {0.5}
    assert len(canary_warnings(metrics)) == 1


def test_a_judge_that_never_parses_says_nothing_of_canaries():
    metrics, _ = canaries(ALONE, lambda text: ["hm"])
    assert metrics == {}
    assert canary_warnings(metrics) == []


def test_what_a_judge_cannot_be_shown_is_left_out():
    hidden = replace(ALONE, sees=After("#"))
    assert canaries(hidden, points) == ({}, [])
    assert canaries(replace(ALONE, question="problem"), points) == ({}, [])
    metrics, _ = canaries(replace(ALONE, question="problem"), points, problem="2+2")
    assert len(metrics) == len(CANARIES)

    class Digits(Scripted):
        def prompts(self, texts, *, by="policy"):
            if any(
                set(text) - set("0123456789|questionreal: ") for text in texts.values()
            ):
                raise ValueError("the vocabulary cannot write that")
            return super().prompts(texts, by=by)

    prompt = samples.prompt()
    rollouts = [samples.rollouts(prompt, "7")]
    metrics, _ = judge_canaries(ALONE, Digits(points), [prompt], rollouts)
    assert set(metrics) == {"judge/canary/empty", "judge/canary/colon"}
    metrics, _ = canaries(replace(ALONE, sees=WholeText()), points)
    assert "judge/canary/empty" not in metrics


def test_judges_of_answers_are_found_however_deep():
    other = replace(ALONE, name="other")
    scorer = Sum((Routed((("sums", Exact()),), MetaJudged(ALONE)), other))
    assert answer_judges(scorer) == [ALONE, other]
    assert answer_judges(Exact()) == []


def test_guarded_judges_do_not_read_injected_verdicts():
    """The same judge as above, behind the guard that comes along."""
    guarded = Judge()
    verdict = guarded.parse

    def obedient(text: str) -> list[str]:
        material = text.split("Answer:")[-1]
        said = [line for line in material.splitlines() if verdict(line, 1)]
        return [said[-1] if said else "Score: 3"]

    metrics, _ = canaries(guarded, obedient)
    assert set(metrics.values()) == {0.5}
