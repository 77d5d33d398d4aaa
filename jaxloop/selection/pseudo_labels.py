"""Learning from votes without gold answers: every answer is a label, as far as trusted.

RESTRAIN (arXiv 2510.02172) is a chain of parts:

    FirstAgreement(
        NegativeOffset(PseudoLabels(GroupAdvantage(), width), minimum, offset), width
    )

with the scorer `FirstVote`. Its numbers (the widths, `minimum`, `offset`) are unknown
here: they are yours to choose.

Shapes: P prompts, G samples, M labels of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxloop.records import Score, Scored
from jaxloop.selection.advantages import (
    Advantage,
    advantages_of,
    components_of,
    rewards_of,
)
from jaxloop.selection.grouping import opposed_of
from jaxloop.selection.selectors import votes_of


def gaussian(share: np.ndarray, *, width: float, centre: float = 1.0) -> np.ndarray:
    """exp(-(share - centre)^2 / (2 width^2)), in (0, 1]; float64."""
    if not width > 0:
        raise ValueError(f"gaussian: width = {width} must be above 0")
    return np.exp(-(((np.asarray(share, float) - centre) / width) ** 2) / 2)


def label_weights(
    share_M: np.ndarray, *, width: float, centre: float = 1.0
) -> np.ndarray:
    """w_j = g(f_j) / sum_l g(f_l), the trust in each label; (M,) float64, sum 1.

    g is `gaussian`. A large width trusts all alike. The smaller it is, the more it is
    the label of the most votes alone; so it is at 0, where equals share.
    """
    gap_M = np.square(np.asarray(share_M, float) - centre)
    if not len(gap_M):
        return gap_M
    gap_M = gap_M - gap_M.min()
    if width == 0:
        g_M = (gap_M < 1e-12).astype(float)
    else:
        with np.errstate(over="ignore"):  # of a tiny width: exp(-inf) = 0 is meant
            g_M = np.exp(-gap_M / (2 * width) / width)
    return g_M / g_M.sum()


def vote_matrix(row: Scored) -> tuple[np.ndarray, np.ndarray]:
    """(rewards_GM, share_M): what each sample would earn if answer j were gold, and the
    share of all samples that gave it.

    Float64; labels in the order of their first sample. An unscored sample (one without
    an answer) is NaN and counts among the samples; an answer without votes is no label.
    ValueError if the scorer does not vote.
    """
    keys = [
        None if score.value is None else votes_of(row.prompt, score)
        for score in row.scores
    ]
    # The votes are in the key because the shuffled control deals them out without
    # regard to answers.
    labels = list(dict.fromkeys(key for key in keys if key is not None and key[0] > 0))
    rewards_GM = np.array(
        [
            [np.nan if key is None else float(key == label) for label in labels]
            for key in keys
        ]
    ).reshape(len(keys), len(labels))
    share_M = np.array([votes for votes, _ in labels], float) / max(len(keys), 1)
    return rewards_GM, share_M


@dataclass(frozen=True)
class PseudoLabels:
    """Every answer of a prompt in turn is taken for gold, and counts by its votes.

    A_i = sum_j w_j A_ij, A_ij the advantage where answer j is rewarded with 1
    w_j = g(f_j) / sum_l g(f_l), g a Gaussian of the share of votes f

    RESTRAIN's pseudo-label weighting (arXiv 2510.02172). A unanimous prompt gives
    zeros. With width 0 it is majority voting (TTRL, arXiv 2504.16084, as recalled, not
    checked against the paper; equal answers share). Needs a scorer that votes; its
    values are not looked at. The loss is exactly sum_j w_j x (the loss with the
    advantages A_ij), also where ratios are clipped label by label, from a batch's
    second update on: `opposed` carries what the sum A_i cannot say.
    Use: without gold answers, where a majority may be wrong.
    Names: -.
    """

    advantage: Advantage
    width: float
    """Of the Gaussian, in shares of the votes."""
    centre: float = 1.0
    """The share of votes that is trusted most."""

    def __post_init__(self):
        if not self.width >= 0:
            raise ValueError(f"PseudoLabels: width = {self.width} must not be negative")

    def of_scored(self, scored: Sequence[Scored]) -> np.ndarray:
        up_PG, down_PG = self._pushes(scored)
        return (up_PG - down_PG).astype(np.float32)

    def opposed(self, scored: Sequence[Scored]) -> np.ndarray:
        """The smaller of the labels' pushes up and down, which cancels in A."""
        return np.minimum(*self._pushes(scored)).astype(np.float32)

    def _pushes(self, scored: Sequence[Scored]) -> tuple[np.ndarray, np.ndarray]:
        """sum_j w_j max(A_ij, 0) and sum_j w_j max(-A_ij, 0), (P, G) float64."""
        rows, owners, weights = [], [], []
        for p, row in enumerate(scored):
            rewards_GM, share_M = vote_matrix(row)
            rows += [_rewarded(row, rewards_G) for rewards_G in rewards_GM.T]
            owners += [p] * len(share_M)
            of_labels_M = label_weights(share_M, width=self.width, centre=self.centre)
            weights += of_labels_M.tolist()
        up_PG = np.zeros(rewards_of(scored).shape)
        down_PG = np.zeros_like(up_PG)
        if rows:
            each_RG = advantages_of(rows, self.advantage)
            for p, weight, each_G in zip(owners, weights, each_RG, strict=True):
                up_PG[p, : len(each_G)] += weight * np.maximum(each_G, 0)
                down_PG[p, : len(each_G)] += weight * np.maximum(-each_G, 0)
        return up_PG, down_PG


@dataclass(frozen=True)
class FirstAgreement:
    """A prompt counts by how far the first model agrees with itself on it.

    A := u A, u = g(c / n), c the most votes of the first model's n samples

    RESTRAIN's prompt weights (arXiv 2510.02172), g `gaussian`. Wants the component
    that the scorer `FirstVote` adds.
    Use: with pseudo-labels; what the model knows leads the training from the start.
    Names: -.
    """

    advantage: Advantage
    width: float
    """Of the Gaussian, in shares of the votes."""
    centre: float = 1.0
    """The share of votes that counts most."""
    component: str = "first_vote"
    """The score's component that holds that share."""

    def __post_init__(self):
        if not self.width > 0:
            raise ValueError(f"FirstAgreement: width = {self.width} must be above 0")

    def of_scored(self, scored: Sequence[Scored]) -> np.ndarray:
        advantages_PG = advantages_of(scored, self.advantage)
        return (advantages_PG * self._weights(scored)).astype(np.float32)

    def opposed(self, scored: Sequence[Scored]) -> np.ndarray | None:
        """That of the advantage inside, weighted alike."""
        opposed_PG = opposed_of(scored, self.advantage)
        if opposed_PG is None:
            return None
        return (opposed_PG * self._weights(scored)).astype(np.float32)

    def _weights(self, scored: Sequence[Scored]) -> np.ndarray:
        """u, (P, G)."""
        share_PG = components_of(scored, self.component)
        # Samples without an answer have no component, and no advantage to weigh.
        known_PG = np.where(np.isnan(share_PG), 0.0, share_PG)
        return gaussian(known_PG, width=self.width, centre=self.centre)


def _rewarded(row: Scored, rewards_G: np.ndarray) -> Scored:
    """The row with those rewards for its scores."""

    def with_reward(score: Score, reward: float) -> Score:
        return score if score.value is None else replace(score, value=float(reward))

    scores = zip(row.scores, rewards_G, strict=True)
    return replace(row, scores=tuple(with_reward(s, r) for s, r in scores))
