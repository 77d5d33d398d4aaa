"""Pairs by score that do not teach to be long: two rules that look at length as well.

How long a completion is, is said by a function of the rollout: `characters`,
`token_count`, `CharactersOf` (of what follows a thought, say), or your own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxloop.records import Pair, Rollout, Scored
from jaxloop.selection.selectors import (
    BestWorst,
    Candidate,
    Produces,
    known,
    pair_of,
    value_of,
)

Length = Callable[[Rollout], float]
SLACK = 1e-9  # a mean of judgements such as 3.4 is on the border of a tier or beyond it


def characters(rollout: Rollout) -> float:
    """Of the text."""
    return len(rollout.text)


def token_count(rollout: Rollout) -> float:
    """The end of the sequence included."""
    return len(rollout.token_ids)


@dataclass(frozen=True)
class CharactersOf:
    """Of what `extract` finds in the text; 0 where it finds nothing."""

    extract: Callable[[str], str | None]

    def __call__(self, rollout: Rollout) -> float:
        return len(self.extract(rollout.text) or "")


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
        candidates, values = _contested(row)
        if not candidates:
            return []
        low, span = min(values), max(values) - min(values)
        tiers = [(value - low) / span for value in values]
        judged = list(zip(candidates, values, tiers, strict=True))
        good = [c for c in judged if c[2] >= 1 - self.rho - SLACK]
        bad = [c for c in judged if c[2] <= self.rho + SLACK]
        chosen, high, _ = min(good, key=lambda c: (self.length(c[0][0]), -c[1]))
        rejected, less, _ = min(bad, key=lambda c: (-self.length(c[0][0]), c[1]))
        if high <= less:  # rho within SLACK of 1/2
            return []
        reason = (
            f"shortest of the {len(good)} best ({high:.4g}) against longest of "
            f"the {len(bad)} worst ({less:.4g})"
        )
        return [pair_of(row.prompt, chosen, rejected, reason)]


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
        candidates, values = _contested(row)
        if not candidates:
            return []
        lengths = [self.length(rollout) for rollout, _ in candidates]
        charged = (_standardised(values) - self.rho * _standardised(lengths)).tolist()
        keys = list(zip(charged, values, strict=True))
        best = max(range(len(keys)), key=keys.__getitem__)
        worst = min(range(len(keys)), key=keys.__getitem__)
        reason = (
            f"best of {len(keys)} with length ({values[best]:.4g}, "
            f"{charged[best]:+.2f}) against worst ({values[worst]:.4g}, "
            f"{charged[worst]:+.2f})"
        )
        return [pair_of(row.prompt, candidates[best], candidates[worst], reason)]


def _standardised(values: Sequence[float]) -> np.ndarray:
    """(x - mean) / std, zeros where all are equal."""
    x = np.asarray(values, float)
    if np.ptp(x) == 0:
        return np.zeros(len(x))
    gap = x - x.mean()
    gap = gap / np.abs(gap).max()  # the square of a tiny one would be 0
    return gap / gap.std()


def _contested(row: Scored) -> tuple[list[Candidate], list[float]]:
    """The scored rollouts and their values; none where all values are equal."""
    candidates = known(row)
    values = [value_of(score) for _, score in candidates]
    return (candidates, values) if len(set(values)) > 1 else ([], [])
