"""Comparisons to scores: win tables, Bradley-Terry strengths, means, and how far the
two orders of a pair agree.

A verdict is (places, values): which of the `count` candidates were shown, in that
order, and a number for each, the higher the better; values None is an invalid verdict,
which is no evidence and is left out everywhere. Candidates are numbered 0 ... N - 1.

Shapes: N candidates.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Values = Sequence[float] | np.ndarray | None
Verdict = tuple[Sequence[int], Values]

ELO = 400 / np.log(10)
"""Elo points in a unit of strength: e nats are ELO x e points, about 173.7 x e."""
TOLERANCE = 1e-10  # nats that the last Newton step may move a strength
MOST_STEPS = 1000


def win_matrix(verdicts: Iterable[Verdict], count: int) -> np.ndarray:
    """wins_NN float64: how often the row beat the column; a tie is half a win of each.

    A verdict on more than two candidates is one on every pair of them. ValueError for a
    place that does not exist or is shown twice, and where values are not one a place.
    """
    wins_NN = np.zeros((count, count))
    for places, values in _valid(verdicts, count):
        won_KK = (np.sign(values[:, None] - values) + 1) / 2
        np.fill_diagonal(won_KK, 0)
        wins_NN[np.ix_(places, places)] += won_KK
    return wins_NN


def bradley_terry(wins_NN: np.ndarray, *, prior: float = 0.1) -> np.ndarray:
    """Strengths from win counts, (N,) float64, in nats, with sum 0.

    argmax_e  sum_ab wins_ab log sigmoid(e_a - e_b) - prior / 2 sum_a e_a^2

    Bradley & Terry 1952; a beats b with chance sigmoid(e_a - e_b). Times `ELO` they are
    Elo points. The prior keeps an undefeated candidate finite and sets groups that were
    never compared with one another around 0; the larger, the closer together all are.
    Counts may be fractions, but never negative: with signed results in their place the
    likelihood has no maximum (ValueError).

    Newton's method from 0, until a step moves no strength by more than `TOLERANCE`
    (plus what rounding does to large counts under a small prior).
    """
    wins_NN = _checked_wins(wins_NN)
    if not prior > 0:
        raise ValueError(f"bradley_terry: prior = {prior} must be above 0")
    games_NN = wins_NN + wins_NN.T
    rounding = np.finfo(float).eps * games_NN.sum(axis=1).max(initial=0.0) / prior
    if rounding >= 1:
        raise ValueError(f"bradley_terry: prior = {prior} is lost beside so many wins")
    strength_N = np.zeros(len(wins_NN))
    if not len(strength_N):
        return strength_N
    for _ in range(MOST_STEPS):
        above_NN = _sigmoid(strength_N[:, None] - strength_N)
        # Exactly antisymmetric, so that rounding does not move the mean.
        flow_NN = wins_NN * above_NN.T - wins_NN.T * above_NN
        gradient_N = flow_NN.sum(axis=1) - prior * strength_N
        curve_NN = games_NN * above_NN * above_NN.T
        np.fill_diagonal(curve_NN, 0)
        hessian_NN = np.diag(curve_NN.sum(axis=1) + prior) - curve_NN
        step_N = np.linalg.solve(hessian_NN, gradient_N)
        # As long as no difference moves by more than 1, curvatures change by less than
        # a factor e, and a Newton step is sure to gain.
        strength_N = strength_N + step_N / max(np.ptp(step_N), 1.0)
        if np.abs(step_N).max() <= TOLERANCE + 4 * rounding:
            return strength_N - strength_N.mean()
    raise RuntimeError(f"bradley_terry: no maximum found in {MOST_STEPS} steps")


@dataclass(frozen=True)
class BradleyTerry:
    """A judge's `combine`: strengths in nats from all verdicts of a prompt; NaN for a
    candidate without a valid one."""

    prior: float = 0.1
    """How strongly strengths are held at 0; see `bradley_terry`."""

    def __call__(self, verdicts: Iterable[Verdict], count: int) -> np.ndarray:
        wins_NN = win_matrix(verdicts, count)
        strength_N = bradley_terry(wins_NN, prior=self.prior)
        return np.where((wins_NN + wins_NN.T).any(axis=1), strength_N, np.nan)


def round_robin_mean(verdicts: Iterable[Verdict], count: int) -> np.ndarray:
    """(N,): the mean of the numbers that each candidate was given in valid verdicts;
    NaN where there are none. With values 1 and 0 it is the rate of wins."""
    return _mean(_valid(verdicts, count), count)


def win_rates(verdicts: Iterable[Verdict], count: int) -> np.ndarray:
    """(N,): of all comparisons of each candidate, the share that it won, ties counting
    half, whatever the size of the values; NaN where there are none."""
    wins_NN = win_matrix(verdicts, count)
    games_N = (wins_NN + wins_NN.T).sum(axis=1)
    nan_N = np.full(count, np.nan)
    return np.divide(wins_NN.sum(axis=1), games_N, out=nan_N, where=games_N > 0)


def pivot_scores(verdicts: Iterable[Verdict], count: int, pivot: int = 0) -> np.ndarray:
    """(N,): by how much each candidate was valued above the pivot that it was shown
    with, on average; NaN where it never was, 0 for the pivot itself.

    The pivot may be any candidate that all others were compared with: G candidates want
    2 (G - 1) verdicts in both orders, a round robin G (G - 1). ValueError for a verdict
    without the pivot.
    """
    if not 0 <= pivot < count:
        raise ValueError(f"pivot_scores: the pivot {pivot} is none of {count}")
    gaps = []
    for places, values in _valid(verdicts, count):
        if pivot not in places:
            raise ValueError(f"pivot_scores: a verdict on {places} without {pivot}")
        gaps.append((places, values - values[places.index(pivot)]))
    score_N = _mean(gaps, count)
    score_N[pivot] = 0.0
    return score_N


def order_wins(verdicts: Iterable[Verdict]) -> tuple[int, int]:
    """How often the candidate shown first won, and the one shown second; of pairs."""
    gaps = [values[0] - values[1] for _, values in _pairs(verdicts)]
    return sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)


def position_weights(first_wins: float, second_wins: float) -> tuple[float, float]:
    """(omega_1, omega_2): what a win in the first and in the second place counts.

    omega_1 = second_wins / (first_wins + second_wins), omega_2 = first_wins / (...)

    Meta-Rewarding (Wu et al. 2024, arXiv 2407.19594; as recalled, not checked against
    the paper): wins in the favoured place count less. Without wins nothing is known of
    a bias: 1/2 each.
    """
    if min(first_wins, second_wins) < 0:
        raise ValueError(f"negative wins: {first_wins} first, {second_wins} second")
    total = first_wins + second_wins
    if total == 0:
        return 0.5, 0.5
    return second_wins / total, first_wins / total


def debiased_wins(
    verdicts: Iterable[Verdict], count: int, weights: tuple[float, float]
) -> np.ndarray:
    """wins_NN in which a win counts what its place is worth; a tie adds nothing.

    B_mn = omega_1 [m wins, shown first] + omega_2 [m wins, shown second]

    Meta-Rewarding (as `position_weights`, which the weights come from, with the wins of
    all prompts together: `order_wins`). Never negative, as `bradley_terry` wants it.
    """
    wins_NN = np.zeros((count, count))
    for (first, second), (left, right) in _pairs(_valid(verdicts, count)):
        if left > right:
            wins_NN[first, second] += weights[0]
        elif right > left:
            wins_NN[second, first] += weights[1]
    return wins_NN


Orders = Sequence[tuple[Values, Values]]
"""Of each pair (a, b) the values when shown as a, b and when shown as b, a, each in the
order shown."""


def swap_agreement(orders: Orders) -> float:
    """The share of pairs of which both orders name the same winner, or both a tie;
    pairs with an invalid order are left out, NaN if none is left."""
    leads = _leads(orders)
    return float(np.mean(leads[:, 0] == -leads[:, 1])) if len(leads) else np.nan


def position_bias(orders: Orders) -> float:
    """(wins of the first shown - wins of the second shown) / all wins, in [-1, 1].

    Over pairs with both orders valid, where a better answer is shown first as often as
    second: 0 is a judge without preference for a place, 1 one that always names the
    first. NaN without a win.
    """
    leads = _leads(orders)
    wins = np.count_nonzero(leads)
    return float(leads.sum() / wins) if wins else np.nan


def _leads(orders: Orders) -> np.ndarray:
    """(pairs, 2): 1 where the first shown won, -1 the second, 0 a tie."""
    signs = [
        [np.sign(values[0] - values[1]) for values in (one, other)]
        for one, other in orders
        if one is not None and other is not None
    ]
    return np.array(signs, float).reshape(-1, 2)


def _valid(
    verdicts: Iterable[Verdict], count: int
) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """The valid verdicts, checked."""
    kept = []
    for places, values in verdicts:
        if values is None:
            continue
        places, array = tuple(places), np.asarray(values, float)
        once = len(set(places)) == len(places)
        if not once or not all(0 <= place < count for place in places):
            raise ValueError(f"a verdict on {places}: not different ones of {count}")
        if array.shape != (len(places),) or not np.isfinite(array).all():
            raise ValueError(f"a verdict on {places} with the values {values}")
        kept.append((places, array))
    return kept


def _pairs(
    verdicts: Iterable[Verdict],
) -> list[tuple[Sequence[int], Sequence[float] | np.ndarray]]:
    """The valid verdicts; ValueError for one that is not on two."""
    kept = [(places, values) for places, values in verdicts if values is not None]
    for places, values in kept:
        if len(places) != 2 or len(values) != 2:
            raise ValueError(f"a verdict on {tuple(places)}, where two are compared")
    return kept


def _mean(
    verdicts: Iterable[tuple[Sequence[int], np.ndarray]], count: int
) -> np.ndarray:
    total_N, times_N = np.zeros(count), np.zeros(count)
    for places, values in verdicts:
        total_N[list(places)] += values
        times_N[list(places)] += 1
    nan_N = np.full(count, np.nan)
    return np.divide(total_N, times_N, out=nan_N, where=times_N > 0)


def _checked_wins(wins_NN: np.ndarray) -> np.ndarray:
    wins_NN = np.asarray(wins_NN, float)
    if wins_NN.ndim != 2 or wins_NN.shape[0] != wins_NN.shape[1]:
        raise ValueError(f"a table of wins is square, not {wins_NN.shape}")
    if not np.isfinite(wins_NN).all() or (wins_NN < 0).any():
        raise ValueError(
            "a table of wins holds counts: finite and not negative (a loss is a win in "
            "the other's row)"
        )
    return wins_NN


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
