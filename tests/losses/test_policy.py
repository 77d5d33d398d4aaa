"""The terms by themselves: golden values, clips, stop-gradients, identities."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.losses import policy
from jaxloop.losses.objectives import Policy
from jaxloop.losses.policy import Tokens
from tests.losses.policy_samples import (
    ACTIVE,
    ADVANTAGE,
    LOGP,
    OLD,
    TERMS,
    counted,
    evaluate,
    evaluate_all,
    golden_batch,
    random_batch,
)

assert_golden = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def tokens_of(ratio, advantage, old=-1.0):
    """One token a sequence, with those ratios and advantages."""
    ratio, advantage = np.broadcast_arrays(np.float32(ratio), np.float32(advantage))
    old_BC = jnp.full(ratio.shape, old)[:, None]
    logp_BC = old_BC + jnp.log(jnp.asarray(ratio))[:, None]
    return Tokens(logp_BC, old_BC, jnp.asarray(advantage)[:, None], old_BC > -jnp.inf)


def slope(term, tokens, **numbers):
    """d loss / d log policy of each token."""

    def total(logp_BC):
        return term(tokens.replace(logp_BC=logp_BC), **numbers).loss_BC.sum()

    return jax.grad(total)(tokens.logp_BC)[:, 0]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Policy(aggregation="sequence"), -0.199170923),
        (Policy(aggregation="token"), -0.090942005),
        (Policy(clip_high=0.28), -0.102370576),
        (Policy(aggregation="constant", max_completion_length=8), -0.039787127),
        (Policy(policy.gspo, clip_low=0.2, clip_high=0.2), -0.214137013),
        (Policy(level="sequence", aggregation="sum"), -0.37294),
        (Policy(policy.cispo, clip_high=5.0), 0.23599318),
        (Policy(policy.sapo), -0.499325771),
        (Policy(policy.vespo), 0.274094256),
        (Policy(policy.two_sided, delta=1.1, aggregation="sequence"), -0.210549336),
    ],
    ids=[
        *("grpo", "dapo", "dapo_clip_higher", "dr_grpo", "gspo"),
        *("luspo", "cispo", "sapo", "vespo", "two_sided"),
    ],
)
def test_golden(objective, expected):
    loss, gradients, metrics = evaluate(objective, *golden_batch())
    assert_golden(loss, expected)
    assert_golden(metrics["policy_loss"], expected)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_golden_ratios_and_weights_of_sequences():
    tokens = Tokens(*map(jnp.asarray, (LOGP, OLD, ADVANTAGE[:, None], ACTIVE)))
    assert_golden(tokens.ratio_BC("sequence")[:, 0], [0.967216, 1.077884])
    phi_BC = policy.vespo(tokens).metrics["vespo/phi_seq_mean"]
    assert_golden(phi_BC[:, 0], [1.089248, 1.221748])
    product_B = np.exp(((LOGP - OLD) * ACTIVE).sum(1))
    assert_golden(tokens.ratio_BC("sum")[:, 0], product_B)


RATIO = np.array([0.5, 0.9, 1.0, 1.1, 1.5, 6.0] * 2)
SIGN = np.repeat([1.0, -1.0], 6)
# Per unit of advantage: what the slope of the gain in log policy should be.
STOPPED = {
    "clipped": (policy.clipped, {}, [0.5, 0.9, 1, 1.1, 0, 0], [0, 0.9, 1, 1.1, 1.5, 6]),
    "two_sided": (
        partial(policy.two_sided, delta=4.0),
        {},
        [0.5, 0.9, 1, 1.1, 0, 0],
        [0, 0.9, 1, 1.1, 1.5, 0],
    ),
    "dual_clip": (
        policy.dual_clip,
        {},
        [0.5, 0.9, 1, 1.1, 0, 0],
        [0, 0.9, 1, 1.1, 1.5, 0],
    ),
    "cispo": (
        policy.cispo,
        {"clip_high": 1.2},
        [0.5, 0.9, 1, 1.1, 1.2, 1.2],
        [0.5, 0.9, 1, 1.1, 1.2, 1.2],
    ),
    "gmpo": (policy.gmpo, {}, [0.5, 0.9, 1, 1.1, 0, 0], [0, 0.9, 1, 1.1, 1.5, 6]),
    "topr": (policy.topr, {}, [1] * 6, [0.5, 0.9, 1, 1, 1, 1]),
    # old p = 0.1: what counts is 0.1 (ratio - 1) against 0.04.
    "dppo": (
        policy.dppo,
        {"clip_low": 0.04, "clip_high": 0.04, "penalty": 0.0},
        [0.5, 0.9, 1, 1.1, 0, 0],
        [0, 0.9, 1, 1.1, 1.5, 6],
    ),
}


@pytest.mark.parametrize("name", STOPPED)
def test_where_the_gradient_stops(name):
    term, numbers, up, down = STOPPED[name]
    tokens = tokens_of(RATIO, 2.0 * SIGN, old=np.log(0.1))
    expected = -2.0 * SIGN * np.concatenate([up, down])
    np.testing.assert_allclose(slope(term, tokens, **numbers), expected, rtol=2e-5)


def test_gates_and_bumps():
    """SAPO's and VESPO's weights, from their formulas."""
    tokens = tokens_of(RATIO, SIGN)
    tau = np.where(SIGN > 0, 1.0, 1.05)
    gate = 1 / (1 + np.exp(-tau * (RATIO - 1)))
    expected = -SIGN * 4 * gate * (1 - gate) * RATIO
    np.testing.assert_allclose(slope(policy.sapo, tokens), expected, rtol=2e-5)

    k, lam = np.where(SIGN > 0, 2.0, 3.0), np.where(SIGN > 0, 3.0, 2.0)
    phi = RATIO**k * np.exp(lam * (1 - RATIO))
    np.testing.assert_allclose(slope(policy.vespo, tokens), -SIGN * phi, rtol=2e-5)
    weight = np.where(np.arange(12) % 2, 1.5, 0.0)  # 0 counts as 1e-8
    correction_BC = jnp.asarray(weight, jnp.float32)[:, None]
    corrected = slope(policy.vespo, tokens, correction_BC=correction_BC)
    shifted = RATIO * np.maximum(weight, 1e-8)
    phi = shifted**k * np.exp(lam * (1 - shifted))
    np.testing.assert_allclose(corrected, -SIGN * phi, rtol=2e-5, atol=1e-12)


def test_a_weight_of_a_whole_sequence_enters_vespo_once():
    """(B, 1) and (B, C) weights of the same product give the same loss."""
    tokens = Tokens(*map(jnp.asarray, (LOGP, OLD, ADVANTAGE[:, None], ACTIVE)))
    by_token_BC = jnp.where(ACTIVE, 1.1, 7.0)
    whole_B1 = 1.1 ** jnp.asarray(ACTIVE.sum(1, keepdims=True), jnp.float32)
    np.testing.assert_allclose(
        policy.vespo(tokens, correction_BC=by_token_BC).loss_BC,
        policy.vespo(tokens, correction_BC=whole_B1).loss_BC,
        rtol=1e-5,
    )


def test_two_sided_is_dual_clip_above_the_upper_bound():
    tokens = tokens_of(np.linspace(0.1, 9, 60), np.tile([1.3, -0.7, 0.0], 20))
    for delta in (1.2, 3.0):
        two, dual = (
            term(tokens, delta=delta) for term in (policy.two_sided, policy.dual_clip)
        )
        np.testing.assert_allclose(two.loss_BC, dual.loss_BC, rtol=1e-6, atol=1e-7)
    # A negative advantage costs at most delta |A|.
    assert dual.loss_BC.max() <= 3.0 * 0.7 + 1e-6


def test_the_clip_is_measured_before_delta_acts():
    """TRL measures after; a delta below 1 + clip_high then hides every clip."""
    tokens = tokens_of([1.5, 1.5, 0.5, 0.5], [1.0, -1.0, 1.0, -1.0])
    term = policy.two_sided(tokens, delta=1.1)
    np.testing.assert_array_equal(term.high_BC[:, 0], [True, False, False, False])
    np.testing.assert_array_equal(term.low_BC[:, 0], [False, False, False, True])


@pytest.fixture(scope="module")
def on_policy():
    logp_BC, batch = random_batch(3)
    for key in ("old_logp_BC", "weight_B", "weight_BC"):
        del batch[key]
    return logp_BC, batch, evaluate_all(logp_BC, batch, counted(batch, TERMS))


@pytest.mark.parametrize("name", TERMS)
def test_the_first_step_on_policy_is_reinforce(name, on_policy):
    """Ratio 1: every term has the gradient of -A log policy under its aggregation."""
    objective, (logp_BC, batch, results) = TERMS[name], on_policy
    _, (gradient_BC, _), metrics = results[name]

    active_BC = np.isfinite(logp_BC)
    lengths_B1 = np.maximum(active_BC.sum(1, keepdims=True), 1)
    valid = batch["valid_B"].sum()
    way = objective.aggregation or policy.aggregation_of(objective.loss)
    if objective.level == "sum" or name == "rloo":
        way = {"sum": "product of lengths", "sequence": "sum"}[way]
    share_BC = {
        "token": 1 / active_BC.sum(),
        "sequence": 1 / (lengths_B1 * valid),
        "constant": 1 / (8 * valid),
        "sum": 1 / valid,
        # The sum over tokens of one number that is itself a product over tokens.
        "product of lengths": lengths_B1 / valid,
    }[way]
    expected_BC = np.where(active_BC, -batch["advantage_B"][:, None] * share_BC, 0)
    np.testing.assert_allclose(gradient_BC, expected_BC, rtol=1e-5, atol=1e-7)
    assert metrics["ratio/log_max"] == 0
    assert metrics.get("clip_ratio/region_mean", 0) == 0
    np.testing.assert_allclose(metrics.get("vespo/phi_seq_mean", 1), 1, rtol=1e-6)


def test_a_term_brings_the_aggregation_of_its_paper():
    assert policy.aggregation_of(policy.clipped) == "token"
    assert policy.aggregation_of(partial(policy.gmpo, clip_low=0.1)) == "sequence"
    assert policy.aggregation_of(policy.topr) == "sum"
    assert policy.aggregation_of(lambda tokens: tokens) == "token"
