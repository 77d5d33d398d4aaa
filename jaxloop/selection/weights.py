"""How much each pair counts in the loss, from the pairs and the scored prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxloop.records import Pair, Scored
from jaxloop.selection.selectors import voters, votes_of


@dataclass(frozen=True)
class Uniform:
    """Every pair counts 1."""

    def __call__(self, pairs: Sequence[Pair], scored: Sequence[Scored]) -> list[Pair]:
        return [replace(pair, weight=1.0) for pair in pairs]


@dataclass(frozen=True)
class VoteMargin:
    """w = (V(y+) - V(y-)) / k, k the samples of the prompt (ScPO, Prasad et al. 2024,
    equation 2). Needs a scorer that votes."""

    def __call__(self, pairs: Sequence[Pair], scored: Sequence[Scored]) -> list[Pair]:
        rows = {row.prompt.id: row for row in scored}

        def weight(pair: Pair) -> float:
            row = rows.get(pair.prompt.id)
            if row is None:  # of judgements, which have no votes
                return pair.weight
            by_index = {
                rollout.index: score
                for rollout, score in zip(row.rollouts, row.scores, strict=True)
            }
            most, _ = votes_of(row.prompt, by_index[pair.chosen.index])
            least, _ = votes_of(row.prompt, by_index[pair.rejected.index])
            return (most - least) / voters(row)

        return [replace(pair, weight=weight(pair)) for pair in pairs]
