"""What a set of scored held-out rollouts says of the model."""

from collections import Counter
from collections.abc import Callable, Sequence
from math import comb

import numpy as np

from jaxloop.records import Prompt, Rollout, Scored


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that k of `samples`, drawn without replacement, hold a correct one.

    The unbiased estimator of Chen et al. 2021 (eq. 1).
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs between 1 and {samples} draws")
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def majority_correct(scored: Scored) -> float:
    """1 when the most frequent answer is right; ties share by their number.

    Rollouts without an answer do not vote; with no votes at all it is 0.
    """
    answers = [score.answer for score in scored.scores]
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = {answer for answer, count in votes.items() if count == most}
    right = {
        score.answer for score in scored.scores if score.value and score.value >= 1.0
    }
    return len(winners & right) / len(winners)


def evaluation_metrics(
    scored: Sequence[Scored],
    measures: Sequence[Callable[[Prompt, Rollout], float]] = (),
    summaries: Sequence[Callable[[Sequence[Scored]], dict[str, float]]] = (),
) -> dict[str, float]:
    """`eval/accuracy` (mean score) and its relatives. Unscored rollouts count as wrong,
    but for those of a judge, which are left out: an invalid judgement says nothing.
    Where a judge scored none at all there is no accuracy.

    Prompts whose row has a field `set` are measured by themselves: `eval/SET/accuracy`
    and so on. With such prompts only, there is no plain `eval/accuracy`. `summaries`
    look at the rows of a set together and name what they find themselves.
    """
    by_set: dict[str, list[Scored]] = {}
    for row in scored:
        by_set.setdefault(str(row.prompt.columns.get("set", "")), []).append(row)
    return {
        f"eval/{name}/{metric}" if name else f"eval/{metric}": value
        for name, rows in by_set.items()
        for found in (_metrics_of(rows, measures), *(each(rows) for each in summaries))
        for metric, value in found.items()
    }


def _metrics_of(
    scored: Sequence[Scored], measures: Sequence[Callable[[Prompt, Rollout], float]]
) -> dict[str, float]:
    """Of one set of prompts.

    With n > 1 samples a prompt, `pass@n` and `maj@n` take a score of at least 1 as
    correct. Components are averaged over the rollouts that have them, `measures` over
    all of them, under their function's name.
    """
    values = [[score.value or 0.0 for score in s.scores] for s in scored]
    scores = [(score, bool(s.judgements)) for s in scored for score in s.scores]
    counted = [
        score.value or 0.0
        for score, judged in scores
        if score.value is not None or not judged
    ]
    rollouts = [(s.prompt, rollout) for s in scored for rollout in s.rollouts]
    lengths = [len(rollout.token_ids) for _, rollout in rollouts]
    n = len(values[0])
    metrics = {"accuracy": float(np.mean(counted))} if counted else {}
    metrics |= {
        "completions/mean_length": float(np.mean(lengths)),
        "completions/clipped_ratio": float(
            np.mean([rollout.stop == "length" for _, rollout in rollouts])
        ),
    }
    if n > 1:
        correct = [sum(value >= 1.0 for value in row) for row in values]
        passed = [pass_at_k(n, c, n) for c in correct]
        metrics[f"pass@{n}"] = float(np.mean(passed))
        metrics[f"maj@{n}"] = float(np.mean([majority_correct(s) for s in scored]))
    components: dict[str, list[float]] = {}
    for score, _ in scores:
        for name, part in score.components.items():
            components.setdefault(name, []).append(part)
    for name, parts in sorted(components.items()):
        metrics[name] = float(np.mean(parts))
    for measure in measures:
        taken = [measure(prompt, rollout) for prompt, rollout in rollouts]
        metrics[measure.__name__] = float(np.mean(taken))
    return metrics
