"""How a judge fares: what it fails to say, what it favours, and whether it is right."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxloop.records import Judgement, Scored
from jaxloop.scoring.ratings import position_bias, swap_agreement


def judge_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Of each judge among the scorers, under its name; {} where there is none.

    - `judge/too_long_frac`: requests that its model has no room for, and so not asked;
      `judge/invalid_frac`: judgements that could not be parsed; `judge/unjudged_frac`:
      completions without a valid one, of prompts with at least one request.
    - `judge/mean`, `judge/std`: of its scores; `judge/saturated_frac`: scores equal to
      the highest one; `judge/tied_frac`: of the prompts with several scores, those
      all of whose scores are equal.
    - `judge/length_corr`: correlation of score and length in tokens within prompts.
    - of pairs shown in both orders, `judge/swap_agreement`: how many have the same
      winner in both; `judge/first_bias`: how much more often the one shown first wins,
      from -1 to 1.
    - with a `truth`: `judge/agreement`, the share of completions of a prompt with
      different truth that are in the right order, ties counting half, and
      `judge/accuracy`, the share on the right side of 1/2, where scores are in [0, 1].

    What nothing is known of is left out.
    """
    names = dict.fromkeys(j.judge for row in scored for j in row.judgements)
    return {
        f"{judge}/{name}": float(value)
        for judge in names
        for name, value in _of_judge(scored, judge)
        if np.isfinite(value)
    }


def _of_judge(scored: Sequence[Scored], judge: str) -> Iterator[tuple[str, float]]:
    judgements = [j for row in scored for j in row.judgements if j.judge == judge]
    values = [value for j in judgements for value in j.values]
    yield "too_long_frac", _mean([not j.rollouts for j in judgements])
    yield "invalid_frac", _mean([value is None for value in values])
    yield from _orders([row.judgements for row in scored], judge)
    asked = [row for row in scored if any(j.judge == judge for j in row.judgements)]
    groups = [_scores(row, judge) for row in asked]
    flat = np.concatenate([scores for scores, _, _ in groups])
    known = flat[np.isfinite(flat)]
    if not len(known) and any(value is not None for value in values):
        return  # it judges judgements
    yield "unjudged_frac", _mean(~np.isfinite(flat))
    yield "mean", _mean(known)
    yield "std", float(known.std(ddof=1)) if len(known) > 1 else 0.0
    yield "saturated_frac", _mean(known == known.max(initial=-np.inf))
    several = [s[np.isfinite(s)] for s, _, _ in groups if np.isfinite(s).sum() > 1]
    spreads = [np.ptp(scores) for scores in several]
    yield "tied_frac", _mean([spread == 0 for spread in spreads])
    yield "length_corr", length_correlation((s, lengths) for s, _, lengths in groups)
    yield from _truth(groups)


def _scores(row: Scored, judge: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The judge's score, the truth and the length of each completion; NaN: unknown."""

    def column(name: str) -> np.ndarray:
        found = [score.components.get(name, np.nan) for score in row.scores]
        return np.array(found, float)

    lengths = np.array([len(rollout.token_ids) for rollout in row.rollouts], float)
    return column(judge), column(f"{judge}_truth"), lengths


def length_correlation(groups: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Of scores and lengths (each (N,); NaN: not scored) within the prompts; NaN where
    one of the two does not vary."""
    scores, lengths = [], []
    for score, length in groups:
        known = np.isfinite(score)
        if known.sum() > 1:
            scores.append(score[known] - score[known].mean())
            lengths.append(length[known] - length[known].mean())
    if not scores:
        return np.nan
    x, y = np.concatenate(scores), np.concatenate(lengths)
    size = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / size) if size > 0 else np.nan


def _orders(
    rows: Sequence[Sequence[Judgement]], judge: str
) -> Iterator[tuple[str, float]]:
    """Of pairs: what both orders say, by the means of their valid judgements."""
    orders = []
    for row in rows:
        told = {
            judgement.of: np.mean(valid, axis=0)
            for judgement in row
            if judgement.judge == judge and len(judgement.of) == 2
            if (valid := [v for v in judgement.values if v is not None])
        }
        orders += [
            (values, told[j, i])
            for (i, j), values in told.items()
            if i < j and (j, i) in told
        ]
    yield "swap_agreement", swap_agreement(orders)
    yield "first_bias", position_bias(orders)


def _truth(groups) -> Iterator[tuple[str, float]]:
    right, sides = [], []
    every = np.concatenate([score for score, _, _ in groups])
    every = every[np.isfinite(every)]
    shares = bool(((every >= 0) & (every <= 1)).all())
    for score, truth, _ in groups:
        known = np.isfinite(score) & np.isfinite(truth)
        s, t = score[known], truth[known]
        better = t[:, None] > t
        order = (np.sign(s[:, None] - s) + 1) / 2  # 1 in order, 1/2 tied, 0 reversed
        right += order[better].tolist()
        if shares:
            above = (np.sign(s - 0.5) + 1) / 2
            sides += np.where(t > 0.5, above, 1 - above).tolist()
    yield "agreement", _mean(right)
    yield "accuracy", _mean(sides)


def _mean(values) -> float:
    values = np.asarray(values, float)
    return float(values.mean()) if values.size else np.nan
