"""Supervised training: a token mean over the whole step."""

import jax.numpy as jnp
import numpy as np

from jaxloop.losses.objectives import Supervised, TokenStats
from jaxloop.losses.reduce import values


def stats_of(logp_BC):
    zeros_BC = jnp.zeros_like(logp_BC)
    return TokenStats(logp_BC, zeros_BC + 0.5, zeros_BC + 1.0, zeros_BC)


def test_golden_token_mean():
    """Four completions with one log-probability a token; from TRL 1.16.0's sft loss."""
    tokens_B = np.array([20, 30, 8, 40])
    logp_B = np.array([-40.0, -55.5, -12.25, -80.0]) / tokens_B
    mask_BC = jnp.arange(40) < tokens_B[:, None]
    logp_BC = jnp.where(mask_BC, jnp.asarray(logp_B, jnp.float32)[:, None], jnp.nan)
    objective = Supervised()
    batch = {"mask_BC": mask_BC}
    loss, metrics = objective(stats_of(logp_BC), batch, objective.counts(batch))
    np.testing.assert_allclose(loss, 1.915816, rtol=1e-5, atol=1e-6)
    assert values(metrics) == {"entropy": 0.5, "mean_token_accuracy": 1.0}


def test_micro_batches_of_unequal_length_add_up_to_the_step():
    objective = Supervised()
    logp_BC = -jnp.arange(1.0, 7.0).reshape(2, 3)
    batch = {
        "mask_BC": jnp.array([[1, 1, 1], [1, 0, 0]]),
        "weight_B": jnp.array([1.0, 0.5]),
    }
    counts = objective.counts(batch)
    assert counts == {"tokens": 4.0}
    whole, _ = objective(stats_of(logp_BC), batch, counts)
    assert whole == (1 + 2 + 3 + 0.5 * 4) / 4
    parts = 0.0
    for i in range(2):
        part = {key: x[i : i + 1] for key, x in batch.items()}
        parts += objective(stats_of(logp_BC[i : i + 1]), part, counts)[0]
    assert parts == whole


def test_a_step_without_tokens_is_zero():
    objective = Supervised()
    batch = {"mask_BC": jnp.ones((2, 3)), "valid_B": jnp.zeros(2)}
    counts = objective.counts(batch)
    stats = stats_of(jnp.full((2, 3), jnp.nan))
    assert counts == {"tokens": 0.0}
    assert objective(stats, batch, counts)[0] == 0
