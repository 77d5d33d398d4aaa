"""Which prompts are worth selecting from, and which pairs worth training on.

A filter is called with the scored prompts and gives (those kept, how many it dropped).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxloop.records import Pair, Scored, without_extra
from jaxloop.selection.advantages import column_of
from jaxloop.selection.selectors import CORRECT, voters, votes_of


@dataclass(frozen=True)
class MinVote:
    """Prompts whose most voted answer has at least `minimum` of all samples' votes
    (ScPO's tau, as a fraction of k). Needs a scorer that votes."""

    minimum: float = 0.5

    def __post_init__(self):
        if not 0 <= self.minimum <= 1:
            raise ValueError(f"MinVote: minimum={self.minimum} is not a fraction of 1")

    def __call__(self, scored: Sequence[Scored]) -> tuple[list[Scored], int]:
        kept = [row for row in scored if self._agreed(row)]
        return kept, len(scored) - len(kept)

    def _agreed(self, row: Scored) -> bool:
        voting = [s for s in without_extra(row).scores if s.value is not None]
        most = max((votes_of(row.prompt, score)[0] for score in voting), default=0)
        # 0.55 * 100 is a little more than 55 in floats.
        return most > 0 and most >= self.minimum * voters(row) - 1e-9


@dataclass(frozen=True)
class PassRate:
    """Prompts that are answered correctly sometimes: low < pass rate < high.

    The rate is over the scored rollouts but the `extra` ones; correct is a score above
    `threshold`. A prompt without scored rollouts is dropped.
    """

    low: float = 0.0
    high: float = 1.0
    threshold: float = CORRECT

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"PassRate: low={self.low} is not below high={self.high}")

    def __call__(self, scored: Sequence[Scored]) -> tuple[list[Scored], int]:
        kept = [row for row in scored if self._between(row)]
        return kept, len(scored) - len(kept)

    def _between(self, row: Scored) -> bool:
        scores = without_extra(row).scores
        values = [score.value for score in scores if score.value is not None]
        if not values:
            return False
        rate = sum(value > self.threshold for value in values) / len(values)
        return self.low < rate < self.high


@dataclass(frozen=True)
class AnswerConsistency:
    """Prompts whose most voted answer is the one that was written with the prompt.

    CoT-Self-Instruct (Yu et al. 2025, arXiv 2507.23751): a model that writes a problem
    with its answer is believed where its samples agree. Another answer with as many
    votes drops the prompt. Needs a scorer that votes.
    """

    canonical: Callable[[str], str]
    """How the scorer spells an answer: `jaxloop.scoring.canonical`, after what reads
    the answer out of the column where there is more in it."""
    minimum: float = 0.0
    """The least share of the samples' votes."""
    column: str = "answer"
    """Where the data holds the answer that was written with the prompt."""

    def __post_init__(self):
        if not 0 <= self.minimum <= 1:
            raise ValueError(
                f"AnswerConsistency: minimum={self.minimum} is not a fraction of 1"
            )

    def __call__(self, scored: Sequence[Scored]) -> tuple[list[Scored], int]:
        kept = [row for row in scored if self._consistent(row)]
        return kept, len(scored) - len(kept)

    def _consistent(self, row: Scored) -> bool:
        declared = self.canonical(str(column_of(row, self.column, self)))
        votes = {
            answer: votes
            for votes, answer in (
                votes_of(row.prompt, score)
                for score in row.scores
                if score.value is not None
            )
        }
        own = votes.pop(declared, 0)
        # 0.55 * 100 is a little more than 55 in floats.
        enough = own >= self.minimum * voters(row) - 1e-9
        return own > max(votes.values(), default=0) and enough


def drop_identical(pairs: Sequence[Pair]) -> tuple[list[Pair], int]:
    """Pairs whose two token sequences differ, and how many were dropped: a pair of
    equals has no gradient of preference, only that of a likelihood term."""
    kept = [p for p in pairs if p.chosen.token_ids != p.rejected.token_ids]
    return kept, len(pairs) - len(kept)


def pair_metrics(
    pairs: Sequence[Pair], *, scored: Sequence[Scored], identical: int
) -> dict:
    """`pairs/count`, `pairs/identical` (dropped), `pairs/kept_frac` (of the prompts
    sampled, those that gave a pair), `pairs/score_gap` (mean; left out without
    pairs)."""
    sampled = {row.prompt.id for row in scored}
    paired = sampled & {pair.prompt.id for pair in pairs}  # not judge prompts
    metrics = {
        "pairs/count": float(len(pairs)),
        "pairs/identical": float(identical),
        "pairs/kept_frac": len(paired) / max(len(sampled), 1),
    }
    if pairs:
        gaps = [pair.chosen_score - pair.rejected_score for pair in pairs]
        metrics["pairs/score_gap"] = sum(gaps) / len(gaps)
    return metrics
