"""The GRPO family: golden values, clipping, stop-gradients, aggregations, splits."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.losses import policy
from jaxloop.losses.objectives import Policy, TokenStats
from jaxloop.losses.reduce import values

assert_golden = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
# Two sequences. Checked against the loss code of TRL 1.16.0; k3 statistics by formula.
LOGP = np.array([[-1.0, -0.5, -2.0, 0.0], [-0.7, -1.2, -0.3, -0.9]], np.float32)
OLD = np.array([[-1.3, -0.5, -1.6, 0.0], [-0.7, -1.0, -0.8, -0.9]], np.float32)
REFERENCE = np.array([[-1.1, -0.6, -1.9, 0.0], [-0.8, -1.1, -0.4, -1.0]], np.float32)
MASK = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
ADVANTAGE = np.array([1.0, -0.5], np.float32)
ACTIVE = MASK > 0


def golden_batch():
    poison = {"old_logp_BC": OLD, "reference_logp_BC": REFERENCE}
    batch = {key: np.where(ACTIVE, x, np.nan) for key, x in poison.items()}
    batch |= {"mask_BC": MASK, "advantage_B": ADVANTAGE}
    return np.where(ACTIVE, LOGP, np.nan), jax.tree.map(jnp.asarray, batch)


def random_batch(seed=0, rows=4, tokens=6):
    rng = np.random.default_rng(seed)

    def draw():
        return rng.normal(-1, 0.4, (rows, tokens)).astype(np.float32)

    batch = {
        "mask_BC": np.arange(tokens) < rng.integers(0, tokens + 1, (rows, 1)),
        "advantage_B": rng.normal(size=rows).astype(np.float32),
        "old_logp_BC": draw(),
        "reference_logp_BC": draw(),
        "sampler_logp_BC": draw(),
        "valid_B": rng.random(rows) < 0.7,
    }
    return draw(), jax.tree.map(jnp.asarray, batch)


def stats_of(logp_BC):
    return TokenStats(logp_BC, -logp_BC, logp_BC, logp_BC)


@partial(jax.jit, static_argnums=0)
def evaluate(objective, logp_BC, batch, counts=None):
    """(loss, gradient in logp_BC, metric values)"""

    def loss(logp_BC):
        stats = stats_of(logp_BC)
        return objective(stats, batch, counts or objective.counts(batch))

    (value, metrics), gradient_BC = jax.value_and_grad(loss, has_aux=True)(logp_BC)
    return value, gradient_BC, values(metrics)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Policy(aggregation="sequence"), -0.199170923),
        (Policy(aggregation="token"), -0.090942005),
        (Policy(clip_high=0.28), -0.102370576),
        (Policy(aggregation="constant", max_completion_length=8), -0.039787127),
        (Policy(aggregation="sequence", kl=0.04), -0.198962613),
    ],
    ids=["grpo", "dapo", "dapo_clip_higher", "dr_grpo", "grpo_kl_bias_corrected"],
)
def test_golden(objective, expected):
    loss, gradient_BC, metrics = evaluate(objective, *golden_batch())
    assert_golden(loss, expected)
    assert np.isfinite(gradient_BC).all()
    if not objective.kl:
        np.testing.assert_allclose(metrics["policy_loss"], loss, rtol=1e-6)


def test_k3_golden_and_as_a_metric():
    k3_BC = policy.k3(jnp.asarray(LOGP), jnp.asarray(REFERENCE))
    assert_golden(k3_BC[ACTIVE].mean(), 0.004932704)
    weighted_BC = k3_BC * np.exp(LOGP - OLD)
    assert_golden(weighted_BC[ACTIVE].mean(), 0.005245343)
    metrics = evaluate(Policy(kl=0.1), *golden_batch())[2]
    assert_golden(metrics["kl"], 0.004932704)


def test_plain_kl_adds_its_token_mean():
    without = evaluate(Policy(), *golden_batch())[0]
    plain = evaluate(Policy(kl=0.5, kl_bias_correction=False), *golden_batch())[0]
    assert_golden(plain - without, 0.5 * 0.004932704)


def test_clipping_stops_the_gradient_and_is_counted():
    ratio_BC = np.array([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]])
    batch = {
        "mask_BC": jnp.ones((2, 3)),
        "advantage_B": jnp.array([1.0, -1.0]),
        "old_logp_BC": jnp.zeros((2, 3)),
    }
    logp_BC = jnp.asarray(np.log(ratio_BC), jnp.float32)
    _, gradient_BC, metrics = evaluate(Policy(clip_high=0.28), logp_BC, batch)
    # Stopped above 1.28 for A > 0 and below 0.8 for A < 0; the rest is -w A / n.
    expected_BC = -ratio_BC * [[1.0], [-1.0]] / 6
    expected_BC[0, 2] = expected_BC[1, 0] = 0
    np.testing.assert_allclose(gradient_BC, expected_BC, rtol=1e-6)
    expected = {
        "clip_ratio/low_mean": 1 / 6,
        "clip_ratio/high_mean": 1 / 6,
        "clip_ratio/region_mean": 2 / 6,
        "clip_ratio/low_min": 0.0,
        "clip_ratio/high_max": 1 / 3,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)


def test_on_policy_form_has_ratio_one_and_the_plain_gradient():
    logp_BC, batch = golden_batch()
    del batch["old_logp_BC"]
    loss, gradient_BC, metrics = evaluate(Policy(), logp_BC, batch)
    tokens = ACTIVE.sum()
    np.testing.assert_allclose(loss, -(3 * 1.0 - 4 * 0.5) / tokens, rtol=1e-6)
    expected_BC = np.where(ACTIVE, -ADVANTAGE[:, None] / tokens, 0)
    np.testing.assert_allclose(gradient_BC, expected_BC, rtol=1e-6)
    assert metrics["clip_ratio/region_mean"] == 0


def test_only_the_policy_gets_a_gradient():
    logp_BC, batch = random_batch()
    objective = Policy(kl=0.1)
    floats = {key: x for key, x in batch.items() if x.dtype == jnp.float32}

    def loss(floats):
        counts = objective.counts(batch)
        return objective(stats_of(logp_BC), batch | floats, counts)[0]

    for key, gradient in jax.jit(jax.grad(loss))(floats).items():
        np.testing.assert_array_equal(gradient, 0, err_msg=key)


@settings(max_examples=9, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["token", "sequence", "constant"]))
def test_micro_batches_add_up_to_the_step(seed, aggregation):
    logp_BC, batch = random_batch(seed)
    objective = Policy(aggregation=aggregation, kl=0.1)
    whole, whole_BC, _ = evaluate(objective, logp_BC, batch)
    counts = objective.counts(batch)
    loss, gradients = 0.0, []
    for i in range(4):
        part = jax.tree.map(lambda x, i=i: x[i : i + 1], batch)
        share, gradient_BC, _ = evaluate(objective, logp_BC[i : i + 1], part, counts)
        loss, gradients = loss + share, [*gradients, gradient_BC]
    np.testing.assert_allclose(loss, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.concatenate(gradients), whole_BC, rtol=1e-5, atol=1e-7
    )
    counted_BC = batch["mask_BC"] & batch["valid_B"][:, None]
    np.testing.assert_array_equal(np.where(counted_BC, 0, whole_BC), 0)
    assert np.isfinite(whole)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_invalid_rows_equal_rows_that_are_not_there(aggregation):
    logp_BC, batch = random_batch(1)
    batch["valid_B"] = jnp.array([True, False, True, False])
    batch["advantage_B"] = jnp.where(batch["valid_B"], batch["advantage_B"], jnp.nan)
    objective = Policy(aggregation=aggregation)
    loss, gradient_BC, metrics = evaluate(objective, logp_BC, batch)
    kept = jax.tree.map(lambda x: x[::2], batch)
    expected, kept_BC, kept_metrics = evaluate(objective, logp_BC[::2], kept)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient_BC[::2], kept_BC, rtol=1e-6)
    for name, value in kept_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("empty", ["mask_BC", "valid_B"])
def test_nothing_to_learn_from_gives_zero_loss_and_gradient(empty):
    logp_BC, batch = random_batch()
    batch[empty] = jnp.zeros_like(batch[empty])
    loss, gradient_BC, _ = evaluate(Policy(kl=0.1), logp_BC, batch)
    assert loss == 0
    np.testing.assert_array_equal(gradient_BC, 0)


@pytest.mark.parametrize("gap", [-1e4, 1e4])
def test_extreme_log_ratios_stay_finite(gap):
    logp_BC, batch = random_batch()
    batch["mask_BC"] = jnp.ones_like(batch["mask_BC"])
    batch["valid_B"] = jnp.ones(4)
    loss, gradient_BC, metrics = evaluate(Policy(kl=0.1), logp_BC + gap, batch)
    assert np.isfinite(loss)
    assert np.isfinite(gradient_BC).all()
    assert all(np.isfinite(value) for value in metrics.values())


def test_the_gap_to_the_sampler_is_measured_where_it_is_known():
    logp_BC, batch = golden_batch()
    sampler_BC = jnp.asarray(OLD - 0.1).at[1, 2].add(-0.4).at[0, 0].set(jnp.nan)
    metrics = evaluate(Policy(), logp_BC, batch | {"sampler_logp_BC": sampler_BC})[2]
    assert (
        "sampling/sampling_logp_difference/mean"
        not in evaluate(Policy(), logp_BC, batch)[2]
    )
    expected = {
        "sampling/sampling_logp_difference/mean": (5 * 0.1 + 0.5) / 6,
        "sampling/sampling_logp_difference/max": 0.5,
        "sampling/importance_sampling_ratio/min": np.exp(0.1),
        "sampling/importance_sampling_ratio/mean": (5 * np.exp(0.1) + np.exp(0.5)) / 6,
        "sampling/importance_sampling_ratio/max": np.exp(0.5),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_what_an_objective_asks_for():
    assert not Policy().needs_reference
    assert Policy(kl=0.01).needs_reference
    assert Policy().temperature_from_sampling


def test_all_that_makes_no_sense_is_named_at_once():
    with pytest.raises(ValueError, match=r"clip_low = -0.1 .*aggregation = mean"):
        dataclasses.replace(Policy(), clip_low=-0.1, aggregation="mean")
    logp_BC, batch = random_batch()
    for key, objective in (
        ("advantage_B", Policy()),
        ("reference_logp_BC", dataclasses.replace(Policy(), kl=0.1)),
    ):
        part = {name: x for name, x in batch.items() if name != key}
        with pytest.raises(ValueError, match=f"Policy needs '{key}'"):
            objective(stats_of(logp_BC), part, objective.counts(part))
