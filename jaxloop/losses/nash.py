"""Pair losses that step towards the equilibrium of a game between policies.

Neither assumes that preferences come from one reward: the target is a win rate against
a policy. Form and notation are those of `preference.py`. DNO is `preference.soft`.
"""

import jax

from jaxloop.losses.pairs import Pairs, difference
from jaxloop.losses.preference import Loss


def sppo(pairs: Pairs, *, beta: float, target_P: jax.Array) -> Loss:
    """Self-play preference optimisation: log-ratios meet centred win rates.

    loss = (h_w - u)^2 + (h_l + u)^2, u = (t - 1/2) / beta, t = the pair's target

    Wu et al. 2024 (arXiv 2405.00675), equation 4.7, 1 / beta its eta. There each
    completion has its own win rate against the policy; here t is that of chosen against
    rejected, and rejected has 1 - t. t = 1 is `sppo_hard`.
    Use: in iterations, with a judge that gives probabilities; the reference is the
    policy that sampled.
    Names: -.
    """
    aim_P = (jax.lax.stop_gradient(target_P) - 0.5) / beta
    chosen_P, rejected_P = pairs.log_ratio_P2.T
    return (chosen_P - aim_P) ** 2 + (rejected_P + aim_P) ** 2, {}


def inpo(pairs: Pairs, *, eta: float, tau: float, previous_P2: jax.Array) -> Loss:
    """Iterative Nash policy optimisation: mirror descent near a fixed reference.

    loss = (log pi(w)/pi(l) - (tau / eta) log ref(w)/ref(l)
            - ((eta - tau) / eta) log prev(w)/prev(l) - 1 / (2 eta))^2

    Zhang et al. 2024 (arXiv 2407.00617) (as recalled, not checked against the paper).
    prev is the policy that sampled the pairs, ref the one that all iterations share;
    tau = eta leaves the reference only.
    Use: for iterations that must not drift away from the first model.
    Names: -.
    """
    policy_P = difference(pairs.policy_P2)
    reference_P = difference(jax.lax.stop_gradient(pairs.reference_P2))
    previous_P = difference(jax.lax.stop_gradient(previous_P2))
    anchor_P = (tau / eta) * reference_P + ((eta - tau) / eta) * previous_P
    return (policy_P - anchor_P - 1 / (2 * eta)) ** 2, {}
