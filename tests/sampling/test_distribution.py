"""The draw against a numpy oracle: support, renormalisation, frequencies."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.sampling.distribution import BLOCK, cut, draw
from jaxloop.sampling.settings import Sampling

draw_jit = jax.jit(draw, static_argnames=("sampling", "size"))
cut_jit = jax.jit(cut, static_argnames="sampling")


def run(logits_V, uniform_B2, sampling, size=None):
    """Draws for many uniforms from one row of logits."""
    B = len(uniform_B2)
    size = len(logits_V) if size is None else size
    padded_V = np.full(-(-len(logits_V) // BLOCK) * BLOCK, 7.0, np.float32)
    padded_V[: len(logits_V)] = logits_V
    logits_BV = jnp.broadcast_to(padded_V, (B, len(padded_V)))
    drawn = draw_jit(logits_BV, uniform_B2, sampling=sampling, size=size)
    return jax.tree.map(np.asarray, drawn)


def uniforms(count, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 2**24, (count, 2)) * 2.0**-24).astype(np.float32)


def oracle(logits_V, sampling, size=None):
    """(kept, probabilities, log-softmax at the temperature), float64, by sorting."""
    z = np.asarray(logits_V, np.float64)[:size] / (sampling.temperature or 1)
    logp = z - z.max() - np.log(np.exp(z - z.max()).sum())
    p = np.exp(logp)
    kept = np.ones(len(z), bool)
    if sampling.top_k:
        kth = np.sort(z)[::-1][min(sampling.top_k, len(z)) - 1]
        kept &= z >= kth
    if sampling.top_p < 1:
        q = np.where(kept, p, 0) / p[kept].sum()
        above = np.array([q[z > value].sum() for value in z])
        kept &= above < sampling.top_p
    if sampling.min_p:
        kept &= p >= sampling.min_p * p.max()
    q = np.where(kept, p, 0)
    return kept, q / q.sum(), logp


CUTS = {
    "plain": Sampling(),
    "hot": Sampling(temperature=1.7),
    "cold": Sampling(temperature=0.4),
    "top_k": Sampling(top_k=5),
    "top_k_all": Sampling(top_k=1000),
    "top_p": Sampling(top_p=0.7),
    "top_p_tiny": Sampling(top_p=1e-6),
    "min_p": Sampling(min_p=0.1),
    "min_p_one": Sampling(min_p=1.0),
    "all": Sampling(temperature=1.3, top_k=30, top_p=0.8, min_p=0.05),
}


@pytest.mark.parametrize("name", CUTS)
def test_support_and_log_probabilities(name):
    sampling, size = CUTS[name], 300
    logits_V = np.random.default_rng(3).normal(0, 2, size + 21).astype(np.float32)
    logits_V[size:] = 50.0  # padding rows of the embedding may be anything
    drawn = run(logits_V, uniforms(5_000), sampling, size)
    kept, q, logp = oracle(logits_V, sampling, size)
    seen = np.unique(drawn.token_B)
    assert kept[seen].all()
    expected = np.flatnonzero(q > 5e-3)
    assert np.isin(expected, seen).all()  # missing one has a chance of e^-25
    np.testing.assert_allclose(drawn.logp_B, logp[drawn.token_B], atol=2e-5)
    np.testing.assert_allclose(drawn.drawn_logp_B, np.log(q[drawn.token_B]), atol=2e-5)


@pytest.mark.parametrize("name", ["plain", "all"])
def test_frequencies(name):
    """Chi-square of 30,000 draws over 150 tokens (two blocks of the vocabulary)."""
    sampling, count = CUTS[name], 30_000
    logits_V = np.random.default_rng(5).normal(0, 1.5, 150).astype(np.float32)
    drawn = run(logits_V, uniforms(count, seed=1), sampling)
    _, q, _ = oracle(logits_V, sampling)
    seen = np.bincount(drawn.token_B, minlength=len(q))
    assert seen[q == 0].sum() == 0
    common = q * count >= 10
    statistic = ((seen - q * count)[common] ** 2 / (q * count)[common]).sum()
    freedom = common.sum() - 1
    # Mean `freedom`, variance twice that: five sigmas.
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("name", ["top_k", "top_k_all", "top_p", "min_p", "all"])
def test_the_cut_is_the_sorted_one(name):
    """Every row its own logits: flat, steep, with ties, with few finite values."""
    rng = np.random.default_rng(1)
    z_VB = rng.normal(0, 1, (40, 300)) * np.geomspace(0.01, 30, 300)
    z_VB[:, ::3] = z_VB[:, ::3].round(1)
    z_VB[3:, 297:] = -np.inf
    z_VB = z_VB.astype(np.float32)
    z_BV = z_VB.T
    floor_B1 = cut_jit(z_BV, z_BV.max(axis=1, keepdims=True), CUTS[name])
    for z_V, floor in zip(z_BV, np.asarray(floor_B1), strict=True):
        plain = replace(CUTS[name], temperature=1.0)
        kept, _, _ = oracle(z_V, plain)
        got = z_V >= floor
        differ = (kept != got) & np.isfinite(z_V)
        # Where sums meet top_p but for rounding, the edge may fall either way.
        assert len(np.unique(z_V[differ])) <= (CUTS[name].top_p < 1)


def test_ties_at_the_edge_stay():
    logits_V = np.array([3.0, 2.0, 2.0, 2.0, 0.0], np.float32)
    drawn = run(logits_V, uniforms(2_000), Sampling(top_k=2))
    assert set(drawn.token_B.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("u", [0.0, 1.0 - 2.0**-24, 1.0])
def test_tokens_without_probability_are_never_drawn(u):
    """At both ends of the uniform, and even where rounding lifts it to 1."""
    rng = np.random.default_rng(0)
    for trial in range(20):
        logits_V = np.full(700, -np.inf, np.float32)
        alive = rng.choice(700, 1 + trial, replace=False)
        logits_V[alive] = rng.normal(0, 30, len(alive))
        drawn = run(logits_V, np.full((1, 2), u, np.float32), Sampling())
        assert drawn.token_B[0] in alive
        assert np.isfinite(drawn.logp_B).all()


def test_greedy_takes_the_first_of_the_likeliest():
    logits_V = np.array([0.0, 5.0, 1.0, 5.0], np.float32)
    drawn = run(logits_V, uniforms(3), Sampling(temperature=0.0))
    assert drawn.token_B.tolist() == [1, 1, 1]
    assert drawn.drawn_logp_B.tolist() == [0, 0, 0]
    _, _, logp = oracle(logits_V, Sampling())
    np.testing.assert_allclose(drawn.logp_B, logp[1], atol=1e-6)


def test_top_1_is_greedy():
    rng = np.random.default_rng(2)
    for _ in range(5):
        logits_V = rng.normal(0, 1, 333).astype(np.float32)
        drawn = run(logits_V, uniforms(50), Sampling(top_k=1))
        assert (drawn.token_B == logits_V.argmax()).all()
        np.testing.assert_allclose(drawn.drawn_logp_B, 0, atol=1e-6)


def test_nan_logits_still_give_a_token_and_show():
    drawn = run(np.full(10, np.nan, np.float32), uniforms(4), Sampling())
    assert (drawn.token_B < 10).all()
    assert np.isnan(drawn.logp_B).all()
