"""f-divergences: golden values of DPO with them, limits, shapes, extremes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.losses import divergence, preference
from tests.losses.pair_samples import SIGMOID, assert_golden, golden_pairs

ALL = (
    divergence.reverse_kl,
    divergence.forward_kl,
    divergence.js_divergence,
    divergence.alpha_divergence,
)
GOLDEN = (
    (SIGMOID, 0.584794),
    ([0.127523, 0.931563, 0.263081, 0.495906], 0.454518),
    ([0.557697, 0.773173, 0.579509, 0.613917], 0.631074),
    ([0.364099, 0.877544, 0.432305, 0.521588], 0.548884),
)
names = {"ids": lambda x: getattr(x, "__name__", "")}


@pytest.mark.parametrize(
    ("transform", "expected"), [*zip(ALL, GOLDEN, strict=True)], **names
)
def test_golden(transform, expected):
    loss_P, _ = preference.sigmoid(golden_pairs(), beta=0.1, divergence=transform)
    assert_golden(loss_P, expected[0])
    assert_golden(loss_P.mean(), expected[1])


@pytest.mark.parametrize("transform", ALL, **names)
def test_nothing_at_the_reference_with_slope_by_the_family(transform):
    """g(0) = 0; g'(0) = 1, but 1/2 for Jensen-Shannon; g never falls."""
    value, slope = jax.value_and_grad(transform)(0.0)
    half = transform is divergence.js_divergence
    np.testing.assert_allclose(value, 0, atol=1e-7)
    np.testing.assert_allclose(slope, 0.5 if half else 1.0, rtol=1e-6)
    h = jnp.linspace(-5, 5, 41)
    assert (np.diff(transform(h)) > 0).all()


@pytest.mark.parametrize("transform", ALL, **names)
def test_gradients_by_finite_differences(transform):
    with jax.enable_x64(True):
        h, step = jnp.linspace(-6.0, 6.0, 13), 1e-6
        slope = jax.vmap(jax.grad(transform))(h)
        found = (transform(h + step) - transform(h - step)) / (2 * step)
        np.testing.assert_allclose(slope, found, rtol=1e-6)


@pytest.mark.parametrize("transform", ALL, **names)
def test_extremes_stay_finite_even_squared(transform):
    h = jnp.array([-1e4, -100.0, -41.0, 100.0, 1e4])
    slope, value = jax.grad(lambda h: (transform(h) ** 2).sum())(h), transform(h)
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()


def test_the_alpha_family_ends_in_both_kls():
    h = jnp.linspace(-3, 3, 13)

    def of(alpha):
        return functools.partial(divergence.alpha_divergence, alpha=alpha)(h)

    np.testing.assert_allclose(of(1.0), h)
    np.testing.assert_allclose(of(1.0 - 1e-4), h, atol=1e-3)
    np.testing.assert_allclose(of(0.0), divergence.forward_kl(h), rtol=1e-6)
