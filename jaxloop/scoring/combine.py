"""Scorers made of scorers: a weighted sum, and the control without information."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from jaxloop.records import Prompt, Score, Scored, Status
from jaxloop.scoring import scorer as scorers
from jaxloop.scoring.parts import named
from jaxloop.scoring.scorer import Groups, Models, Scorer


@dataclass(frozen=True)
class Sum:
    """sum_j w_j v_j over several scorers; weights are 1 where none are given.

    A part that leaves a rollout unscored (it does not apply) is left out of that sum; a
    part that failed (nan, error, timeout) makes the sum fail alike, since 0 in its
    place would be a reward. Parts whose components share a name are a ValueError.
    """

    scorers: tuple[Scorer, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        if not self.scorers:
            raise ValueError("Sum: no scorers given")
        if self.weights and len(self.weights) != len(self.scorers):
            raise ValueError(
                f"Sum: {len(self.weights)} weights for {len(self.scorers)} scorers"
            )
        names = Counter(name for part in self.scorers for name in named(part))
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(
                f"Sum: {names[twice[0]]} parts call their scores {twice[0]!r}: give "
                "each a `name` of its own"
            )

    def check(self, prompts: Sequence[Prompt]) -> None:
        for part in self.scorers:
            scorers.check(part, prompts)

    def close(self) -> None:
        for part in self.scorers:
            scorers.close(part)

    def with_models(self, models: Models) -> "Sum":
        parts = tuple(scorers.bind(part, models) for part in self.scorers)
        return replace(self, scorers=parts)

    def __call__(self, prompts: Sequence[Prompt], rollouts: Groups) -> list[Scored]:
        parts = [part(prompts, rollouts) for part in self.scorers]
        weights = self.weights or (1.0,) * len(parts)
        return [
            Scored(
                rows[0].prompt,
                rows[0].rollouts,
                tuple(
                    _sum(scores, weights)
                    for scores in zip(*(row.scores for row in rows), strict=True)
                ),
                tuple(chain.from_iterable(row.judgements for row in rows)),
            )
            for rows in zip(*parts, strict=True)
        ]


def _sum(scores: tuple[Score, ...], weights: tuple[float, ...]) -> Score:
    names = [name for score in scores for name in score.components]
    if len(names) != len(set(names)):
        raise ValueError(f"Sum: two parts share a component name: {sorted(names)}")
    failed: list[Status] = [
        s.status for s in scores if s.status not in ("scored", "unscored")
    ]
    terms = [
        weight * score.value
        for score, weight in zip(scores, weights, strict=True)
        if score.value is not None
    ]
    status: Status = failed[0] if failed else "scored" if terms else "unscored"
    return Score(
        sum(terms) if status == "scored" else None,
        status,
        answer=next((s.answer for s in scores if s.answer is not None), None),
        votes=next((s.votes for s in scores if s.votes is not None), None),
        components={k: v for score in scores for k, v in score.components.items()},
    )


@dataclass(frozen=True)
class Shuffled:
    """The same scores, dealt out at random over all rollouts of the batch: a control.

    Their distribution stays, what they say of a rollout is lost; a method that still
    gains with them gains from something else. Set by `seed` and the prompts' ids alone,
    in whatever order they come.
    """

    scorer: Scorer
    seed: int = 0

    def check(self, prompts: Sequence[Prompt]) -> None:
        scorers.check(self.scorer, prompts)

    def close(self) -> None:
        scorers.close(self.scorer)

    def with_models(self, models: Models) -> "Shuffled":
        return replace(self, scorer=scorers.bind(self.scorer, models))

    def __call__(self, prompts: Sequence[Prompt], rollouts: Groups) -> list[Scored]:
        scored = self.scorer(prompts, rollouts)
        by_id = sorted(range(len(scored)), key=lambda i: scored[i].prompt.id)
        slots = [(i, j) for i in by_id for j in range(len(scored[i].scores))]
        ids = "\0".join(scored[i].prompt.id for i in by_id)
        digest = hashlib.sha256(f"{self.seed}\0{ids}".encode()).digest()
        order = np.random.default_rng(int.from_bytes(digest)).permutation(len(slots))
        dealt = {}
        for slot, source in zip(slots, order, strict=True):
            i, j = slots[source]
            dealt[slot] = scored[i].scores[j]
        return [
            Scored(
                row.prompt,
                row.rollouts,
                tuple(dealt[i, j] for j in range(len(row.scores))),
                row.judgements,
            )
            for i, row in enumerate(scored)
        ]
