"""Filters that compare a prompt with the whole pool: quantiles of what it gave.

They want the pool at once: in an online run the pool is the step's prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxloop.records import Scored
from jaxloop.selection.length_control import Length, characters


@dataclass(frozen=True)
class RIPBounds:
    """Prompts whose pair is within three bounds, which `RIP.bounds` finds on a pool;
    with those of another pool a later one is measured by the same yardstick
    (Self-RIP, and a small model's filter for a large one)."""

    least_score: float
    """Of the rejected completion."""
    least_length: float
    """Of the rejected completion."""
    most_gap: float
    """Between the scores of chosen and rejected."""
    length: Length = characters

    def __call__(self, scored: Sequence[Scored]) -> tuple[list[Scored], int]:
        kept = [row for row in scored if self._within(row)]
        return kept, len(scored) - len(kept)

    def _within(self, row: Scored) -> bool:
        found = _rejected_and_gap(row, self.length)
        if found is None:
            return False
        score, length, gap = found
        return (
            score >= self.least_score
            and length >= self.least_length
            and gap <= self.most_gap
        )


@dataclass(frozen=True)
class RIP:
    """Rejecting instruction preferences: prompts whose worst completion is good and
    long, and whose best one is not much better.

    kept where all three hold, each quantile that of the pool:
        r(y-) >= its quantile, length(y-) >= its quantile, r(y+) - r(y-) <= its quantile

    Yu et al. 2025 (arXiv 2501.18578), who take the three medians. y+ and y- are those
    of `BestWorst`. Bounds belong to what is kept, or a pool of equal scores would lose
    all. A prompt with fewer than two scored completions is not in the pool, and
    dropped.
    """

    score: float = 0.5
    """Quantile of the rejected completion's score."""
    rejected_length: float = 0.5
    """Quantile of the rejected completion's length."""
    gap: float = 0.5
    """Quantile of the difference of the two scores."""
    length: Length = characters

    def __post_init__(self):
        for name in ("score", "rejected_length", "gap"):
            _check_quantile("RIP", name, getattr(self, name))

    def bounds(self, scored: Sequence[Scored]) -> RIPBounds:
        """The three bounds on this pool."""
        found = [_rejected_and_gap(row, self.length) for row in scored]
        pool_N3 = np.array([each for each in found if each is not None], float)
        if not len(pool_N3):
            return RIPBounds(np.inf, np.inf, -np.inf, self.length)
        quantiles = (self.score, self.rejected_length, self.gap)
        bounds = (
            float(np.quantile(pool_N, quantile))
            for pool_N, quantile in zip(pool_N3.T, quantiles, strict=True)
        )
        return RIPBounds(*bounds, length=self.length)

    def __call__(self, scored: Sequence[Scored]) -> tuple[list[Scored], int]:
        return self.bounds(scored)(scored)


@dataclass(frozen=True)
class MinimumScore:
    """Prompts whose lowest score is at least that quantile of the pool's lowest scores.

    CoT-Self-Instruct's filter of prompts without a gold answer (Yu et al. 2025, arXiv
    2507.23751; the quantile as recalled, not checked against the paper). A prompt
    without a score is dropped.
    """

    quantile: float = 0.5

    def __post_init__(self):
        _check_quantile("MinimumScore", "quantile", self.quantile)

    def __call__(self, scored: Sequence[Scored]) -> tuple[list[Scored], int]:
        lowest = [min(_values(row), default=None) for row in scored]
        known = [value for value in lowest if value is not None]
        if not known:
            return [], len(scored)
        bound = float(np.quantile(known, self.quantile))
        kept = [
            row
            for row, value in zip(scored, lowest, strict=True)
            if value is not None and value >= bound
        ]
        return kept, len(scored) - len(kept)


def _rejected_and_gap(row: Scored, length: Length) -> tuple[float, float, float] | None:
    """Score and length of the worst completion, and how much better the best one is."""
    values = _values(row)
    if len(values) < 2:
        return None
    worst = next(
        rollout
        for rollout, score in zip(row.rollouts, row.scores, strict=True)
        if score.value == min(values)
    )
    return min(values), length(worst), max(values) - min(values)


def _values(row: Scored) -> list[float]:
    return [score.value for score in row.scores if score.value is not None]


def _check_quantile(owner: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{owner}: {name} = {value} is no quantile: within [0, 1]")
