import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxloop.selection import (
    GDPO,
    OPO,
    GroupAdvantage,
    LeaveOneOut,
    MaxRL,
    PassAtK,
    PerRole,
    ReinforcePlusPlus,
    group_advantages,
    groups,
    rewards_of,
)
from jaxloop.selection.advantages import Scale, advantages_of
from tests.selection.samples import row, with_columns, with_components

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


RLOO = [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [0, 0, 2 / 3, -2 / 3]]
OF_REWARDS = {
    "rloo": LeaveOneOut(),
    "rloo_whitened": LeaveOneOut(whiten=True),
    "reinforce_plus_plus": ReinforcePlusPlus(),
    "reinforce_plus_plus_baseline": ReinforcePlusPlus(group_baseline=True),
    "max_rl": MaxRL(),
    "pass_at_1": PassAtK(1),
}
CENTRED = ["rloo", "reinforce_plus_plus_baseline", "max_rl", "pass_at_1"]


def test_leave_one_out_golden():
    actual_PG = LeaveOneOut()(REWARDS_PG)
    np.testing.assert_allclose(actual_PG, RLOO, rtol=1e-5, atol=1e-6)
    whitened_PG = LeaveOneOut(whiten=True)(REWARDS_PG)
    expected_PG = np.array(RLOO) / (np.std(RLOO, ddof=1) + 1e-4)
    np.testing.assert_allclose(whitened_PG, expected_PG, rtol=1e-5)


@pytest.mark.parametrize("name", OF_REWARDS)
@given(rewards_PG=rewards, seed=st.integers(0, 99))
def test_unscored_samples_and_order_change_nothing(name, rewards_PG, seed):
    advantage, rewards_PG = OF_REWARDS[name], np.abs(rewards_PG)
    advantages_PG = advantage(rewards_PG)
    assert advantages_PG.dtype == np.float32
    assert np.isfinite(advantages_PG).all()
    assert (advantages_PG[np.isnan(rewards_PG)] == 0).all()

    holes_PG = np.full_like(rewards_PG, np.nan)
    wide_PG = advantage(np.concatenate([holes_PG, rewards_PG], axis=1))
    np.testing.assert_allclose(
        wide_PG[:, rewards_PG.shape[1] :], advantages_PG, rtol=1e-4, atol=1e-5
    )
    rng = np.random.default_rng(seed)
    rows, columns = (rng.permutation(n) for n in rewards_PG.shape)
    moved_PG = advantage(rewards_PG[rows][:, columns])
    expected_PG = advantages_PG[rows][:, columns]
    np.testing.assert_allclose(moved_PG, expected_PG, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CENTRED)
@given(rewards_PG=rewards)
def test_what_is_centred_sums_to_zero_in_each_group(name, rewards_PG):
    advantages_PG = OF_REWARDS[name](np.abs(rewards_PG))
    size = max(np.abs(advantages_PG).max(), 1.0)
    np.testing.assert_allclose(advantages_PG.sum(axis=1), 0, atol=1e-5 * size)
    one_PG = OF_REWARDS[name](np.array([[np.nan, 3.0], [np.nan, np.nan], [1.0, 0.0]]))
    assert (one_PG[:2] == 0).all()
    assert (one_PG[2] != 0).all()


def test_reinforce_plus_plus_whitens_the_batch():
    for baseline in (False, True):
        x_PG = REWARDS_PG - baseline * REWARDS_PG.mean(axis=1, keepdims=True)
        expected_PG = (x_PG - x_PG.mean()) / (x_PG.std(ddof=1) + 1e-4)
        actual_PG = ReinforcePlusPlus(group_baseline=baseline)(REWARDS_PG)
        np.testing.assert_allclose(actual_PG, expected_PG, rtol=1e-5, atol=1e-7)
    # A group sums to 0 only with the baseline; one sample a prompt does without.
    uneven_PG = np.array([[1.0, 1.0], [1.0, 0.0]])
    assert abs(ReinforcePlusPlus()(uneven_PG)[0].sum()) > 0.5
    assert (ReinforcePlusPlus()(np.array([[1.0], [0.0]])) != 0).all()
    lone_PG = np.array([[1.0, np.nan], [1.0, 0.0]])
    with_lone_PG = ReinforcePlusPlus(group_baseline=True)(lone_PG)
    assert (with_lone_PG[0] == 0).all()
    np.testing.assert_allclose(with_lone_PG[1], [0.70700679, -0.70700679], rtol=1e-5)


