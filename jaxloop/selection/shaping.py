"""What goes around an advantage: rewards changed before it, advantages changed after.

A wrapper holds an advantage and is one:

    PromptWeight(NegativeOffset(GroupAdvantage("none"), 0.5, offset=1.0))
    Overlong(GroupAdvantage(), longest=1024, cache=256)

Further functions turn the rewards of steps into advantages of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxloop.records import Score, Scored
from jaxloop.selection.advantages import (
    Advantage,
    advantages_of,
    column_of,
    rewards_of,
)
from jaxloop.selection.grouping import opposed_of
from jaxloop.selection.selectors import votes_of


def overlong_penalty(length: int, *, longest: int, cache: int) -> float:
    """What DAPO adds to the reward of a completion: 0, then falling to -1.

    0                               length <= longest - cache
    (longest - cache - length) / cache   up to longest
    -1                              beyond

    Yu et al. 2025 (arXiv 2503.14476), equation 13; lengths in tokens.
    """
    return -min(max(length - (longest - cache), 0) / cache, 1.0)


@dataclass(frozen=True)
class Overlong:
    """Takes reward from completions that come close to the length limit.

    r + weight x `overlong_penalty`

    Yu et al. 2025 (DAPO, arXiv 2503.14476), equation 13. The penalty is added to the
    score and stands among its components as `overlong`, for `GDPO`. What is logged as
    `reward` is the one before.
    Use: when completions grow until they are cut off.
    Names: verl `overlong_buffer`.
    """

    advantage: Advantage
    longest: int
    """Sampling's max_new_tokens."""
    cache: int
    """Tokens before the limit in which the penalty grows."""
    weight: float = 1.0

    def __post_init__(self):
        if not 0 < self.cache <= self.longest:
            raise ValueError(
                f"Overlong: cache = {self.cache} must be within [1, longest = "
                f"{self.longest}]"
            )

    def of_scored(self, scored: Sequence[Scored]) -> np.ndarray:
        shaped = [
            replace(row, scores=tuple(map(self._shaped, row.rollouts, row.scores)))
            for row in scored
        ]
        return advantages_of(shaped, self.advantage)

    def _shaped(self, rollout, score: Score) -> Score:
        if score.value is None:
            return score
        penalty = self.weight * overlong_penalty(
            len(rollout.token_ids), longest=self.longest, cache=self.cache
        )
        components = {**score.components, "overlong": penalty}
        return replace(score, value=score.value + penalty, components=components)


@dataclass(frozen=True)
class NegativeOffset:
    """Pushes every answer of a prompt down on which the samples do not agree.

    rewards := 0 and A := A - offset where the most voted answer has less than `minimum`
    of the samples' votes

    RESTRAIN's negative rollout penalty (arXiv 2510.02172). Needs a scorer that votes.
    Use: with pseudo-labels, where a weak majority is more often wrong than right.
    Names: -.
    """

    advantage: Advantage
    minimum: float
    """A fraction of the samples."""
    offset: float

    def of_scored(self, scored: Sequence[Scored]) -> np.ndarray:
        weak_P = np.array([self._weak(row) for row in scored], bool)
        known_PG = ~np.isnan(rewards_of(scored))
        pushed_PG = known_PG & weak_P[:, None]
        advantages_PG = advantages_of(self._shaped(scored), self.advantage)
        return (advantages_PG - self.offset * pushed_PG).astype(np.float32)

    def opposed(self, scored: Sequence[Scored]) -> np.ndarray | None:
        """That of the advantage inside: the offset pushes one way only."""
        return opposed_of(self._shaped(scored), self.advantage)

    def _shaped(self, scored: Sequence[Scored]) -> list[Scored]:
        return [_zeroed(row) if self._weak(row) else row for row in scored]

    def _weak(self, row: Scored) -> bool:
        known = [score for score in row.scores if score.value is not None]
        most = max((votes_of(row.prompt, score)[0] for score in known), default=0)
        # 0.55 * 100 is a little more than 55 in floats.
        return most < self.minimum * len(row.rollouts) - 1e-9


@dataclass(frozen=True)
class PromptWeight:
    """Multiplies the advantages of a prompt by a column of its data.

    A := weight of the prompt x A

    Our own: weights that are known before the run. RESTRAIN's, by the first model's
    agreement with itself, are `FirstAgreement`.
    Use: to trust some prompts more than others.
    Names: -.
    """

    advantage: Advantage
    column: str = "weight"

    def of_scored(self, scored: Sequence[Scored]) -> np.ndarray:
        advantages_PG = advantages_of(scored, self.advantage)
        return (advantages_PG * self._weights(scored)).astype(np.float32)

    def opposed(self, scored: Sequence[Scored]) -> np.ndarray | None:
        """That of the advantage inside, weighted alike."""
        opposed_PG = opposed_of(scored, self.advantage)
        if opposed_PG is None:
            return None
        return (opposed_PG * np.abs(self._weights(scored))).astype(np.float32)

    def _weights(self, scored: Sequence[Scored]) -> np.ndarray:
        """(P, 1)."""
        return np.array([[float(column_of(r, self.column, self))] for r in scored])


def to_go(rewards: np.ndarray, *, discount: float = 1.0) -> np.ndarray:
    """The sum of this and all later rewards along the last axis, later ones discounted.
    Float64."""
    later, out = 0.0, np.array(rewards, np.float64)
    for t in reversed(range(out.shape[-1])):
        out[..., t] = later = out[..., t] + discount * later
    return out


def process_advantages(
    rewards: Sequence[Sequence[float]], *, eps: float = 1e-4
) -> list[np.ndarray]:
    """Advantages of the steps of one prompt's samples, from a reward for each step.

    A_s = sum_{u >= s} (r_u - mean) / (std + eps), mean and (unbiased) std over all
    steps of all samples

    GRPO with process supervision: Shao et al. 2024 (arXiv 2402.03300, section 4.1.3).
    One float64 array a sample. Equal rewards give zeros.
    """
    flat = np.array([r for sample in rewards for r in sample], np.float64)
    if len(flat) < 2 or np.ptp(flat) == 0:
        return [np.zeros(len(sample)) for sample in rewards]
    mean, spread = flat.mean(), flat.std(ddof=1) + eps
    return [to_go((np.array(sample) - mean) / spread) for sample in rewards]


def by_segment(values: Sequence[float], ends: Sequence[int], length: int) -> np.ndarray:
    """What each token gets if it belongs to segment s: values[s], float32 (length,).

    Segment s holds the tokens ends[s - 1] ... ends[s] - 1, the first one from 0; tokens
    after the last segment get 0. A row of `advantage_BC`.
    """
    bounds = [0, *ends]
    if len(values) != len(ends) or bounds != sorted(bounds) or bounds[-1] > length:
        raise ValueError(
            f"segments end at {tuple(ends)}, with {len(values)} values: one value a "
            f"segment, ends in order, none beyond {length} tokens"
        )
    tokens = np.zeros(length, np.float32)
    for value, first, last in zip(values, bounds, ends, strict=False):
        tokens[first:last] = value
    return tokens


def _zeroed(row: Scored) -> Scored:
    scores = tuple(
        # Without votes there are no labels either, for an advantage that reads those.
        score if score.value is None else replace(score, value=0.0, votes=0)
        for score in row.scores
    )
    return replace(row, scores=scores)
