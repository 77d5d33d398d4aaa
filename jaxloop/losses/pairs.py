"""What a pair loss looks at, and the few forms that many of them share.

Shapes: P pairs, 2 = (chosen, rejected).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from jaxloop.losses.keywords import unwrapped
from jaxloop.losses.reduce import ratio

PairMetrics = dict[str, jax.Array]
PairLoss = Callable[..., tuple[jax.Array, PairMetrics]]


@struct.dataclass
class Pairs:
    """Pairs of completions; log-probabilities are sums over their tokens, in nats."""

    policy_P2: jax.Array
    """Under the model in training."""
    reference_P2: jax.Array
    """Under the reference, no gradient; zeros where a loss needs none."""
    tokens_P2: jax.Array
    """How many tokens were summed; may be 0."""

    @property
    def log_ratio_P2(self) -> jax.Array:
        """log policy - log reference: h_w and h_l."""
        return self.policy_P2 - jax.lax.stop_gradient(self.reference_P2)

    def per_token(self, x_P2: jax.Array) -> jax.Array:
        """x over the number of tokens; 0 for an empty completion."""
        return ratio(x_P2, self.tokens_P2)

    def normalised(self) -> "Pairs":
        """Means in place of sums. To take means once more changes nothing."""
        return Pairs(
            policy_P2=self.per_token(self.policy_P2),
            reference_P2=self.per_token(self.reference_P2),
            tokens_P2=jnp.ones_like(self.tokens_P2),
        )


def by_pair(x_B: jax.Array) -> jax.Array:
    """Rows chosen, rejected, ... to pairs: (B, ...) to (P, 2, ...).

    A reshape, where x[0::2] would gather a batch that is cut over the mesh. ValueError
    for an odd number of rows.
    """
    if x_B.shape[0] % 2:
        rows = x_B.shape[0]
        raise ValueError(f"pairs are rows chosen, rejected, ...; got {rows} rows")
    return x_B.reshape(-1, 2, *x_B.shape[1:])


def difference(x_P2: jax.Array) -> jax.Array:
    """Chosen less rejected, (P,)."""
    return x_P2[:, 0] - x_P2[:, 1]


def logistic(x_P: jax.Array, smoothing: float | jax.Array = 0.0) -> jax.Array:
    """-(1 - smoothing) log sigmoid(x) - smoothing log sigmoid(-x)."""
    right_P = jax.nn.log_sigmoid(x_P)
    flipped_P = jax.nn.log_sigmoid(-x_P)
    return -(1 - smoothing) * right_P - smoothing * flipped_P


def reward_metrics(reward_P2: jax.Array) -> PairMetrics:
    """The four numbers that are logged of implicit rewards."""
    margin_P = difference(reward_P2)
    return {
        "rewards/chosen": reward_P2[:, 0],
        "rewards/rejected": reward_P2[:, 1],
        "rewards/margins": margin_P,
        "rewards/accuracies": (margin_P > 0).astype(margin_P.dtype),
    }


def reference_free(loss: PairLoss) -> PairLoss:
    """Marks a loss that looks at the policy only: no reference is loaded for it."""
    vars(loss)["reference_free"] = True
    return loss


def needs_reference(loss: PairLoss) -> bool:
    """True unless the loss is marked `reference_free`."""
    return not getattr(unwrapped(loss), "reference_free", False)
