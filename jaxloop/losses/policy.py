"""Terms of the policy gradient (the GRPO family): `Tokens` in, one loss a token out.

A term is a function `(tokens, *, ...) -> Term`. It reduces nothing: masks, weights,
aggregation, KL, entropy and the metrics of all terms are the objective's. The numbers
that it wants it names as keyword arguments; they are fields of `Policy`, and have the
paper's values as defaults.

In the formulas w is the probability ratio policy / old, of a token or of a whole
sequence (`Tokens.ratio_BC`), A the advantage, sg(x) a constant of value x.

Shapes: B sequences, C completion tokens; "or (B, 1)": one value a sequence.
"""

import math
from collections.abc import Callable
from dataclasses import field, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxloop.losses import keywords
from jaxloop.losses.reduce import count, masked_sum, ratio

Level = Literal["token", "sequence", "sum"]
"""Of what w is the ratio: of a token; of a sequence, as the geometric mean of its
tokens' ratios (GSPO); of a sequence, as their product (RLOO)."""
Aggregation = Literal["token", "sequence", "constant", "sum"]
"""How a step's losses become one number; see `Policy.aggregation`."""
LOG_RATIO_LIMIT = 20.0
"""Log-ratios are held within +-20 (as verl does): beyond, exp leaves float32 soon."""


@struct.dataclass
class Tokens:
    """Completions as a term sees them. What the mask leaves out is 0 everywhere; only
    `logp_BC` has a gradient."""

    logp_BC: jax.Array
    """Log-probabilities under the model in training, nats."""
    old_logp_BC: jax.Array
    """The same under the weights that w compares with."""
    advantage_BC: jax.Array
    """(B, C) or (B, 1)."""
    mask_BC: jax.Array
    """> 0 where a token counts."""

    @property
    def log_ratio_BC(self) -> jax.Array:
        """log policy - log old of each token, unlimited."""
        return self.logp_BC - self.old_logp_BC

    def ratio_BC(self, level: Level = "token") -> jax.Array:
        """w: (B, C), or (B, 1) for the levels of a sequence. Not clipped."""
        log_ratio_BC = self.log_ratio_BC
        if level != "token":
            log_ratio_BC = masked_sum(log_ratio_BC, self.mask_BC, axis=1)[:, None]
        if level == "sequence":
            log_ratio_BC = ratio(log_ratio_BC, count(self.mask_BC, axis=1)[:, None])
        return jnp.exp(limited(log_ratio_BC))


@struct.dataclass
class Term:
    """A term's loss and what is logged of it, each (B, C) or (B, 1)."""

    loss_BC: jax.Array
    ratio_BC: jax.Array
    """w before any clipping, with its gradient."""
    low_BC: jax.Array | None = None
    """Where a lower bound acts: on ratios too small to push further, of A < 0."""
    high_BC: jax.Array | None = None
    """Where an upper bound acts, of A > 0."""
    metrics: dict[str, jax.Array] = field(default_factory=dict)
    """Further numbers, of which the mean is logged."""


TermFunction = Callable[..., Term]


def aggregated(how: Aggregation) -> Callable[[TermFunction], TermFunction]:
    """Marks a term with the aggregation of its paper, which `Policy` then takes."""

    def mark(term: TermFunction) -> TermFunction:
        vars(term)["aggregation"] = how
        return term

    return mark


def aggregation_of(term: TermFunction) -> Aggregation:
    """The aggregation that a term is marked with; "token" without a mark."""
    return getattr(keywords.unwrapped(term), "aggregation", "token")


def limited(log_ratio: jax.Array) -> jax.Array:
    """Within +-LOG_RATIO_LIMIT; no gradient from beyond."""
    return jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def both_ways(
    term: Callable[[Tokens], Term], tokens: Tokens, opposed_BC: jax.Array
) -> jax.Array:
    """What equal pushes up and down leave of each other, (B, C) or (B, 1).

    loss = l(opposed) + l(-opposed) - 2 l(0), l the term at that advantage

    A term grows with |A| in proportion, at one rate where A > 0 and at another where
    A < 0. So a sum of its losses over labels of weights w_j and advantages A_j is l(A)
    plus this, with A = sum_j w_j A_j and `opposed` the smaller of sum_j w_j max(A_j, 0)
    and sum_j w_j max(-A_j, 0). Inside the bounds of a clip it is 0.
    """

    def loss(advantage_BC: jax.Array) -> jax.Array:
        return term(replace(tokens, advantage_BC=advantage_BC)).loss_BC

    zero = loss(jnp.zeros_like(opposed_BC))
    return loss(opposed_BC) + loss(-opposed_BC) - 2 * zero


