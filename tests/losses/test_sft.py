"""Token losses of supervised training: values, gradients, extremes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxloop.losses import sft

EARLIER = -0.7
LOSSES = {
    "nll": sft.nll,
    "dft": sft.dft,
    "unlikelihood": sft.unlikelihood,
    "anti_repetition": lambda logp: sft.anti_repetition(
        logp, jnp.full_like(logp, EARLIER), decay=0.5
    ),
}
all_losses = pytest.mark.parametrize("name", LOSSES)
P = np.array([0.999, 0.9, 0.5, 0.3, 0.2, 1e-3, 1e-8])


def test_values_are_those_of_the_formulas():
    logp = jnp.log(jnp.asarray(P, jnp.float32))
    close = partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-7)
    close(sft.nll(logp), -np.log(P))
    close(sft.dft(logp), -P * np.log(P))
    close(sft.unlikelihood(logp), -np.log1p(-P))
    excess = np.maximum(P - 0.5 * np.exp(EARLIER), 0)
    close(LOSSES["anti_repetition"](logp), -np.log1p(-excess))


@all_losses
def test_gradients_by_finite_differences(name):
    """DFT's factor has no gradient: it is held while the log-probability moves."""
    with jax.enable_x64(True):
        logp = jnp.log(jnp.asarray(P))
        loss = LOSSES[name]
        if name == "dft":
            slope = jax.vmap(jax.grad(loss))(logp)
            np.testing.assert_allclose(slope, -P, rtol=1e-12)
        else:
            check_grads(loss, (logp,), 1, ["rev"], eps=1e-7, rtol=1e-5, atol=1e-5)


def test_what_the_repeat_before_said_is_given():
    def loss(earlier):
        return sft.anti_repetition(jnp.float32(-0.1), earlier, decay=0.5)

    assert jax.grad(loss)(jnp.float32(-0.7)) == 0


@pytest.mark.parametrize(
    ("p", "pushed"), [(0.9, True), (0.26, True), (0.24, False), (0.01, False)]
)
def test_a_repeat_below_its_share_is_left_alone(p, pushed):
    loss = partial(sft.anti_repetition, earlier_logp_BC=jnp.log(0.5), decay=0.5)
    value, slope = jax.value_and_grad(loss)(jnp.log(p))
    assert (value > 0) == (slope > 0) == pushed


def test_pushing_down_what_is_certain_stays_finite_and_bounded():
    for name in ("unlikelihood", "anti_repetition"):
        for logp in (0.0, -1e-9, -1e-6, -1e-5):
            value, slope = jax.value_and_grad(LOSSES[name])(jnp.float32(logp))
            assert np.isfinite(value)
            assert np.isfinite(slope)
            assert 0 < value < 15


@all_losses
@settings(deadline=None, max_examples=25, derandomize=True)
@given(logp=st.lists(st.floats(-1e4, 0, width=32), min_size=3, max_size=3))
def test_never_nan_nor_infinite(name, logp):
    logp_1C = jnp.asarray([logp], jnp.float32)
    loss_1C = LOSSES[name](logp_1C)
    assert loss_1C.shape == logp_1C.shape
    assert np.isfinite(loss_1C).all()
    assert (np.asarray(loss_1C) >= 0).all()
    slope_1C = jax.grad(lambda x: LOSSES[name](x).sum())(logp_1C)
    assert np.isfinite(slope_1C).all()
    # Imitation never pushes down, avoidance never up.
    sign = -1 if name in ("nll", "dft") else 1
    assert (sign * np.asarray(slope_1C) >= 0).all()
