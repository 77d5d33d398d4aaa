"""DPO and what is built on it: golden values, identities, masks, splits."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.losses import preference
from jaxloop.losses.objectives import Pairwise, TokenStats
from jaxloop.losses.reduce import values

assert_golden = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
# Four pairs; checked against the loss code of TRL 1.16.0.
CHOSEN = [-40.0, -55.5, -12.25, -80.0]
REJECTED = [-48.0, -50.25, -20.5, -79.0]
REFERENCE_CHOSEN = [-42.0, -54.0, -14.0, -83.0]
REFERENCE_REJECTED = [-45.0, -52.0, -18.0, -77.5]
CHOSEN_TOKENS, REJECTED_TOKENS = [20, 30, 8, 40], [25, 28, 10, 36]
SIGMOID = [0.474077, 0.868793, 0.503057, 0.493249]


def by_turns(chosen, rejected):
    return np.stack([chosen, rejected], axis=1).reshape(-1, *np.shape(chosen)[1:])


def golden_batch():
    """The golden pairs as token arrays: every token of a sequence has its mean logp."""
    tokens_B = by_turns(CHOSEN_TOKENS, REJECTED_TOKENS)
    mask_BC = np.arange(40) < tokens_B[:, None]
    policy_B = by_turns(CHOSEN, REJECTED) / tokens_B
    reference_B = by_turns(REFERENCE_CHOSEN, REFERENCE_REJECTED) / tokens_B
    # What is masked must not matter: poison it.
    logp_BC = np.where(mask_BC, policy_B[:, None], np.nan).astype(np.float32)
    reference_BC = np.where(mask_BC, reference_B[:, None], np.nan).astype(np.float32)
    batch = {"mask_BC": mask_BC, "reference_logp_BC": reference_BC}
    return stats_of(logp_BC), jax.tree.map(jnp.asarray, batch)


def stats_of(logp_BC):
    logp_BC = jnp.asarray(logp_BC)
    return TokenStats(logp_BC, -logp_BC, (logp_BC > -1.0) * 1.0, 2 * logp_BC)


def random_batch(seed=0, pairs=4, tokens=6):
    rng = np.random.default_rng(seed)
    shape = (2 * pairs, tokens)
    length_B1 = rng.integers(0, tokens + 1, (2 * pairs, 1))
    batch = {
        "mask_BC": np.arange(tokens) < length_B1,
        "reference_logp_BC": rng.normal(-1, 0.5, shape).astype(np.float32),
        "weight_B": np.repeat(rng.uniform(0.1, 1, pairs), 2).astype(np.float32),
        "valid_B": np.repeat(rng.random(pairs) < 0.7, 2),
    }
    logp_BC = rng.normal(-1, 0.5, shape).astype(np.float32)
    return logp_BC, jax.tree.map(jnp.asarray, batch)


@partial(jax.jit, static_argnums=0)
def evaluate(objective, logp_BC, batch, counts=None):
    """(loss, gradient in logp_BC, metric values)"""

    def loss(logp_BC):
        stats = stats_of(logp_BC)
        return objective(stats, batch, counts or objective.counts(batch))

    (value, metrics), gradient_BC = jax.value_and_grad(loss, has_aux=True)(logp_BC)
    return value, gradient_BC, values(metrics)


def test_sigmoid_golden():
    pairs = preference.Pairs(
        policy_P2=jnp.array([CHOSEN, REJECTED]).T,
        reference_P2=jnp.array([REFERENCE_CHOSEN, REFERENCE_REJECTED]).T,
        tokens_P2=jnp.array([CHOSEN_TOKENS, REJECTED_TOKENS]).T,
    )
    loss_P, metrics = preference.sigmoid(pairs, beta=0.1)
    assert_golden(loss_P, SIGMOID)
    assert_golden(metrics["rewards/chosen"], [0.2, -0.15, 0.175, 0.3])
    np.testing.assert_allclose(metrics["rewards/accuracies"], [1, 0, 1, 1])


def test_objective_golden_from_tokens():
    stats, batch = golden_batch()
    loss, gradient_BC, metrics = evaluate(Pairwise(beta=0.1), stats.logp_BC, batch)
    assert_golden(loss, 0.584794)
    assert np.isfinite(gradient_BC).all()
    margins = 0.1 * np.subtract(CHOSEN, REFERENCE_CHOSEN)
    margins -= 0.1 * np.subtract(REJECTED, REFERENCE_REJECTED)
    expected = {
        "logps/chosen": np.mean(CHOSEN),
        "logps/rejected": np.mean(REJECTED),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": 0.75,
        "logits/chosen": 2 * np.sum(CHOSEN) / np.sum(CHOSEN_TOKENS),
        "logits/rejected": 2 * np.sum(REJECTED) / np.sum(REJECTED_TOKENS),
        "entropy": -np.sum(CHOSEN + REJECTED) / np.sum(CHOSEN_TOKENS + REJECTED_TOKENS),
        "mean_token_accuracy": 0.0,
        "nll_loss": -np.mean(np.divide(CHOSEN, CHOSEN_TOKENS)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_weights_and_likelihood_multiply_as_in_scpo():
    stats, batch = golden_batch()
    weight_P = np.array([0.25, 1.0, 0.5, 0.75], np.float32)
    nll_P = -np.divide(CHOSEN, CHOSEN_TOKENS)
    irpo = evaluate(Pairwise(nll=0.7), stats.logp_BC, batch)[0]
    assert_golden(irpo, np.mean(SIGMOID + 0.7 * nll_P))
    weighted = batch | {"weight_B": jnp.repeat(weight_P, 2)}
    scpo = evaluate(Pairwise(nll=0.7), stats.logp_BC, weighted)[0]
    scpo_P = weight_P * (SIGMOID + 0.7 * nll_P)
    assert_golden(scpo, scpo_P.mean())
    ones = batch | {"weight_B": jnp.ones(8)}
    assert evaluate(Pairwise(nll=0.7), stats.logp_BC, ones)[0] == irpo
    dpo = evaluate(Pairwise(nll=0.0), stats.logp_BC, batch)[0]
    assert_golden(dpo, np.mean(SIGMOID))


def test_policy_equal_to_reference_gives_log_2_and_pulls_the_sides_apart():
    logp_BC, batch = random_batch()
    batch |= {"reference_logp_BC": jnp.asarray(logp_BC), "valid_B": jnp.ones(8)}
    del batch["weight_B"]
    loss, gradient_BC, _ = evaluate(Pairwise(beta=0.3), logp_BC, batch)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    sign_B1 = np.tile([-1, 1], 4)[:, None]
    expected_BC = np.where(batch["mask_BC"], sign_B1 * 0.3 * 0.5 / 4, 0)
    np.testing.assert_allclose(gradient_BC, expected_BC, rtol=1e-6)


def test_the_reference_gets_no_gradient():
    logp_BC, batch = random_batch()
    objective = Pairwise(nll=1.0)

    def loss(reference_BC):
        poisoned = batch | {"reference_logp_BC": reference_BC}
        return objective(stats_of(logp_BC), poisoned, objective.counts(batch))[0]

    np.testing.assert_array_equal(jax.grad(loss)(batch["reference_logp_BC"]), 0)


def test_permuting_pairs_permutes_gradients_only():
    logp_BC, batch = random_batch()
    rows = np.array([4, 5, 0, 1, 6, 7, 2, 3])
    objective = Pairwise(nll=0.5)
    loss, gradient_BC, _ = evaluate(objective, logp_BC, batch)
    moved = jax.tree.map(lambda x: x[rows], batch)
    same, moved_BC, _ = evaluate(objective, logp_BC[rows], moved)
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    np.testing.assert_allclose(moved_BC, gradient_BC[rows], rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 2]), st.sampled_from([0.0, 0.6]))
def test_micro_batches_add_up_to_the_step(seed, pairs_each, nll):
    """Whatever is masked or invalid, and with empty completions."""
    logp_BC, batch = random_batch(seed)
    objective = Pairwise(nll=nll)
    whole, whole_BC, whole_metrics = evaluate(objective, logp_BC, batch)
    counts = objective.counts(batch)
    loss, gradients, rows = 0.0, [], 2 * pairs_each
    for start in range(0, 8, rows):
        part = jax.tree.map(lambda x, start=start: x[start : start + rows], batch)
        share, gradient_BC, _ = evaluate(
            objective, logp_BC[start : start + rows], part, counts
        )
        loss, gradients = loss + share, [*gradients, gradient_BC]
    np.testing.assert_allclose(loss, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.concatenate(gradients), whole_BC, rtol=1e-5, atol=1e-7
    )
    counted_BC = batch["mask_BC"] & batch["valid_B"][:, None]
    np.testing.assert_array_equal(np.where(counted_BC, 0, whole_BC), 0)
    assert np.isfinite(whole)
    assert set(whole_metrics) >= {"rewards/chosen", "logps/rejected", "entropy"}


def test_an_invalid_pair_equals_a_pair_that_is_not_there():
    logp_BC, batch = random_batch()
    batch["valid_B"] = jnp.array([1, 1, 1, 0, 1, 1, 0, 0])  # pairs 1 and 3 are out
    rows = np.array([0, 1, 4, 5])
    poisoned_BC = np.where(np.isin(np.arange(8), rows)[:, None], logp_BC, np.nan)
    objective = Pairwise(nll=1.0)
    loss, gradient_BC, metrics = evaluate(objective, poisoned_BC, batch)
    kept = jax.tree.map(lambda x: x[rows], batch)
    expected, kept_BC, kept_metrics = evaluate(objective, logp_BC[rows], kept)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient_BC[rows], kept_BC, rtol=1e-6)
    assert objective.counts(batch)["pairs"] == 2
    for name, value in kept_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("empty", ["mask_BC", "valid_B"])
def test_nothing_to_learn_from_gives_zero_loss_and_gradient(empty):
    logp_BC, batch = random_batch()
    batch |= {"valid_B": jnp.ones(8), "mask_BC": jnp.ones_like(batch["mask_BC"])}
    batch[empty] = jnp.zeros_like(batch[empty])
    loss, gradient_BC, _ = evaluate(Pairwise(nll=1.0), logp_BC, batch)
    np.testing.assert_array_equal(gradient_BC, 0)
    expected = 0.0 if empty == "valid_B" else np.log(2) * batch["weight_B"].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("gap", [-1e5, 1e5])
def test_extreme_log_ratios_stay_finite(gap):
    logp_BC, batch = random_batch()
    batch["mask_BC"] = jnp.ones_like(batch["mask_BC"])
    batch["valid_B"] = jnp.ones(8)
    logp_BC[::2] += gap
    loss, gradient_BC, metrics = evaluate(Pairwise(), logp_BC, batch)
    assert np.isfinite(loss)
    assert np.isfinite(gradient_BC).all()
    assert (np.abs(gradient_BC).max() > 0) == (gap < 0)
    assert all(np.isfinite(value) for value in metrics.values())


def test_what_makes_no_sense_is_named():
    logp_BC, batch = random_batch()
    del batch["reference_logp_BC"]
    objective = Pairwise()
    with pytest.raises(ValueError, match="Pairwise needs 'reference_logp_BC'"):
        objective(stats_of(logp_BC), batch, objective.counts(batch))
    with pytest.raises(ValueError, match="3 rows"):
        objective.counts({"mask_BC": jnp.ones((3, 2))})
    for change in ({"beta": 0.0}, {"nll": -1.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            dataclasses.replace(objective, **change)