def clipped(
    tokens: Tokens,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    level: Level = "token",
) -> Term:
    """The clipped surrogate of PPO, GRPO and DAPO: no gain from ratios far from 1.

    loss = -min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)

    Schulman et al. 2017 (arXiv 1707.06347), equation 7; GRPO: Shao et al. 2024 (arXiv
    2402.03300); DAPO's two bounds, 0.2 and 0.28: Yu et al. 2025 (arXiv 2503.14476).
    Use: first. With one update a batch w is 1 and the clip does nothing.
    Names: TRL `grpo`, `dapo`, `dr_grpo`, `bnpo`, `luspo` (they differ in aggregation),
    verl `vanilla` without its dual clip, OpenRLHF `PolicyLoss`.
    """
    return _clipped(tokens, tokens.ratio_BC(level), clip_low, clip_high)


def two_sided(
    tokens: Tokens,
    *,
    delta: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    level: Level = "token",
) -> Term:
    """The clipped surrogate with a bound on the ratio where the advantage is negative.

    loss = -min(min(w, delta) A, clip(w, 1 - clip_low, 1 + clip_high) A)

    INTELLECT-2 (arXiv 2505.07291). delta should be above 1 + clip_high. What is logged
    of the clip looks at w, not at min(w, delta).
    Use: with several updates a batch or a stale sampler, when single tokens explode.
    Names: TRL `delta`.
    """
    ratio_BC = tokens.ratio_BC(level)
    return _clipped(tokens, ratio_BC, clip_low, clip_high, most=delta)


def dual_clip(
    tokens: Tokens,
    *,
    delta: float = 3.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    level: Level = "token",
) -> Term:
    """The clipped surrogate whose loss has a ceiling where the advantage is negative.

    A >= 0: loss = -min(w A, clip(w) A)
    A < 0:  loss = min(-delta A, max(-w A, -clip(w) A))

    Ye et al. 2019 (arXiv 1912.09729). For delta >= 1 + clip_high the same function as
    `two_sided`.
    Use: as `two_sided`, coming from verl.
    Names: verl `vanilla` (delta: `clip_ratio_c`).
    """
    term = _clipped(tokens, tokens.ratio_BC(level), clip_low, clip_high)
    advantage_BC = tokens.advantage_BC
    ceiling_BC = jnp.minimum(term.loss_BC, -delta * advantage_BC)
    loss_BC = jnp.where(advantage_BC < 0, ceiling_BC, term.loss_BC)
    return replace(term, loss_BC=loss_BC)


