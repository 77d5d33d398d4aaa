"""Scored prompts and an advantage to groups.

An advantage that is a weighted sum over several labels (`PseudoLabels`) loses what
opposite pushes have cancelled, and a clipped loss of the sum is not the sum of the
clipped losses. Such an advantage, and what wraps it, has a method `opposed(scored)`
beside `of_scored`; the sum and this number are all that the exact loss needs
(`policy.both_ways`).
"""

from collections.abc import Sequence

import numpy as np

from jaxloop.records import Group, Scored
from jaxloop.selection.advantages import Advantage, advantages_of


def groups(scored: Sequence[Scored], advantage: Advantage) -> list[Group]:
    """Every prompt with its rollouts and their advantages, in the same order."""
    if not scored:
        return []
    advantages_PG = advantages_of(scored, advantage)
    opposed_PG = opposed_of(scored, advantage)
    for x_PG in (advantages_PG, opposed_PG):
        if x_PG is not None and not np.isfinite(x_PG).all():
            raise ValueError(
                f"{advantage} gave what is no number; unscored samples get 0"
            )

    def of(row: Scored, p: int) -> Group:
        n = len(row.rollouts)
        opposed_G = [] if opposed_PG is None else opposed_PG[p, :n].tolist()
        advantages_G = advantages_PG[p, :n].tolist()
        return Group(
            row.prompt, row.rollouts, row.scores, tuple(advantages_G), tuple(opposed_G)
        )

    return [of(row, p) for p, row in enumerate(scored)]


def opposed_of(scored: Sequence[Scored], advantage: Advantage) -> np.ndarray | None:
    """How much of pushes up and down cancels in each advantage, (P, G), not negative;
    None for an advantage that is no sum."""
    opposed = getattr(advantage, "opposed", None)
    return None if opposed is None else opposed(scored)
