"""How far two models agree on the ranks of a prompt's completions, as a soft label."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxloop.records import Pair, Scored
from jaxloop.selection.advantages import components_of, rewards_of

Agreement = Callable[[np.ndarray, np.ndarray], float]
CERTAIN = 1e-6  # a label of exactly 0 or 1 has no finite log-odds


def kendall(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """(tau + 1) / 2, tau = (pairs in the same order - pairs in opposite orders) / all
    pairs: 1 for the same ranks, 0 for opposite ones. A tie in either is neither."""
    first, second = np.triu_indices(len(a_N), 1)
    same = np.sign(a_N[first] - a_N[second]) * np.sign(b_N[first] - b_N[second])
    return float(same.mean() + 1) / 2


def spearman(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """(rho + 1) / 2, rho the correlation of the ranks, equals sharing a mean rank; 1/2
    where one of the two ranks nothing."""
    a_N, b_N = (_ranks(x_N) - (len(x_N) - 1) / 2 for x_N in (a_N, b_N))
    size = math.sqrt(float((a_N**2).sum() * (b_N**2).sum()))
    rho = float((a_N * b_N).sum()) / size if size else 0.0
    return (rho + 1) / 2


def top_order(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """1 where both name the same best and the same worst (of equals the earliest), else
    0: whether they would make the same pair."""
    same = a_N.argmax() == b_N.argmax() and a_N.argmin() == b_N.argmin()
    return float(same)


@dataclass(frozen=True)
class RankConsistency:
    """Pairs become as certain as two rounds' models agree on the ranks.

    C = agreement(scores by this model, scores by the previous one), in [0, 1]

    CREAM (Wang et al. 2024, arXiv 2410.12735; as recalled, not checked against the
    paper): DPO with the label C, which is `preference.soft`. A pair's two scores are
    set to log-odds of C and to 0, so that C is the logistic of their difference, which
    is what that loss reads. C is the mean over the round's prompts, or that of the
    pair's own prompt. The score of a completion is this model's; the previous model's
    is one of its components. A prompt with fewer than two completions that both have
    scored says nothing; if none says anything, C is 1/2.
    """

    previous: str = "previous"
    """The component that holds the previous model's score."""
    agreement: Agreement = kendall
    """`kendall`, `spearman`, `top_order`, or your own."""
    per_prompt: bool = False
    """Take each prompt's own C."""

    def __call__(self, pairs: Sequence[Pair], scored: Sequence[Scored]) -> list[Pair]:
        by_prompt = self.of_prompts(scored) if pairs else {}
        known = list(by_prompt.values())
        overall = float(np.mean(known)) if known else 0.5

        def labelled(pair: Pair) -> Pair:
            c = by_prompt.get(pair.prompt.id, 0.5) if self.per_prompt else overall
            reason = f"{pair.reason}; agreement {c:.3f}"
            odds = log_odds(c)
            return replace(pair, chosen_score=odds, rejected_score=0.0, reason=reason)

        return [labelled(pair) for pair in pairs]

    def of_prompts(self, scored: Sequence[Scored]) -> dict[str, float]:
        """C of each prompt that has one, by id."""
        now_PG, then_PG = rewards_of(scored), components_of(scored, self.previous)
        both_PG = np.isfinite(now_PG) & np.isfinite(then_PG)
        return {
            row.prompt.id: self.agreement(now_PG[p, both_G], then_PG[p, both_G])
            for p, (row, both_G) in enumerate(zip(scored, both_PG, strict=True))
            if both_G.sum() > 1
        }


def log_odds(probability: float) -> float:
    """log(p / (1 - p)), p held within `CERTAIN` of 0 and 1."""
    p = min(max(probability, CERTAIN), 1 - CERTAIN)
    return math.log(p / (1 - p))


def _ranks(x_N: np.ndarray) -> np.ndarray:
    """From 0; equals share the mean of theirs."""
    below_N = (x_N[:, None] > x_N).sum(axis=1)
    equal_N = (x_N[:, None] == x_N).sum(axis=1)
    return below_N + (equal_N - 1) / 2
