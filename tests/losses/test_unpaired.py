"""Objectives over single completions: golden values, KTO's z0, BCO's memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.losses import preference, unpaired
from jaxloop.losses.objective import Mixture, memory_of, remembered, stats_of
from jaxloop.losses.reduce import collapse, values
from jaxloop.losses.unpaired import Examples, Unpaired
from tests.losses.pair_samples import (
    CHOSEN,
    REFERENCE_CHOSEN,
    REFERENCE_REJECTED,
    REJECTED,
    assert_golden,
    golden_pairs,
)

EVERY = {
    "kto": Unpaired(desirable_weight=1.5, undesirable_weight=0.5),
    "apo_zero_unpaired": Unpaired(unpaired.apo_zero_unpaired),
    "bco": Unpaired(unpaired.bco, beta=0.2),
}


def examples(policy, reference, desirable):
    shape = np.shape(policy)
    return Examples(
        policy_N=jnp.asarray(policy),
        reference_N=jnp.asarray(reference),
        tokens_N=jnp.full(shape, 10.0),
        desirable_N=jnp.full(shape, desirable),
    )


def test_kto_golden():
    """Checked against TRL 1.16.0."""
    good = examples(CHOSEN, REFERENCE_CHOSEN, True)
    loss_N, _ = unpaired.kto(good, beta=0.1, kl=jnp.array(0.6))
    assert_golden(loss_N, [0.465057, 0.552308, 0.471282, 0.440286])
    bad = examples(REJECTED, REFERENCE_REJECTED, False)
    loss_N, _ = unpaired.kto(bad, beta=0.1, kl=jnp.array(0.6))
    assert_golden(loss_N, [0.41096, 0.528718, 0.423115, 0.447692])


def test_both_sides_of_a_pair_make_the_pair_loss():
    good = examples(CHOSEN, REFERENCE_CHOSEN, True)
    bad = examples(REJECTED, REFERENCE_REJECTED, False)

    def both(loss, **numbers):
        return loss(good, beta=0.1, **numbers)[0] + loss(bad, beta=0.1, **numbers)[0]

    pairs = golden_pairs()
    apo_P = preference.apo_zero(pairs, beta=0.1)[0]
    assert_golden(both(unpaired.apo_zero_unpaired), apo_P)
    assert_golden(both(unpaired.kto, kl=jnp.array(-3.0)), apo_P)
    bco_P = preference.bco_pair(pairs, beta=0.1)[0]
    assert_golden(both(unpaired.bco, delta=jnp.zeros(())), bco_P)


def test_z0_and_delta_shift_without_a_gradient():
    good = examples(CHOSEN, REFERENCE_CHOSEN, True)

    def kto(kl):
        return unpaired.kto(good, beta=0.1, kl=kl)[0].sum()

    def bco(delta):
        return unpaired.bco(good, beta=0.1, delta=delta)[0].sum()

    for loss in (kto, bco):
        assert jax.grad(loss)(0.5) == 0
        assert loss(0.5) > loss(0.0)
    shifted = examples(np.subtract(CHOSEN, 3.0), REFERENCE_CHOSEN, True)
    same = unpaired.bco(shifted, beta=0.1, delta=-0.3)[0].sum()
    np.testing.assert_allclose(same, bco(0.0), rtol=1e-5)


def random_batch(seed=0, rows=8, tokens=5, scale=0.5, dtype=np.float32):
    """(logp_BC, batch); NaN where nothing counts."""
    rng = np.random.default_rng(seed)
    mask_BC = np.arange(tokens) < rng.integers(0, tokens + 1, (rows, 1))
    valid_B = rng.random(rows) < 0.8
    counted_BC = mask_BC & valid_B[:, None]
    logp_BC, reference_BC = np.where(
        counted_BC, rng.normal(-1, scale, (2, rows, tokens)), np.nan
    ).astype(dtype)
    batch = {
        "mask_BC": mask_BC,
        "valid_B": valid_B,
        "reference_logp_BC": reference_BC,
        "label_B": rng.choice([-1.0, 1.0], rows).astype(dtype),
        "weight_B": rng.uniform(0.5, 1, rows).astype(dtype),
        "weight_BC": rng.uniform(0.5, 1, (rows, tokens)).astype(dtype),
        "delta": np.asarray(0.1, dtype),
    }
    return jnp.asarray(logp_BC), jax.tree.map(jnp.asarray, batch)


def token_stats(logp_BC):
    fixed_BC = jax.lax.stop_gradient(logp_BC)
    return stats_of(logp_BC, entropy_BC=-fixed_BC, mean_logit_BC=2 * fixed_BC)


@partial(jax.jit, static_argnums=0)
def evaluate(objective, logp_BC, batch, counts=None):
    def loss(logp_BC):
        counted = objective.counts(batch) if counts is None else counts
        return objective(token_stats(logp_BC), batch, counted)

    (value, metrics), gradient_BC = jax.value_and_grad(loss, has_aux=True)(logp_BC)
    return value, gradient_BC, metrics


def log_ratios(logp_BC, batch):
    """(with the weights of tokens, without)"""
    counted_BC = np.asarray(batch["mask_BC"]) & np.asarray(batch["valid_B"])[:, None]
    gap_BC = np.asarray(logp_BC) - np.asarray(batch["reference_logp_BC"])
    gap_BC = np.where(counted_BC, gap_BC, 0)
    return (gap_BC * np.asarray(batch["weight_BC"])).sum(1), gap_BC.sum(1)


def test_kto_s_reference_point_comes_from_mismatched_rows_alone():
    logp_BC, batch = random_batch(6)
    (h_B, _), valid_B = log_ratios(logp_BC, batch), np.asarray(batch["valid_B"])
    objective = Unpaired(beta=0.3, desirable_weight=2.0, undesirable_weight=0.5)
    loss, gradient_BC, metrics = evaluate(objective, logp_BC, batch)
    z0 = max(0.0, h_B[1::2][valid_B[1::2]].mean())
    assert z0 > 0
    good_N = np.asarray(batch["label_B"])[::2] > 0
    x_N = 0.3 * (h_B[::2] - z0)
    loss_N = 1 / (1 + np.exp(np.where(good_N, x_N, -x_N)))
    weight_N = np.asarray(batch["weight_B"])[::2] * np.where(good_N, 2.0, 0.5)
    expected = (loss_N * weight_N)[valid_B[::2]].sum() / valid_B[::2].sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(gradient_BC[1::2], 0)
    np.testing.assert_allclose(metrics["kl"].value(), z0, rtol=1e-5)
    assert objective.counts(batch) == {"examples": valid_B[::2].sum()}


def test_metrics_have_trl_s_names():
    logp_BC, batch = random_batch(6)
    (h_B, drift_B), valid_B = log_ratios(logp_BC, batch), np.asarray(batch["valid_B"])
    _, _, metrics = evaluate(Unpaired(), logp_BC, batch)
    figures = values(metrics)
    good_N = (np.asarray(batch["label_B"]) > 0)[::2]
    h_N, drift_N, valid_N = h_B[::2], drift_B[::2], valid_B[::2]
    good_N, bad_N = valid_N & good_N, valid_N & ~good_N
    expected = {
        "rewards/chosen": 0.1 * h_N[good_N].mean(),
        "rewards/rejected": 0.1 * h_N[bad_N].mean(),
        "rewards/margins": 0.1 * (h_N[good_N].mean() - h_N[bad_N].mean()),
        "rewards/mean": 0.1 * h_N[valid_N].mean(),
        "drift/chosen": drift_N[good_N].mean(),
        "drift/rejected": drift_N[bad_N].mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(figures[name], value, rtol=1e-4, err_msg=name)
    others = {"kl", "entropy", "logps/chosen", "logps/rejected"}
    assert set(figures) == expected.keys() | others | {
        "logits/chosen",
        "logits/rejected",
    }
    counted_BC = (batch["mask_BC"] & batch["valid_B"][:, None])[::2]
    mean = -np.asarray(logp_BC)[::2][counted_BC].mean()
    np.testing.assert_allclose(figures["entropy"], mean, rtol=1e-5)


def test_the_margin_metric_merges():
    logp_BC, batch = random_batch(6)
    objective = EVERY["apo_zero_unpaired"]
    whole = evaluate(objective, logp_BC, batch)[2]["rewards/margins"]
    halves = []
    for rows in (np.arange(4), np.arange(4, 8)):
        part = {key: x[rows] for key, x in batch.items() if x.ndim}
        halves.append(evaluate(objective, logp_BC[rows], part)[2])
    merged = halves[0]["rewards/margins"].merge(halves[1]["rewards/margins"])
    np.testing.assert_allclose(merged.value(), whole.value(), rtol=1e-5)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *halves)
    collapsed = collapse(stacked)["rewards/margins"]
    np.testing.assert_allclose(collapsed.value(), whole.value(), rtol=1e-5)


def test_bco_remembers_the_mean_reward_of_the_steps_before():
    objective = EVERY["bco"]
    memory = memory_of(objective)
    assert memory == {"delta": 0, "delta_steps": 0}
    seen = []
    for seed in range(3):
        logp_BC, batch = random_batch(seed)
        _, _, metrics = evaluate(objective, logp_BC, batch | memory)
        np.testing.assert_allclose(metrics["delta"].value(), memory["delta"])
        seen.append(float(metrics["rewards/mean"].value()))
        memory = remembered(objective, memory, values(metrics))
        np.testing.assert_allclose(memory["delta"], np.mean(seen), rtol=1e-5)
    nothing = {"rewards/mean": jnp.nan}
    assert remembered(objective, memory, nothing) == memory
    assert memory_of(EVERY["kto"]) == {}
    both = Mixture((EVERY["apo_zero_unpaired"], objective), (1.0, 1.0))
    assert set(memory_of(both)) == {"delta", "delta_steps"}


def test_gradients_by_finite_differences_in_float64():
    """z0, which has no gradient, is held at 0: mismatched rows are the reference's."""
    for name, objective in EVERY.items():
        with jax.enable_x64(True):
            logp_BC, batch = random_batch(5, dtype=np.float64)
            if name == "kto":
                logp_BC = logp_BC.at[1::2].set(batch["reference_logp_BC"][1::2])
            rng = np.random.default_rng(0)
            counted_BC = np.asarray(batch["mask_BC"] & batch["valid_B"][:, None])
            direction_BC = rng.normal(size=logp_BC.shape) * counted_BC
            if name == "kto":
                direction_BC[1::2] = 0
            step = jnp.asarray(1e-6 * direction_BC)
            _, gradient_BC, _ = evaluate(objective, logp_BC, batch)
            above = evaluate(objective, logp_BC + step, batch)[0]
            below = evaluate(objective, logp_BC - step, batch)[0]
            found, slope_BC = jax.device_get(((above - below) / 2e-6, gradient_BC))
        slope = (slope_BC * direction_BC).sum()
        np.testing.assert_allclose(slope, found, rtol=1e-6, err_msg=name)
        assert slope != 0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.sampled_from([2, 8]),
    st.sampled_from([1e-3, 1.0, 1e4]),
    st.sampled_from(sorted(EVERY)),
)
def test_no_nan_and_no_gradient_where_masked(seed, rows, scale, name):
    logp_BC, batch = random_batch(seed, rows, scale=scale)
    loss, gradient_BC, _ = evaluate(EVERY[name], logp_BC, batch)
    counted_BC = np.asarray(batch["mask_BC"] & batch["valid_B"][:, None])
    assert np.isfinite(loss)
    assert np.isfinite(gradient_BC).all()
    np.testing.assert_array_equal(gradient_BC[~counted_BC], 0)
    if not counted_BC.any():
        assert np.asarray(batch["valid_B"]).any() or loss == 0


