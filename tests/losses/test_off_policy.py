"""Corrections for the sampler: weights, filters, missing tokens, mistakes."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.losses import off_policy
from jaxloop.losses.objectives import OffPolicy
from jaxloop.losses.off_policy import gap, strayed
from jaxloop.losses.policy import Tokens

assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
RATIO = np.array([[0.4, 1.0, 2.5, 9.0], [1.1, 0.9, 1.0, 9.0]], np.float32)
MASK = np.array([[1, 1, 1, 0], [1, 1, 1, 0]], bool)
GAP = np.where(MASK, np.log(RATIO), 0).astype(np.float32)
FUNCTIONS = {
    "token_truncate": {"least": 0.5, "most": 2.0},
    "token_mask": {"least": 0.5, "most": 2.0},
    "sequence_truncate": {"least": 0.995, "most": 3.0},
    "sequence_mask": {"least": 0.995, "most": 3.0},
    "geometric_mask": {"least": 0.998, "most": 2.0},
}
EXPECTED = {
    "token_truncate": [[0.5, 1.0, 2.0], [1.1, 0.9, 1.0]],
    "token_mask": [[0.0, 1.0, 0.0], [1.1, 0.9, 1.0]],
    "sequence_truncate": [[1.0] * 3, [0.995] * 3],  # 0.4 x 2.5, 1.1 x 0.9
    "sequence_mask": [[1.0] * 3, [0.0] * 3],
    "geometric_mask": [[0.4, 1.0, 2.5], [0.0] * 3],  # 0.99 ** (1 / 3) = 0.9967
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_weights(name):
    weight_BC = getattr(off_policy, name)(GAP, MASK, **FUNCTIONS[name])
    weight_BC = np.broadcast_to(weight_BC, GAP.shape)
    assert_close(weight_BC[:, :3], EXPECTED[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_dataclass_passes_its_bounds(name):
    function = getattr(off_policy, name)
    tokens = Tokens(jnp.zeros((2, 4)), jnp.asarray(GAP), jnp.ones((2, 1)), MASK)
    actual = OffPolicy(function, **FUNCTIONS[name]).weights(tokens, jnp.zeros((2, 4)))
    assert_close(actual, function(GAP, MASK, **FUNCTIONS[name]))


def test_a_missing_token_has_weight_one():
    sampler_BC = jnp.where(jnp.arange(4) == 1, jnp.nan, -1.0) * jnp.ones((2, 1))
    gap_BC = gap(jnp.full((2, 4), -0.9), sampler_BC, MASK)
    assert_close(gap_BC, [[0.1, 0, 0.1, 0]] * 2)
    weight_BC = off_policy.token_truncate(gap_BC, MASK)
    assert_close(weight_BC[:, 1], 1)


def test_who_has_strayed():
    logp_BC = jnp.asarray(GAP)  # means over tokens: 0, -0.0034
    tokens = Tokens(logp_BC, logp_BC, jnp.array([[-1.0], [-1.0]]), MASK)
    sampler_BC = jnp.full((2, 4), 0.3).at[0, 2].set(jnp.nan)
    # The missing one counts as 0: (0.3 - log 0.4 + 0.3) / 3 = 0.505
    strays = partial(strayed, tokens, sampler_BC)
    np.testing.assert_array_equal(strays(threshold=0.3)[:, 0], [True, True])
    np.testing.assert_array_equal(strays(threshold=0.4)[:, 0], [True, False])
    np.testing.assert_array_equal(strays(threshold=0.6)[:, 0], [False, False])
    liked = dataclasses.replace(tokens, advantage_BC=jnp.array([[0.0], [2.0]]))
    assert not strayed(liked, sampler_BC, threshold=-9.0).any()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 1e4]))
def test_weights_are_within_their_bounds(seed, scale):
    rng = np.random.default_rng(seed)
    gap_BC = jnp.asarray(scale * rng.normal(size=(3, 5)), jnp.float32)
    mask_BC = jnp.asarray(rng.random((3, 5)) < 0.6)
    for name, bounds in FUNCTIONS.items():
        weight_BC = getattr(off_policy, name)(gap_BC * mask_BC, mask_BC, **bounds)
        assert np.isfinite(weight_BC).all(), name
        if name != "geometric_mask":
            inside_BC = (weight_BC >= bounds["least"]) & (weight_BC <= bounds["most"])
            assert (inside_BC | (weight_BC == 0)).all(), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": None}, "set `weight`, `stray_threshold` or both"),
        ({"weight": None, "stray_threshold": 0.5, "most": 2.0}, "bound `weight`"),
        ({"weight": off_policy.geometric_mask}, "needs least"),
    ],
)
def test_what_makes_no_sense_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        OffPolicy(**wrong)
