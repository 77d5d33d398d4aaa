"""Losses over pairs: `Pairs` in, one loss a pair and its logged numbers out.

A loss is a function `(pairs, *, beta) -> (loss_P, metrics)`; metrics are (P,) arrays
under TRL's names. It reduces nothing: weights, validity and mean are the objective's.

Shapes: P pairs, 2 = (chosen, rejected).
"""

import jax
from flax import struct

PairMetrics = dict[str, jax.Array]


@struct.dataclass
class Pairs:
    """Pairs of completions; log-probabilities are sums over their tokens, in nats."""

    policy_P2: jax.Array
    """Under the model in training."""
    reference_P2: jax.Array
    """Under the reference, no gradient."""
    tokens_P2: jax.Array
    """How many tokens were summed; may be 0."""

    @property
    def log_ratio_P2(self) -> jax.Array:
        """log policy - log reference: h_w and h_l."""
        return self.policy_P2 - jax.lax.stop_gradient(self.reference_P2)


def sigmoid(pairs: Pairs, *, beta: float) -> tuple[jax.Array, PairMetrics]:
    """Direct preference optimisation: -log sigmoid(beta (h_w - h_l)).

    Rafailov et al. 2023 (arXiv 2305.18290), equation 7. log 2 where policy = reference.
    """
    reward_P2 = beta * pairs.log_ratio_P2
    margin_P = reward_P2[:, 0] - reward_P2[:, 1]
    return -jax.nn.log_sigmoid(margin_P), reward_metrics(reward_P2)


def reward_metrics(reward_P2: jax.Array) -> PairMetrics:
    """The four numbers that every preference loss logs of its implicit rewards."""
    margin_P = reward_P2[:, 0] - reward_P2[:, 1]
    return {
        "rewards/chosen": reward_P2[:, 0],
        "rewards/rejected": reward_P2[:, 1],
        "rewards/margins": margin_P,
        "rewards/accuracies": (margin_P > 0).astype(margin_P.dtype),
    }
