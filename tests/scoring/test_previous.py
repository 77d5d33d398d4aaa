"""The same scorer by the policy and by the model of the round before."""

from dataclasses import dataclass

import numpy as np
import pytest

from jaxloop.records import Prompt
from jaxloop.scoring import ImplicitReward, Judge, MajorityVote, WithPrevious
from jaxloop.scoring.scorer import bind
from jaxloop.selection import BestWorst, RankConsistency
from tests.scoring import samples
from tests.scoring.test_judge import Scripted

JUDGE = Judge(template="{question}|{answer}", guarded=False)


@dataclass
class TwoRounds(Scripted):
    """`before` is the previous round's model."""

    before: Scripted | None = None

    @property
    def previous(self):
        assert self.before is not None
        return self.before


def length(text: str) -> list[str]:
    return [f"Score: {len(text.split('|')[1])}"]


def shortness(text: str) -> list[str]:
    return [f"Score: {5 - len(text.split('|')[1])}"]


def judged(now, before, *texts):
    prompt = samples.prompt()
    models = TwoRounds(now, before=Scripted(before))
    scorer = bind(WithPrevious(JUDGE), models)
    (row,) = scorer([prompt], [samples.rollouts(prompt, *texts)])
    return row


def test_each_model_says_its_own():
    row = judged(length, shortness, "a", "bb", "ccc")
    assert [s.value for s in row.scores] == [1, 2, 3]
    assert [s.components["judge"] for s in row.scores] == [1, 2, 3]
    assert [s.components["previous"] for s in row.scores] == [4, 3, 2]
    # Both judgements are kept, under names that tell them apart.
    assert [j.judge for j in row.judgements] == ["judge"] * 3 + ["previous"] * 3
    assert len({j.prompt.id for j in row.judgements}) == 6


@pytest.mark.parametrize(("before", "label"), [(length, 1.0), (shortness, 0.0)])
def test_their_agreement_is_what_pairs_are_sure_of(before, label):
    row = judged(length, before, "a", "bb", "ccc")
    pairs = BestWorst()([row], np.random.default_rng(0))
    (pair,) = RankConsistency()(pairs, [row])
    odds = pair.chosen_score - pair.rejected_score
    assert 1 / (1 + np.exp(-odds)) == pytest.approx(label, abs=1e-5)


def test_what_the_earlier_model_does_not_say_is_no_zero():
    row = judged(length, lambda text: ["?"], "a", "bb")
    assert [s.value for s in row.scores] == [1, 2]
    assert all("previous" not in s.components for s in row.scores)
    row = judged(lambda text: ["?"], length, "a")
    assert [(s.value, s.status) for s in row.scores] == [(None, "unscored")]


@dataclass
class Likelihoods(Scripted):
    """Log-probabilities by model."""

    told: tuple[tuple[str, float], ...] = ()

    def logps(self, items, *, by: str = "policy"):
        return np.array([dict(self.told)[by]] * len(items))


def test_a_likelihood_is_set_against_the_model_that_is_named():
    prompt = Prompt("a", "a", (1,))
    models = Likelihoods(length, told=(("policy", -1.0), ("first", -3.0), ("D", -6.0)))
    rollouts = [samples.rollouts(prompt, "x")]
    for against, reward in (("first", 1.0), ("D", 2.5)):
        scorer = ImplicitReward(beta=0.5, against=against)
        (row,) = bind(scorer, models)([prompt], rollouts)
        assert row.scores[0].value == pytest.approx(reward)


def test_what_cannot_be_asked_twice_is_refused():
    with pytest.raises(ValueError, match="MajorityVote must be a scorer that asks"):
        WithPrevious(MajorityVote())
    with pytest.raises(ValueError, match="name other than 'judge'"):
        WithPrevious(JUDGE, name="judge")
    missing = WithPrevious(ImplicitReward(against="no-such-directory"))
    with pytest.raises(ValueError, match="no-such-directory: no such directory"):
        missing.check([])
