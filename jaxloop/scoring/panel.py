"""Several judges as one.

Shapes: J judges, N completions (of all prompts of a call).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from jaxloop.records import Prompt, Score, Scored, Status
from jaxloop.scoring import scorer as scorers
from jaxloop.scoring.parts import named
from jaxloop.scoring.scorer import Groups, Models, Scorer

Pool = Callable[[np.ndarray], np.ndarray]
"""scores_JN, NaN where a judge has none -> (N,), NaN where all have none."""


def mean(scores_JN: np.ndarray) -> np.ndarray:
    """Over the judges that have a score."""
    known_JN = np.isfinite(scores_JN)
    nan_N = np.full(scores_JN.shape[1], np.nan)
    total_N, count_N = scores_JN.sum(axis=0, where=known_JN), known_JN.sum(axis=0)
    return np.divide(total_N, count_N, out=nan_N, where=count_N > 0)


def majority(scores_JN: np.ndarray) -> np.ndarray:
    """The score that most judges give; of several such, their mean. For verdicts and
    whole points."""
    found_N = np.full(scores_JN.shape[1], np.nan)
    for place, scores_J in enumerate(scores_JN.T):
        values, counts = np.unique(scores_J[np.isfinite(scores_J)], return_counts=True)
        if len(values):
            found_N[place] = values[counts == counts.max()].mean()
    return found_N


def standardised(scores_JN: np.ndarray) -> np.ndarray:
    """Each judge's scores with mean 0 and standard deviation 1 over all completions; 0
    where a judge gives all the same."""
    apart_JN = scores_JN - mean(scores_JN.T)[:, None]
    size_J = np.sqrt(mean(apart_JN.T**2))
    return np.divide(
        apart_JN, size_J[:, None], out=apart_JN, where=size_J[:, None] > 1e-12
    )


@dataclass(frozen=True)
class Panel:
    """The judges' scores pooled: small and different judges against the bias of each
    (PoLL, Verga et al. 2024, arXiv 2404.18796; recalled, not checked against the
    paper).

    A judge without a score for a completion is left out there; where all are, it is
    unscored, or has failed as the first that failed. Components: each judge's own and
    `NAME_disagreement`, the standard deviation of their scores (0 where one is left).
    """

    judges: tuple[Scorer, ...]
    pool: Pool = mean
    """`mean`, `majority`, or your own."""
    standardised: bool = False
    """Bring the judges to one scale first, over the completions scored together."""
    name: str = "panel"
    """What the score is called in records and metrics."""

    def __post_init__(self):
        if not self.judges:
            raise ValueError("Panel: no judges given")
        names = Counter(name for judge in self.judges for name in named(judge))
        names[self.name] += 1
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(
                f"Panel: {names[twice[0]]} parts call their scores {twice[0]!r}: give "
                "each a `name` of its own"
            )

    def check(self, prompts: Sequence[Prompt]) -> None:
        for judge in self.judges:
            scorers.check(judge, prompts)

    def close(self) -> None:
        for judge in self.judges:
            scorers.close(judge)

    def with_models(self, models: Models) -> "Panel":
        bound = tuple(scorers.bind(judge, models) for judge in self.judges)
        return replace(self, judges=bound)

    def __call__(self, prompts: Sequence[Prompt], rollouts: Groups) -> list[Scored]:
        told = [judge(prompts, rollouts) for judge in self.judges]
        values = [[s.value for row in rows for s in row.scores] for rows in told]
        scores_JN = np.array(values, float)  # None is NaN
        if self.standardised:
            scores_JN = standardised(scores_JN)
        pooled_N = self.pool(scores_JN)
        spread_N = np.sqrt(mean((scores_JN - mean(scores_JN)) ** 2))
        pooled = iter(zip(pooled_N.tolist(), spread_N.tolist(), strict=True))
        return [
            Scored(
                rows[0].prompt,
                rows[0].rollouts,
                tuple(
                    self._score(scores, *next(pooled))
                    for scores in zip(*(row.scores for row in rows), strict=True)
                ),
                tuple(chain.from_iterable(row.judgements for row in rows)),
            )
            for rows in zip(*told, strict=True)
        ]

    def _score(self, scores: Sequence[Score], value: float, spread: float) -> Score:
        parts = {k: v for score in scores for k, v in score.components.items()}
        if not np.isfinite(value):
            failed: list[Status] = [
                s.status for s in scores if s.status not in ("scored", "unscored")
            ]
            return Score(None, failed[0] if failed else "unscored", components=parts)
        parts |= {self.name: value, f"{self.name}_disagreement": spread}
        return Score(value, components=parts)
