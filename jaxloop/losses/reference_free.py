"""Pair losses that look at the policy alone: no reference is loaded or scored.

Form and notation are those of `preference.py`; c, r are the log-probabilities of the
chosen and of the rejected completion. The log-probability itself stands in for the
reward that is logged, over length where the loss divides by it, as in TRL.
"""

import jax
import jax.numpy as jnp

from jaxloop.losses.divergence import EXPONENT_LIMIT
from jaxloop.losses.numerics import log1mexp
from jaxloop.losses.pairs import (
    Pairs,
    difference,
    logistic,
    reference_free,
    reward_metrics,
)
from jaxloop.losses.preference import Loss

LEAST_SURPRISE = 1e-6
"""Mean log-probabilities are held this far below 0, where the odds are infinite."""


@reference_free
def none(pairs: Pairs) -> Loss:
    """No preference term: what the objective adds is all there is.

    loss = 0

    `Pairwise(reference_free.none, sft=1.0)` is the likelihood of chosen completions.
    Use: for the control run that ignores the rejected completions.
    Names: TRL `sft` with `Pairwise(none, sft=1.0)`.
    """
    return jnp.zeros_like(pairs.policy_P2[:, 0]), {}


@reference_free
def cpo(pairs: Pairs, *, beta: float, smoothing: float = 0.0) -> Loss:
    """Contrastive preference optimisation: DPO as if the reference were uniform.

    loss = the smoothed logistic of beta (c - r)

    Xu et al. 2024 (arXiv 2401.08417). The paper adds the likelihood of the chosen
    completion: `Pairwise(cpo, sft=1.0)` (TRL's `cpo_alpha`).
    Use: to save the memory and time of a reference.
    Names: TRL's `CPOTrainer` `sigmoid`.
    """
    return logistic(beta * difference(pairs.policy_P2), smoothing), {}


@reference_free
def simpo(
    pairs: Pairs, *, beta: float, margin: float = 0.5, smoothing: float = 0.0
) -> Loss:
    """Simple preference optimisation: mean log-probabilities, apart by a margin.

    loss = the smoothed logistic of beta (c / L_w - r / L_l) - margin

    Meng et al. 2024 (arXiv 2405.14734), margin its gamma. beta is near 2 in practice.
    Use: to learn without a reference and without a drift to greater length.
    Names: TRL's `CPOTrainer` `simpo` (`cpo_alpha` 0).
    """
    mean_P2 = pairs.per_token(pairs.policy_P2)
    x_P = beta * difference(mean_P2) - margin
    return logistic(x_P, smoothing), reward_metrics(beta * mean_P2)


@reference_free
def alpha_po(
    pairs: Pairs,
    *,
    beta: float,
    alpha: float,
    margin: float = 0.5,
    smoothing: float = 0.0,
) -> Loss:
    """SimPO with another shape of the reward.

    loss = the smoothed logistic of beta (R_w - R_l) - margin,
    R = (1 - p^-alpha) / alpha, p = exp(mean log-probability of a token)

    Gupta et al. 2025 (arXiv 2501.03884). alpha -> 0 is SimPO.
    Use: when SimPO displaces likelihood too far (alpha > 0) or too little (alpha < 0).
    Names: TRL's `CPOTrainer` `alphapo`.
    """
    mean_P2 = pairs.per_token(pairs.policy_P2)
    shaped_P2 = mean_P2
    if abs(alpha) >= 1e-6:
        exponent_P2 = jnp.minimum(-alpha * mean_P2, EXPONENT_LIMIT)
        shaped_P2 = -jnp.expm1(exponent_P2) / alpha
    x_P = beta * difference(shaped_P2) - margin
    return logistic(x_P, smoothing), reward_metrics(beta * shaped_P2)


@reference_free
def orpo(pairs: Pairs, *, beta: float) -> Loss:
    """Odds ratio preference optimisation: the term beside the likelihood.

    loss = -beta log sigmoid(log odds(p_w) - log odds(p_l)),
    log odds(p) = log p - log(1 - p), log p = c / L_w and r / L_l

    Hong et al. 2024 (arXiv 2403.07691), beta its lambda. All of ORPO is
    `Pairwise(orpo, beta=0.1, sft=1.0)`. TRL's likelihood counts the prompt's tokens as
    well; masks here cover completions.
    Use: to fine-tune and align in one stage, from a model not yet fine-tuned.
    Names: TRL `ORPOTrainer`.
    """
    mean_P2 = pairs.per_token(pairs.policy_P2)
    log_p_P2 = jnp.minimum(mean_P2, -LEAST_SURPRISE)
    log_odds_P = difference(log_p_P2 - log1mexp(log_p_P2))
    ratio_P = jax.nn.log_sigmoid(log_odds_P)
    logged = {"log_odds_ratio": ratio_P, "log_odds_chosen": log_odds_P}
    return -beta * ratio_P, logged | reward_metrics(beta * mean_P2)


@reference_free
def rf_nll(pairs: Pairs) -> Loss:
    """The likelihood of the best candidate alone, over its length.

    loss = -c / L_w

    RF-NLL of self-improving pretraining: the candidate that the judge scored highest is
    the chosen one. It equals `Pairwise(none, nll=1.0)`.
    Use: to compare preferences with mere imitation of the best.
    Names: -.
    """
    return -pairs.per_token(pairs.policy_P2)[:, 0], {}


@reference_free
def margin_ranking(pairs: Pairs, *, margin: float = 1.0) -> Loss:
    """Mean log-probabilities in the right order, apart by a margin.

    loss = max(0, r / L_l - c / L_w + margin)

    Qin et al. 2022 (T5Score, arXiv 2212.05726), second stage. SimPO's close relative.
    Use: to train a scorer by likelihood rather than a writer.
    Names: -.
    """
    mean_P2 = pairs.per_token(pairs.policy_P2)
    return jax.nn.relu(margin - difference(mean_P2)), {}
