"""Every loss of a pair: golden values, identities, extremes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.losses import divergence, keywords, nash, preference, reference_free
from jaxloop.losses.pairs import Pairs
from tests.losses.pair_samples import EVERY_LOSS, SIGMOID, assert_golden, golden_pairs

VALID = jnp.ones(4, bool)
GOLDEN = {
    preference.sigmoid: ({}, SIGMOID, 0.584794),
    preference.hinge: ({}, [0.5, 1.325, 0.575, 0.55], 0.7375),
    preference.ipo: ({}, [22.8484, 26.137656, 20.532227, 23.846944], 23.341307),
    preference.exo_pair: (
        {"smoothing": 0.001},
        [1.945734, 3.330547, 2.060316, 2.021759],
        2.339589,
    ),
    preference.nca_pair: ({}, [1.274386, 1.473671, 1.289675, 1.292011], 1.332436),
    preference.robust: (
        {"smoothing": 0.1},
        [0.411577, 0.909418, 0.449932, 0.436999],
        0.551981,
    ),
    preference.cdpo: (
        {"smoothing": 0.1},
        [0.524077, 0.836293, 0.545557, 0.538249],
        0.611044,
    ),
    preference.bco_pair: ({}, [1.152494, 1.555427, 1.18541, 1.175312], 1.267161),
    preference.sppo_hard: ({}, [13.0, 87.8125, 16.8125, 16.25], 33.46875),
    preference.aot: (
        {"valid_P": VALID},
        [0.680725, 0.644397, 0.474077, 0.503057],
        0.575564,
    ),
    preference.aot_unpaired: (
        {"valid_P": VALID},
        [0.620957, 0.503057, 0.533382, 0.632599],
        0.572499,
    ),
    preference.apo_zero: ({}, [0.875723, 1.081069, 0.894185, 0.888128], 0.934776),
    preference.apo_down: ({}, [0.927375, 1.043112, 0.93896, 0.963803], 0.968313),
    preference.discopop: (
        {"tau": 0.05},
        [0.606525, 0.869566, 0.653739, 0.63761],
        0.69186,
    ),
    preference.sigmoid_norm: (
        {"beta": 2.0},
        [0.497154, 0.811962, 0.330458, 0.583271],
        0.555711,
    ),
    reference_free.simpo: (
        {"beta": 2.0, "margin": 0.5},
        [1.076637, 1.044419, 0.460084, 0.750245],
        0.832846,
    ),
    reference_free.cpo: ({}, [0.371101, 0.989712, 0.363417, 0.744397], 0.617156),
    reference_free.orpo: ({}, [0.074079, 0.072671, 0.042883, 0.058842], 0.062119),
}
MATCHED = (preference.aot, preference.aot_unpaired)


@pytest.mark.parametrize("loss", GOLDEN, ids=keywords.title)
def test_golden(loss):
    arguments, expected_P, mean = GOLDEN[loss]
    loss_P, _ = loss(golden_pairs(), **({"beta": 0.1} | arguments))
    assert_golden(loss_P.mean(), mean)
    if loss in MATCHED:  # listed in sorted order
        loss_P, expected_P = np.sort(loss_P), np.sort(expected_P)
    assert_golden(loss_P, expected_P)


def random_pairs(seed=0, pairs=5):
    rng = np.random.default_rng(seed)
    policy_P2, reference_P2 = rng.normal(-20, 5, (2, pairs, 2)).astype(np.float32)
    tokens_P2 = rng.integers(1, 30, (pairs, 2)).astype(np.float32)
    return Pairs(jnp.asarray(policy_P2), jnp.asarray(reference_P2), tokens_P2)


def soft_targets(value, pairs=5):
    return jnp.full(pairs, value)


SAME = {
    "soft 1 is DPO": (
        lambda p: preference.soft(p, beta=0.2, target_P=soft_targets(1.0)),
        lambda p: preference.sigmoid(p, beta=0.2),
    ),
    "soft is cDPO": (
        lambda p: preference.soft(p, beta=0.2, target_P=soft_targets(0.8)),
        lambda p: preference.cdpo(p, beta=0.2, smoothing=0.2),
    ),
    "robust 0 is DPO": (
        lambda p: preference.robust(p, beta=0.2, smoothing=0.0),
        lambda p: preference.sigmoid(p, beta=0.2),
    ),
    "no offset is DPO": (
        lambda p: preference.odpo(p, beta=0.2, margin_P=jnp.zeros(5)),
        lambda p: preference.sigmoid(p, beta=0.2),
    ),
    "DPO of means": (
        lambda p: preference.sigmoid(p.normalised(), beta=2.0),
        lambda p: preference.sigmoid_norm(p, beta=2.0),
    ),
    "IPO of means": (
        lambda p: preference.ipo_sum(p.normalised(), beta=0.2),
        lambda p: preference.ipo(p, beta=0.2),
    ),
    "means of means are means": (
        lambda p: preference.ipo(p.normalised().normalised(), beta=0.2),
        lambda p: preference.ipo(p, beta=0.2),
    ),
    "CPO of means is SimPO": (
        lambda p: reference_free.cpo(p.normalised(), beta=2.0, smoothing=0.1),
        lambda p: reference_free.simpo(p, beta=2.0, margin=0.0, smoothing=0.1),
    ),
    "AlphaPO 0 is SimPO": (
        lambda p: reference_free.alpha_po(p, beta=2.0, alpha=0.0),
        lambda p: reference_free.simpo(p, beta=2.0),
    ),
    "AlphaPO near 0 is SimPO": (
        lambda p: reference_free.alpha_po(p, beta=2.0, alpha=2e-6),
        lambda p: reference_free.simpo(p, beta=2.0),
    ),
    "CPO is DPO without reference": (
        lambda p: reference_free.cpo(p, beta=0.2),
        lambda p: preference.sigmoid(
            p.replace(reference_P2=jnp.zeros((5, 2))), beta=0.2
        ),
    ),
    "SPPO of a certain win": (
        lambda p: nash.sppo(p, beta=0.2, target_P=soft_targets(1.0)),
        lambda p: preference.sppo_hard(p, beta=0.2),
    ),
    "INPO with one reference is IPO": (
        lambda p: nash.inpo(p, eta=0.2, tau=0.05, previous_P2=p.reference_P2),
        lambda p: preference.ipo_sum(p, beta=0.2),
    ),
    "INPO, tau = eta": (
        lambda p: nash.inpo(p, eta=0.2, tau=0.2, previous_P2=p.policy_P2 * 3),
        lambda p: preference.ipo_sum(p, beta=0.2),
    ),
    "the alpha divergence of 1": (
        lambda p: preference.hinge(
            p,
            beta=0.2,
            divergence=functools.partial(divergence.alpha_divergence, alpha=1.0),
        ),
        lambda p: preference.hinge(p, beta=0.2),
    ),
    "the alpha divergence of 0": (
        lambda p: preference.robust(
            p,
            beta=0.1,
            smoothing=0.1,
            divergence=functools.partial(divergence.alpha_divergence, alpha=0.0),
        ),
        lambda p: preference.robust(
            p, beta=0.1, smoothing=0.1, divergence=divergence.forward_kl
        ),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_two_ways_to_say_the_same(name):
    """In value and in gradient."""
    pairs = random_pairs()
    for value in (0, 1):
        one, other = (
            jax.value_and_grad(
                lambda policy_P2, loss=loss: loss(pairs.replace(policy_P2=policy_P2))[
                    0
                ].sum()
            )(pairs.policy_P2)[value]
            for loss in SAME[name]
        )
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)


def test_doubling_all_lengths_leaves_a_length_averaged_loss():
    pairs = golden_pairs()
    twice = jax.tree.map(lambda x: 2 * x, pairs)
    for loss in (preference.ipo, preference.sigmoid_norm):
        assert_golden(loss(twice, beta=0.3)[0], loss(pairs, beta=0.3)[0])
    assert preference.ipo_sum(twice, beta=0.3)[0] != pytest.approx(
        preference.ipo_sum(pairs, beta=0.3)[0]
    )


def test_aot_matches_quantiles_of_valid_pairs_only():
    """A pair that is not valid takes no rank, and losses stand by their chosen side."""
    pairs = random_pairs()
    valid_P = jnp.array([True, False, True, True, False])
    kept = jax.tree.map(lambda x: x[np.array([0, 2, 3])], pairs)
    for loss in MATCHED:
        loss_P, _ = loss(pairs, beta=0.2, valid_P=valid_P)
        expected_P, _ = loss(kept, beta=0.2, valid_P=jnp.ones(3, bool))
        np.testing.assert_allclose(loss_P[valid_P], expected_P, rtol=1e-6)
    one = jax.tree.map(lambda x: x[:1], pairs)
    for loss in MATCHED:
        alone_P, _ = loss(one, beta=0.2, valid_P=jnp.ones(1, bool))
        np.testing.assert_allclose(alone_P, preference.sigmoid(one, beta=0.2)[0])


def arguments_of(objective, pairs):
    """What `objective.loss` asks for."""
    count = pairs.policy_P2.shape[0]
    inputs = {
        "target_P": jnp.linspace(0, 1, count),
        "margin_P": jnp.linspace(0, 2, count),
        "previous_P2": pairs.reference_P2 - 1,
        "valid_P": jnp.ones(count, bool),
    }
    asked = keywords.asked(objective.loss)
    numbers = {
        field.name: getattr(objective, field.name)
        for field in dataclasses.fields(objective)
        if field.name in asked and getattr(objective, field.name) is not None
    }
    return numbers | {name: x for name, x in inputs.items() if name in asked}


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_extreme_log_ratios_give_finite_losses_and_gradients(name):
    """+-1e4 nats, rounded as bfloat16 would, and completions without a token."""
    objective = EVERY_LOSS[name]
    far = np.float32(jnp.bfloat16(1e4))
    rows = [[x, y] for x in (-far, -1e-3, 0.0) for y in (-far, -1e-3, 0.0)]
    policy_P2 = jnp.array(rows + rows, jnp.float32)
    reference_P2 = jnp.array([[-far, -1.0]] * 9 + [[0.0, -far]] * 9, jnp.float32)
    for tokens in (0.0, 1.0, 1e4):
        pairs = Pairs(policy_P2, reference_P2, jnp.full((18, 2), tokens))
        arguments = arguments_of(objective, pairs)

        def total(policy_P2, pairs=pairs, arguments=arguments):
            pairs = pairs.replace(policy_P2=policy_P2)
            return objective.loss(pairs, **arguments)[0].sum()

        value, gradient_P2 = jax.value_and_grad(total)(policy_P2)
        assert np.isfinite(value)
        assert np.isfinite(gradient_P2).all()


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_references_and_labels_get_no_gradient(name):
    objective, pairs = EVERY_LOSS[name], random_pairs()
    arguments = arguments_of(objective, pairs)
    arrays = {
        key: x
        for key, x in arguments.items()
        if isinstance(x, jax.Array) and x.dtype != bool
    }

    def total(reference_P2, arrays):
        loss_P, _ = objective.loss(
            pairs.replace(reference_P2=reference_P2), **(arguments | arrays)
        )
        return loss_P.sum()

    for gradient in jax.tree.leaves(
        jax.grad(total, argnums=(0, 1))(pairs.reference_P2, arrays)
    ):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        (preference.robust, {"smoothing": 0.5}),
        (preference.cdpo, {"smoothing": 0.6}),
        (preference.exo_pair, {"smoothing": 0.0}),
    ],
    ids=["robust", "cdpo", "exo"],
)
def test_a_rate_of_wrong_labels_that_makes_no_sense(loss, arguments):
    with pytest.raises(ValueError, match="smoothing = 0"):
        loss(golden_pairs(), beta=0.1, **arguments)


def test_log1mexp_near_and_far():
    x = np.array([-1e-6, -1e-3, -0.5, -0.7, -3.0, -50.0])
    x32 = jnp.asarray(x, jnp.float32)
    expected = np.log1p(-np.exp(x))
    np.testing.assert_allclose(reference_free.log1mexp(x32), expected, rtol=1e-5)
    slope = jax.vmap(jax.grad(reference_free.log1mexp))(x32)
    np.testing.assert_allclose(slope, -1 / np.expm1(-x), rtol=1e-5)
    far = jax.value_and_grad(reference_free.log1mexp)(-1e4)
    assert [float(x) for x in far] == [0, 0]
