"""Pairs by score that do not teach to be long: two rules that look at length as well.

How long a completion is, is said by a function of the rollout: `characters`,
`token_count`, or your own (of what follows a thought, say).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxloop.records import Pair, Rollout, Scored
from jaxloop.selection.selectors import BestWorst, Produces

Length = Callable[[Rollout], float]
SLACK = 1e-9  # a mean of judgements such as 3.4 is on the border of a tier or beyond it


def characters(rollout: Rollout) -> float:
    """Of the text."""
    return len(rollout.text)


def token_count(rollout: Rollout) -> float:
    """The end of the sequence included."""
    return len(rollout.token_ids)


@dataclass(frozen=True)
class TierLength:
    """The shortest of the good against the longest of the bad.

    good: S >= (1 - rho) S_max + rho S_min     bad: S <= (1 - rho) S_min + rho S_max

    Meta-Rewarding (Wu et al. 2024, arXiv 2407.19594; the rule for the rejected one as
    recalled, not checked against the paper), which takes rho from 0.32 to 0.4. S are
    the scores of a prompt; where all are equal there is no pair. rho = 0 looks at no
    length and is `BestWorst`. From 1/2 on the tiers would overlap, and the chosen could
    score below the rejected: refused. Of equal lengths the better (worse) score, then
    the earliest sample.
    """

    rho: float
    length: Length = characters
    produces: ClassVar[Produces] = "pairs"

    def __post_init__(self):
        if not 0 <= self.rho < 0.5:
            raise ValueError(
                f"TierLength: rho = {self.rho} must be within [0, 0.5): from 1/2 on an "
                "answer could be chosen that scores below the rejected one"
            )

    def __call__(
        self, scored: Sequence[Scored], rng: np.random.Generator
    ) -> list[Pair]:
        if self.rho == 0:
            return BestWorst()(scored, rng)
        return [pair for row in scored for pair in self._pairs(row)]

    def _pairs(self, row: Scored) -> list[Pair]:
        known = _known(row)
        values = [value for _, value in known]
        if not values or max(values) == min(values):
            return []
        low, span = min(values), max(values) - min(values)
        good = [c for c in known if (c[1] - low) / span >= 1 - self.rho - SLACK]
        bad = [c for c in known if (c[1] - low) / span <= self.rho + SLACK]
        chosen = min(good, key=lambda c: (self.length(c[0]), -c[1]))
        rejected = min(bad, key=lambda c: (-self.length(c[0]), c[1]))
        if chosen[1] <= rejected[1]:  # rho within SLACK of 1/2
            return []
        reason = (
            f"shortest of the {len(good)} best ({chosen[1]:.4g}) against longest of "
            f"the {len(bad)} worst ({rejected[1]:.4g})"
        )
        return [_pair(row, chosen, rejected, reason)]


@dataclass(frozen=True)
class ZLength:
    """The highest against the lowest score of a prompt, after a charge for length.

    S' = z(S) - rho z(length), z standardised over the prompt's scored completions

    Thought preference optimisation (Wu et al. 2024, arXiv 2410.10630), rho from 0 to
    0.5; the pair keeps its S. rho = 0 is `BestWorst`. A prompt whose S are all equal
    gives no pair, whatever the lengths. With a large rho the chosen one can be the one
    that scores lower: that is the method's trade. Of equal S' the better (worse) S,
    then the earliest sample.
    """

    rho: float
    length: Length = characters
    produces: ClassVar[Produces] = "pairs"

    def __post_init__(self):
        if not self.rho >= 0:
            raise ValueError(f"ZLength: rho = {self.rho} must not be negative")

    def __call__(
        self, scored: Sequence[Scored], rng: np.random.Generator
    ) -> list[Pair]:
        return [pair for row in scored for pair in self._pairs(row)]

    def _pairs(self, row: Scored) -> list[Pair]:
        known = _known(row)
        values = [value for _, value in known]
        if not values or max(values) == min(values):
            return []
        lengths = [self.length(rollout) for rollout, _ in known]
        charged = (_standardised(values) - self.rho * _standardised(lengths)).tolist()
        keys = list(zip(charged, values, strict=True))
        best = max(range(len(known)), key=keys.__getitem__)
        worst = min(range(len(known)), key=keys.__getitem__)
        chosen, rejected = known[best], known[worst]
        reason = (
            f"best of {len(known)} with length ({chosen[1]:.4g}, {charged[best]:+.2f}) "
            f"against worst ({rejected[1]:.4g}, {charged[worst]:+.2f})"
        )
        return [_pair(row, chosen, rejected, reason)]


def _standardised(values: Sequence[float]) -> np.ndarray:
    """(x - mean) / std, zeros where all are equal."""
    x = np.asarray(values, float)
    if np.ptp(x) == 0:
        return np.zeros(len(x))
    gap = x - x.mean()
    gap = gap / np.abs(gap).max()  # the square of a tiny one would be 0
    return gap / gap.std()


def _known(row: Scored) -> list[tuple[Rollout, float]]:
    pairs = zip(row.rollouts, row.scores, strict=True)
    return [(rollout, s.value) for rollout, s in pairs if s.value is not None]


def _pair(
    row: Scored,
    chosen: tuple[Rollout, float],
    rejected: tuple[Rollout, float],
    reason: str,
) -> Pair:
    return Pair(
        row.prompt, chosen[0], rejected[0], chosen[1], rejected[1], reason=reason
    )
