"""Policy: what goes with a term, masks, splits, metrics, mistakes."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxloop.losses import kl, off_policy, policy
from jaxloop.losses.objective import memory_of, remembered, stats_of
from jaxloop.losses.objectives import OffPolicy, Policy
from jaxloop.losses.policy import Term
from tests.losses.policy_samples import (
    ACTIVE,
    ADVANTAGE,
    LOGP,
    OBJECTIVES,
    OLD,
    REFERENCE,
    TERMS,
    evaluate,
    golden_batch,
    random_batch,
    rows_of,
)

assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
K3 = np.exp(REFERENCE - LOGP) - (REFERENCE - LOGP) - 1


def golden(objective, **changes):
    logp_BC, batch = golden_batch()
    return evaluate(objective, logp_BC, batch | changes)


def test_golden_kl():
    corrected = Policy(aggregation="sequence", kl=0.04)
    loss, _, metrics = golden(corrected)
    assert_close(loss, -0.198962613)
    assert_close(metrics["kl"], 0.004932704)
    plain = golden(Policy(kl=0.5, kl_bias_correction=False))[0]
    assert_close(plain - golden(Policy())[0], 0.5 * 0.004932704)


def test_the_estimator_and_its_limit_are_settings():
    base = golden(Policy())[0]
    plain = partial(Policy, kl=1.0, kl_bias_correction=False)
    x = (LOGP - REFERENCE)[ACTIVE]
    assert_close(golden(plain(kl_estimator=kl.k1))[0] - base, x.mean())
    assert_close(golden(plain(kl_estimator=kl.k2))[0] - base, (x**2 / 2).mean())
    limited = golden(plain(kl_limit=0.005))[0] - base
    assert_close(limited, np.minimum(K3[ACTIVE], 0.005).mean())


def test_the_corrected_kl_has_the_gradient_of_the_kl():
    """On-policy: x times that of log policy, x = log policy - log reference."""
    logp_BC, batch = golden_batch()
    del batch["old_logp_BC"]
    batch["advantage_B"] = jnp.zeros(2)
    expected_BC = np.where(ACTIVE, LOGP - REFERENCE, 0) / 7
    assert_close(evaluate(Policy(kl=1.0), logp_BC, batch)[1][0], expected_BC)
    straight = Policy(kl=1.0, kl_estimator=kl.k3_straight, kl_bias_correction=False)
    assert_close(evaluate(straight, logp_BC, batch)[1][0], expected_BC)


def test_clipping_is_counted():
    ratio_BC = np.array([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5], [9.0, 9.0, 9.0]])
    batch = {
        "mask_BC": jnp.array([[1, 1, 1], [1, 1, 1], [0, 0, 0]]),
        "advantage_B": jnp.array([1.0, -1.0, 1.0]),
        "old_logp_BC": jnp.zeros((3, 3)),
    }
    logp_BC = jnp.asarray(np.log(ratio_BC), jnp.float32)
    _, _, metrics = evaluate(Policy(clip_high=0.28), logp_BC, batch)
    expected = {
        "clip_ratio/low_mean": 1 / 6,
        "clip_ratio/high_mean": 1 / 6,
        "clip_ratio/region_mean": 2 / 6,
        "clip_ratio/low_min": 0.0,
        "clip_ratio/high_max": 1 / 3,
        "ratio/log_mean": 2 * (np.log(2) + np.log(1.5)) / 6,
        "ratio/log_max": np.log(2),
    }
    for name, value in expected.items():
        assert_close(metrics[name], value, err_msg=name)
    # An empty sequence has no clip ratio; the smallest is that of the second.
    batch["advantage_B"] = jnp.array([-1.0, -1.0, 1.0])
    assert_close(evaluate(Policy(), logp_BC, batch)[2]["clip_ratio/low_min"], 1 / 3)
    # One value a sequence: a share of sequences, of those with tokens.
    whole = Policy(policy.rloo, clip_high=0.2)
    metrics = evaluate(whole, logp_BC * 3, batch | {"advantage_B": jnp.ones(3)})[2]
    assert metrics["clip_ratio/high_mean"] == 0  # 0.5 x 1.5 < 1
    metrics = evaluate(whole, -logp_BC, batch | {"advantage_B": jnp.ones(3)})[2]
    assert metrics["clip_ratio/high_mean"] == 1
    assert metrics["clip_ratio/low_mean"] == 0


def test_trl_s_names_are_logged():
    always = {"entropy", "policy_loss", "ratio/log_mean", "ratio/log_max"}
    assert always <= golden(Policy())[2].keys()
    cispo = golden(Policy(policy.cispo, clip_high=1.2))[2]
    assert_close(cispo["cispo_clip_ratio"], 1 / 7)  # exp(0.3) of A > 0, not exp(0.5)
    vespo = golden(Policy(policy.vespo))[2]
    assert_close(vespo["vespo/phi_seq_mean"], np.mean([1.089248, 1.221748]))
    assert not any(name.startswith("clip_ratio") for name in cispo | vespo)
    assert "kl" not in cispo
    assert golden(Policy(entropy=0.1))[2]["entropy_coef"] == np.float32(0.1)


def test_the_gap_to_the_sampler_is_measured_where_it_is_known():
    sampler_BC = jnp.asarray(OLD - 0.1).at[1, 2].add(-0.4).at[0, 0].set(jnp.nan)
    metrics = golden(Policy(), sampler_logp_BC=sampler_BC)[2]
    prefix = "sampling/"
    assert not any(name.startswith(prefix) for name in golden(Policy())[2])
    expected = {
        "sampling_logp_difference/mean": (5 * 0.1 + 0.5) / 6,
        "sampling_logp_difference/max": 0.5,
        "importance_sampling_ratio/min": np.exp(0.1),
        "importance_sampling_ratio/mean": (5 * np.exp(0.1) + np.exp(0.5)) / 6,
        "importance_sampling_ratio/max": np.exp(0.5),
    }
    for name, value in expected.items():
        assert_close(metrics[prefix + name], value, err_msg=name)
    # With a correction the weights are logged, as in TRL.
    held = Policy(off_policy=OffPolicy(off_policy.token_truncate, most=1.2))
    metrics = golden(held, sampler_logp_BC=sampler_BC)[2]
    assert_close(metrics["sampling/importance_sampling_ratio/max"], 1.2)
    assert_close(metrics["sampling/sampling_logp_difference/max"], 0.5)


def test_weights_multiply_the_loss_before_the_kl_is_added():
    sampler_BC = jnp.asarray(OLD - 0.1)
    corrected = OffPolicy(off_policy.token_truncate)
    weighted = golden(Policy(off_policy=corrected), sampler_logp_BC=sampler_BC)[0]
    assert_close(weighted, golden(Policy())[0] * np.exp(0.1))
    with_kl = golden(Policy(off_policy=corrected, kl=0.5), sampler_logp_BC=sampler_BC)
    added = golden(Policy(kl=0.5))[0] - golden(Policy())[0]
    assert_close(with_kl[0], weighted + added)


def test_weights_are_towards_the_distribution_drawn_from():
    objective = Policy(off_policy=OffPolicy(off_policy.token_truncate))
    drawn = {"drawn_logp_BC": jnp.asarray(OLD + 0.2)}  # top-p raised them
    loss = golden(objective, **drawn, sampler_logp_BC=jnp.asarray(OLD))[0]
    assert_close(loss, golden(Policy())[0] * np.exp(-0.2))


def test_bypass_takes_ratios_to_the_sampler():
    sampler_BC = jnp.asarray(OLD).at[0, 1].set(jnp.nan)
    odd = {"old_logp_BC": jnp.asarray(OLD - 7.0), "sampler_logp_BC": sampler_BC}
    loss = golden(Policy(bypass=True), **odd)[0]
    # The one that is missing has ratio 1, as its log policy is the old one.
    assert_close(loss, golden(Policy())[0])


def test_completions_left_behind_are_dropped():
    objective = Policy(off_policy=OffPolicy(None, stray_threshold=0.2))
    both = jnp.asarray(LOGP + 0.3)
    loss, (gradient_BC, _), metrics = golden(objective, sampler_logp_BC=both)
    assert metrics["off_policy/strayed"] == 0.5  # of the second only, whose A < 0
    np.testing.assert_array_equal(gradient_BC[1], 0)
    assert (gradient_BC[0, 1:3] != 0).all()
    kept = golden(objective, sampler_logp_BC=jnp.asarray(LOGP + 0.1))
    assert kept[2]["off_policy/strayed"] == 0
    assert_close(kept[0], golden(Policy())[0])
    assert loss < kept[0]


def test_truncated_completions_are_as_if_masked():
    logp_BC, batch = golden_batch()
    marked = batch | {"truncated_B": jnp.array([0.0, 1.0])}
    masked = batch | {"mask_BC": batch["mask_BC"].at[1].set(0)}
    for way in ("token", "sequence", "constant", "sum"):
        objective = Policy(mask_truncated=True, aggregation=way)
        loss, gradients, _ = evaluate(objective, logp_BC, marked)
        expected = evaluate(Policy(aggregation=way), logp_BC, masked)
        assert_close(loss, expected[0])
        assert_close(gradients[0], expected[1][0])
    assert_close(evaluate(Policy(), logp_BC, marked)[0], golden(Policy())[0])


def test_advantages_by_token_win():
    spread_BC = jnp.broadcast_to(jnp.asarray(ADVANTAGE)[:, None], (2, 4))
    other = {"advantage_BC": spread_BC, "advantage_B": jnp.array([5.0, 7.0])}
    for name in ("clipped", "gspo", "vespo", "gmpo", "topr", "cispo"):
        plain, by_token = golden(TERMS[name]), golden(TERMS[name], **other)
        assert_close(by_token[0], plain[0], err_msg=name)
        assert_close(by_token[1][0], plain[1][0], err_msg=name)
    # Tokens of advantage 0 (an instruction, a tool's output) are left alone.
    spans_BC = spread_BC.at[:, 2:].set(0)
    gradient_BC = golden(Policy(), advantage_BC=spans_BC)[1][0]
    np.testing.assert_array_equal(gradient_BC[:, 2:], 0)


def test_weights_multiply_the_loss_and_not_the_denominator():
    plain = golden(Policy(kl=0.1))[1][0]
    by_row = golden(Policy(kl=0.1), weight_B=jnp.array([2.0, 0.5]))[1][0]
    assert_close(by_row, plain * np.array([[2.0], [0.5]]))
    weight_BC = jnp.where(ACTIVE, jnp.arange(4.0), jnp.nan)
    by_token = golden(Policy(kl=0.1), weight_BC=weight_BC)[1][0]
    assert_close(by_token, plain * np.arange(4.0))


def test_the_entropy_bonus_is_a_token_mean_under_every_aggregation():
    plain = {way: Policy(aggregation=way) for way in ("token", "sequence", "sum")}
    for way, objective in plain.items():
        bonus = dataclasses.replace(objective, entropy=0.3)
        (loss, gradients, metrics), base = golden(bonus), golden(objective)
        assert_close(loss, base[0] - 0.3 * metrics["entropy"], err_msg=way)
        assert_close(gradients[1], np.where(ACTIVE, -0.3 / 7, 0))


def test_only_the_tokens_of_highest_entropy_are_trained_on():
    logp_BC, batch = golden_batch()
    entropy_BC = np.array([[0.1, 0.9, 0.5, 99.0], [0.2, 0.3, 0.8, 0.4]], np.float32)
    # numpy's quantile is linear, as torch's is.
    kept_BC = ACTIVE & (entropy_BC >= np.quantile(entropy_BC[ACTIVE], 0.6))
    assert kept_BC.sum() == 3

    def run(objective, batch):
        def loss(logp_BC):
            stats = stats_of(logp_BC, entropy_BC=jnp.asarray(entropy_BC))
            return objective(stats, batch, objective.counts(batch))

        return jax.jit(jax.grad(loss, has_aux=True))(logp_BC)

    gradient_BC, metrics = run(Policy(top_entropy=0.4), batch)
    plain_BC, _ = run(Policy(), batch)
    assert_close(gradient_BC, np.where(kept_BC, plain_BC, 0))
    assert_close(metrics["entropy/top"].value(), entropy_BC[kept_BC].mean())
    assert_close(metrics["entropy"].value(), entropy_BC[ACTIVE].mean())


def test_the_quantile_is_over_all_devices(mesh_of):
    logp_BC, batch = random_batch(18)
    objective = OBJECTIVES["top_entropy"]
    expected = evaluate(objective, logp_BC, batch)
    mesh = mesh_of(data=4)

    def placed(x):
        axes = ("data",) if np.ndim(x) else ()
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

    cut = jax.tree.map(placed, (jnp.asarray(logp_BC), batch))
    assert len(cut[0].sharding.device_set) == 4
    actual = evaluate(objective, *cut)
    jax.tree.map(assert_close, jax.device_get(actual), jax.device_get(expected))


def test_the_weight_of_the_bonus_follows_the_entropy():
    objective = Policy(entropy_target=0.5, entropy=0.01, entropy_range=(0.0, 0.02))
    memory, seen = memory_of(objective), []
    for entropy in (0.4, 0.4, 0.4, 0.9, np.nan, 0.9, 0.3):
        loss = golden(objective, **memory)[0]
        seen.append((float(memory["entropy_coef"]), float(loss != golden(Policy())[0])))
        memory = remembered(objective, memory, {"entropy": jnp.float32(entropy)})
    # It acts after a step of low entropy; a step without tokens changes nothing.
    expected = [(0.01, 0), (0.015, 1), (0.02, 1), (0.02, 1)]
    expected += [(0.015, 0), (0.015, 0), (0.01, 0)]
    assert_close(seen, expected)
    assert_close(float(memory["entropy_coef"]), 0.015)
    assert memory_of(Policy(entropy=0.1)) == {}
    top = dataclasses.replace(objective, top_entropy=0.2)
    figures = {"entropy": jnp.float32(9.0), "entropy/top": jnp.float32(0.1)}
    assert remembered(top, memory, figures)["last_entropy"] == np.float32(0.1)


def test_a_term_of_your_own():
    def reinforce(tokens, *, clip_high: float = 1.0):
        loss_BC = -clip_high * tokens.advantage_BC * tokens.logp_BC
        return Term(loss_BC, tokens.ratio_BC())

    loss = golden(Policy(reinforce, clip_high=3.0, aggregation="sum"))[0]
    assert_close(loss, -3 * (np.where(ACTIVE, LOGP, 0).sum(1) * ADVANTAGE).mean())
    with pytest.raises(ValueError, match=r"no use for clip_low = 0\.1"):
        Policy(reinforce, clip_low=0.1)

    def unknown(tokens, *, temper):
        return Term(tokens.logp_BC, tokens.ratio_BC())

    with pytest.raises(ValueError, match="temper"):
        Policy(unknown)


def test_only_the_policy_gets_a_gradient():
    """Of all that a batch holds, under an objective that uses all of it."""
    logp_BC, batch = random_batch(1)
    objective = Policy(kl=0.1, off_policy=OffPolicy(stray_threshold=0.1), entropy=0.1)
    floats = {k: x for k, x in batch.items() if x.dtype == jnp.float32}

    def loss(floats):
        counts = objective.counts(batch)
        return objective(stats_of(jnp.asarray(logp_BC)), batch | floats, counts)[0]

    for key, gradient in jax.jit(jax.grad(loss))(floats).items():
        np.testing.assert_array_equal(gradient, 0, err_msg=key)


def test_invalid_rows_equal_rows_that_are_not_there():
    logp_BC, batch = random_batch(7)
    kept = np.flatnonzero(batch["valid_B"])
    assert 0 < len(kept) < 4
    few = rows_of(batch, kept)
    for name in ("clipped", "gspo", "constant", "sequence_mask"):
        loss, gradients, metrics = evaluate(OBJECTIVES[name], logp_BC, batch)
        expected = evaluate(OBJECTIVES[name], logp_BC[kept], few)
        assert_close(loss, expected[0], err_msg=name)
        assert_close(gradients[0][kept], expected[1][0], err_msg=name)
        for key, value in expected[2].items():
            assert_close(metrics[key], value, err_msg=f"{name} {key}")


def test_what_an_objective_asks_for():
    assert "reference" not in Policy().needs
    assert "reference" in Policy(kl=0.01).needs
    assert Policy().temperature_from_sampling


@pytest.mark.parametrize(
    ("key", "objective"),
    [
        ("advantage_B", Policy()),
        ("reference_logp_BC", Policy(kl=0.1)),
        ("truncated_B", Policy(mask_truncated=True)),
        ("sampler_logp_BC", Policy(bypass=True)),
        ("drawn_logp_BC|sampler_logp_BC", Policy(off_policy=OffPolicy())),
        ("entropy_coef", Policy(entropy_target=0.2)),
    ],
)
def test_what_the_batch_lacks_is_named(key, objective):
    logp_BC, batch = random_batch()
    part = {name: x for name, x in batch.items() if name not in key}
    with pytest.raises(ValueError, match=f"Policy needs '({key})'"):
        objective(stats_of(logp_BC), part, objective.counts(part))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"clip_low": -0.1, "aggregation": "mean"},
            "clip_low = -0.1 .*aggregation = m",
        ),
        ({"loss": policy.two_sided}, "policy.two_sided needs delta"),
        ({"loss": policy.vespo, "clip_low": 0.1}, "no use for clip_low = 0.1"),
        ({"loss": policy.gspo, "level": "token"}, "no use for level"),
        ({"delta": 2.0}, "policy.clipped has no use for delta"),
        ({"level": "word"}, "level = word must"),
        ({"top_entropy": 0.0}, "top_entropy"),
        ({"bypass": True, "off_policy": OffPolicy()}, "bypass"),
        ({"kl": -1.0, "kl_limit": 0.0}, "kl = -1.0 .*kl_limit"),
        ({"entropy_range": (1.0, 0.0)}, "entropy_range"),
        ({"kl_estimator": kl.k2}, "kl_bias_correction = True must be off"),
        ({"max_completion_length": 0}, "max_completion_length"),
    ],
)
def test_what_makes_no_sense_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Policy(), **wrong)
