"""Supervised training: a weighted token mean over the whole step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.losses import sft
from jaxloop.losses.objective import stats_of
from jaxloop.losses.objectives import Supervised
from jaxloop.losses.reduce import values


def run(objective, logp_BC, batch, counts=None):
    counts = objective.counts(batch) if counts is None else counts
    stats = stats_of(jnp.asarray(logp_BC))
    return objective(stats, batch, counts)


def test_golden_token_mean():
    """Four completions with one log-probability a token; from TRL 1.16.0's sft loss."""
    tokens_B = np.array([20, 30, 8, 40])
    logp_B = np.array([-40.0, -55.5, -12.25, -80.0]) / tokens_B
    mask_BC = jnp.arange(40) < tokens_B[:, None]
    logp_BC = jnp.where(mask_BC, jnp.asarray(logp_B, jnp.float32)[:, None], jnp.nan)
    halves = jnp.full_like(logp_BC, 0.5)
    stats = stats_of(logp_BC, entropy_BC=halves, hit_BC=jnp.ones_like(logp_BC))
    objective, batch = Supervised(), {"mask_BC": mask_BC}
    loss, metrics = objective(stats, batch, objective.counts(batch))
    np.testing.assert_allclose(loss, 1.915816, rtol=1e-5, atol=1e-6)
    assert values(metrics) == {"entropy": 0.5, "mean_token_accuracy": 1.0}


def test_micro_batches_of_unequal_length_add_up_to_the_step():
    objective = Supervised()
    logp_BC = -jnp.arange(1.0, 7.0).reshape(2, 3)
    batch = {
        "mask_BC": jnp.array([[1, 1, 1], [1, 0, 0]]),
        "weight_B": jnp.array([1.0, 0.5]),
    }
    counts = objective.counts(batch)
    assert counts == {"tokens": 4.0}
    whole, _ = run(objective, logp_BC, batch)
    assert whole == (1 + 2 + 3 + 0.5 * 4) / 4
    parts = 0.0
    for i in range(2):
        part = {key: x[i : i + 1] for key, x in batch.items()}
        parts += run(objective, logp_BC[i : i + 1], part, counts)[0]
    assert parts == whole


def test_a_step_without_tokens_is_zero():
    for batch in (
        {"mask_BC": jnp.ones((2, 3)), "valid_B": jnp.zeros(2)},
        {"mask_BC": jnp.zeros((2, 3))},
        {"mask_BC": jnp.zeros((2, 0))},
    ):
        logp_BC = jnp.full(batch["mask_BC"].shape, jnp.nan)
        assert Supervised().counts(batch) == {"tokens": 0.0}
        loss, slope = jax.value_and_grad(
            lambda x, batch=batch: run(Supervised(), x, batch)[0]
        )(logp_BC)
        assert loss == 0
        assert not np.asarray(slope).any()


def test_weights_of_sequences_and_tokens_multiply():
    logp_BC = -jnp.ones((2, 2))
    batch = {
        "mask_BC": jnp.ones((2, 2)),
        "weight_B": jnp.array([1.0, 10.0]),
        "weight_BC": jnp.array([[1.0, 2.0], [3.0, 0.0]]),
    }
    assert run(Supervised(), logp_BC, batch)[0] == (1 + 2 + 30 + 0) / 4


def test_negative_weights_avoid():
    p = 0.75
    batch = {"mask_BC": jnp.ones((1, 2)), "weight_BC": jnp.array([[1.0, -2.0]])}
    objective = Supervised(sft.dft)
    loss, slope = jax.value_and_grad(lambda x: run(objective, x, batch)[0])(
        jnp.full((1, 2), np.log(p))
    )
    expected = (-p * np.log(p) - 2 * np.log(1 - p)) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, [[-p / 2, p / (1 - p)]], rtol=1e-5)


