"""All pairs of a prompt: against pairs written out, masks, splits, mixtures."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.losses import nash, preference, reference_free
from jaxloop.losses.group_pairs import GroupPairs
from jaxloop.losses.objective import Mixture, stats_of
from jaxloop.losses.pairwise import Pairwise
from jaxloop.losses.policy_gradient import Policy
from jaxloop.losses.reduce import values

NAN = np.nan
# Prompt 0: rewards 1, 0, 0, unscored: two pairs. 1: all equal. 2: 3 > 2 > 1: three.
GROUP = jnp.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 9])
REWARD = jnp.array([1.0, 0, 0, NAN, 0.5, 0.5, 2, 3, 1, 7])
BY_TOKEN = ("mask_BC", "reference_logp_BC", "weight_BC")
VALID = jnp.arange(10) < 9
PAIRS = {0: [(0, 1), (0, 2)], 2: [(7, 6), (7, 8), (6, 8)]}


def group_batch(seed=0, tokens=5):
    """(logp_BC, batch); NaN where nothing counts."""
    rng = np.random.default_rng(seed)
    length_B = rng.integers(0, tokens + 1, 10)
    mask_BC = np.arange(tokens) < length_B[:, None]
    logp_BC, reference_BC = np.where(
        mask_BC & np.asarray(VALID)[:, None], rng.normal(-1, 0.5, (2, 10, tokens)), NAN
    ).astype(np.float32)
    batch = {"mask_BC": mask_BC, "reference_logp_BC": reference_BC}
    batch |= {"group_B": GROUP, "reward_B": REWARD, "valid_B": VALID}
    batch["weight_BC"] = rng.uniform(0.5, 1, mask_BC.shape).astype(np.float32)
    return jnp.asarray(logp_BC), jax.tree.map(jnp.asarray, batch)


@partial(jax.jit, static_argnums=0)
def evaluate(objective, logp_BC, batch, counts=None):
    def loss(logp_BC):
        counted = objective.counts(batch) if counts is None else counts
        return objective(stats_of(logp_BC), batch, counted)

    (value, metrics), gradient_BC = jax.value_and_grad(loss, has_aux=True)(logp_BC)
    return value, gradient_BC, values(metrics)


def written_out(objective, logp_BC, batch):
    """(mean over prompts of Pairwise over their pairs, the same of its metrics)"""
    found = []
    for pairs in PAIRS.values():
        rows = np.ravel(pairs)
        part = {name: batch[name][rows] for name in BY_TOKEN}
        loss, _, metrics = evaluate(objective, logp_BC[rows], part)
        found.append((loss, metrics))
    return jax.tree.map(lambda *x: np.mean(x), *found)


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        (preference.sigmoid, {"nll": 0.5}),
        (preference.ipo, {}),
        (preference.sigmoid, {"normalise": True}),
        (reference_free.simpo, {"beta": 2.0}),
    ],
    ids=["irpo", "ipo", "normalised", "simpo"],
)
def test_the_mean_over_prompts_of_the_mean_over_pairs(loss, changes):
    logp_BC, batch = group_batch()
    total, gradient_BC, metrics = evaluate(GroupPairs(loss, **changes), logp_BC, batch)
    expected, figures = written_out(Pairwise(loss, **changes), logp_BC, batch)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    shared = set(metrics) & set(figures) - {"entropy"}
    assert {"rewards/accuracies", "rewards/margins", "logps/chosen"} <= shared
    for name in shared:
        np.testing.assert_allclose(metrics[name], figures[name], rtol=1e-5)
    unused_B = np.isin(np.arange(10), [3, 4, 5, 9])
    np.testing.assert_array_equal(gradient_BC[unused_B], 0)
    assert np.isfinite(gradient_BC).all()


def test_counts_are_prompts_with_a_pair():
    _, batch = group_batch()
    assert GroupPairs().counts(batch) == {"prompts": 2}
    assert GroupPairs(gap=1.0).counts(batch) == {"prompts": 1}
    unscored = batch | {"reward_B": jnp.full(10, NAN)}
    assert GroupPairs().counts(unscored) == {"prompts": 0}


def test_no_pair_no_loss():
    logp_BC, batch = group_batch()
    for empty in ({"reward_B": jnp.ones(10)}, {"valid_B": jnp.zeros(10)}):
        loss, gradient_BC, _ = evaluate(GroupPairs(nll=1.0), logp_BC, batch | empty)
        assert loss == 0
        np.testing.assert_array_equal(gradient_BC, 0)


def test_groups_split_and_permuted_give_the_same():
    logp_BC, batch = group_batch(1)
    objective = GroupPairs(nll=0.3)
    whole, whole_BC, _ = evaluate(objective, logp_BC, batch)
    counts = objective.counts(batch)
    total, gradients = 0.0, []
    for rows in (np.arange(6), np.arange(6, 10)):
        part = jax.tree.map(lambda x, rows=rows: x[rows], batch)
        loss, gradient_BC, _ = evaluate(objective, logp_BC[rows], part, counts)
        total, gradients = total + loss, [*gradients, gradient_BC]
    np.testing.assert_allclose(total, whole, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate(gradients), whole_BC, rtol=1e-5)
    order = np.random.default_rng(0).permutation(10)
    moved = jax.tree.map(lambda x: x[order], batch)
    loss, moved_BC, _ = evaluate(objective, logp_BC[order], moved)
    np.testing.assert_allclose(loss, whole, rtol=1e-6)
    np.testing.assert_allclose(moved_BC, whole_BC[order], rtol=1e-5, atol=1e-8)


def test_soft_targets_and_offsets_follow_the_rewards():
    logp_BC, batch = group_batch()
    scored_B = jnp.nan_to_num(REWARD)
    for loss, key, of in (
        (preference.soft, "target_B", jax.nn.sigmoid),
        (preference.odpo, "margin_B", lambda x: x),
    ):
        by_hand = []
        for pairs in PAIRS.values():
            rows = np.ravel(pairs)
            gap_P = scored_B[rows][::2] - scored_B[rows][1::2]
            part = {name: batch[name][rows] for name in BY_TOKEN}
            part[key] = jnp.repeat(of(gap_P), 2)
            by_hand.append(evaluate(Pairwise(loss), logp_BC[rows], part)[0])
        total = evaluate(GroupPairs(loss), logp_BC, batch)[0]
        np.testing.assert_allclose(total, np.mean(by_hand), rtol=1e-5)


def test_it_mixes_with_a_policy_gradient_on_the_same_batch():
    logp_BC, batch = group_batch()
    batch["advantage_B"] = jnp.linspace(-1, 1, 10)
    mixture = Mixture((Policy(), GroupPairs()), (1.0, 0.01))
    loss, gradient_BC, metrics = evaluate(mixture, logp_BC, batch)
    parts = [evaluate(part, logp_BC, batch) for part in mixture.parts]
    np.testing.assert_allclose(loss, parts[0][0] + 0.01 * parts[1][0], rtol=1e-6)
    np.testing.assert_allclose(
        gradient_BC, parts[0][1] + 0.01 * parts[1][1], rtol=1e-5, atol=1e-8
    )
    assert {"policy_loss", "rewards/margins", "loss/1"} <= set(metrics)
    assert "reference" in mixture.needs
    assert mixture.trains_on == "groups"


def test_what_makes_no_sense_is_named():
    _, batch = group_batch()
    with pytest.raises(ValueError, match="GroupPairs: gap must not be negative"):
        GroupPairs(gap=-1.0)
    with pytest.raises(ValueError, match="no second reference"):
        GroupPairs(nash.inpo, eta=1.0, tau=0.5)
    with pytest.raises(ValueError, match="robust needs smoothing"):
        GroupPairs(preference.robust)
    for key in ("group_B", "reward_B"):
        lacking = {name: x for name, x in batch.items() if name != key}
        with pytest.raises(ValueError, match=f"GroupPairs needs '{key}'"):
            GroupPairs().counts(lacking)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 1e4]))
def test_no_nan_and_no_gradient_without_a_pair(seed, scale):
    rng = np.random.default_rng(seed)
    logp_BC, batch = group_batch(seed)
    batch["group_B"] = jnp.asarray(rng.integers(0, 5, 10), jnp.int32)
    reward_B = np.where(rng.random(10) < 0.3, NAN, rng.integers(0, 3, 10))
    batch["reward_B"] = jnp.asarray(reward_B, jnp.float32)
    objective = GroupPairs(preference.sppo_hard, nll=1.0)
    loss, gradient_BC, _ = evaluate(objective, scale * logp_BC, batch)
    assert np.isfinite(loss)
    assert np.isfinite(gradient_BC).all()
    prompts = 0
    for group in range(5):
        rows = (np.asarray(batch["group_B"]) == group) & np.asarray(VALID)
        scores = reward_B[rows & np.isfinite(reward_B)]
        prompts += len(set(scores)) > 1
        if len(set(scores)) < 2:
            np.testing.assert_array_equal(gradient_BC[rows], 0)
    assert objective.counts(batch)["prompts"] == prompts
