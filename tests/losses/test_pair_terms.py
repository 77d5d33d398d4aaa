"""What composes with pair losses: weights of tokens and of pairs, added terms."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.losses import nash, pair_terms, reference_free
from jaxloop.losses.pairwise import Pairwise
from tests.losses import pair_samples
from tests.losses.pair_samples import (
    CHOSEN,
    REFERENCE_CHOSEN,
    REFERENCE_REJECTED,
    REJECTED,
    assert_golden,
    evaluate,
    golden_batch,
    random_batch,
)


def test_token_weights_leave_a_span():
    """Zeros outside of a span: log-ratios and likelihood are the span's alone."""
    logp_BC, batch = random_batch()
    span_BC = jnp.broadcast_to(jnp.arange(6) < 3, (8, 6))
    spanned = batch | {"weight_BC": span_BC * 1.0}
    cut = batch | {"mask_BC": batch["mask_BC"] & span_BC, "weight_BC": jnp.ones((8, 6))}
    for objective in (Pairwise(), Pairwise(nash.inpo, eta=0.3, tau=0.1)):
        one = evaluate(objective, logp_BC, spanned)[:2]
        other = evaluate(objective, logp_BC, cut)[:2]
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_edits_alone_count_where_nothing_else_does():
    """edit_alpha = 0 equals masking what both completions have, but in the likelihood;
    a pair without any edit then has nothing to learn."""
    logp_BC, batch = random_batch()
    edited_BC = np.random.default_rng(1).random((8, 6)) < 0.4
    edited_BC[:2] = False
    marked = batch | {"edited_BC": jnp.asarray(edited_BC) * 1.0}
    cut = batch | {"mask_BC": batch["mask_BC"] & edited_BC}
    loss, zero_BC, _ = evaluate(Pairwise(edit_alpha=0.0), logp_BC, marked)
    expected, cut_BC, _ = evaluate(Pairwise(), logp_BC, cut)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(zero_BC, cut_BC, rtol=1e-6)
    assert not np.any(zero_BC[:2])
    pushed_BC = evaluate(Pairwise(edit_alpha=0.0, nll=1.0), logp_BC, marked)[1]
    likelihood_BC = evaluate(Pairwise(reference_free.none, nll=1.0), logp_BC, batch)[1]
    np.testing.assert_allclose(pushed_BC - zero_BC, likelihood_BC, atol=1e-7)


def test_desensitised_lengths_cut_what_only_the_longer_one_has():
    """ld_alpha = 0 equals cutting both completions at the shorter one's length."""
    mask_BC = jnp.arange(6) < jnp.array([5, 2, 3, 6, 4, 4, 0, 3])[:, None]
    logp_BC, reference_BC = np.random.default_rng(0).normal(-1, 0.5, (2, 8, 6))
    batch = {"mask_BC": mask_BC, "reference_logp_BC": jnp.asarray(reference_BC)}
    shorter_B = mask_BC.sum(1).reshape(-1, 2).min(1).repeat(2)
    cut = batch | {"mask_BC": jnp.arange(6) < shorter_B[:, None]}
    zero = evaluate(Pairwise(ld_alpha=0.0), logp_BC, batch)[:2]
    for a, b in zip(zero, evaluate(Pairwise(), logp_BC, cut)[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    mixed = [
        evaluate(Pairwise(ld_alpha=x), logp_BC, batch)[1][0] for x in (0.0, 0.25, 1.0)
    ]
    assert mixed[0][4] == 0
    assert abs(mixed[0][4]) < abs(mixed[1][4]) < abs(mixed[2][4])


@pytest.mark.parametrize("weigh", [pair_terms.wpo, pair_terms.wpo_plain])
def test_wpo_weighs_pairs_without_a_gradient(weigh):
    logp_BC, batch = random_batch()
    weight_P = weigh(
        pair_samples.token_stats(logp_BC), jnp.nan_to_num(batch["mask_BC"])
    )
    both = batch["valid_B"].reshape(-1, 2).all(1)
    base_P = batch["weight_B"].reshape(-1, 2)[:, 0]
    by_hand = batch | {"weight_B": jnp.where(both, base_P * weight_P, 1.0).repeat(2)}
    weighed = evaluate(Pairwise(wpo=weigh), logp_BC, batch)[:2]
    for a, b in zip(weighed, evaluate(Pairwise(), logp_BC, by_hand)[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def test_wpo_of_sampled_like_completions_is_one():
    """logp_t = log sum p^2 at every token: aligned weights are 1, plain ones less."""
    logp_BC, batch = golden_batch()
    stats = pair_samples.token_stats(jnp.full_like(logp_BC, -0.3))
    np.testing.assert_allclose(pair_terms.wpo(stats, batch["mask_BC"]), 1, rtol=1e-6)
    plain_P = pair_terms.wpo_plain(stats, batch["mask_BC"])
    np.testing.assert_allclose(plain_P, np.exp(-0.6), rtol=1e-5)


def test_token_regulariser_pulls_token_rewards_to_their_targets():
    logp_BC, batch = random_batch()
    del batch["weight_B"], batch["weight_BC"]
    counted_BC = pair_samples.counted_tokens(batch)
    alone = Pairwise(reference_free.none, beta=0.1, token_regulariser=2.0)
    loss, gradient_BC, _ = evaluate(alone, logp_BC, batch)
    gap_BC = 0.1 * (logp_BC - batch["reference_logp_BC"]) - batch["token_reward_BC"]
    gap_BC = np.where(counted_BC, gap_BC, 0).reshape(4, -1)
    tokens_P = np.maximum(counted_BC.reshape(4, -1).sum(1), 1)
    pairs = batch["valid_B"].reshape(-1, 2).all(1).sum()
    by_hand = 2.0 * ((gap_BC**2).sum(1) / tokens_P).sum() / pairs
    np.testing.assert_allclose(loss, by_hand, rtol=1e-5)
    slope_BC = 2.0 * 2 * 0.1 * gap_BC / tokens_P[:, None] / pairs
    np.testing.assert_allclose(gradient_BC, slope_BC.reshape(8, -1), rtol=1e-4)
    assert alone.needs == {"reference", "token_reward"}


def test_contrastive_rewards_are_squashed_around_zero():
    better, worse = jnp.array([-1.0, -1.0, -50.0]), jnp.array([-1.0, -50.0, -1.0])
    rewards = pair_terms.contrastive_reward(better, worse)
    np.testing.assert_allclose(rewards, [0, 0.5, -0.5], atol=1e-6)


def test_optimism_takes_probability_from_both_completions():
    logp_BC, batch = golden_batch()
    _, plain_BC, _ = evaluate(Pairwise(), logp_BC, batch)
    loss, gradient_BC, _ = evaluate(Pairwise(optimism=0.2), logp_BC, batch)
    drift = np.subtract(CHOSEN + REJECTED, REFERENCE_CHOSEN + REFERENCE_REJECTED)
    assert_golden(loss, 0.584794 + 0.2 * 0.1 * drift.mean())
    extra_BC = np.where(batch["mask_BC"], 0.2 * 0.1 / 2 / 4, 0)
    np.testing.assert_allclose(gradient_BC - plain_BC, extra_BC, atol=1e-7)
