"""Objectives over pairs: what composes, masks, splits, metrics, mistakes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.losses import divergence, nash, pair_terms, preference, reference_free
from jaxloop.losses.objective import Mixture
from jaxloop.losses.pairwise import Pairwise
from tests.losses import pair_samples
from tests.losses.pair_samples import (
    CHOSEN,
    CHOSEN_TOKENS,
    MATCHED,
    REFERENCE_CHOSEN,
    REFERENCE_REJECTED,
    REJECTED,
    REJECTED_TOKENS,
    SIGMOID,
    TABLE,
    assert_golden,
    evaluate,
    evaluate_all,
    golden_batch,
    random_batch,
)

NLL = -np.divide(CHOSEN, CHOSEN_TOKENS)


def golden(objective, **changes):
    """The loss of the golden pairs."""
    logp_BC, batch = golden_batch()
    return evaluate(objective, logp_BC, batch | changes)[0]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Pairwise(), 0.584794),
        (Pairwise(reference_free.none, sft=1.0), 1.915816),
        (Pairwise(sft=1.0), 2.50061),
        (Pairwise(ld_alpha=0.5), 0.590883),
        (Pairwise(wpo=pair_terms.wpo), 0.024394),
        (Pairwise(preference.ipo), 23.341307),
        (Pairwise(nll=0.7), np.mean(SIGMOID + 0.7 * NLL)),
    ],
    ids=["sigmoid", "sft", "rpo", "ld_dpo", "wpo", "ipo", "irpo"],
)
def test_golden_from_tokens(objective, expected):
    assert_golden(golden(objective), expected)


def test_metrics_have_trl_s_names_and_values():
    logp_BC, batch = golden_batch()
    loss, gradient_BC, metrics = evaluate(Pairwise(nll=1.0), logp_BC, batch)
    assert np.isfinite(loss)
    assert np.isfinite(gradient_BC).all()
    drift_chosen = np.subtract(CHOSEN, REFERENCE_CHOSEN)
    drift_rejected = np.subtract(REJECTED, REFERENCE_REJECTED)
    everything = np.sum(CHOSEN + REJECTED)
    expected = {
        "logps/chosen": np.mean(CHOSEN),
        "logps/rejected": np.mean(REJECTED),
        "drift/chosen": drift_chosen.mean(),
        "drift/rejected": drift_rejected.mean(),
        "rewards/chosen": 0.1 * drift_chosen.mean(),
        "rewards/rejected": 0.1 * drift_rejected.mean(),
        "rewards/margins": 0.1 * (drift_chosen - drift_rejected).mean(),
        "rewards/accuracies": 0.75,
        "logits/chosen": 2 * np.sum(CHOSEN) / np.sum(CHOSEN_TOKENS),
        "logits/rejected": 2 * np.sum(REJECTED) / np.sum(REJECTED_TOKENS),
        "entropy": -everything / np.sum(CHOSEN_TOKENS + REJECTED_TOKENS),
        "mean_token_accuracy": 0.0,
        "nll_loss": 1.915816,
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_metrics_by_family():
    """Rewards are beta x summed log-ratio, also where a loss divides by length; without
    a reference the log-probability stands for it, as in TRL."""
    logp_BC, batch = golden_batch()

    def metrics(*args, **changes):
        objective = Pairwise(*args, **changes)
        counts = objective.counts(batch)
        logged = objective(pair_samples.token_stats(logp_BC), batch, counts)[1]
        return {name: float(x) for name, x in pair_samples.values(logged).items()}

    plain = metrics(beta=2.0)
    for same in (
        metrics(preference.sigmoid_norm, beta=2.0),
        metrics(beta=2.0, normalise=True),
        metrics(beta=2.0, divergence=divergence.js_divergence),
    ):
        assert same == pytest.approx(plain)
    cpo = metrics(reference_free.cpo)
    assert cpo["rewards/chosen"] == pytest.approx(0.1 * np.mean(CHOSEN))
    assert "drift/chosen" not in cpo
    simpo = metrics(reference_free.simpo, beta=2.0)
    assert simpo["rewards/chosen"] == pytest.approx(-2 * NLL.mean())
    orpo = metrics(reference_free.orpo)
    assert orpo["log_odds_ratio"] == pytest.approx(-0.62119, rel=1e-4)
    assert {"log_odds_chosen", "rewards/margins", "nll_loss"} <= set(orpo)


def test_weights_and_likelihood_multiply_as_in_scpo():
    weight_P = np.array([0.25, 1.0, 0.5, 0.75], np.float32)
    scpo = golden(Pairwise(nll=0.7), weight_B=jnp.repeat(weight_P, 2))
    assert_golden(scpo, (weight_P * (SIGMOID + 0.7 * NLL)).mean())
    ones = golden(Pairwise(nll=0.7), weight_B=jnp.ones(8))
    assert ones == golden(Pairwise(nll=0.7))
    assert_golden(golden(Pairwise(nll=0.0)), np.mean(SIGMOID))
    rpo = golden(Pairwise(sft=1.0), weight_B=jnp.repeat(weight_P, 2))
    likelihood = -np.dot(weight_P, CHOSEN) / np.sum(CHOSEN_TOKENS)
    assert_golden(rpo, (weight_P * SIGMOID).mean() + likelihood)


def test_policy_equal_to_reference_gives_log_2_and_pulls_the_sides_apart():
    logp_BC, batch = random_batch()
    batch |= {"reference_logp_BC": logp_BC, "weight_B": jnp.ones(8)}
    del batch["weight_BC"]
    counted_BC = pair_samples.counted_tokens(batch)
    pairs = batch["valid_B"].reshape(-1, 2).all(1).sum()
    loss, gradient_BC, metrics = evaluate(Pairwise(beta=0.3), logp_BC, batch)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    sign_B1 = np.tile([-1, 1], 4)[:, None]
    expected_BC = np.where(counted_BC, sign_B1 * 0.3 * 0.5 / pairs, 0)
    np.testing.assert_allclose(gradient_BC, expected_BC, rtol=1e-6)
    assert metrics["drift/chosen"] == 0


def test_normalised_losses_are_those_that_divide_by_length():
    logp_BC, batch = random_batch()
    for averaged, summed in (
        (Pairwise(preference.ipo), Pairwise(preference.ipo_sum, normalise=True)),
        (Pairwise(reference_free.rf_nll), Pairwise(reference_free.none, nll=1.0)),
    ):
        one = evaluate(averaged, logp_BC, batch)[:2]
        other = evaluate(summed, logp_BC, batch)[:2]
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_gradients_by_finite_differences_in_float64():
    """Every loss and every modifier along a random direction; WPO's weights, which have
    no gradient, are frozen here and tested apart."""
    with jax.enable_x64(True):
        logp_BC, batch = random_batch(3, dtype=np.float64)
        active_BC = pair_samples.counted_tokens(batch)
        frozen = pair_terms.wpo(pair_samples.token_stats(logp_BC), active_BC)
        still = {
            name: dataclasses.replace(o, wpo=lambda *_: frozen) if o.wpo else o
            for name, o in TABLE.items()
        }
        direction_BC = np.random.default_rng(0).normal(size=logp_BC.shape) * active_BC
        step = 1e-6 * direction_BC

        def values(logp_BC):
            stats = pair_samples.token_stats(logp_BC)
            return {k: o(stats, batch, o.counts(batch))[0] for k, o in still.items()}

        losses = jax.jit(lambda x: jax.jvp(values, (x,), (direction_BC,)))

        _, slopes = losses(logp_BC)
        (above, _), (below, _) = losses(logp_BC + step), losses(logp_BC - step)
        found = {name: (above[name] - below[name]) / 2e-6 for name in above}
        found, slopes = jax.device_get((found, slopes))
    for name, slope in slopes.items():
        assert slope != 0, name
        np.testing.assert_allclose(
            slope, found[name], rtol=2e-6, atol=1e-8, err_msg=name
        )


def check_zero_where_masked(results, batch):
    counted_BC = pair_samples.counted_tokens(batch)
    for name, (loss, gradient_BC) in results.items():
        assert np.isfinite(loss), name
        assert np.isfinite(gradient_BC).all(), name
        np.testing.assert_array_equal(gradient_BC[~counted_BC], 0, err_msg=name)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 3]),
    st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
)
def test_no_nan_and_no_gradient_where_masked(seed, pairs, scale):
    """Any masks, validity, lengths of 0 and magnitudes; NaN in all that is masked."""
    logp_BC, batch = random_batch(seed, pairs, 5, scale)
    check_zero_where_masked(evaluate_all(logp_BC, batch), batch)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_micro_batches_add_up_to_the_step(seed):
    """Whatever is masked or invalid, and with empty completions."""
    logp_BC, batch = random_batch(seed, pairs=3, tokens=5)
    whole = evaluate_all(logp_BC, batch)
    counts = Pairwise().counts(batch)
    parts = []
    for start in range(0, 6, 2):
        part = jax.tree.map(lambda x, start=start: x[start : start + 2], batch)
        parts.append(evaluate_all(logp_BC[start : start + 2], part, counts))
    for name in set(TABLE) - set(MATCHED):
        loss = sum(part[name][0] for part in parts)
        gradient_BC = np.concatenate([part[name][1] for part in parts])
        np.testing.assert_allclose(loss, whole[name][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient_BC, whole[name][1], rtol=1e-4, atol=1e-6)


def test_permuting_pairs_permutes_gradients_only():
    logp_BC, batch = random_batch(1, pairs=3, tokens=5)
    rows = np.array([4, 5, 0, 1, 2, 3])
    results = evaluate_all(logp_BC, batch)
    moved = evaluate_all(logp_BC[rows], jax.tree.map(lambda x: x[rows], batch))
    for name, (loss, gradient_BC) in results.items():
        np.testing.assert_allclose(moved[name][0], loss, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            moved[name][1], gradient_BC[rows], rtol=1e-4, atol=1e-7, err_msg=name
        )


def test_an_invalid_pair_equals_a_pair_that_is_not_there():
    logp_BC, batch = random_batch(2, pairs=3, tokens=5)
    clean = [jax.tree.map(jnp.nan_to_num, x) for x in (logp_BC, batch)]
    clean[1]["valid_B"] = jnp.array([0, 1, 1, 1, 1, 0]) > 0
    logp_BC, batch = clean
    results = evaluate_all(logp_BC.at[:2].set(jnp.nan), batch)
    kept = jax.tree.map(lambda x: x[2:4], batch)
    for name, (loss, gradient_BC) in evaluate_all(logp_BC[2:4], kept).items():
        np.testing.assert_allclose(results[name][0], loss, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            results[name][1][2:4], gradient_BC, rtol=1e-4, atol=1e-7, err_msg=name
        )
    metrics, expected = (
        evaluate(Pairwise(), x[0], x[1])[2]
        for x in ((logp_BC.at[:2].set(jnp.nan), batch), (logp_BC[2:4], kept))
    )
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("empty", ["mask_BC", "valid_B"])
def test_nothing_to_learn_from_gives_no_gradient(empty):
    logp_BC, batch = random_batch(0, pairs=3, tokens=5)
    batch[empty] = jnp.zeros_like(batch[empty])
    for name, (loss, gradient_BC) in evaluate_all(logp_BC, batch).items():
        np.testing.assert_array_equal(gradient_BC, 0, err_msg=name)
        assert np.isfinite(loss), name
        assert empty == "mask_BC" or loss == 0, name


@pytest.mark.parametrize("gap", [-1e5, 1e5])
def test_extreme_log_ratios_stay_finite_and_still_pull(gap):
    logp_BC, batch = golden_batch()
    batch["reference_logp_BC"] = jnp.nan_to_num(batch["reference_logp_BC"])
    logp_BC = jnp.nan_to_num(logp_BC).at[::2].add(gap)
    loss, gradient_BC, metrics = evaluate(Pairwise(), logp_BC, batch)
    assert np.isfinite(loss)
    assert np.isfinite(gradient_BC).all()
    assert (np.abs(gradient_BC).max() > 0) == (gap < 0)
    assert all(np.isfinite(value) for value in metrics.values())


def test_what_the_loop_must_provide_follows_from_the_loss():
    assert Pairwise().needs == {"reference"}
    assert Pairwise(reference_free.simpo).needs == frozenset()
    assert Pairwise(reference_free.simpo, optimism=0.1).needs == {"reference"}
    assert Pairwise(nash.inpo, eta=1.0, tau=0.5).needs == {"reference", "previous"}
    partial = functools.partial(reference_free.alpha_po, alpha=0.1)
    assert Pairwise(partial).needs == frozenset()
    both = Mixture((Pairwise(), Pairwise(reference_free.cpo)), (1.0, 0.5))
    assert both.needs == {"reference"}


def test_a_loss_of_one_s_own_is_called_like_any_other():
    def flat(pairs, *, beta, margin_P, sharpness=3.0):
        gap_P = beta * (pairs.log_ratio_P2[:, 0] - pairs.log_ratio_P2[:, 1])
        return jnp.tanh(sharpness * (margin_P - gap_P)), {"mine/gap": gap_P}

    logp_BC, batch = golden_batch()
    batch["margin_B"] = jnp.ones(8)
    loss, gradient_BC, metrics = evaluate(Pairwise(flat, beta=0.2), logp_BC, batch)
    margins = 2 * 0.1 * np.subtract(CHOSEN, REFERENCE_CHOSEN)
    margins -= 2 * 0.1 * np.subtract(REJECTED, REFERENCE_REJECTED)
    assert_golden(loss, np.tanh(3 * (1 - margins)).mean())
    assert np.isfinite(gradient_BC).all()
    assert metrics["mine/gap"] == pytest.approx(metrics["rewards/margins"])


def foreign(pairs, *, beta, colour):
    return pairs.policy_P2[:, 0] * beta * colour, {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pairwise(beta=0.0), "beta must be positive"),
        (lambda: Pairwise(nll=-1.0), "nll must not be negative"),
        (lambda: Pairwise(sft=-1.0), "sft must not be negative"),
        (lambda: Pairwise(ld_alpha=1.5), "ld_alpha must be within"),
        (lambda: Pairwise(edit_alpha=-0.5), "edit_alpha must be within"),
        (lambda: Pairwise(nash.inpo, eta=0.0, tau=1.0), "eta must be positive"),
        (
            lambda: Pairwise(smoothing=0.1),
            "preference.sigmoid has no use for smoothing = 0.1; it takes beta, diverg",
        ),
        (
            lambda: Pairwise(preference.sppo_hard, divergence=divergence.forward_kl),
            "no use for divergence = divergence.forward_kl; it takes beta",
        ),
        (
            lambda: Pairwise(reference_free.rf_nll, beta=0.3),
            "no use for beta = 0.3; it takes nothing",
        ),
        (lambda: Pairwise(preference.robust), "preference.robust needs smoothing"),
        (lambda: Pairwise(foreign), "test_pairwise.foreign asks for 'colour'"),
        (
            lambda: Pairwise(preference.aot, wpo=pair_terms.wpo),
            "preference.aot matches completions across the batch",
        ),
        (
            lambda: Pairwise(preference.aot_unpaired, wpo=pair_terms.wpo_plain),
            "leave wpo out",
        ),
    ],
)
def test_settings_that_make_no_sense_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("objective", "key"),
    [
        (Pairwise(), "reference_logp_BC"),
        (Pairwise(preference.soft), "target_B"),
        (Pairwise(preference.odpo), "margin_B"),
        (Pairwise(nash.inpo, eta=1.0, tau=0.5), "previous_logp_BC"),
        (Pairwise(token_regulariser=1.0), "token_reward_BC"),
        (Pairwise(edit_alpha=0.5), "edited_BC"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_a_batch_lacks_is_named(objective, key):
    logp_BC, batch = random_batch()
    del batch[key]
    with pytest.raises(ValueError, match=f"Pairwise needs '{key}' in the batch"):
        objective(pair_samples.token_stats(logp_BC), batch, objective.counts(batch))
    with pytest.raises(ValueError, match="3 rows"):
        objective.counts({"mask_BC": jnp.ones((3, 2))})


def test_numbers_may_be_bound_beforehand_or_used_by_a_term():
    bound = functools.partial(preference.robust, smoothing=0.2)
    assert golden(Pairwise(bound)) == golden(Pairwise(preference.robust, smoothing=0.2))
    with pytest.raises(ValueError, match="has no use for smoothing"):
        Pairwise(bound, smoothing=0.1)
    with pytest.raises(ValueError, match="has no use for beta"):
        Pairwise(reference_free.none, beta=0.3)
    assert Pairwise(reference_free.none, beta=0.3, optimism=0.1).beta == 0.3
