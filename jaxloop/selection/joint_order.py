"""Rewards for a judge that hang on two of its judgements: both orders, or both answers.

J1 (arXiv 2505.10320) trains a judge on every pair in both orders, in one batch. A
judgement that cannot be parsed is a wrong one here: a judge in training must not gain
by evading. The i-th judgement of one prompt goes with the i-th of the other (our
choice; the paper leaves it open).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxloop.records import Scored
from jaxloop.selection.advantages import Advantage, advantages_of, column_of
from jaxloop.selection.selectors import CORRECT


def joint_score_rewards(
    better: Sequence[float | None], worse: Sequence[float | None]
) -> np.ndarray:
    """(N,) float64: what the i-th judgements of both answers earn, each: 1 where the
    better answer got the higher score, 0 elsewhere, with a tie or without a score."""
    pairs = zip(better, worse, strict=True)
    right = [b is not None and w is not None and b > w for b, w in pairs]
    return np.array(right, float)


@dataclass(frozen=True)
class JointOrder:
    """A judgement is rewarded where the other order's is right as well.

    r_i := 1 if both the i-th judgement of this order and that of the other are right,
    else 0

    | shown a, b | shown b, a | r |
    | right      | right      | 1 |
    | right      | wrong      | 0 |
    | wrong      | right      | 0 |
    | wrong      | wrong      | 0 |

    J1's consistency reward (arXiv 2505.10320); right is a score above `CORRECT`. The
    two prompts of a pair share a value in a column of their data, and must be in one
    batch.
    Use: when a judge changes its mind with the order.
    Names: -.
    """

    advantage: Advantage
    pair: str = "pair"
    """The column that names the pair."""

    def of_scored(self, scored: Sequence[Scored]) -> np.ndarray:
        def joint(one: Scored, two: Scored) -> np.ndarray:
            pairs = zip(_values(one), _values(two), strict=True)
            return np.array([_correct(a) and _correct(b) for a, b in pairs], float)

        rows = _rewarded(scored, self.pair, joint, self)
        return advantages_of(rows, self.advantage)


@dataclass(frozen=True)
class JointScore:
    """A score that a judge gave one answer is rewarded where it is on the right side of
    the one that it gave the other answer.

    r_i := 1 if the i-th score of the better answer is above that of the worse, else 0

    J1's distant supervision of a pointwise judge (arXiv 2505.10320). The scorer's value
    is what the judge said. The two prompts of a pair share a value in a column of their
    data, must be in one batch, and a second column is true for the better answer.
    Use: to train scores from knowing only which answer is better.
    Names: -.
    """

    advantage: Advantage
    pair: str = "pair"
    """The column that names the pair."""
    better: str = "better"
    """The column that is true where the answer shown is the better one."""

    def of_scored(self, scored: Sequence[Scored]) -> np.ndarray:
        def joint(one: Scored, two: Scored) -> np.ndarray:
            sides = [bool(column_of(row, self.better, self)) for row in (one, two)]
            if sides[0] == sides[1]:
                raise ValueError(
                    f"JointScore: of prompts {one.prompt.id!r} and {two.prompt.id!r} "
                    f"exactly one must be {self.better!r}"
                )
            better, worse = (one, two) if sides[0] else (two, one)
            return joint_score_rewards(_values(better), _values(worse))

        rows = _rewarded(scored, self.pair, joint, self)
        return advantages_of(rows, self.advantage)


def _correct(value: float | None) -> bool:
    return value is not None and value > CORRECT


def _values(row: Scored) -> list[float | None]:
    return [score.value for score in row.scores]


def _rewarded(
    scored: Sequence[Scored],
    column: str,
    joint: Callable[[Scored, Scored], np.ndarray],
    asks: object,
) -> list[Scored]:
    """The rows, in their order, with the rewards that both of a pair get."""
    by_pair: dict[str, list[int]] = {}
    for p, row in enumerate(scored):
        by_pair.setdefault(str(column_of(row, column, asks)), []).append(p)
    rows = list(scored)
    for name, members in by_pair.items():
        ids = [scored[p].prompt.id for p in members]
        counts = {len(scored[p].scores) for p in members}
        if len(members) != 2 or len(counts) != 1:
            raise ValueError(
                f"{type(asks).__name__}: {column} {name!r} has the prompts {ids} with "
                f"{sorted(counts)} judgements; it wants two prompts with equally many "
                "in one batch: a filter or a draw of prompts must not part them"
            )
        rewards_G = joint(scored[members[0]], scored[members[1]])
        for p in members:
            scores = zip(scored[p].scores, rewards_G.tolist(), strict=True)
            given = tuple(replace(s, value=r, status="scored") for s, r in scores)
            rows[p] = replace(scored[p], scores=given)
    return rows
