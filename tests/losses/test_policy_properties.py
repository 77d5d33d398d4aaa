"""What holds for every policy objective: masks, order, splits, extremes, gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.losses.objective import stats_of
from tests.losses.policy_samples import (
    MODIFIED,
    OBJECTIVES,
    TERMS,
    counted,
    evaluate_all,
    random_batch,
    result,
    rows_of,
)

assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def whole():
    logp_BC, batch = random_batch(5)
    return logp_BC, batch, evaluate_all(logp_BC, batch, counted(batch))


def check_masked(batch, results):
    """All finite, and no gradient where masked."""
    active_BC = (batch["mask_BC"] > 0) & (batch["valid_B"] > 0)[:, None]
    for name, (loss, gradients, metrics) in results.items():
        assert np.isfinite(loss), name
        for gradient_BC in gradients:
            assert np.isfinite(gradient_BC).all(), name
            np.testing.assert_array_equal(np.where(active_BC, 0, gradient_BC), 0, name)
        unknown = {key for key, x in metrics.items() if np.isinf(x)}
        assert not unknown, (name, unknown)


def test_every_objective_ignores_what_is_masked(whole):
    """The batch holds NaN wherever nothing counts."""
    check_masked(whole[1], whole[2])
    assert len({float(r[0]) for r in whole[2].values()}) > 20  # they do differ


def test_the_order_of_sequences_does_not_matter(whole):
    logp_BC, batch, results = whole
    order = np.array([2, 0, 3, 1])
    moved = rows_of(batch, order)
    for name, (loss, gradients, _) in evaluate_all(
        logp_BC[order], moved, counted(moved)
    ).items():
        assert_close(loss, results[name][0], err_msg=name)
        for actual_BC, expected_BC in zip(gradients, results[name][1], strict=True):
            assert_close(actual_BC, expected_BC[order], err_msg=name)


@pytest.mark.parametrize("seed", [2, 5, 6])
def test_micro_batches_add_up_to_the_step(seed):
    """But for what picks tokens by micro-batch. The rows of other micro-batches are
    made invalid, which equals leaving them out."""
    logp_BC, batch = random_batch(seed)
    counts = counted(batch)
    full = evaluate_all(logp_BC, batch, counts)
    halves = [
        evaluate_all(logp_BC, batch | {"valid_B": batch["valid_B"] & half_B}, counts)
        for half_B in (np.arange(4) < 2, np.arange(4) >= 2)
    ]
    for name in TERMS | MODIFIED:
        shares = (half[name][:2] for half in halves)
        summed = jax.tree.map(jnp.add, *shares)
        jax.tree.map(partial(assert_close, err_msg=name), summed, full[name][:2])


def test_opposite_labels_make_exactly_the_weighted_sum_of_their_losses(whole):
    """Of every term, at ratios outside of the clip too: the sum of the advantages, and
    what cancels in it, say all."""
    logp_BC, batch, _ = whole
    rng = np.random.default_rng(1)
    share_J = np.array([0.5, 0.3, 0.2])
    each_JB = np.abs(rng.normal(size=(3, 4))) * [[1], [-1], [1]]
    each_JB = np.where(batch["valid_B"], each_JB, np.nan)
    up_B, down_B = (share_J @ np.maximum(sign * each_JB, 0) for sign in (1, -1))
    *apart, folded = (
        batch | {"advantage_B": jnp.float32(advantage_B)}
        for advantage_B in (*each_JB, up_B - down_B)
    )
    counts = counted(batch)
    apart = [evaluate_all(logp_BC, labelled, counts) for labelled in apart]
    alone = evaluate_all(logp_BC, folded, counts)
    folded |= {"opposed_B": jnp.float32(np.minimum(up_B, down_B))}
    together = evaluate_all(logp_BC, folded, {name: counts[name] for name in TERMS})
    for name, (loss, gradients, _) in together.items():
        expected = jax.tree.map(
            lambda *xs: sum(w * x for w, x in zip(share_J, xs, strict=True)),
            *(results[name][:2] for results in apart),
        )
        jax.tree.map(partial(assert_close, err_msg=name), (loss, gradients), expected)
    missed = {name for name in TERMS if abs(alone[name][0] - together[name][0]) > 1e-4}
    assert len(missed) > 5  # the sum of the advantages alone does not do


@pytest.mark.parametrize("empty", ["mask_BC", "valid_B"])
def test_nothing_to_learn_from_gives_zero_loss_and_gradient(whole, empty):
    logp_BC, batch, _ = whole
    batch = batch | {empty: jnp.zeros_like(batch[empty])}
    for name, (loss, gradients, _) in evaluate_all(
        logp_BC, batch, counted(batch)
    ).items():
        assert loss == 0, name
        assert all((gradient == 0).all() for gradient in gradients), name


@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_extreme_log_ratios_stay_finite(scale):
    """Of bfloat16's range of log-probabilities; old, reference and sampler stay."""
    logp_BC, batch = random_batch(2)
    check_masked(batch, evaluate_all(logp_BC + scale, batch, counted(batch)))


SHAPES = st.sampled_from([(4, 6), (1, 1)])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), SHAPES, st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]))
def test_no_batch_gives_nan_or_reaches_what_is_masked(seed, shape, scale):
    logp_BC, batch = random_batch(seed, *shape, scale=scale)
    check_masked(batch, evaluate_all(logp_BC, batch, counted(batch)))


class Replay:
    """Stands for stop_gradient: keeps what it is given, then gives the same again, so
    that a finite difference sees constants where the gradient does."""

    def __init__(self):
        self.kept, self.next = [], None

    def __call__(self, x):
        if self.next is None:
            self.kept.append(x)
            return x
        return self.kept[next(self.next)]

    def again(self):
        self.next = iter(range(len(self.kept)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_finite_differences(name, monkeypatch):
    """In float64, along a random direction, with the stopped parts held."""
    with jax.enable_x64(True):
        logp_BC, batch = random_batch(18, dtype=np.float64)
        logp_BC = np.where(np.isfinite(logp_BC), logp_BC, -1.0)
        objective = OBJECTIVES[name]
        counts = objective.counts(batch)
        _, gradients, _ = result(objective, jnp.asarray(logp_BC), batch, counts)
        way_BC = np.random.default_rng(0).normal(size=logp_BC.shape)

        replay = Replay()
        monkeypatch.setattr(jax.lax, "stop_gradient", replay)

        def loss(shift):
            moved_BC = jnp.asarray(logp_BC + shift * way_BC)
            entropy_BC = jnp.exp(logp_BC) + shift * way_BC
            stats = stats_of(moved_BC, entropy_BC=entropy_BC)
            return objective(stats, batch, counts)[0]

        loss(0.0)
        values = []
        for shift in (1e-6, -1e-6):
            replay.again()
            values.append(float(loss(shift)))
        slope = (values[0] - values[1]) / 2e-6
        expected = sum(float((gradient * way_BC).sum()) for gradient in gradients)
    assert abs(expected) > 1e-4
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-8)
