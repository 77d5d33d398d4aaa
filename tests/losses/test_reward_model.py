"""Reward models: formulas by hand, where outputs are read, masks, metrics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.losses import reward_model
from jaxloop.losses.objective import stats_of
from jaxloop.losses.reduce import values
from jaxloop.losses.reward_model import RewardModel

EVERY = {
    "bradley_terry": RewardModel(),
    "margin": RewardModel(reward_model.bradley_terry_margin, centring=0.05),
    "regression": RewardModel(reward_model.regression),
    "ordinal": RewardModel(reward_model.ordinal),
    "process": RewardModel(reward_model.process),
}


def random_batch(seed=0, rows=8, tokens=5, scale=1.0, dtype=np.float32):
    """(head_BEK, batch); NaN in what must not be read."""
    rng = np.random.default_rng(seed)
    length_B = rng.integers(0, tokens + 1, rows)
    mask_BC = np.arange(tokens) < length_B[:, None]
    valid_B = rng.random(rows) < 0.8
    read_BE = np.arange(tokens + 1) <= length_B[:, None]
    head_BEK = rng.normal(0, scale, (rows, tokens + 1, 3))
    head_BEK = np.where((read_BE & valid_B[:, None])[:, :, None], head_BEK, np.nan)
    step_BC = rng.choice([0, 0.25, 1, np.nan], (rows, tokens))
    target_B = np.where(rng.random(rows) < 0.2, np.nan, rng.integers(0, 4, rows))
    batch = {
        "mask_BC": mask_BC,
        "valid_B": valid_B,
        "weight_B": np.repeat(rng.uniform(0.5, 1, rows // 2), 2).astype(dtype),
        "margin_B": np.repeat(rng.uniform(0, 1, rows // 2), 2).astype(dtype),
        "target_B": target_B.astype(dtype),
        "step_BC": step_BC.astype(dtype),
    }
    return jnp.asarray(head_BEK.astype(dtype)), jax.tree.map(jnp.asarray, batch)


@partial(jax.jit, static_argnums=0)
def evaluate(objective, head_BEK, batch, counts=None):
    def loss(head_BEK):
        zeros_BC = jnp.zeros(batch["mask_BC"].shape)
        stats = stats_of(zeros_BC).replace(head_BEK=head_BEK)
        counted = objective.counts(batch) if counts is None else counts
        return objective(stats, batch, counted)

    (value, metrics), gradient_BEK = jax.value_and_grad(loss, has_aux=True)(head_BEK)
    return value, gradient_BEK, values(metrics)


def log_sigmoid(x):
    return -np.log1p(np.exp(-np.asarray(x, np.float64)))


def test_bradley_terry_by_hand():
    reward_P2 = jnp.array([[2.0, -1.0], [0.5, 1.5]])
    loss_P, metrics = reward_model.bradley_terry_margin(
        reward_P2, margin_P=jnp.array([1.0, 0.0]), centring=0.01
    )
    expected = -log_sigmoid([2.0, -1.0]) + 0.01 * np.array([1.0, 4.0])
    np.testing.assert_allclose(loss_P, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], [1, 0])
    equal_P, _ = reward_model.bradley_terry(jnp.ones((1, 2)))
    np.testing.assert_allclose(equal_P, np.log(2), rtol=1e-6)


def test_regression_ordinal_and_process_by_hand():
    output_BK = jnp.array([[0.3, -0.2, 1.0], [2.0, 0.5, -4.0]])
    loss_B, _ = reward_model.regression(output_BK, target_B=jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(loss_B, [0.49, 9.0], rtol=1e-6)
    loss_B, metrics = reward_model.ordinal(output_BK, target_B=jnp.array([0.0, 2.0]))
    by_hand = -log_sigmoid([[-0.3, 0.2, -1.0], [2.0, 0.5, 4.0]]).sum(1)
    np.testing.assert_allclose(loss_B, by_hand, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], [0, 1])
    expected_grade = np.exp(log_sigmoid(output_BK)).sum(1)
    np.testing.assert_allclose(metrics["reward"], expected_grade, rtol=1e-6)
    step_BC = jnp.array([[1.0, 0.25, 0.0]])
    logit_BCK = jnp.array([[0.7, -0.4, 1.2]])[:, :, None]
    loss_BC, metrics = reward_model.process(logit_BCK, step_BC=step_BC)
    by_hand = -log_sigmoid([0.7, -0.4, -1.2])
    by_hand[1] = -0.25 * log_sigmoid(-0.4) - 0.75 * log_sigmoid(0.4)
    np.testing.assert_allclose(loss_BC[0], by_hand, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], [[1, 1, 0]])


def test_an_ordinal_head_is_best_at_the_grade():
    """Far out in the right signs the loss vanishes, for every grade."""
    for grade in range(4):
        output_BK = jnp.where(jnp.arange(3) < grade, 20.0, -20.0)[None]
        loss_B, metrics = reward_model.ordinal(output_BK, target_B=jnp.array([grade]))
        np.testing.assert_allclose(loss_B, 0, atol=1e-7)
        np.testing.assert_allclose(metrics["reward"], grade, atol=1e-6)


def test_rewards_are_read_after_the_last_token_that_counts():
    mask_BC = jnp.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 1]]) > 0
    head_BEK = jnp.arange(16.0).reshape(4, 4, 1)
    output_BK = reward_model.last_outputs(head_BEK, mask_BC)
    np.testing.assert_array_equal(output_BK[:, 0], [2, 7, 8, 15])


def test_a_batch_of_pairs_by_hand():
    head_BEK, batch = random_batch(5)
    valid_P = np.asarray(batch["valid_B"]).reshape(-1, 2).all(1)
    assert 0 < valid_P.sum() < 4
    last_B = np.asarray(batch["mask_BC"]).sum(1)
    reward_P2 = np.asarray(head_BEK)[np.arange(8), last_B, 0].reshape(-1, 2)
    margin_P, weight_P = (
        np.asarray(batch[key])[::2] for key in ("margin_B", "weight_B")
    )
    gap_P = reward_P2[:, 0] - reward_P2[:, 1]
    loss_P = -log_sigmoid(gap_P - margin_P) + 0.05 * reward_P2.sum(1) ** 2
    loss, gradient_BEK, metrics = evaluate(EVERY["margin"], head_BEK, batch)
    expected = (weight_P * loss_P)[valid_P].sum() / valid_P.sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    shown = {
        "min_reward": reward_P2[valid_P].min(),
        "mean_reward": reward_P2[valid_P].mean(),
        "max_reward": reward_P2[valid_P].max(),
        "accuracy": (gap_P > 0)[valid_P].mean(),
        "margin": gap_P[valid_P].mean(),
    }
    assert set(metrics) == set(shown)
    for name, value in shown.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    read_BE = np.arange(6) == last_B[:, None]
    read_BE &= np.repeat(valid_P, 2)[:, None]
    np.testing.assert_array_equal(gradient_BEK[~read_BE], 0)
    assert (gradient_BEK[read_BE][:, 0] != 0).all()
    without = jnp.zeros(8)
    zero = evaluate(EVERY["margin"], head_BEK, batch | {"margin_B": without})[0]
    plain = evaluate(RewardModel(centring=0.05), head_BEK, batch)[0]
    np.testing.assert_allclose(plain, zero, rtol=1e-6)
    assert plain < loss


def test_labels_of_nan_are_left_out_of_the_mean():
    head_BEK, batch = random_batch(1)
    scored = batch["valid_B"] & jnp.isfinite(batch["target_B"])
    assert EVERY["regression"].counts(batch)["entries"] == scored.sum()
    steps_BC = batch["mask_BC"] & batch["valid_B"][:, None]
    steps_BC &= jnp.isfinite(batch["step_BC"])
    assert EVERY["process"].counts(batch)["entries"] == steps_BC.sum()
    loss, gradient_BEK, _ = evaluate(EVERY["process"], head_BEK, batch)
    np.testing.assert_array_equal(gradient_BEK[:, 1:, 0][~steps_BC], 0)
    np.testing.assert_array_equal(gradient_BEK[:, 0], 0)
    logit_BC = np.asarray(head_BEK)[:, 1:, 0][steps_BC]
    label_BC = np.asarray(batch["step_BC"])[steps_BC]
    weight_BC = np.broadcast_to(batch["weight_B"][:, None], steps_BC.shape)[steps_BC]
    by_hand = -label_BC * log_sigmoid(logit_BC)
    by_hand -= (1 - label_BC) * log_sigmoid(-logit_BC)
    np.testing.assert_allclose(loss, (weight_BC * by_hand).mean(), rtol=1e-5)


def test_gradients_by_finite_differences_in_float64():
    for name, objective in EVERY.items():
        with jax.enable_x64(True):
            head_BEK, batch = random_batch(5, dtype=np.float64)
            rng = np.random.default_rng(0)
            direction_BEK = rng.normal(size=head_BEK.shape)
            step = jnp.asarray(1e-6 * direction_BEK)
            _, gradient_BEK, _ = evaluate(objective, head_BEK, batch)
            above = evaluate(objective, head_BEK + step, batch)[0]
            below = evaluate(objective, head_BEK - step, batch)[0]
            found, slope_BEK = jax.device_get(((above - below) / 2e-6, gradient_BEK))
        slope = (slope_BEK * direction_BEK).sum()
        np.testing.assert_allclose(slope, found, rtol=1e-6, err_msg=name)
        assert slope != 0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1e-3, 1.0, 1e4]),
    st.sampled_from(sorted(EVERY)),
)
def test_no_nan_whatever_the_masks_and_magnitudes(seed, scale, name):
    head_BEK, batch = random_batch(seed, scale=scale)
    loss, gradient_BEK, _ = evaluate(EVERY[name], head_BEK, batch)
    assert np.isfinite(loss)
    assert np.isfinite(gradient_BEK).all()
    np.testing.assert_array_equal(gradient_BEK[np.isnan(head_BEK)], 0)


@pytest.mark.parametrize("name", EVERY)
def test_micro_batches_add_up_and_pairs_may_be_permuted(name):
    head_BEK, batch = random_batch(7)
    objective = EVERY[name]
    loss, gradient_BEK, _ = evaluate(objective, head_BEK, batch)
    counts, total, gradients = objective.counts(batch), 0.0, []
    for rows in (np.arange(4), np.arange(4, 8)):
        part = jax.tree.map(lambda x, rows=rows: x[rows], batch)
        share, part_BEK, _ = evaluate(objective, head_BEK[rows], part, counts)
        total, gradients = total + share, [*gradients, part_BEK]
    np.testing.assert_allclose(total, loss, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate(gradients), gradient_BEK, rtol=1e-5)
    order = np.array([4, 5, 0, 1, 6, 7, 2, 3])
    moved = jax.tree.map(lambda x: x[order], batch)
    same, moved_BEK, _ = evaluate(objective, head_BEK[order], moved)
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    np.testing.assert_allclose(moved_BEK, gradient_BEK[order], rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_valid_gives_nothing(name):
    head_BEK, batch = random_batch(7)
    batch["valid_B"] = jnp.zeros(8, bool)
    loss, gradient_BEK, metrics = evaluate(EVERY[name], head_BEK, batch)
    assert loss == 0
    np.testing.assert_array_equal(gradient_BEK, 0)
    assert np.isnan(metrics["mean_reward"])


def test_a_loss_of_one_s_own_says_by_its_argument_what_it_looks_at():
    def shortfall(output_BK, *, target_B):
        return jax.nn.relu(target_B - output_BK[:, 1]), {}

    head_BEK, batch = random_batch(1)
    objective = RewardModel(shortfall)
    loss, gradient_BEK, metrics = evaluate(objective, head_BEK, batch)
    assert np.isfinite(loss)
    assert not metrics
    assert (gradient_BEK[:, :, 1] != 0).any()
    assert (gradient_BEK[:, :, [0, 2]] == 0).all()


def test_what_makes_no_sense_is_named():
    _, batch = random_batch()
    objective = RewardModel()
    assert objective.needs == {"head"}
    assert objective.trains_on == "pairs"
    assert EVERY["process"].trains_on == "labelled"
    with pytest.raises(ValueError, match="centring must not be negative"):
        RewardModel(centring=-1.0)
    with pytest.raises(ValueError, match="regression has no use for centring"):
        RewardModel(reward_model.regression, centring=0.1)
    with pytest.raises(ValueError, match=r"first argument of .* is 'x'"):
        RewardModel(lambda x: (x, {}))
    with pytest.raises(ValueError, match="3 rows"):
        objective.counts({"mask_BC": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="scalar head"):
        objective(stats_of(jnp.zeros((8, 5))), batch, objective.counts(batch))
    for name, key in (("regression", "target_B"), ("process", "step_BC")):
        lacking = {k: x for k, x in batch.items() if k != key}
        with pytest.raises(ValueError, match=f"RewardModel needs '{key}'"):
            EVERY[name].counts(lacking)
