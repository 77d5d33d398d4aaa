"""Judgements that are judged."""

from dataclasses import replace

import pytest

from jaxloop.scoring import Judge, MetaJudged
from jaxloop.scoring.meta_judge import meta_judge
from jaxloop.scoring.verdicts import Verdict
from tests.scoring import samples
from tests.scoring.test_judge import PAIRWISE, Scripted, judged

JUDGE = Judge(template="{question}|{answer}", guarded=False)
META = replace(
    meta_judge(),
    template="{question}<{answer}>{judgement_A}<>{judgement_B}",
    columns=(("answer", "judged_answer"),),
    parse=Verdict(),
    guarded=False,
)


class Roles(Scripted):
    """Judge and meta-judge by one model, as in the paper."""

    def __init__(self, judgements, meta):
        super().__init__(
            lambda text: [meta(text)] if "<>" in text else judgements[text[-1]]
        )

    def meta_requests(self) -> list[str]:
        return [text for text in self.asked if "<>" in text]


def higher(text: str) -> str:
    """The judgement with the higher score is better."""
    a, b = text.split(">", 1)[1].split("<>")
    return "[[A]]" if a[-1] > b[-1] else "[[B]]"


SPLIT = {"x": ["Score: 3", "Score: 3", "Score: 3"], "y": ["Score: 1", "?", "Score: 5"]}


def test_the_judgements_that_disagree_most_are_compared_in_both_orders():
    model = Roles(SPLIT, higher)
    row = judged(MetaJudged(JUDGE, META), model, "x", "y")
    assert [score.value for score in row.scores] == [3.0, 3.0]
    asked = model.meta_requests()
    assert len(asked) == 2  # the invalid one is not compared
    assert all(text.startswith("question<y>") for text in asked)
    by_of = {j.of: j for j in row.judgements if j.judge == "judge"}
    assert by_of[0,].scores == ()
    low, invalid, high = by_of[1,].scores
    assert invalid is None
    assert low == pytest.approx(-high)
    assert high > 0
    meta = [j for j in row.judgements if j.judge == "meta_judge"]
    assert {j.of for j in meta} == {(0, 2), (2, 0)}


def test_a_meta_judge_that_names_a_place_says_nothing():
    row = judged(MetaJudged(JUDGE, META), Roles(SPLIT, lambda text: "[[A]]"), "y")
    (judgement,) = [j for j in row.judgements if j.judge == "judge"]
    # All wins are in first place, where a win then counts nothing.
    assert judgement.scores == (None, None, None)


def test_ties_and_unparsed_verdicts_say_nothing():
    for said in ("[[C]]", "no idea"):
        row = judged(MetaJudged(JUDGE, META), Roles(SPLIT, lambda _, s=said: s), "y")
        (judgement,) = [j for j in row.judgements if j.judge == "judge"]
        assert judgement.scores == (None, None, None)


def test_where_all_agree_nobody_asks():
    model = Roles({"x": ["Score: 3", "Score: 3"]}, higher)
    row = judged(MetaJudged(JUDGE, META), model, "x")
    assert not model.meta_requests()
    assert row.judgements[0].scores == ()


def test_judgements_that_read_alike_share_their_score():
    model = Roles({"y": ["Score: 1", "Score: 5", "Score: 1"]}, higher)
    row = judged(MetaJudged(JUDGE, META), model, "y")
    low, high, again = row.judgements[0].scores
    assert low == again < 0 < high


def test_the_packaged_meta_judge_sees_answer_and_rubric():
    model = Scripted(
        lambda text: ["[[A]]"] if "Judgement A" in text else ["Score: 1", "Score: 4"]
    )
    judged(MetaJudged(Judge()), model, "an answer")
    (text, _) = [text for text in model.asked if "Judgement A" in text]
    assert "an answer" in text
    assert "five criteria" not in text
    assert "(question)" in text
    assert "Score: 1" in text.replace('"', "")


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="one answer at a time"):
        MetaJudged(PAIRWISE)
    with pytest.raises(ValueError, match="pairs"):
        MetaJudged(JUDGE, JUDGE)
    with pytest.raises(ValueError, match="both judges are called"):
        MetaJudged(JUDGE, replace(META, name="judge"))
    asks = replace(META, question="problem")
    with pytest.raises(ValueError, match="'problem' is missing"):
        MetaJudged(JUDGE, asks).check([samples.prompt()])