@pytest.mark.parametrize("name", ["apo_zero_unpaired", "bco"])
def test_micro_batches_add_up_to_the_step(name):
    """KTO is left out: its reference point is the micro-batch's by design."""
    logp_BC, batch = random_batch(3)
    objective = EVERY[name]
    loss, gradient_BC, _ = evaluate(objective, logp_BC, batch)
    counts, total, gradients = objective.counts(batch), 0.0, []
    for start in range(0, 8, 2):
        part = {k: x[start : start + 2] if x.ndim else x for k, x in batch.items()}
        share, part_BC, _ = evaluate(
            objective, logp_BC[start : start + 2], part, counts
        )
        total, gradients = total + share, [*gradients, part_BC]
    np.testing.assert_allclose(total, loss, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate(gradients), gradient_BC, rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_permuting_examples_permutes_gradients_only(name):
    logp_BC, batch = random_batch(4)
    rows = np.array([4, 5, 0, 1, 6, 7, 2, 3])
    loss, gradient_BC, _ = evaluate(EVERY[name], logp_BC, batch)
    moved = {k: x[rows] if x.ndim else x for k, x in batch.items()}
    same, moved_BC, _ = evaluate(EVERY[name], logp_BC[rows], moved)
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    np.testing.assert_allclose(moved_BC, gradient_BC[rows], rtol=1e-5)


def test_what_the_loop_must_provide():
    assert EVERY["kto"].needs == {"reference", "mismatch"}
    assert EVERY["bco"].needs == {"reference"}
    assert not EVERY["kto"].temperature_from_sampling


def test_what_makes_no_sense_is_named():
    logp_BC, batch = random_batch()
    for change in ({"beta": 0.0}, {"desirable_weight": -1.0}):
        with pytest.raises(ValueError, match=f"Unpaired: {next(iter(change))}"):
            Unpaired(**change)
    with pytest.raises(ValueError, match="7 rows"):
        Unpaired().counts({"mask_BC": jnp.ones((7, 2))})
    with pytest.raises(ValueError, match="asks for 'colour'"):
        Unpaired(lambda examples, *, colour: (examples.policy_N * colour, {}))
    for key in ("label_B", "reference_logp_BC"):
        lacking = {name: x for name, x in batch.items() if name != key}
        with pytest.raises(ValueError, match=f"Unpaired needs '{key}'"):
            evaluate(Unpaired(), logp_BC, lacking)
