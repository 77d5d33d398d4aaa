"""Batches of completions, and every policy objective, for the tests of the family."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.losses import kl, off_policy, policy
from jaxloop.losses.objective import stats_of
from jaxloop.losses.objectives import OffPolicy, Policy
from jaxloop.losses.reduce import values

# Two sequences of losses_golden.json. Checked against the loss code of TRL 1.16.0.
LOGP = np.array([[-1.0, -0.5, -2.0, 0.0], [-0.7, -1.2, -0.3, -0.9]], np.float32)
OLD = np.array([[-1.3, -0.5, -1.6, 0.0], [-0.7, -1.0, -0.8, -0.9]], np.float32)
REFERENCE = np.array([[-1.1, -0.6, -1.9, 0.0], [-0.8, -1.1, -0.4, -1.0]], np.float32)
MASK = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
ADVANTAGE = np.array([1.0, -0.5], np.float32)
ACTIVE = MASK > 0

# Each term of policy.py by itself; the bounds are such that the clips act.
TERMS = {
    "clipped": Policy(),
    "clip_higher": Policy(clip_high=0.28),
    "constant": Policy(aggregation="constant", max_completion_length=8),
    "level_sequence": Policy(level="sequence", aggregation="sequence"),
    "level_sum": Policy(level="sum", aggregation="sum"),
    "two_sided": Policy(policy.two_sided, delta=1.5),
    "dual_clip": Policy(policy.dual_clip, delta=1.4),
    "gspo": Policy(policy.gspo, clip_low=0.05, clip_high=0.05),
    "luspo": Policy(policy.gspo, clip_low=0.05, clip_high=0.05, aggregation="sum"),
    "rloo": Policy(policy.rloo),
    "cispo": Policy(policy.cispo, clip_high=1.2),
    "cispo_sequence": Policy(policy.cispo, clip_high=1.2, level="sequence"),
    "sapo": Policy(policy.sapo),
    "vespo": Policy(policy.vespo),
    "gmpo": Policy(policy.gmpo, clip_low=0.2, clip_high=0.2),
    "topr": Policy(policy.topr),
    "dppo": Policy(policy.dppo, clip_low=0.05, clip_high=0.05),
}
# What goes with a term.
MODIFIED = {
    "k1": Policy(kl=0.3, kl_estimator=kl.k1),
    "k2": Policy(kl=0.3, kl_estimator=kl.k2, kl_bias_correction=False),
    "k3": Policy(kl=0.3, kl_bias_correction=False),
    "k3_corrected": Policy(policy.gspo, kl=0.3),
    "k3_straight": Policy(
        kl=0.3, kl_estimator=kl.k3_straight, kl_bias_correction=False, kl_limit=0.05
    ),
    "token_truncate": Policy(
        off_policy=OffPolicy(off_policy.token_truncate, most=1.2), kl=0.3
    ),
    "token_mask": Policy(
        off_policy=OffPolicy(off_policy.token_mask, least=0.8, most=1.2)
    ),
    "sequence_truncate": Policy(
        off_policy=OffPolicy(off_policy.sequence_truncate, most=1.2)
    ),
    "sequence_mask": Policy(policy.gspo, off_policy=OffPolicy()),
    "geometric_mask": Policy(off_policy=OffPolicy(off_policy.geometric_mask, least=1)),
    "strayed": Policy(off_policy=OffPolicy(None, stray_threshold=0.1)),
    "vespo_corrected": Policy(
        policy.vespo, off_policy=OffPolicy(off_policy.token_truncate)
    ),
    "bypass": Policy(policy.dppo, bypass=True),
    "entropy": Policy(entropy=0.1),
    "adaptive_entropy": Policy(entropy_target=0.5),
    "mask_truncated": Policy(mask_truncated=True),
}
# Of which tokens these keep the micro-batch decides.
BY_BATCH = {"top_entropy": Policy(top_entropy=0.5, entropy=0.1)}
OBJECTIVES = TERMS | MODIFIED | BY_BATCH


def golden_batch():
    """(logp_BC, batch), NaN where masked."""
    poison = {"old_logp_BC": OLD, "reference_logp_BC": REFERENCE}
    batch = {key: np.where(ACTIVE, x, np.nan) for key, x in poison.items()}
    batch |= {"mask_BC": MASK, "advantage_B": ADVANTAGE}
    return np.where(ACTIVE, LOGP, np.nan), jax.tree.map(jnp.asarray, batch)


def random_batch(seed=0, rows=4, tokens=6, scale=0.4, dtype=np.float32):
    """(logp_BC, batch) with everything that an objective can ask for; NaN where masked
    and in rows that are not valid. Log-ratios are about `scale`."""
    rng = np.random.default_rng(seed)
    base_BC = -rng.exponential(1.0, (rows, tokens))
    valid_B = rng.random(rows) < 0.8
    mask_BC = np.arange(tokens) < rng.integers(0, tokens + 1, (rows, 1))
    active_BC = mask_BC & valid_B[:, None]

    def draw():
        logp_BC = base_BC - scale * np.abs(rng.normal(size=(rows, tokens)))
        return np.where(active_BC, logp_BC, np.nan).astype(dtype)

    def each(x_B):
        return np.where(valid_B, x_B, np.nan).astype(dtype)

    logp_BC = draw()
    batch = {
        "mask_BC": mask_BC,
        "valid_B": valid_B,
        "advantage_B": each(rng.normal(size=rows)),
        "weight_B": each(rng.uniform(0.5, 2, rows)),
        "weight_BC": np.exp(draw()),
        "old_logp_BC": draw(),
        "reference_logp_BC": draw(),
        "sampler_logp_BC": draw(),
        "drawn_logp_BC": draw(),
        "truncated_B": rng.random(rows) < 0.3,
        "entropy_coef": dtype(0.1),
        "last_entropy": dtype(0.2),
    }
    # A token of which the sampler says nothing.
    batch["sampler_logp_BC"][0, 0] = batch["drawn_logp_BC"][0, 0] = np.nan
    return logp_BC, jax.tree.map(jnp.asarray, batch)


def rows_of(batch, which):
    """Those rows; scalars stay."""
    return jax.tree.map(lambda x: x[which] if jnp.ndim(x) else x, batch)


def counted(batch, objectives=OBJECTIVES):
    """The counts that each objective wants of this batch."""
    return {name: objective.counts(batch) for name, objective in objectives.items()}


def result(objective, logp_BC, batch, counts=None):
    """(loss, gradients in logp and entropy, values of the metrics).

    The entropies are made up: probabilities of the tokens.
    """

    def loss(logp_BC, entropy_BC):
        stats = stats_of(logp_BC, entropy_BC=entropy_BC)
        return objective(stats, batch, counts or objective.counts(batch))

    both = (logp_BC, jnp.exp(jnp.minimum(logp_BC, 0.0)))
    (value, metrics), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(*both)
    return value, gradients, values(metrics)


# Compiling is what these tests spend their time on.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
evaluate = partial(quick_jit, static_argnums=0)(result)


@quick_jit
def evaluate_all(logp_BC, batch, counts):
    """What `result` gives of each objective that has counts, in one compilation."""
    return {
        name: result(OBJECTIVES[name], logp_BC, batch, own)
        for name, own in counts.items()
    }
