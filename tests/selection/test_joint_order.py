"""J1's rewards: truth table, judges of a place, and the advantages around them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.selection import (
    GroupAdvantage,
    JointOrder,
    JointScore,
    groups,
    joint_score_rewards,
)
from tests.selection.samples import row, with_columns

few = settings(max_examples=30)
DR_GRPO = GroupAdvantage("none")


def test_scores_of_two_answers():
    rewards_N = joint_score_rewards(
        [7.0, 3.0, 5.0, None, 5.0], [5.0, 5.0, 5.0, 1, None]
    )
    np.testing.assert_array_equal(rewards_N, [1, 0, 0, 0, 0])


def one_order(name, pair, *values, **columns):
    texts = ((f"{name}{i}", value) for i, value in enumerate(values))
    return with_columns(row(name, *texts), pair=pair, **columns)


def test_joint_order_as_an_advantage():
    scored = [
        one_order("ab", 1, 1.0, 1.0, 0.0, None),
        one_order("cd", 2, 1.0, 1.0, 1.0, 1.0),
        one_order("ba", 1, 1.0, 0.0, 0.0, 1.0),
        one_order("dc", 2, 0.0, 0.0, 0.0, 0.0),
    ]
    alone_PG = DR_GRPO(np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]]))
    actual_PG = JointOrder(DR_GRPO).of_scored(scored)
    np.testing.assert_allclose(actual_PG, alone_PG[[0, 1, 0, 1]])
    # A judge of a place is right in one order, and earns nothing by it.
    assert (actual_PG[[1, 3]] == 0).all()
    made = groups(scored, JointOrder(DR_GRPO))
    assert [group.scores for group in made] == [each.scores for each in scored]
    plain_PG = np.array([g.advantages for g in groups(scored, DR_GRPO)])
    assert (plain_PG[0] != actual_PG[0]).any()


values = st.none() | st.sampled_from([0.0, 0.5, 1.0])


@few
@given(st.lists(st.tuples(values, values), min_size=1, max_size=8))
def test_joint_order_is_the_truth_table(both):
    scored = [
        one_order("ab", "p", *(first for first, _ in both)),
        one_order("ba", "p", *(second for _, second in both)),
    ]
    # Half a point is no right judgement, nor is an invalid one.
    rewards_G = np.array([float(pair == (1.0, 1.0)) for pair in both])
    expected_PG = [rewards_G - rewards_G.mean()] * 2
    np.testing.assert_allclose(JointOrder(DR_GRPO).of_scored(scored), expected_PG)
    np.testing.assert_allclose(JointOrder(DR_GRPO).of_scored(scored[::-1]), expected_PG)


def test_joint_score_as_an_advantage():
    scored = [
        one_order("bad", "p", 3.0, 9.0, None, 2.0, better=False),
        one_order("good", "p", 7.0, 5.0, 5.0, 2.0, better=True),
    ]
    expected_PG = [[0.75, -0.25, -0.25, -0.25]] * 2
    np.testing.assert_allclose(JointScore(DR_GRPO).of_scored(scored), expected_PG)
    np.testing.assert_allclose(JointScore(DR_GRPO).of_scored(scored[::-1]), expected_PG)
    both = [one_order(name, "p", 1.0, better=True) for name in "xy"]
    with pytest.raises(ValueError, match=r"'x' and 'y' exactly one must be 'better'"):
        JointScore(DR_GRPO).of_scored(both)


@pytest.mark.parametrize(
    "scored",
    [
        [one_order("ab", 1, 1.0)],
        [one_order("ab", 1, 1.0), one_order("ba", 2, 1.0)],
        [one_order("ab", 1, 1.0, 0.0), one_order("ba", 1, 1.0)],
        [one_order(name, 1, 1.0) for name in "abc"],
    ],
)
def test_orders_that_were_parted_are_an_error(scored):
    with pytest.raises(ValueError, match="must not part them"):
        JointOrder(DR_GRPO).of_scored(scored)
    with pytest.raises(ValueError, match="no column 'order'"):
        JointOrder(DR_GRPO, "order").of_scored(scored)