def test_max_rl_weighs_hard_prompts_more():
    actual_PG = MaxRL()(np.array([[1.0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]))
    expected_PG = [[3, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1], [0, 0, 0, 0]]
    np.testing.assert_allclose(actual_PG, expected_PG, rtol=1e-6)
    with pytest.raises(ValueError, match="must not be < 0"):
        MaxRL()(np.array([[1.0, -1.0]]))


def right_of(n, bad):
    return np.array([[1.0] * (n - bad) + [0.0] * bad])


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_pass_at_1_is_dr_grpo(counts):
    rewards_1G = right_of(*counts)
    np.testing.assert_allclose(
        PassAtK(1)(rewards_1G), GroupAdvantage("none")(rewards_1G), atol=1e-6
    )


def test_pass_at_k_sums_to_zero_for_every_count():
    for n in range(1, 9):
        for k in range(1, n + 1):
            for bad in range(n + 1):
                advantages_G = PassAtK(k)(right_of(n, bad))[0]
                assert abs(advantages_G.sum()) < 1e-5
                if bad < k or bad == n:
                    assert (advantages_G == 0).all()


def test_pass_at_k_is_the_leave_one_out_of_sets():
    """Over all sets of k samples: how much better those with a sample are than all."""
    rewards_G = np.array([1.0, 0, 0, 0, 1, 0])
    sets = list(itertools.combinations(range(6), 3))
    best = np.array([rewards_G[list(s)].max() for s in sets])
    expected_G = [best[[i in s for s in sets]].mean() - best.mean() for i in range(6)]
    actual_G = PassAtK(3)(rewards_G[None])[0]
    np.testing.assert_allclose(actual_G, expected_G, rtol=1e-5)


def test_pass_at_k_needs_k_scored_samples():
    few_PG = np.array([[1.0, 0.0, np.nan], [1.0, 0.0, 0.0]])
    advantages_PG = PassAtK(3)(few_PG)
    assert (
        advantages_PG == 0
    ).all()  # two scored, and two wrong: every set of 3 passes
    assert (PassAtK(2)(few_PG)[1] != 0).all()
    with pytest.raises(ValueError, match="k = 4 of 3 samples"):
        PassAtK(4)(few_PG)
    with pytest.raises(ValueError, match="k = 0"):
        PassAtK(0)


def test_opo_weighs_its_baseline_by_length():
    scored = [
        row("a", ("xxx", 1.0), ("y", 0.0), ("zz", None)),
        row("b", ("x", 0.1), ("yyy", 0.1)),
        row("c", ("x", 1.0)),
    ]
    expected_PG = [[1 - 3 / 4, -3 / 4, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(OPO().of_scored(scored), expected_PG, atol=1e-7)


def test_gdpo_brings_rewards_to_one_scale():
    values = [(1.0, 0.0), (0.0, 50.0), (1.0, 100.0)]
    scored = [
        with_components("a", *({"right": r, "short": s} for r, s in values)),
        with_components("b", {"right": 1.0, "short": 1.0}, {"right": 0.0}, None),
    ]
    advantages_PG = GDPO(("right", "short"), weights=(1.0, 0.5)).of_scored(scored)

    def scaled(x):
        return (x - np.mean(x)) / (np.std(x, ddof=1) + 1e-4)

    # One score alone has no spread: its normalised reward is 0.
    right, short = np.transpose(values)
    x = np.concatenate([scaled(right) + 0.5 * scaled(short), scaled([1.0, 0.0])])
    np.testing.assert_allclose(
        np.concatenate([advantages_PG[0], advantages_PG[1, :2]]), scaled(x), rtol=1e-5
    )
    assert advantages_PG[1, 2] == 0
    with pytest.raises(ValueError, match="no score has a component 'long'"):
        GDPO(("long",)).of_scored(scored)
    with pytest.raises(ValueError, match="2 weights for 1"):
        GDPO(("right",), weights=(1.0, 2.0))


def test_each_role_is_centred_on_its_own_mean():
    scored = [
        with_columns(row("a", ("x", 1.0), ("y", 0.0)), role="asks"),
        with_columns(row("b", ("x", 10.0), ("y", None)), role="answers"),
        with_columns(row("c", ("x", 0.5), ("y", 0.5)), role="asks"),
        with_columns(row("d", ("x", 20.0), ("y", 30.0)), role="answers"),
    ]
    expected_PG = [[0.5, -0.5], [-10, 0], [0, 0], [0, 10]]
    np.testing.assert_allclose(PerRole().of_scored(scored), expected_PG, atol=1e-6)
    with pytest.raises(ValueError, match="prompt 'e' has no column 'role'"):
        PerRole().of_scored([row("e", ("x", 1.0))])


def test_an_advantage_of_your_own_has_either_form():
    scored = [row("a", ("xxx", 1.0), ("y", 0.0))]
    np.testing.assert_array_equal(advantages_of(scored, lambda x: 2 * x), [[2, 0]])
    assert groups(scored, OPO())[0].advantages == (0.25, -0.75)
    with pytest.raises(ValueError, match="no number"):
        groups([row("a", ("x", None))], lambda rewards_PG: rewards_PG)
