"""Judgements scored as rollouts."""

import numpy as np
import pytest

from jaxloop.scoring.label_match import LabelMatch, Said
from jaxloop.scoring.verdicts import Tagged, Verdict
from jaxloop.selection import GroupAdvantage, JointOrder, LabelBalanced
from jaxloop.selection.selectors import CorrectIncorrect, TopOne
from tests.scoring import samples

EVASIONS = ("", "[[A]] or [[B]]", "[[C]]", "I cannot say")


@pytest.mark.parametrize(
    ("text", "label", "value", "answer"),
    [
        ("better. [[A]]", "A", 1.0, "A"),
        ("better. [[A]]", "B", 0.0, "A"),
        ("better. [[B]]", "B", 1.0, "B"),
        ("better. [[B]]", "A", 0.0, "B"),
        ("equal. [[C]]", "A", 0.0, "tie"),
        ("[[A]] and [[B]]", "B", 0.0, None),
        ("no verdict", "A", 0.0, None),
    ],
)
def test_a_judgement_is_right_where_it_names_the_better_one(text, label, value, answer):
    (score,) = samples.run(LabelMatch(), text, label=label)
    assert (score.value, score.status, score.answer) == (value, "scored", answer)
    assert score.components["invalid"] == (answer is None)


def test_of_two_numbers_the_higher_is_the_verdict():
    match = LabelMatch(Tagged())
    texts = [
        f"<score_A>{a}</score_A> <score_B>{b}</score_B>"
        for a, b in (("7", "3"), ("3.5", "3.6"), ("5", "5"))
    ]
    scores = samples.run(match, *texts, label="B")
    assert [score.value for score in scores] == [0.0, 1.0, 0.0]
    assert [score.answer for score in scores] == ["A", "B", "tie"]


def test_the_first_places_share_leaves_ties_and_evasions_out():
    scores = samples.run(LabelMatch(), "[[A]]", "[[B]]", *EVASIONS, label="A")
    firsts = [score.components.get("first") for score in scores]
    assert firsts == [1.0, 0.0, None, None, None, None]


def test_a_number_that_cannot_be_read_is_unscored():
    scores = samples.run(Said(), "<score>7.5</score>", "<score>11</score>", "seven")
    assert [score.value for score in scores] == [7.5, None, None]
    assert [score.status for score in scores] == ["scored", "unscored", "unscored"]


@pytest.mark.parametrize("label", [None, "C", "a", ""])
def test_a_row_without_a_label_of_two_is_named(label):
    columns = {} if label is None else {"label": label}
    with pytest.raises(ValueError, match=r"row 'p'.*'label'"):
        LabelMatch().check([samples.prompt(**columns)])


def test_a_parser_that_speaks_of_other_numbers_is_refused():
    with pytest.raises(ValueError, match="speaks of 3"):
        LabelMatch(Verdict("ABD"))
    with pytest.raises(ValueError, match="speaks of 2"):
        Said(Verdict())


def judged(*texts_of_both: tuple[tuple[str, ...], tuple[str, ...]]):
    """Both orders of pairs, the better completion first in the one and second in the
    other, scored."""
    prompts = [
        samples.prompt(f"{number}:{label}", label=label, pair=str(number))
        for number, _ in enumerate(texts_of_both)
        for label in "AB"
    ]
    texts = [texts for both in texts_of_both for texts in both]
    rollouts = [samples.rollouts(p, *t) for p, t in zip(prompts, texts, strict=True)]
    return LabelMatch()(prompts, rollouts)


A, B = "[[A]]", "[[B]]"
JOINT = JointOrder(lambda rewards_PG: np.asarray(rewards_PG, np.float32))


@pytest.mark.parametrize(
    ("first", "second", "reward"),
    [(A, B, 1), (A, A, 0), (B, B, 0), (B, A, 0), (A, "", 0), (A, "[[C]]", 0)],
)
def test_the_joint_rewards_truth_table(first, second, reward):
    rewards_PG = JOINT.of_scored(judged(((first,), (second,))))
    np.testing.assert_array_equal(rewards_PG, [[reward], [reward]])


@pytest.mark.parametrize("said", [A, B, *EVASIONS])
def test_a_judge_that_says_one_thing_earns_nothing(said):
    constant = judged((((said,) * 4), ((said,) * 4)), (((said,) * 4), ((said,) * 4)))
    assert not JOINT.of_scored(constant).any()
    assert not JointOrder(GroupAdvantage()).of_scored(constant).any()
    plain = [score.value for row in constant for score in row.scores]
    assert sum(plain) == (8 if said in (A, B) else 0)  # of 16


def test_the_joint_reward_pulls_a_guesser_off_its_favourite_place():
    """A judge that knows nothing says A with chance sigmoid(b) in both orders. The
    policy gradient on b by a reward of each order alone is 0: what naming A wins in one
    order it loses in the other. By the joint reward it is that of p (1 - p), down."""
    b, count = 1.0, 4000
    p = 1 / (1 + np.exp(-b))
    said_2N = np.random.default_rng(0).random((2, count)) < p
    rows = judged(tuple(tuple(A if s else B for s in said) for said in said_2N))
    slope_2N = np.where(said_2N, 1 - p, -p)  # d log pi(said) / d b
    centred = GroupAdvantage(scale="none")

    def gradient(advantages_2N: np.ndarray) -> float:
        return float((advantages_2N * slope_2N).mean(axis=1).sum())

    plain_2N = np.array([[score.value for score in row.scores] for row in rows], float)
    assert abs(gradient(centred(plain_2N))) < 0.03
    expected = p * (1 - p) * (1 - 2 * p)
    joint = gradient(JointOrder(centred).of_scored(rows))
    assert expected < -0.09
    assert abs(joint - expected) < 0.03


def test_what_is_imitated_is_right_balanced_and_one_of_each_prompt():
    rows = judged(*(((A, A + " ", B), (B, A, "")) for _ in range(6)))
    rows += judged(*(((A,), (A,)) for _ in range(4)))  # the label B is never hit
    rng = np.random.default_rng(0)
    kept = LabelBalanced(TopOne(minimum=1.0))(rows, rng)
    labels = [prompt.columns["label"] for prompt, _ in kept]
    assert labels.count("A") == labels.count("B") == 6
    assert all(f"[[{p.columns['label']}]]" in rollout.text for p, rollout in kept)
    assert len({prompt.id for prompt, _ in kept}) <= len(kept)


def test_a_wrong_a_tied_and_an_unreadable_judgement_may_all_be_rejected():
    rows = judged(((A, B, "[[C]]", "so so"), (B, A, "[[C]]", "so so")))
    pairs = CorrectIncorrect(pairs=3)(rows, np.random.default_rng(0))
    assert {pair.rejected.index for pair in pairs} == {1, 2, 3}
    assert {pair.chosen.index for pair in pairs} == {0}
