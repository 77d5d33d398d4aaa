"""What objectives over pairs share: one loss function, its numbers, its metrics.

Shapes: P pairs; others as in `objective.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxloop.losses import keywords, preference
from jaxloop.losses.objective import Kind, Need, Objective
from jaxloop.losses.pairs import (
    PairLoss,
    PairMetrics,
    Pairs,
    needs_reference,
    reward_metrics,
)

NUMBERS = ("beta", "smoothing", "margin", "tau", "eta", "alpha", "divergence")
INPUTS = ("target_P", "margin_P", "previous_P2", "valid_P")
"""Arrays that a loss may ask for by name."""


@dataclass(frozen=True)
class PairObjective(Objective):
    """A loss function of pairs and the numbers that it may ask for."""

    loss: PairLoss = preference.sigmoid
    """The loss of a pair: a function of `jaxloop.losses.preference`, of
    `reference_free`, of `nash`, or your own."""
    beta: float = 0.1
    """Scale of the implicit reward, beta x log(policy / reference)."""
    smoothing: float | None = None
    """Probability that a label is wrong. None in this and the following: the default of
    the loss."""
    margin: float | None = None
    """By how much chosen should win (SimPO's gamma)."""
    tau: float | None = None
    """discopop's temperature; INPO's weight of the fixed reference."""
    eta: float | None = None
    """INPO's inverse step size."""
    alpha: float | None = None
    """AlphaPO's shape of the reward."""
    divergence: Callable[[jax.Array], jax.Array] | None = None
    """A function of `jaxloop.losses.divergence` in place of the reverse KL."""
    nll: float = 0.0
    """Weight of the chosen completion's negative log-likelihood, over its own length
    (IRPO)."""
    normalise: bool = False
    """Give the loss log-probabilities per token instead of sums."""

    def __post_init__(self):
        for name in ("beta", "tau", "eta"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                where = type(self).__name__
                raise ValueError(f"{where}: {name} must be positive, got {value}")
        self.not_negative("nll")
        self._numbers()

    def not_negative(self, *names: str) -> None:
        """ValueError for a field of these that is."""
        for name in names:
            if not (value := getattr(self, name)) >= 0:
                where = type(self).__name__
                raise ValueError(f"{where}: {name} must not be negative, got {value}")

    def _numbers(self) -> dict[str, Any]:
        """The loss's keyword arguments, as far as fields say them."""
        return keywords.numbers(self, self.loss, NUMBERS, INPUTS, used=self.uses)

    @property
    def uses(self) -> tuple[str, ...]:
        """Those of the loss's numbers that the objective itself needs as well."""
        return ()

    @property
    def trains_on(self) -> Kind:
        return "pairs"

    @property
    def needs(self) -> frozenset[Need]:
        needs: list[Need] = []
        if needs_reference(self.loss):
            needs.append("reference")
        if "previous_P2" in keywords.asked(self.loss):
            needs.append("previous")
        return frozenset(needs)

    def asks(self, name: str) -> bool:
        """Whether the loss wants that input and has no default for it."""
        return not keywords.optional(self.loss, name)

    def pair_losses(
        self, pairs: Pairs, inputs: dict[str, jax.Array]
    ) -> tuple[jax.Array, PairMetrics]:
        """(loss of each pair, what is logged of it): the preference term alone.

        The rewards that are logged are beta x log-ratio, also where the loss divides by
        length, unless the loss says otherwise.
        """
        wanted = keywords.asked(self.loss)
        given = {name: x for name, x in inputs.items() if name in wanted}
        seen = pairs
        if self.normalise:
            seen = pairs.normalised()
            if "previous_P2" in given:
                given["previous_P2"] = pairs.per_token(given["previous_P2"])
        loss_P, own = self.loss(seen, **self._numbers(), **given)
        return loss_P, reward_metrics(self.beta * pairs.log_ratio_P2) | own
