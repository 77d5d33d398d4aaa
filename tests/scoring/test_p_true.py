"""P(True), by a model whose log-probabilities are known."""

from dataclasses import replace

import numpy as np
import pytest

from jaxloop.scoring import After, Numeric
from jaxloop.scoring.endpoint import Endpoint
from jaxloop.scoring.judge import both_orders
from jaxloop.scoring.judge_metrics import judge_metrics
from jaxloop.scoring.p_true import PTrue
from jaxloop.scoring.scorer import bind
from tests.scoring import samples
from tests.scoring.test_judge import Scripted

JUDGE = PTrue(template="{question}|{answer}", guarded=False)


class Knowing(Scripted):
    """Says yes to `7` with the odds 3 to 1, to all else with 1 to 3. Of the mass that
    other words take it takes no notice."""

    def __init__(self, other: float = 0.9):
        super().__init__(lambda text: [])
        self.other, self.by = other, []

    def tokens(self, text: str):
        return tuple(map(ord, text))

    def fitting(self, prompts, sampling, *, by: str = "policy"):
        assert sampling.max_new_tokens == 3  # for `yes`
        return [prompt for prompt in prompts if len(prompt.text) < 20]

    def logps(self, items, *, by: str = "policy"):
        self.by.append(by)
        assert all(len(prompt.text) < 20 for prompt, _ in items)

        def chance(prompt, rollout):
            said = "".join(map(chr, rollout.token_ids))
            right = prompt.text.endswith("|7")
            return (1 - self.other) * (0.75 if (said == "yes") == right else 0.25)

        return np.log([chance(*item) for item in items])


def values(judge, model, *texts, **columns):
    asked = samples.prompt(**columns)
    row = bind(judge, model)([asked], [samples.rollouts(asked, *texts)])[0]
    return row, [score.value for score in row.scores]


@pytest.mark.parametrize("other", [0.0, 0.9, 1 - 1e-12])
def test_it_is_the_share_of_yes_among_the_two_words(other):
    row, found = values(JUDGE, Knowing(other), "7", "8")
    np.testing.assert_allclose(found, [0.75, 0.25], rtol=1e-3)
    assert [s.components["p_true"] for s in row.scores] == found
    assert [j.rollouts[0].text.split()[0] for j in row.judgements] == ["yes", "yes"]


def test_what_reads_the_same_is_asked_once_and_nothing_is_not_asked():
    model = Knowing()
    row, found = values(replace(JUDGE, sees=After("#")), model, "a#7", "b#7", "c")
    assert found[0] == found[1] == pytest.approx(0.75)
    assert found[2] is None
    assert len(row.judgements) == 1


def test_it_has_the_health_of_a_judge():
    row, _ = values(replace(JUDGE, truth=Numeric()), Knowing(), "7", "8", answer="7")
    metrics = judge_metrics([row])
    assert metrics["p_true/agreement"] == metrics["p_true/accuracy"] == 1.0
    assert metrics["p_true/invalid_frac"] == 0.0


def test_what_is_too_long_for_its_model_is_not_asked_but_counted():
    row, found = values(JUDGE, Knowing(), "7", "8" * 20)
    assert found[0] == pytest.approx(0.75)
    assert (row.scores[1].value, row.scores[1].status) == (None, "unscored")
    assert judge_metrics([row])["p_true/too_long_frac"] == 0.5
    _, found = values(JUDGE, Knowing(), "8" * 20)
    assert found == [None]


def test_infinitely_unlikely_words_are_invalid_and_not_0():
    class Silent(Knowing):
        def logps(self, items, *, by: str = "policy"):
            return np.full(len(items), -np.inf)

    with np.errstate(invalid="ignore"):
        row, found = values(JUDGE, Silent(), "7")
    assert found == [None]
    assert row.scores[0].status == "unscored"


@pytest.mark.parametrize("by", ["policy", "first", "DIR"])
def test_who_is_asked(by):
    model = Knowing()
    values(replace(JUDGE, by=by), model, "7")
    assert model.by == [by, by]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"by": Endpoint("http://localhost", "m")}, "no log-probabilities"),
        ({"words": ("yes", "yes")}, "two different"),
        ({"words": ("yes", "")}, "two different"),
        (
            {"show": both_orders, "template": "{question}{answer_A}{answer_B}"},
            "shown 2",
        ),
    ],
)
def test_what_cannot_be_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        replace(JUDGE, **wrong)
