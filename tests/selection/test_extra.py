"""Extra samples of a prompt, and gold answers among votes: ScPO's two additions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxloop.records import Scored, without_extra
from jaxloop.scoring import After, Exact, GoldOrVote, MajorityVote, check
from jaxloop.selection import (
    CorrectIncorrect,
    MinVote,
    PassRate,
    VoteClusters,
    VoteMargin,
)
from tests.scoring.samples import prompt, rollouts

VOTE = MajorityVote(After("#"))
GOLD_OR_VOTE = GoldOrVote(Exact(extract=After("#")), VOTE)
texts = st.lists(
    st.sampled_from(["a#1", "b#1", "a#2", "b#2", "c#3", "none"]), max_size=6
)


def scored(scorer, ordinary, extra=(), name="p", **columns) -> Scored:
    """One prompt with these completions; the last of them are extra."""
    asked = prompt(name, **columns)
    group = rollouts(asked, *ordinary, *extra)
    border = len(ordinary)
    group = tuple(replace(r, extra=r.index >= border) for r in group)
    return scorer([asked], [group])[0]


@given(texts.filter(bool), texts)
def test_extra_samples_have_no_vote(ordinary, extra):
    alone, row = scored(VOTE, ordinary), scored(VOTE, ordinary, extra)
    assert row.scores[: len(ordinary)] == alone.scores
    assert without_extra(row).scores == alone.scores
    shares = {score.answer: score.value for score in alone.scores if score.answer}
    for score in row.scores[len(ordinary) :]:
        if score.answer is not None:
            assert score.value == shares.get(score.answer, 0)
    for minimum in (0.0, 0.5, 0.7):
        assert MinVote(minimum)([row])[1] == MinVote(minimum)([alone])[1]
    assert PassRate()([row])[1] == PassRate()([alone])[1]


@pytest.mark.parametrize("selector", [VoteClusters(), CorrectIncorrect(pairs=4)])
@given(texts.filter(bool), texts, st.integers(0, 9))
def test_extra_samples_are_never_chosen(selector, ordinary, extra, seed):
    row = scored(GOLD_OR_VOTE, ordinary, extra, answer="1")
    for pair in selector([row], np.random.default_rng(seed)):
        assert not pair.chosen.extra
        assert pair.chosen_score > pair.rejected_score


def test_a_model_that_agrees_with_itself_gets_its_rejected_from_the_extra_samples():
    rng = np.random.default_rng(0)
    agreed = ("a#1", "b#1", "c#1", "d#1")
    assert VoteClusters()([scored(VOTE, agreed)], rng) == []
    row = scored(VOTE, agreed, ("x#1", "y#2", "none"))
    (pair,) = VoteMargin()(VoteClusters()([row], rng), [row])
    assert pair.rejected.text == "y#2"
    assert (pair.weight, pair.rejected_score) == (1.0, 0.0)
    assert pair.reason == "'1' has 4 of 4 votes, '2' has 0"


@given(texts.filter(bool), texts, st.sampled_from(["1", "2", "4"]), st.integers(0, 9))
def test_with_gold_answers_to_all_it_is_irpo(ordinary, extra, answer, seed):
    """The same prompts give a pair, of a correct and an incorrect one, with weight 1:
    the loss of ScPO at weight 1 is IRPO's."""
    row = scored(GOLD_OR_VOTE, ordinary, extra, answer=answer)
    gold = scored(GOLD_OR_VOTE.gold, ordinary, extra, answer=answer)
    kept, _ = MinVote(0.7)([row])
    made = VoteMargin()(VoteClusters()(kept, np.random.default_rng(seed)), kept)
    irpo = CorrectIncorrect()([gold], np.random.default_rng(seed))
    assert len(made) == len(irpo)
    for pair in made:
        assert pair.weight == 1
        assert (pair.chosen_score, pair.rejected_score) == (1, 0)


def test_rows_without_an_answer_are_voted_on_in_their_places():
    rows = [("a", {"answer": "2"}), ("b", {}), ("c", {"answer": None})]
    asked = [prompt(name, **columns) for name, columns in rows]
    groups = [rollouts(each, "#1", "#1", "#2") for each in asked]
    found = GOLD_OR_VOTE(asked, groups)
    assert [row.prompt.id for row in found] == ["a", "b", "c"]
    votes = [[score.votes for score in row.scores] for row in found]
    assert votes == [[0, 0, 3], [2, 2, 1], [2, 2, 1]]
    assert [score.value for score in found[0].scores] == [0, 0, 1]
    check(GOLD_OR_VOTE, asked)
