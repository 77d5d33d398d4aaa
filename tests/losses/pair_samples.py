"""What the tests of pair objectives share: golden pairs, random batches, a table."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.losses import divergence, nash, pair_terms, preference, reference_free
from jaxloop.losses.objective import stats_of
from jaxloop.losses.pairwise import Pairwise
from jaxloop.losses.reduce import values

FAST = {"xla_backend_optimization_level": 0}
"""Compiled once and run a few times only."""
assert_golden = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)

# Four pairs. All golden values: checked against the loss code of TRL 1.16.0, but those
# of cDPO, which follow the formula.
CHOSEN = [-40.0, -55.5, -12.25, -80.0]
REJECTED = [-48.0, -50.25, -20.5, -79.0]
REFERENCE_CHOSEN = [-42.0, -54.0, -14.0, -83.0]
REFERENCE_REJECTED = [-45.0, -52.0, -18.0, -77.5]
CHOSEN_TOKENS, REJECTED_TOKENS = [20, 30, 8, 40], [25, 28, 10, 36]
SIGMOID = [0.474077, 0.868793, 0.503057, 0.493249]

EVERY_LOSS = {
    "sigmoid": Pairwise(),
    "sigmoid_norm": Pairwise(preference.sigmoid_norm, beta=2.0),
    "cdpo": Pairwise(preference.cdpo, smoothing=0.1),
    "robust": Pairwise(preference.robust, smoothing=0.1),
    "soft": Pairwise(preference.soft),
    "odpo": Pairwise(preference.odpo, margin=0.5),
    "hinge": Pairwise(preference.hinge),
    "ipo": Pairwise(preference.ipo),
    "ipo_sum": Pairwise(preference.ipo_sum),
    "exo_pair": Pairwise(preference.exo_pair),
    "discopop": Pairwise(preference.discopop),
    "nca_pair": Pairwise(preference.nca_pair),
    "bco_pair": Pairwise(preference.bco_pair),
    "sppo_hard": Pairwise(preference.sppo_hard),
    "apo_zero": Pairwise(preference.apo_zero),
    "apo_down": Pairwise(preference.apo_down),
    "aot": Pairwise(preference.aot, smoothing=0.1),
    "aot_unpaired": Pairwise(preference.aot_unpaired),
    "forward_kl": Pairwise(divergence=divergence.forward_kl),
    "js_divergence": Pairwise(divergence=divergence.js_divergence),
    "alpha_divergence": Pairwise(divergence=divergence.alpha_divergence),
    "sppo": Pairwise(nash.sppo),
    "inpo": Pairwise(nash.inpo, eta=0.2, tau=0.05),
    "none": Pairwise(reference_free.none, sft=1.0),
    "cpo": Pairwise(reference_free.cpo, sft=1.0),
    "simpo": Pairwise(reference_free.simpo, beta=2.0),
    "alpha_po": Pairwise(reference_free.alpha_po, beta=2.0, alpha=0.25),
    "orpo": Pairwise(reference_free.orpo, sft=1.0),
    "rf_nll": Pairwise(reference_free.rf_nll),
    "margin_ranking": Pairwise(reference_free.margin_ranking),
}
MODIFIED = {
    "irpo": Pairwise(nll=0.7),
    "rpo": Pairwise(sft=0.7),
    "ld": Pairwise(ld_alpha=0.3),
    "edits": Pairwise(edit_alpha=0.3),
    "normalised": Pairwise(preference.sppo_hard, beta=1.0, normalise=True),
    "normalised_inpo": Pairwise(nash.inpo, eta=0.2, tau=0.05, normalise=True),
    "wpo": Pairwise(wpo=pair_terms.wpo),
    "wpo_plain": Pairwise(wpo=pair_terms.wpo_plain),
    "token_regulariser": Pairwise(token_regulariser=0.4),
    "optimism": Pairwise(optimism=0.2),
    "ipo_forward_kl": Pairwise(preference.ipo, divergence=divergence.forward_kl),
    "all": Pairwise(
        preference.exo_pair,
        beta=0.3,
        smoothing=0.01,
        divergence=divergence.js_divergence,
        nll=0.5,
        sft=0.2,
        ld_alpha=0.6,
        edit_alpha=0.7,
        wpo=pair_terms.wpo,
        token_regulariser=0.1,
        optimism=0.05,
    ),
}
TABLE = EVERY_LOSS | MODIFIED
MATCHED = ("aot", "aot_unpaired")  # they match completions across the micro-batch


def by_turns(chosen, rejected):
    """Rows chosen, rejected, chosen, ..."""
    return np.stack([chosen, rejected], axis=1).reshape(-1, *np.shape(chosen)[1:])


def golden_pairs():
    return preference.Pairs(
        policy_P2=jnp.array([CHOSEN, REJECTED]).T,
        reference_P2=jnp.array([REFERENCE_CHOSEN, REFERENCE_REJECTED]).T,
        tokens_P2=jnp.array([CHOSEN_TOKENS, REJECTED_TOKENS]).T,
    )


def golden_batch():
    """The golden pairs as token arrays: every token of a sequence has its mean logp."""
    tokens_B = by_turns(CHOSEN_TOKENS, REJECTED_TOKENS)
    mask_BC = np.arange(40) < tokens_B[:, None]
    policy_B = by_turns(CHOSEN, REJECTED) / tokens_B
    reference_B = by_turns(REFERENCE_CHOSEN, REFERENCE_REJECTED) / tokens_B
    # What is masked must not matter: poison it.
    logp_BC = np.where(mask_BC, policy_B[:, None], np.nan).astype(np.float32)
    reference_BC = np.where(mask_BC, reference_B[:, None], np.nan).astype(np.float32)
    batch = {"mask_BC": mask_BC, "reference_logp_BC": reference_BC}
    return jnp.asarray(logp_BC), jax.tree.map(jnp.asarray, batch)


def random_batch(seed=0, pairs=4, tokens=6, scale=0.5, dtype=np.float32):
    """(logp_BC, batch) with all that a pair objective may ask for; NaN wherever it must
    not matter."""
    rng = np.random.default_rng(seed)
    rows = 2 * pairs
    length_B1 = rng.integers(0, tokens + 1, (rows, 1))
    mask_BC = np.arange(tokens) < length_B1
    valid_B = np.repeat(rng.random(pairs) < 0.7, 2)
    valid_B &= rng.random(rows) < 0.95
    counts_BC = mask_BC & np.repeat(valid_B.reshape(-1, 2).all(1), 2)[:, None]

    def tokens_of(mean, spread):
        x_BC = rng.normal(mean, spread, mask_BC.shape)
        return np.where(counts_BC, x_BC, np.nan).astype(dtype)

    logp_BC = np.minimum(tokens_of(-1, scale), -1e-3)
    batch = {
        "mask_BC": mask_BC,
        "valid_B": valid_B,
        "reference_logp_BC": np.minimum(tokens_of(-1, scale), -1e-3),
        "previous_logp_BC": np.minimum(tokens_of(-1, scale), -1e-3),
        "weight_B": np.repeat(rng.uniform(0.1, 1, pairs), 2).astype(dtype),
        "weight_BC": np.abs(tokens_of(0.5, 1.0)),
        "token_reward_BC": tokens_of(0, 0.2),
        "edited_BC": (tokens_of(0, 1.0) > 0) * 1.0,
        "target_B": rng.uniform(0, 1, rows).astype(dtype),
        "margin_B": rng.uniform(0, 2, rows).astype(dtype),
    }
    batch["target_B"][1::2] = np.nan
    return jnp.asarray(logp_BC), jax.tree.map(jnp.asarray, batch)


def token_stats(logp_BC):
    """Statistics that follow from logp in a way that tests can foresee."""
    return stats_of(
        logp_BC,
        entropy_BC=jax.lax.stop_gradient(-logp_BC),
        hit_BC=(logp_BC > -1.0) * 1.0,
        mean_logit_BC=jax.lax.stop_gradient(2 * logp_BC),
        log_sum_sq_BC=jnp.full_like(logp_BC, -0.3),
    )


@partial(jax.jit, static_argnums=0, compiler_options=FAST)
def evaluate(objective, logp_BC, batch, counts=None):
    """(loss, gradient in logp_BC, metric values)"""

    def loss(logp_BC):
        counted = objective.counts(batch) if counts is None else counts
        return objective(token_stats(logp_BC), batch, counted)

    (value, metrics), gradient_BC = jax.value_and_grad(loss, has_aux=True)(logp_BC)
    return value, gradient_BC, values(metrics)


@partial(jax.jit, compiler_options=FAST)
def every_gradient(logp_BC, batch, counts):
    """The whole table at once, compiled once a shape: name to (loss, gradient)."""

    def loss(logp_BC, objective):
        return objective(token_stats(logp_BC), batch, counts)[0]

    return {
        name: jax.value_and_grad(partial(loss, objective=objective))(logp_BC)
        for name, objective in TABLE.items()
    }


def evaluate_all(logp_BC, batch, counts=None):
    """`every_gradient`, by the batch's own counts where none are given."""
    return every_gradient(logp_BC, batch, counts or Pairwise().counts(batch))


def counted_tokens(batch):
    """(B, C) bool: of valid pairs."""
    both_P = np.asarray(batch["valid_B"]).reshape(-1, 2).all(1)
    return np.asarray(batch["mask_BC"]) & np.repeat(both_P, 2)[:, None]
