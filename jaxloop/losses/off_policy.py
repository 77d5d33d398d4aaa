"""Corrections for a sampler that is not the policy that the trainer thinks it was.

A function `(gap_BC, mask_BC, *, ...) -> weight_BC`: gap = log old - log sampler of each
token, 0 where the sampler's is missing; the weight, (B, C) or (B, 1), multiplies the
loss of a token before the KL is added. Weights have no gradient. rho_t = exp(gap_t);
for a sequence rho = exp(sum_t gap_t), or, as the geometric mean, exp(mean_t gap_t).

Shapes: B sequences, C completion tokens; "or (B, 1)": one value a sequence.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxloop.losses import keywords
from jaxloop.losses.policy import Tokens, limited
from jaxloop.losses.reduce import masked_mean, masked_sum, select

Weight = Callable[..., jax.Array]


def token_truncate(
    gap_BC: jax.Array, mask_BC: jax.Array, *, least: float = 0.0, most: float = 2.0
) -> jax.Array:
    """Truncated importance sampling (TIS): each token's ratio, held within bounds.

    weight = clip(rho_t, least, most)

    Use: for small gaps, as between two implementations of the same weights.
    Names: TRL `token_truncate`, verl `rollout_is="token"`.
    """
    return jnp.clip(_rho(gap_BC), least, most)


def token_mask(
    gap_BC: jax.Array, mask_BC: jax.Array, *, least: float = 0.5, most: float = 5.0
) -> jax.Array:
    """IcePop: each token's ratio, 0 outside the bounds.

    weight = rho_t if least <= rho_t <= most else 0

    The bounds are recalled, not checked against a paper.
    Use: when a few tokens are far off (mixtures of experts).
    Names: TRL `token_mask`.
    """
    return _inside(_rho(gap_BC), least, most)


def sequence_truncate(
    gap_BC: jax.Array, mask_BC: jax.Array, *, least: float = 0.0, most: float = 3.0
) -> jax.Array:
    """The ratio of a completion, held within bounds, (B, 1).

    weight = clip(rho, least, most), rho = exp(sum_t gap_t)

    Use: as `sequence_mask`, keeping every completion.
    Names: TRL `sequence_truncate`, verl `rollout_is="sequence"`.
    """
    return jnp.clip(_rho(_total(gap_BC, mask_BC)), least, most)


def sequence_mask(
    gap_BC: jax.Array, mask_BC: jax.Array, *, least: float = 0.0, most: float = 3.0
) -> jax.Array:
    """The ratio of a completion, 0 outside the bounds, (B, 1).

    weight = rho if least <= rho <= most else 0, rho = exp(sum_t gap_t)

    Use: first (TRL's default); long completions leave the bounds sooner.
    Names: TRL `sequence_mask`.
    """
    return _inside(_rho(_total(gap_BC, mask_BC)), least, most)


def geometric_mask(
    gap_BC: jax.Array, mask_BC: jax.Array, *, least: float, most: float = math.inf
) -> jax.Array:
    """Completions whose mean gap is small keep their tokens' ratios (seq-mask-TIS).

    weight = rho_t if least <= exp(mean_t gap_t) <= most else 0

    Use: with long completions; the mean does not grow with the length.
    Names: -.
    """
    mean_B1 = masked_mean(gap_BC, mask_BC, axis=1)[:, None]
    kept_B1 = _inside(_rho(mean_B1), least, most) > 0
    return jnp.where(kept_B1, _rho(gap_BC), 0.0)


def strayed(
    tokens: Tokens, sampler_logp_BC: jax.Array, *, threshold: float
) -> jax.Array:
    """Where A < 0 in a completion that the policy has left behind, bool (B, C) or
    (B, 1).

    A < 0 and mean_t (log sampler - log policy) > threshold

    DeepSeek-V3.2 (arXiv 2512.02556), equation 9. A token that the sampler says nothing
    of counts as 0.
    Names: TRL `off_policy_mask_threshold`.
    """
    gap_BC = _known(sampler_logp_BC - tokens.logp_BC, tokens.mask_BC)
    mean_B1 = masked_mean(gap_BC, tokens.mask_BC, axis=1)[:, None]
    return (tokens.advantage_BC < 0) & (mean_B1 > threshold)


@dataclass(frozen=True)
class OffPolicy:
    """What `Policy` does about the gap between sampler and trainer.

    TRL's default as it stands. `OffPolicy(off_policy.token_truncate)` is TIS,
    `OffPolicy(off_policy.token_mask)` IcePop.
    """

    weight: Weight | None = sequence_mask
    """The weight of each token: a function of `jaxloop.losses.off_policy`, or none."""
    least: float | None = None
    """The lower bound of the ratio; none takes the function's own."""
    most: float | None = None
    """The upper bound of the ratio; none takes the function's own."""
    stray_threshold: float | None = None
    """Drop completions of negative advantage whose tokens' log-probability has fallen
    by more than this on average since they were sampled (0.5 is a start)."""

    def __post_init__(self):
        if self.weight is None:
            if self.least is not None or self.most is not None:
                raise ValueError("OffPolicy: `least` and `most` bound `weight`: set it")
            if self.stray_threshold is None:
                raise ValueError("OffPolicy: set `weight`, `stray_threshold` or both")
        else:
            self._bounds()

    def weights(self, tokens: Tokens, drawn_logp_BC: jax.Array) -> jax.Array | None:
        """The tokens' weights, (B, C) or (B, 1); none where `weight` is."""
        if self.weight is None:
            return None
        gap_BC = gap(tokens.old_logp_BC, drawn_logp_BC, tokens.mask_BC)
        return self.weight(gap_BC, tokens.mask_BC, **self._bounds())

    def _bounds(self) -> dict:
        assert self.weight is not None
        bounds = ("least", "most")
        return keywords.numbers(self, self.weight, bounds, given=("mask_BC",))


def gap(
    old_logp_BC: jax.Array, sampler_logp_BC: jax.Array, mask_BC: jax.Array
) -> jax.Array:
    """log old - log sampler; 0 where masked or where the sampler's is missing (NaN).
    No gradient."""
    return _known(old_logp_BC - sampler_logp_BC, mask_BC)


def _known(x_BC: jax.Array, mask_BC: jax.Array) -> jax.Array:
    known_BC = (mask_BC > 0) & jnp.isfinite(x_BC)
    return jax.lax.stop_gradient(select(x_BC, known_BC))


def _total(gap_BC: jax.Array, mask_BC: jax.Array) -> jax.Array:
    return masked_sum(gap_BC, mask_BC, axis=1)[:, None]


def _rho(gap: jax.Array) -> jax.Array:
    return jnp.exp(limited(jax.lax.stop_gradient(gap)))


def _inside(rho: jax.Array, least: float, most: float) -> jax.Array:
    return jnp.where((rho >= least) & (rho <= most), rho, 0.0)
