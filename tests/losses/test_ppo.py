"""Generalised advantages and the value loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.losses import ppo
from jaxloop.losses.objective import Mixture, stats_of
from jaxloop.losses.objectives import Policy, Value
from jaxloop.losses.reduce import values
from tests.losses.policy_samples import quick_jit

assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def gae_by_hand(reward, value, mask, discount, decay):
    """The double sum of the definition over the tokens that count."""
    steps = np.flatnonzero(mask)
    advantage = np.zeros(len(reward))
    after = [*value[steps[1:]], 0.0]
    delta = reward[steps] + discount * np.array(after) - value[steps]
    for i, t in enumerate(steps):
        factors = (discount * decay) ** np.arange(len(steps) - i)
        advantage[t] = (factors * delta[i:]).sum()
    return advantage, np.where(mask, advantage + value, 0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31), st.sampled_from([1.0, 0.9]), st.sampled_from([0.0, 0.95, 1])
)
def test_gae_is_its_definition(seed, discount, decay):
    rng = np.random.default_rng(seed)
    reward_BC, value_BC = rng.normal(size=(2, 3, 5))
    mask_BC = rng.random((3, 5)) < 0.6
    poisoned = [np.where(mask_BC, x, np.nan) for x in (reward_BC, value_BC)]
    numbers = {"discount": discount, "decay": decay}
    actual = ppo.gae(*map(jnp.asarray, poisoned), mask_BC, **numbers)
    rows = zip(reward_BC, value_BC, mask_BC, strict=True)
    expected = zip(*(gae_by_hand(*row, **numbers) for row in rows), strict=True)
    for actual_BC, expected_BC in zip(actual, expected, strict=True):
        assert_close(actual_BC, np.stack(expected_BC))


def test_without_values_and_decay_it_is_the_reward_to_go():
    reward_BC = jnp.array([[0.0, 1.0, 0.0, 2.0]])
    advantage_BC, return_BC = ppo.gae(
        reward_BC, jnp.zeros((1, 4)), jnp.ones((1, 4)), decay=1.0
    )
    assert_close(advantage_BC, [[3, 3, 2, 2]])
    assert_close(return_BC, [[3, 3, 2, 2]])


def test_whitened():
    mask_BC = jnp.array([[1, 1, 0], [1, 0, 0]])
    x_BC = ppo.whitened(jnp.array([[1.0, 2.0, jnp.nan], [6.0, 9.0, 9.0]]), mask_BC)
    assert_close(x_BC[0, :2].sum() + x_BC[1, 0], 0)
    assert_close(np.std([*x_BC[0, :2], x_BC[1, 0]], ddof=1), 1)
    assert (x_BC[mask_BC == 0] == 0).all()


def test_the_value_clip_never_helps():
    """Moving further than the clip from the old value costs, or gains nothing."""
    new = jnp.array([0.0, 0.5, 1.0, 1.0, -1.0])
    old, target = jnp.array([0.0, 0.0, 0.0, 0.0, 0.0]), jnp.array([1, 1, 1, -1, 1.0])
    loss, held = ppo.clipped_value(new, old, target, clip=0.2)
    expected = [0.5, 0.5 * 0.8**2, 0.5 * 0.8**2, 0.5 * 4, 0.5 * 4]
    assert_close(loss, expected)
    np.testing.assert_array_equal(held, [False, True, True, False, False])
    slope = jax.grad(lambda x: ppo.clipped_value(x, old, target, clip=0.2)[0].sum())
    assert_close(slope(new), [-1, 0, 0, 2, -2])


def draw(seed=0, rows=3, tokens=4):
    rng = np.random.default_rng(seed)
    mask_BC = np.arange(tokens) < rng.integers(0, tokens + 1, (rows, 1))
    head_BEK = rng.normal(size=(rows, tokens + 1, 1)).astype(np.float32)

    def some():
        x_BC = rng.normal(size=(rows, tokens)).astype(np.float32)
        return np.where(mask_BC, x_BC, np.nan)

    batch = {"mask_BC": mask_BC, "value_BC": some(), "return_BC": some()}
    batch |= {"weight_B": np.ones(rows, np.float32)}
    return head_BEK, jax.tree.map(jnp.asarray, batch)


@quick_jit
def evaluate(head_BEK, batch, counts):
    def loss(head_BEK):
        stats = stats_of(jnp.zeros(batch["mask_BC"].shape), head_BEK=head_BEK)
        return Value(0.3)(stats, batch, counts)

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(head_BEK)
    return value, gradient, values(metrics)


def test_the_value_before_a_token_is_what_learns():
    head_BEK, batch = draw()
    counts = Value().counts(batch)
    loss, gradient_BEK, metrics = evaluate(head_BEK, batch, counts)
    value_BC, active_BC = head_BEK[:, :-1, 0], np.asarray(batch["mask_BC"])
    expected_BC, _ = ppo.clipped_value(
        value_BC, batch["value_BC"], batch["return_BC"], clip=0.3
    )
    assert_close(loss, expected_BC[active_BC].mean())
    assert_close(metrics["value/loss"], loss)
    assert_close(metrics["value/mean"], value_BC[active_BC].mean())
    assert np.isfinite(gradient_BEK).all()
    np.testing.assert_array_equal(gradient_BEK[:, :-1, 0][~active_BC], 0)
    np.testing.assert_array_equal(gradient_BEK[:, -1], 0)
    double = batch | {"weight_B": 2 * batch["weight_B"]}
    assert_close(evaluate(head_BEK, double, counts)[0], 2 * loss)


def test_micro_batches_add_up_and_an_empty_one_is_zero():
    head_BEK, batch = draw(1)
    counts = Value().counts(batch)
    whole = evaluate(head_BEK, batch, counts)
    shares = [
        evaluate(head_BEK, batch | {"mask_BC": batch["mask_BC"] & part_B1}, counts)
        for part_B1 in (np.eye(3, dtype=bool)[:, [i]] for i in range(3))
    ]
    assert_close(sum(share[0] for share in shares), whole[0])
    assert_close(sum(share[1] for share in shares), whole[1])
    none = batch | {"mask_BC": jnp.zeros_like(batch["mask_BC"])}
    assert evaluate(head_BEK, none, Value().counts(none))[0] == 0


def test_gradients_are_finite_differences():
    with jax.enable_x64(True):
        head_BEK, batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), draw(2))

        def loss(head_BEK):
            stats = stats_of(batch["mask_BC"], head_BEK=head_BEK)
            return Value()(stats, batch, Value().counts(batch))[0]

        way_BEK = np.random.default_rng(0).normal(size=head_BEK.shape)
        up, down = (float(loss(head_BEK + s * way_BEK)) for s in (1e-6, -1e-6))
        slope = float((jax.grad(loss)(head_BEK) * way_BEK).sum())
    np.testing.assert_allclose((up - down) / 2e-6, slope, rtol=1e-6)


def test_ppo_is_a_mixture():
    head_BEK, batch = draw()
    batch["advantage_BC"] = jnp.ones(batch["mask_BC"].shape)
    ppo_objective = Mixture((Policy(), Value()), (1.0, 0.5))
    assert ppo_objective.needs == {"advantage", "head"}
    assert ppo_objective.temperature_from_sampling
    stats = stats_of(jnp.zeros(batch["mask_BC"].shape), head_BEK=jnp.asarray(head_BEK))
    loss, metrics = ppo_objective(stats, batch, ppo_objective.counts(batch))
    assert_close(loss, -1 + 0.5 * metrics["value/loss"].value())


def test_mistakes_are_named():
    _, batch = draw()
    with pytest.raises(ValueError, match="no scalar head"):
        Value()(stats_of(jnp.zeros((3, 4))), batch, Value().counts(batch))
    with pytest.raises(ValueError, match="clip must be positive"):
        Value(clip=0.0)
