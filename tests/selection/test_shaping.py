import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxloop.selection import (
    GDPO,
    GroupAdvantage,
    NegativeOffset,
    Overlong,
    PassAtK,
    PromptWeight,
    by_segment,
    groups,
    process_advantages,
    to_go,
)
from jaxloop.selection.shaping import overlong_penalty
from tests.selection.samples import row, voted, with_columns

DR_GRPO = GroupAdvantage("none")


def test_overlong_penalty_is_dapo_s():
    lengths = [1, 60, 70, 80, 100, 101]
    actual = [overlong_penalty(n, longest=100, cache=40) for n in lengths]
    np.testing.assert_allclose(actual, [0, 0, -0.25, -0.5, -1, -1])


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 200))
def test_overlong_penalty_falls_and_is_bounded(cache, rest, length):
    def penalty(n):
        return overlong_penalty(n, longest=cache + rest, cache=cache)

    assert -1 <= penalty(length + 1) <= penalty(length) <= 0


def test_long_completions_lose_reward_before_the_advantage():
    scored = [row("a", ("x" * 10, 1.0), ("y" * 8, 1.0), ("z" * 9, None))]
    shaped = Overlong(DR_GRPO, longest=10, cache=4)
    # Penalties -1 and -0.5.
    np.testing.assert_allclose(shaped.of_scored(scored), [[-0.25, 0.25, 0]])
    assert groups(scored, shaped)[0].scores == scored[0].scores
    alone = Overlong(GDPO(("overlong",)), longest=10, cache=4)
    assert alone.of_scored(scored)[0, 0] < 0 < alone.of_scored(scored)[0, 1]
    with pytest.raises(ValueError, match="cache = 11"):
        Overlong(DR_GRPO, longest=10, cache=11)


def test_answers_without_agreement_are_pushed_down():
    scored = [voted("a", "1123"), voted("b", "1112"), voted("c", "12.3")]
    actual_PG = NegativeOffset(DR_GRPO, 0.6, offset=0.3).of_scored(scored)
    expected_PG = np.stack([[-0.3] * 4, DR_GRPO(np.array([[3, 3, 3, 1]]) / 4)[0]])
    np.testing.assert_allclose(actual_PG[:2], expected_PG, rtol=1e-6)
    np.testing.assert_allclose(actual_PG[2], [-0.3, -0.3, 0, -0.3], rtol=1e-6)
    with pytest.raises(ValueError, match="carry no votes"):
        NegativeOffset(DR_GRPO, 0.6, offset=0.3).of_scored([row("d", ("x", 1.0))])


def test_the_chain_multiplies_last():
    scored = [with_columns(voted(x, "1123"), weight=w) for x, w in (("a", 2), ("b", 0))]
    chain = PromptWeight(NegativeOffset(PassAtK(2, threshold=0.3), 0.6, offset=0.3))
    np.testing.assert_allclose(chain.of_scored(scored), [[-0.6] * 4, [0] * 4])
    with pytest.raises(ValueError, match="no column 'weight'"):
        chain.of_scored([voted("c", "1123")])


def test_rewards_to_go():
    rewards = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(to_go(rewards), [[3, 3, 2], [1, 0, 0]])
    np.testing.assert_allclose(to_go(rewards, discount=0.5)[0], [1, 2, 2])
    np.testing.assert_array_equal(rewards[0], [0, 1, 2])


def test_process_advantages_normalise_over_all_steps():
    rewards = [[0.0, 1.0], [1.0, 1.0, 0.0], []]
    flat = np.array([0, 1, 1, 1, 0.0])
    z = (flat - 0.6) / (flat.std(ddof=1) + 1e-4)
    expected = [[z[0] + z[1], z[1]], [z[2] + z[3] + z[4], z[3] + z[4], z[4]], []]
    for actual, wanted in zip(process_advantages(rewards), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-12)
    # One step a sample is GRPO.
    outcome = np.concatenate(process_advantages([[1.0], [0.0], [0.0]]))
    grpo_G = GroupAdvantage()(np.array([[1.0, 0.0, 0.0]]))[0]
    np.testing.assert_allclose(outcome, grpo_G, rtol=1e-6)
    assert (process_advantages([[0.1, 0.1], [0.1]])[0] == 0).all()


def test_segments_spread_over_their_tokens():
    np.testing.assert_array_equal(
        by_segment([1.0, -2.0, 3.0], [2, 2, 5], 7), [1, 1, 3, 3, 3, 0, 0]
    )
    assert by_segment([], [], 2).dtype == np.float32
    for values, ends in (([1.0], [8]), ([1.0, 2.0], [3, 2]), ([1.0], [1, 2])):
        with pytest.raises(ValueError, match="one value a segment"):
            by_segment(values, ends, 7)
