"""Estimators of the KL: golden values, expectations, gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.losses import kl
from tests.losses.policy_samples import ACTIVE, LOGP, OLD, REFERENCE

assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
ESTIMATORS = [kl.k1, kl.k2, kl.k3, kl.k3_straight]


def test_golden():
    for estimator in (kl.k3, kl.k3_straight):
        k3_BC = estimator(jnp.asarray(LOGP), jnp.asarray(REFERENCE))
        assert_close(k3_BC[ACTIVE].mean(), 0.004932704)
        weighted_BC = k3_BC * np.exp(LOGP - OLD)
        assert_close(weighted_BC[ACTIVE].mean(), 0.005245343)


@pytest.fixture(scope="module")
def two():
    """Logits of a policy over five tokens, log-probabilities of a reference."""
    rng = np.random.default_rng(0)
    logits_V = jnp.asarray(rng.normal(size=5), jnp.float32)
    return logits_V, jax.nn.log_softmax(jnp.asarray(rng.normal(size=5), jnp.float32))


def expectation(estimator, logits_V, reference_V, corrected=False):
    """Over the policy's own samples, the ratio with its gradient if corrected."""
    logp_V = jax.nn.log_softmax(logits_V)
    estimate_V = estimator(logp_V, reference_V)
    if corrected:
        estimate_V = estimate_V * jnp.exp(logp_V - jax.lax.stop_gradient(logp_V))
    return (jax.lax.stop_gradient(jnp.exp(logp_V)) * estimate_V).sum()


def exact(logits_V, reference_V):
    logp_V = jax.nn.log_softmax(logits_V)
    return (jnp.exp(logp_V) * (logp_V - reference_V)).sum()


def test_k1_and_k3_are_unbiased(two):
    for estimator in (kl.k1, kl.k3, kl.k3_straight):
        assert_close(expectation(estimator, *two), exact(*two))
    assert abs(expectation(kl.k2, *two) - exact(*two)) > 1e-3


def test_expected_gradients_are_those_that_the_docstring_names(two):
    slope = partial(jax.grad, argnums=1)(expectation)
    right_V = jax.grad(exact)(*two)
    other_V = jax.grad(lambda x, y: (jnp.exp(y) * (y - jax.nn.log_softmax(x))).sum())(
        *two
    )
    assert_close(slope(kl.k1, *two), np.zeros(5))
    assert_close(slope(kl.k2, *two), right_V)
    assert_close(slope(kl.k3_straight, *two), right_V)
    assert_close(slope(kl.k3, *two), other_V)
    for estimator in (kl.k1, kl.k3):
        assert_close(slope(estimator, *two, corrected=True), right_V)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_extremes_are_finite_and_the_reference_gets_no_gradient(estimator):
    gap = jnp.array([-1e4, -21.0, 0.0, 21.0, 1e4])
    value, slopes = jax.value_and_grad(lambda *x: estimator(*x).sum(), argnums=(0, 1))(
        gap, jnp.zeros(5)
    )
    assert np.isfinite(value)
    assert np.isfinite(slopes[0]).all()
    np.testing.assert_array_equal(slopes[1], 0)
    if estimator is not kl.k1:
        assert (estimator(gap, jnp.zeros(5)) >= 0).all()
    assert estimator(gap, gap).max() == 0


def test_in_the_reward_it_is_minus_beta_times_the_log_ratio():
    old_BC = jnp.where(ACTIVE, OLD, jnp.nan)
    reward_BC = kl.in_reward(old_BC, jnp.asarray(REFERENCE), ACTIVE, weight=0.05)
    expected_B = -0.05 * np.where(ACTIVE, OLD - REFERENCE, 0).sum(1)
    assert_close(reward_BC.sum(1), expected_B)
    assert reward_BC[0, 3] == 0
