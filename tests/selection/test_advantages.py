from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxloop.selection import GroupAdvantage, group_advantages, groups, rewards_of
from jaxloop.selection.advantages import Scale
from tests.selection.samples import row

# The values that TRL 1.16.0 gives, std unbiased, eps 1e-4.
REWARDS_PG = np.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 1.0, 0.0]])
GOLDEN = {
    "group": [[0.865875, -0.865875, -0.865875, 0.865875], [0, 0, 1.224445, -1.224445]],
    "batch": [[1.07989, -1.07989, -1.07989, 1.07989], [0, 0, 1.07989, -1.07989]],
    "none": [[0.5, -0.5, -0.5, 0.5], [0, 0, 0.5, -0.5]],
}
SCALES = get_args(Scale)


@pytest.mark.parametrize("scale", SCALES)
def test_golden_values(scale):
    actual_PG = GroupAdvantage(scale)(REWARDS_PG)
    assert actual_PG.dtype == np.float32
    np.testing.assert_allclose(actual_PG, GOLDEN[scale], rtol=1e-5, atol=1e-6)


rewards = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 6)),
    elements=st.floats(-10, 10) | st.sampled_from([0.0, 0.1, 1.0, np.nan]),
)


@pytest.mark.parametrize("scale", SCALES)
@given(rewards_PG=rewards, seed=st.integers(0, 99))
def test_groups_sum_to_zero_and_order_does_not_matter(scale, rewards_PG, seed):
    advantages_PG = group_advantages(rewards_PG, scale=scale)
    size = max(np.abs(advantages_PG).max(), 1.0)
    np.testing.assert_allclose(advantages_PG.sum(axis=1), 0, atol=1e-5 * size)
    assert (advantages_PG[np.isnan(rewards_PG)] == 0).all()

    rng = np.random.default_rng(seed)
    rows, columns = (rng.permutation(n) for n in rewards_PG.shape)
    moved_PG = group_advantages(rewards_PG[rows][:, columns], scale=scale)
    expected_PG = advantages_PG[rows][:, columns]
    np.testing.assert_allclose(moved_PG, expected_PG, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
@given(rewards_PG=rewards)
def test_masked_equals_sliced(scale, rewards_PG):
    """Unscored samples change nothing for the others."""
    holes_PG = np.full_like(rewards_PG, np.nan)
    wide_PG = np.concatenate([holes_PG, rewards_PG], axis=1)
    advantages_PG = group_advantages(wide_PG, scale=scale)
    width = rewards_PG.shape[1]
    np.testing.assert_allclose(
        advantages_PG[:, width:],
        group_advantages(rewards_PG, scale=scale),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("scale", SCALES)
def test_groups_that_teach_nothing_get_exact_zeros(scale):
    one_PG = [[np.nan, 3.0, np.nan], [np.nan] * 3, [0.1] * 3, [1.0, 0.0, 0.5]]
    advantages_PG = group_advantages(np.array(one_PG), scale=scale)
    assert (advantages_PG[:3] == 0).all()
    assert (advantages_PG[3] != 0).sum() == 2


def test_unscored_samples_are_no_zeros():
    advantages_PG = group_advantages(np.array([[1.0, 0.0, np.nan, np.nan]]))
    np.testing.assert_allclose(advantages_PG, [[0.707007, -0.707007, 0, 0]], atol=1e-5)


@given(rewards_PG=rewards, shift=st.floats(-5, 5))
def test_a_shift_of_all_rewards_changes_nothing(rewards_PG, shift):
    for scale in SCALES:
        np.testing.assert_allclose(
            group_advantages(rewards_PG + shift, scale=scale),
            group_advantages(rewards_PG, scale=scale),
            atol=1e-4,
        )


def test_infinite_rewards_and_unknown_scales_are_refused():
    with pytest.raises(ValueError, match="infinity"):
        group_advantages(np.array([[1.0, np.inf]]))
    with pytest.raises(ValueError, match="'rloo'"):
        GroupAdvantage("rloo")  # pyright: ignore


def test_groups_of_scored_prompts():
    scored = [
        row("a", ("x", 1.0), ("y", 0.0), ("z", None)),
        row("b", ("x", 0.5), ("y", 0.75)),
    ]
    np.testing.assert_array_equal(
        rewards_of(scored), [[1.0, 0.0, np.nan], [0.5, 0.75, np.nan]]
    )
    made = groups(scored, GroupAdvantage("none"))
    assert [group.prompt.id for group in made] == ["a", "b"]
    assert made[0].advantages == (0.5, -0.5, 0.0)
    assert made[1].advantages == (-0.125, 0.125)
    assert made[0].rollouts == scored[0].rollouts
    assert groups([], GroupAdvantage()) == []
