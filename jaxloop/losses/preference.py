"""Losses of pairs against a reference: `Pairs` in, one loss a pair out.

A loss is a function `(pairs, *, ...) -> (loss_P, metrics)`. It reduces nothing:
weights, validity, mean and the metrics of all pair losses are the objective's; a
function returns metrics, (P,) arrays, only where it has some of its own. What it wants
beside the pairs it names as keyword arguments: numbers, which are fields of `Pairwise`,
or `target_P`, `margin_P`, `previous_P2`, `valid_P`, which come from the batch.

Losses without a reference are in `reference_free.py`, those that aim at the equilibrium
of a game in `nash.py`.

In the formulas h_w, h_l are the log-ratios policy / reference of the chosen and of the
rejected completion, summed over tokens; d = h_w - h_l (with a `divergence`, its values
of them); L_w, L_l the numbers of tokens.

Shapes: P pairs, 2 = (chosen, rejected).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxloop.losses.divergence import EXPONENT_LIMIT, reverse_kl
from jaxloop.losses.pairs import PairMetrics, Pairs, difference, logistic
from jaxloop.losses.reduce import select

Divergence = Callable[[jax.Array], jax.Array]
Loss = tuple[jax.Array, PairMetrics]


def sigmoid(pairs: Pairs, *, beta: float, divergence: Divergence = reverse_kl) -> Loss:
    """Direct preference optimisation (DPO): a logistic regression on log-ratios.

    loss = -log sigmoid(beta d)

    Rafailov et al. 2023 (arXiv 2305.18290), equation 7. log 2 where policy = reference.
    Use: first; the others are for its weaknesses.
    Names: TRL `sigmoid`, OpenRLHF `DPOLoss`.
    """
    d_P = difference(divergence(pairs.log_ratio_P2))
    return logistic(beta * d_P), {}


def sigmoid_norm(
    pairs: Pairs, *, beta: float, divergence: Divergence = reverse_kl
) -> Loss:
    """Length-normalised DPO: log-ratios per token.

    loss = -log sigmoid(beta (h_w / L_w - h_l / L_l))

    Lambert et al. 2024 (Tulu 3, arXiv 2411.15124). beta is near 2 to 10 in practice.
    Use: when DPO makes completions longer and longer.
    Names: TRL `sigmoid_norm`, open-instruct `dpo_norm`.
    """
    d_P = difference(pairs.per_token(divergence(pairs.log_ratio_P2)))
    return logistic(beta * d_P), {}


def cdpo(pairs: Pairs, *, beta: float, smoothing: float) -> Loss:
    """Conservative DPO: a label is taken to be wrong with probability `smoothing`.

    loss = -(1 - smoothing) log sigmoid(beta d) - smoothing log sigmoid(-beta d)

    Mitchell 2023 (a note on DPO with noisy preferences, ericmitchell.ai/cdpo.pdf).
    Use: with noisy labels; the margin is held finite.
    Names: TRL - (up to 0.24: `sigmoid` with `label_smoothing`), OpenRLHF
    `DPOLoss(label_smoothing=...)`.
    """
    _check(0 <= smoothing <= 0.5, "cdpo", smoothing, "within [0, 0.5]")
    return logistic(beta * difference(pairs.log_ratio_P2), smoothing), {}


def robust(
    pairs: Pairs,
    *,
    beta: float,
    smoothing: float,
    divergence: Divergence = reverse_kl,
) -> Loss:
    """Robust DPO: an unbiased estimate of DPO on labels without the noise.

    loss = (-(1 - smoothing) log sigmoid(beta d) + smoothing log sigmoid(-beta d))
           / (1 - 2 smoothing)

    Ray Chowdhury et al. 2024 (arXiv 2403.00409). Not bounded from below.
    Use: when the rate of flipped labels is known; 0.1 is usual.
    Names: TRL `robust`.
    """
    _check(0 <= smoothing < 0.5, "robust", smoothing, "within [0, 0.5)")
    x_P = beta * difference(divergence(pairs.log_ratio_P2))
    kept_P = -(1 - smoothing) * jax.nn.log_sigmoid(x_P)
    flipped_P = -smoothing * jax.nn.log_sigmoid(-x_P)
    return (kept_P - flipped_P) / (1 - 2 * smoothing), {}


def soft(pairs: Pairs, *, beta: float, target_P: jax.Array) -> Loss:
    """DPO towards a probability that the chosen completion is the better one.

    loss = -t log sigmoid(beta d) - (1 - t) log sigmoid(-beta d), t = the pair's target

    CREAM (Wang et al. 2024, arXiv 2410.12735): t = the agreement of two models' ranks
    of the prompt's candidates. DNO (Rosset et al. 2024, arXiv 2404.03715): t =
    sigmoid(r_1 - r_2), r the win rates against the current policy, which is the
    reference; beta is its eta. Both as recalled, not checked against the papers.
    Use: when judges disagree, or give win rates instead of verdicts.
    Names: -.
    """
    x_P = beta * difference(pairs.log_ratio_P2)
    return logistic(x_P, 1 - jax.lax.stop_gradient(target_P)), {}


def odpo(
    pairs: Pairs, *, beta: float, margin_P: jax.Array, margin: float = 1.0
) -> Loss:
    """DPO with an offset: a pair must win by as much as its two scores are apart.

    loss = -log sigmoid(beta d - margin x m), m = the pair's `margin_B`

    Amini et al. 2024 (arXiv 2402.10571); their m is a function of the difference of the
    scores, such as its logarithm.
    Use: when scores say how much better, not only which is better.
    Names: -.
    """
    offset_P = margin * jax.lax.stop_gradient(margin_P)
    return logistic(beta * difference(pairs.log_ratio_P2) - offset_P), {}


def hinge(pairs: Pairs, *, beta: float, divergence: Divergence = reverse_kl) -> Loss:
    """SLiC's hinge on log-ratios: no push beyond the margin.

    loss = max(0, 1 - beta d)

    Zhao et al. 2023 (arXiv 2305.10425), on log-ratios as in Liu et al. 2023 (arXiv
    2309.06657).
    Use: to leave alone pairs that are right by far.
    Names: TRL `hinge`.
    """
    d_P = difference(divergence(pairs.log_ratio_P2))
    return jax.nn.relu(1 - beta * d_P), {}


def ipo(pairs: Pairs, *, beta: float, divergence: Divergence = reverse_kl) -> Loss:
    """Identity preference optimisation: log-ratios per token meet a target margin.

    loss = (h_w / L_w - h_l / L_l - 1 / (2 beta))^2

    Azar et al. 2023 (arXiv 2310.12036), equation 17, beta its tau; averaged over
    length, as TRL states that the authors confirmed.
    Use: when pairs are nearly free of noise and DPO overfits them.
    Names: TRL `ipo`.
    """
    d_P = difference(pairs.per_token(divergence(pairs.log_ratio_P2)))
    return (d_P - 1 / (2 * beta)) ** 2, {}


def ipo_sum(pairs: Pairs, *, beta: float) -> Loss:
    """IPO on summed log-ratios: the margin does not grow with length.

    loss = (d - 1 / (2 beta))^2

    Azar et al. 2023 (arXiv 2310.12036), equation 17.
    Use: to reproduce code that does not divide by length.
    Names: TRL's `OnlineDPOTrainer` `ipo`, OpenRLHF `DPOLoss(ipo=True)`.
    """
    return (difference(pairs.log_ratio_P2) - 1 / (2 * beta)) ** 2, {}


def exo_pair(
    pairs: Pairs,
    *,
    beta: float,
    smoothing: float = 1e-3,
    divergence: Divergence = reverse_kl,
) -> Loss:
    """Efficient exact optimisation: reverse KL from the policy's odds to the label's.

    loss = s(x) (log s(x) - log(1 - smoothing)) + s(-x) (log s(-x) - log smoothing),
    x = beta d, s = sigmoid

    Ji et al. 2024 (arXiv 2402.00856), equation 16.
    Use: to seek the modes of the preferences, where DPO covers them.
    Names: TRL `exo_pair`.
    """
    _check(0 < smoothing < 1, "exo_pair", smoothing, "within (0, 1)")
    x_P = beta * difference(divergence(pairs.log_ratio_P2))
    right_P = jax.nn.log_sigmoid(x_P) - math.log1p(-smoothing)
    flipped_P = jax.nn.log_sigmoid(-x_P) - math.log(smoothing)
    return jax.nn.sigmoid(x_P) * right_P + jax.nn.sigmoid(-x_P) * flipped_P, {}


def discopop(
    pairs: Pairs,
    *,
    beta: float,
    tau: float = 0.05,
    divergence: Divergence = reverse_kl,
) -> Loss:
    """Log-ratio modulated loss: logistic for wrong pairs, exponential for right ones.

    loss = (1 - q) (-log sigmoid(x)) + q exp(-x), x = beta d, q = sigmoid(x / tau)

    Lu et al. 2024 (arXiv 2406.08414), equation 5: found by a language model.
    Use: as an alternative to DPO that was found by search, not derived.
    Names: TRL `discopop`.
    """
    x_P = beta * difference(divergence(pairs.log_ratio_P2))
    # q exp(-x) in one exponential, for far on the left q is 0 and exp(-x) infinite.
    exponent_P = jax.nn.log_sigmoid(x_P / tau) - x_P
    exponential_P = jnp.exp(jnp.minimum(exponent_P, EXPONENT_LIMIT))
    return jax.nn.sigmoid(-x_P / tau) * logistic(x_P) + exponential_P, {}


def nca_pair(pairs: Pairs, *, beta: float) -> Loss:
    """Noise contrastive alignment: raises the chosen likelihood itself, not the gap.

    loss = -log s(beta h_w) - 0.5 log s(-beta h_w) - 0.5 log s(-beta h_l), s = sigmoid

    Chen et al. 2024 (arXiv 2402.05369).
    Use: when DPO lowers the likelihood of chosen completions.
    Names: TRL `nca_pair`.
    """
    chosen_P, rejected_P = (beta * pairs.log_ratio_P2).T
    away_P = jax.nn.log_sigmoid(-chosen_P) + jax.nn.log_sigmoid(-rejected_P)
    return -jax.nn.log_sigmoid(chosen_P) - 0.5 * away_P, {}


def bco_pair(pairs: Pairs, *, beta: float) -> Loss:
    """Binary classifier optimisation on pairs: each side on its own.

    loss = -log sigmoid(beta h_w) - log sigmoid(-beta h_l)

    Jung et al. 2024 (arXiv 2404.04656), without their shift by the mean reward (TRL
    1.16 has none; `unpaired.bco` has).
    Use: when chosen is good and rejected is bad, not only better and worse.
    Names: TRL `bco_pair`.
    """
    chosen_P, rejected_P = (beta * pairs.log_ratio_P2).T
    return -jax.nn.log_sigmoid(chosen_P) - jax.nn.log_sigmoid(-rejected_P), {}


def sppo_hard(pairs: Pairs, *, beta: float) -> Loss:
    """Self-play preference optimisation with a certain winner.

    loss = (h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2

    Wu et al. 2024 (arXiv 2405.00675), equation 4.7 with P = 1 and 0. `nash.sppo` takes
    win rates.
    Use: in iterations whose reference is the policy that sampled the pairs.
    Names: TRL `sppo_hard`.
    """
    chosen_P, rejected_P = pairs.log_ratio_P2.T
    return (chosen_P - 0.5 / beta) ** 2 + (rejected_P + 0.5 / beta) ** 2, {}


def apo_zero(pairs: Pairs, *, beta: float) -> Loss:
    """Anchored: pulls chosen up and rejected down.

    loss = 1 - sigmoid(beta h_w) + sigmoid(beta h_l)

    D'Oosterlinck et al. 2024 (arXiv 2408.06266), equation 7.
    Use: when the chosen completions are better than what the model says by itself.
    Names: TRL `apo_zero`.
    """
    chosen_P, rejected_P = (beta * pairs.log_ratio_P2).T
    return jax.nn.sigmoid(-chosen_P) + jax.nn.sigmoid(rejected_P), {}


def apo_down(pairs: Pairs, *, beta: float) -> Loss:
    """Anchored: pushes both down, rejected further.

    loss = sigmoid(beta h_w) + 1 - sigmoid(beta (h_w - h_l))

    D'Oosterlinck et al. 2024 (arXiv 2408.06266), equation 8.
    Use: when even the chosen completions are worse than what the model says by itself.
    Names: TRL `apo_down`.
    """
    reward_P2 = beta * pairs.log_ratio_P2
    down_P = jax.nn.sigmoid(reward_P2[:, 0])
    return down_P + jax.nn.sigmoid(-difference(reward_P2)), {}


def aot(
    pairs: Pairs, *, beta: float, valid_P: jax.Array, smoothing: float = 0.0
) -> Loss:
    """Alignment by optimal transport: the policy's margins dominate the reference's.

    loss = the smoothed logistic of beta D, D = sort(c - r) - sort(c0 - r0): quantile by
    quantile over the valid pairs of the micro-batch; c, r are log-probabilities under
    the policy, c0, r0 under the reference

    Melnyk et al. 2024 (arXiv 2406.05882), for pairs. Depends on the batch by design.
    Use: to shift the distribution of margins, with large micro-batches.
    Names: TRL `aot`.
    """
    policy_P = difference(pairs.policy_P2)
    reference_P = difference(jax.lax.stop_gradient(pairs.reference_P2))
    d_P = _quantile_difference(policy_P, reference_P, valid_P)
    return logistic(beta * d_P, smoothing), {}


def aot_unpaired(
    pairs: Pairs, *, beta: float, valid_P: jax.Array, smoothing: float = 0.0
) -> Loss:
    """Alignment by optimal transport: chosen rewards dominate rejected ones.

    loss = the smoothed logistic of beta D, D = sort(h_w) - sort(h_l): quantile by
    quantile over the valid pairs of the micro-batch

    Melnyk et al. 2024 (arXiv 2406.05882), unpaired. Depends on the batch by design.
    Use: when chosen and rejected completions answer different prompts.
    Names: TRL `aot_unpaired`.
    """
    chosen_P, rejected_P = pairs.log_ratio_P2.T
    d_P = _quantile_difference(chosen_P, rejected_P, valid_P)
    return logistic(beta * d_P, smoothing), {}


def _quantile_difference(a_P, b_P, valid_P) -> jax.Array:
    """sort(a) - sort(b) among valid entries; each stands where its a stands."""
    rank_P = jnp.argsort(jnp.argsort(jnp.where(valid_P, a_P, jnp.inf)))
    sorted_P = jnp.sort(jnp.where(valid_P, b_P, jnp.inf))
    return select(a_P - sorted_P[rank_P], valid_P)


def _check(holds: bool, loss: str, smoothing: float, rule: str) -> None:
    if not holds:
        raise ValueError(f"{loss}: smoothing = {smoothing} must be {rule}")