@aggregated("sequence")
def gspo(tokens: Tokens, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Term:
    """The clipped surrogate of a sequence's ratio, the mean of its tokens' in logs.

    loss = -min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)
    w = exp(mean_t (log policy_t - log old_t))

    Zheng et al. 2025 (arXiv 2507.18071); the defaults of the bounds are recalled, not
    checked against the paper. With aggregation "sum" it is LUSPO (arXiv 2602.05261).
    Use: for mixtures of experts, and wherever token ratios are noise.
    Names: TRL `importance_sampling_level="sequence"` with `grpo` or `luspo`, verl
    `gspo`.
    """
    return clipped(tokens, clip_low=clip_low, clip_high=clip_high, level="sequence")


@aggregated("sequence")
def rloo(tokens: Tokens, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Term:
    """The clipped surrogate of the probability of a whole completion.

    loss = -min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)
    w = exp(sum_t (log policy_t - log old_t))

    Ahmadian et al. 2024 (arXiv 2402.14740), in TRL's form. The advantages are those of
    `LeaveOneOut`, the KL belongs into the reward (`kl.in_reward`).
    Use: with short completions; w of a long one leaves the bounds at once.
    Names: TRL `RLOOTrainer`.
    """
    return clipped(tokens, clip_low=clip_low, clip_high=clip_high, level="sum")


def cispo(tokens: Tokens, *, clip_high: float = 5.0, level: Level = "token") -> Term:
    """REINFORCE weighted by a capped ratio: no token loses its gradient.

    loss = -sg(min(w, clip_high)) A log policy

    MiniMax-M1 (arXiv 2506.13585). clip_high is the cap itself, as in TRL and ScaleRL
    (arXiv 2510.13786), which recommends 5; where the cap is written 1 + epsilon
    (open-instruct, verl) give that sum.
    Use: when rare but important tokens ("however", "wait") would be clipped away.
    Names: TRL `cispo`, verl `cispo`.
    """
    ratio_BC = tokens.ratio_BC(level)
    advantage_BC = tokens.advantage_BC
    weight_BC = jax.lax.stop_gradient(jnp.minimum(ratio_BC, clip_high))
    capped_BC = (ratio_BC > clip_high) & (advantage_BC > 0)
    return Term(
        loss_BC=-weight_BC * advantage_BC * tokens.logp_BC,
        ratio_BC=ratio_BC,
        metrics={"cispo_clip_ratio": capped_BC},
    )


@aggregated("sequence")
def sapo(
    tokens: Tokens,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    level: Level = "token",
) -> Term:
    """A soft gate in place of the clip: the gradient fades as the ratio leaves 1.

    loss = -(4 / tau) sigmoid(tau (w - 1)) A, tau = tau_pos if A > 0 else tau_neg

    Soft Adaptive Policy Optimization (arXiv 2511.20347). At w = 1 the gradient is that
    of w A.
    Use: in place of `clipped`, when the hard edge makes training jump.
    Names: TRL `sapo`, verl `sapo`.
    """
    ratio_BC = tokens.ratio_BC(level)
    advantage_BC = tokens.advantage_BC
    tau_BC = jnp.where(advantage_BC > 0, tau_pos, tau_neg)
    gate_BC = jax.nn.sigmoid(tau_BC * (ratio_BC - 1.0)) * 4.0 / tau_BC
    return Term(loss_BC=-gate_BC * advantage_BC, ratio_BC=ratio_BC)


def vespo(
    tokens: Tokens,
    *,
    k_pos: float = 2.0,
    lam_pos: float = 3.0,
    k_neg: float = 3.0,
    lam_neg: float = 2.0,
    correction_BC: jax.Array | None = None,
) -> Term:
    """REINFORCE weighted by a smooth bump of the whole sequence's ratio.

    loss = -phi A log policy, phi = sg(W^k exp(lam (1 - W)))
    log W = clamp(sum_t (log w_t + log correction_t), log 1e-8, 20)

    VESPO (arXiv 2602.10693). k and lam are the first two for A >= 0, else the last two;
    phi = 1 at W = 1. Off-policy weights enter W instead of multiplying the loss.
    Use: with stale samples, when whole sequences are off and not single tokens.
    Names: TRL `vespo`.
    """
    log_w_BC, mask_BC = limited(tokens.log_ratio_BC), tokens.mask_BC
    log_w_B1 = masked_sum(log_w_BC, mask_BC, axis=1)[:, None]
    if correction_BC is not None:
        log_c_BC = jnp.log(jnp.maximum(correction_BC, 1e-8))
        by_token = log_c_BC.shape == mask_BC.shape
        log_w_B1 += masked_sum(log_c_BC, mask_BC, 1)[:, None] if by_token else log_c_BC
    log_w_B1 = jnp.clip(log_w_B1, math.log(1e-8), LOG_RATIO_LIMIT)
    advantage_BC = tokens.advantage_BC
    k_BC = jnp.where(advantage_BC >= 0, k_pos, k_neg)
    lam_BC = jnp.where(advantage_BC >= 0, lam_pos, lam_neg)
    phi_BC = jnp.exp(k_BC * log_w_B1 + lam_BC * (1.0 - jnp.exp(log_w_B1)))
    phi_BC = jax.lax.stop_gradient(jnp.where(jnp.isfinite(phi_BC), phi_BC, 0.0))
    return Term(
        loss_BC=-phi_BC * advantage_BC * tokens.logp_BC,
        ratio_BC=tokens.ratio_BC(),
        metrics={"vespo/phi_seq_mean": phi_BC},
    )


@aggregated("sequence")
def gmpo(tokens: Tokens, *, clip_low: float = 0.4, clip_high: float = 0.4) -> Term:
    """The geometric mean of token ratios, each clipped in logs against its advantage.

    loss = -A exp(mean_t q_t)
    q_t = min(log w_t, clip_high) if A > 0 else max(log w_t, -clip_low)

    Geometric-Mean Policy Optimization (arXiv 2507.20673). The bounds are of log w.
    Use: as `gspo`, with tokens clipped one by one and bounds that are wide.
    Names: TRL `GMPOTrainer` (experimental; its KL has no bias correction), verl
    `geo_mean`.
    """
    advantage_BC = tokens.advantage_BC
    log_w_BC = limited(tokens.log_ratio_BC)
    q_BC = jnp.where(
        advantage_BC > 0,
        jnp.minimum(log_w_BC, clip_high),
        jnp.maximum(log_w_BC, -clip_low),
    )
    mean_B1 = ratio(
        masked_sum(q_BC, tokens.mask_BC, axis=1), count(tokens.mask_BC, axis=1)
    )[:, None]
    return Term(
        loss_BC=-advantage_BC * jnp.exp(mean_B1),
        ratio_BC=tokens.ratio_BC(),
        low_BC=(log_w_BC < -clip_low) & (advantage_BC < 0),
        high_BC=(log_w_BC > clip_high) & (advantage_BC > 0),
    )


@aggregated("sum")
def topr(tokens: Tokens) -> Term:
    """REINFORCE whose negative examples fade as the policy leaves them.

    loss = -sg(W) A log policy
    W = 1 if A >= 0 else min(prod_t w_t, 1)

    Tapered off-policy REINFORCE, Le Roux et al. 2025 (arXiv 2503.14286; the form is
    as recalled, not checked against the paper). No KL. The baseline of the advantage
    sets how many examples are positive.
    Use: on samples of another or of a much older model.
    Names: -.
    """
    advantage_BC = tokens.advantage_BC
    ratio_B1 = tokens.ratio_BC("sum")
    taper_BC = jnp.where(advantage_BC >= 0, 1.0, jnp.minimum(ratio_B1, 1.0))
    loss_BC = -jax.lax.stop_gradient(taper_BC) * advantage_BC * tokens.logp_BC
    return Term(loss_BC=loss_BC, ratio_BC=ratio_B1)


def dppo(
    tokens: Tokens,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    penalty: float = 1e-3,
) -> Term:
    """Tokens drop out when their probability, not its ratio, has moved too far.

    loss = -keep w A + penalty (log w)^2
    keep = 0 where p - p_old > clip_high and A > 0, or p - p_old < -clip_low and A <= 0

    DPPO's mask (arXiv 2602.04879) in the form of prime-rl, which compares with the
    sampler: set `bypass=True`.
    Use: with asynchronous samplers; a rare token may double without being stopped.
    Names: verl `dppo_tv` (which weighs by sg(w) log p and has no penalty).
    """
    ratio_BC = tokens.ratio_BC()
    advantage_BC = tokens.advantage_BC
    moved_BC = jnp.exp(jnp.minimum(tokens.old_logp_BC, 0.0)) * (ratio_BC - 1.0)
    high_BC = (moved_BC > clip_high) & (advantage_BC > 0)
    low_BC = (moved_BC < -clip_low) & (advantage_BC <= 0)
    gain_BC = jnp.where(high_BC | low_BC, 0.0, ratio_BC * advantage_BC)
    distance_BC = jnp.square(limited(tokens.log_ratio_BC))
    return Term(penalty * distance_BC - gain_BC, ratio_BC, low_BC, high_BC)


def _clipped(
    tokens: Tokens,
    ratio_BC: jax.Array,
    clip_low: float,
    clip_high: float,
    most: float = math.inf,
) -> Term:
    advantage_BC = tokens.advantage_BC
    inside_BC = jnp.clip(ratio_BC, 1.0 - clip_low, 1.0 + clip_high)
    bounded_BC = jnp.minimum(ratio_BC, most)
    return Term(
        loss_BC=-jnp.minimum(bounded_BC * advantage_BC, inside_BC * advantage_BC),
        ratio_BC=ratio_BC,
        low_BC=(ratio_BC < 1.0 - clip_low) & (advantage_BC < 0),
        high_BC=(ratio_BC > 1.0 + clip_high) & (advantage_BC > 0),
    )
