"""Pairs of judgements, with which a judge is trained like any other writer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxloop.records import Judgement, Pair, Scored
from jaxloop.selection.selectors import Produces


@dataclass(frozen=True)
class JudgePairs:
    """The judgement that a meta-judge scores highest against the one it scores lowest.

    Meta-Rewarding (Wu et al. 2024, arXiv 2407.19594; as recalled, not checked against
    the paper): of a prompt's judge requests the one whose answers disagree most in
    their values, if a meta-judge scored them. The pair's prompt is what the judge read.
    Invalid judgements are in no pair. Of equal scores the earliest sample; where all
    are equal there is no pair.
    """

    gap: float = 0.0
    """How far apart the two scores must at least be."""
    longest: int | None = None
    """Characters: a pair whose chosen judgement is longer is dropped, since a
    meta-judge likes long ones (the paper: 1100, then 1000)."""
    pairs: int = 1
    """Requests of a prompt that are looked at, those that disagree most first."""
    produces: ClassVar[Produces] = "pairs"
    of_judgements: ClassVar[bool] = True

    def __post_init__(self):
        if self.pairs < 1 or not self.gap >= 0:
            raise ValueError(
                f"JudgePairs: pairs = {self.pairs} must be at least 1, gap = "
                f"{self.gap} not negative"
            )

    def __call__(
        self, scored: Sequence[Scored], rng: np.random.Generator
    ) -> list[Pair]:
        return [
            pair
            for row in scored
            for judgement in self._looked_at(row)
            if (pair := self._pair(judgement)) is not None
        ]

    def _looked_at(self, row: Scored) -> list[Judgement]:
        asked = [judgement for judgement in row.judgements if judgement.scores]
        return sorted(asked, key=lambda j: j.disagreement, reverse=True)[: self.pairs]

    def _pair(self, judgement: Judgement) -> Pair | None:
        every = zip(judgement.rollouts, judgement.values, judgement.scores, strict=True)
        known = [
            (rollout, score)
            for rollout, values, score in every
            if values is not None and score is not None
        ]
        if not known:
            return None
        best = max(known, key=lambda candidate: candidate[1])
        worst = min(known, key=lambda candidate: candidate[1])
        if best[1] == worst[1] or best[1] - worst[1] < self.gap:
            return None
        if self.longest is not None and len(best[0].text) > self.longest:
            return None
        reason = (
            f"best judgement of {len(known)} ({best[1]:.4g}) against worst "
            f"({worst[1]:.4g})"
        )
        return Pair(
            judgement.prompt, best[0], worst[0], best[1], worst[1], reason=reason
        )
