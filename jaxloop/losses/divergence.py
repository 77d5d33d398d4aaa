"""f-divergences in place of the reverse KL that DPO regularises with.

Each is a function of log-ratios h = log policy - log reference, f'(exp(h)) up to a
constant: what the implicit reward is then proportional to. Wang et al. 2023 (arXiv
2309.16240). For `Pairwise(divergence=...)` with the losses that take one.

Shapes: any.
"""

import math

import jax
import jax.numpy as jnp

EXPONENT_LIMIT = 40.0
"""Exponents are held below it, with no gradient from beyond. TRL clamps at 80, whose
exponential leaves float32 as soon as a loss squares it."""


def reverse_kl(h: jax.Array) -> jax.Array:
    """The log-ratio itself: plain DPO.

    g(h) = h

    Rafailov et al. 2023 (arXiv 2305.18290).
    Use: by default; seeks the modes of the reward.
    Names: TRL `reverse_kl`.
    """
    return h


def forward_kl(h: jax.Array) -> jax.Array:
    """Covers the reference instead of seeking modes.

    g(h) = 1 - exp(-h)

    Wang et al. 2023 (arXiv 2309.16240).
    Use: to keep the diversity of the reference, at some cost in reward.
    Names: TRL `forward_kl`.
    """
    return -jnp.expm1(jnp.minimum(-h, EXPONENT_LIMIT))


def js_divergence(h: jax.Array) -> jax.Array:
    """Jensen-Shannon: between reverse and forward KL, bounded from above.

    g(h) = log 2 + log sigmoid(h)

    Wang et al. 2023 (arXiv 2309.16240).
    Use: when chosen completions should not run away from the reference.
    Names: TRL `js_divergence`.
    """
    return math.log(2) + jax.nn.log_sigmoid(h)


def alpha_divergence(h: jax.Array, *, alpha: float = 0.5) -> jax.Array:
    """Between forward KL (alpha = 0) and reverse KL (alpha = 1).

    g(h) = (exp((alpha - 1) h) - 1) / (alpha - 1)

    Wang et al. 2023 (arXiv 2309.16240).
    Use: to tune the trade of diversity for reward; another alpha by
    `functools.partial(alpha_divergence, alpha=0.3)`.
    Names: TRL `alpha_divergence`.
    """
    if abs(alpha - 1.0) < 1e-6:  # the limit
        return h
    return jnp.expm1(jnp.minimum((alpha - 1.0) * h, EXPONENT_LIMIT)) / (alpha - 1.0)