def test_a_loss_of_ones_own_and_another_way_to_avoid():
    def squared(logp_BC):
        return logp_BC**2

    batch = {"mask_BC": jnp.ones((1, 2)), "weight_B": -jnp.ones(1)}
    objective = Supervised(negative=squared)
    assert run(objective, -3 * jnp.ones((1, 2)), batch)[0] == 9
    objective = Supervised(squared)
    assert run(objective, -3 * jnp.ones((1, 2)), {"mask_BC": jnp.ones((1, 2))})[0] == 9


def test_repeats_are_held_to_their_last_probability():
    """a b | a b a b: token 2 repeats 0, 3 repeats 1, and so on; row 1 has none. What
    repeats a token that was not scored adds nothing, but is a repeat."""
    p_BC = np.array([[0.5, 0.6, 0.9, 0.2, 0.8, 0.3]] * 2)
    batch = {
        "mask_BC": jnp.ones((2, 6)).at[0, 1].set(0),
        "repeat_BC": jnp.array([[0, 0, 2, 2, 2, 2], [0] * 6]),
    }
    loss, metrics = run(Supervised(decay=0.5), jnp.log(p_BC), batch)
    before, now = np.array([0.5, 0.9, 0.2]), np.array([0.9, 0.8, 0.3])
    held = -np.log1p(-np.maximum(now - 0.5 * before, 0)).sum()
    expected = (held - np.log(0.5) - np.log(p_BC[1]).sum()) / 11
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    figure = values(metrics)["repeats/probability"]
    np.testing.assert_allclose(figure, (0.9 + 0.2 + 0.8 + 0.3) / 4, rtol=1e-6)


def test_a_repeat_of_what_is_not_in_the_row_adds_nothing():
    batch = {"mask_BC": jnp.ones((1, 3)), "repeat_BC": jnp.array([[1, 5, 0]])}
    loss, _ = run(Supervised(), -jnp.ones((1, 3)), batch)
    np.testing.assert_allclose(loss, 1 / 3)


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_a_decay_is_a_part(decay):
    with pytest.raises(ValueError, match=f"decay must be in .0, 1., got {decay}"):
        Supervised(decay=decay)


CASES = st.tuples(
    st.integers(0, 2**31),
    st.sampled_from([(1, 1), (2, 5), (4, 3)]),
    st.sampled_from([1e-3, 1.0, 100.0, 1e4]),
    st.sampled_from([sft.nll, sft.dft, sft.unlikelihood]),
)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(case=CASES)
def test_random_batches(case):
    """Finite, still where masked, the same in any order and in any parts."""
    seed, (B, C), scale, loss = case
    rng, objective = np.random.default_rng(seed), Supervised(loss)
    mask_BC = rng.random((B, C)) < 0.6
    logp_BC = -scale * rng.random((B, C)).astype(np.float32)
    logp_BC = jnp.where(mask_BC, logp_BC, rng.choice([np.nan, np.inf, -np.inf]))
    batch = {
        "mask_BC": mask_BC,
        "valid_B": rng.random(B) < 0.8,
        "weight_B": rng.random(B).astype(np.float32),
        "weight_BC": rng.normal(size=(B, C)).astype(np.float32),
        "repeat_BC": rng.integers(0, 3, (B, C)).astype(np.int32),
    }
    counts = objective.counts(batch)
    whole, slope_BC = value_and_grad(objective, logp_BC, batch, counts)
    assert np.isfinite(whole)
    assert np.isfinite(slope_BC).all()
    active_BC = mask_BC & batch["valid_B"][:, None]
    assert not np.asarray(slope_BC)[~active_BC].any()

    def total(rows):
        part = {key: x[rows] for key, x in batch.items()}
        return value_and_grad(objective, logp_BC[rows], part, counts)[0]

    moved, parts = total(rng.permutation(B)), [total(np.array([i])) for i in range(B)]
    np.testing.assert_allclose(moved, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5, atol=1e-6)


@partial(jax.jit, static_argnums=0)
def value_and_grad(objective, logp_BC, batch, counts):
    return jax.value_and_grad(lambda x: run(objective, x, batch, counts)[0])(logp_BC)
