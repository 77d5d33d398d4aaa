"""Schedules, stochastic rounding and the dtypes of the optimiser's state."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.training.optimizer import (
    Optimizer,
    is_decayed,
    learning_rate,
    make_optimizer,
    stochastic_round,
)

RATE = Optimizer(learning_rate=1.0, warmup=4, final_fraction=0.1)


def rates(schedule: str, total: int = 24) -> np.ndarray:
    optimizer = replace(RATE, schedule=schedule)
    return np.array([learning_rate(optimizer, step, total) for step in range(total)])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_rises_to_the_peak(schedule):
    np.testing.assert_allclose(rates(schedule)[:5], [0.25, 0.5, 0.75, 1.0, 1.0])


def test_linear_and_cosine_fall_to_their_floor():
    linear, cosine = rates("linear"), rates("cosine")
    assert (np.diff(linear[4:]) < 0).all()
    assert (np.diff(cosine[4:]) < 0).all()
    np.testing.assert_allclose(np.diff(linear[5:]), -0.9 / 20)
    middle = 4 + 10
    np.testing.assert_allclose([linear[middle], cosine[middle]], 0.55)
    for schedule in ("linear", "cosine"):
        end = learning_rate(replace(RATE, schedule=schedule), 24, 24)
        np.testing.assert_allclose(end, 0.1)
    assert (rates("constant")[4:] == 1).all()


def test_stochastic_rounding_is_right_on_average():
    x = jnp.full(200_000, 1.0 + 1 / 512, jnp.float32)  # a quarter of bfloat16's step
    rounded = stochastic_round(x, jnp.dtype("bfloat16"), jax.random.key(0))
    values = np.asarray(rounded, np.float32)
    assert set(np.unique(values)) == {np.float32(1.0), np.float32(1.0 + 1 / 128)}
    # Four standard errors of a fraction of 1/4 in 200,000 draws.
    assert abs((values > 1).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 200_000)


def test_stochastic_rounding_keeps_what_is_exact_and_what_is_not_finite():
    x = jnp.array([0.0, -0.0, 1.5, -3.0, jnp.inf, -jnp.inf], jnp.float32)
    for seed in range(5):
        rounded = stochastic_round(x, jnp.dtype("bfloat16"), jax.random.key(seed))
        assert (np.asarray(rounded, np.float32) == np.asarray(x)).all()
    nan = stochastic_round(
        jnp.array([jnp.nan]), jnp.dtype("bfloat16"), jax.random.key(0)
    )
    assert np.isnan(np.asarray(nan, np.float32)).all()


def test_names_decide_what_is_decayed():
    params = {"attn_norm_D": 1.0, "attn": {"q_bias_NH": 1.0, "q_DNH": 1.0}}
    assert is_decayed(params) == {
        "attn_norm_D": False,
        "attn": {"q_bias_NH": False, "q_DNH": True},
    }


def test_the_state_rests_in_the_dtype_asked_for():
    params = {"w_DF": jnp.ones((4, 4), jnp.bfloat16)}
    grads = {"w_DF": jnp.full((4, 4), 0.1, jnp.bfloat16)}
    tx = make_optimizer(Optimizer(state_dtype="bfloat16"))
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(grads, state, params)
    floats = [
        x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    assert {str(x.dtype) for x in floats} == {"bfloat16"}
    assert any((np.asarray(x, np.float32) != 0).all() for x in floats)
