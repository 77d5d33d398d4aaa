"""How far the first model agrees with itself, beside the votes."""

from dataclasses import replace

import pytest

from jaxloop.records import Prompt
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring import After, FirstVote, MajorityVote
from jaxloop.scoring.scorer import bind
from tests.scoring import samples
from tests.scoring.test_judge import Scripted

VOTE = MajorityVote(extract=After("#"))
SCORER = FirstVote(VOTE, Sampling(n=4))
FIRST = {
    "sure": ("#1", "#1", "#1", "#2"),
    "torn": ("#1", "#2", "none", "none"),
    "mute": ("none",) * 4,
}


def scored(scorer=SCORER):
    """The policy gives #7, #7 and nothing to each prompt."""
    prompts = [Prompt(name, name, (1,)) for name in FIRST]
    rollouts = [samples.rollouts(p, "#7", "#7", "none") for p in prompts]
    model = Scripted(lambda text: FIRST[text])
    return prompts, rollouts, bind(scorer, model)(prompts, rollouts)


def test_the_votes_are_the_policys_and_the_share_the_first_models():
    prompts, rollouts, rows = scored()
    for row, plain in zip(rows, VOTE(prompts, rollouts), strict=True):
        assert row.rollouts == plain.rollouts
        for found, vote in zip(row.scores, plain.scores, strict=True):
            parts = {k: v for k, v in found.components.items() if k != "first_vote"}
            assert replace(found, components=parts) == vote
    shares = [[s.components.get("first_vote") for s in row.scores] for row in rows]
    assert shares == [[0.75, 0.75, None], [0.25, 0.25, None], [0.0, 0.0, None]]


def test_it_has_the_name_that_it_is_given():
    *_, rows = scored(replace(SCORER, name="at_first"))
    assert rows[0].scores[0].components["at_first"] == 0.75


def test_it_wants_models():
    with pytest.raises(ValueError, match="FirstVote asks a model"):
        SCORER([], [])
