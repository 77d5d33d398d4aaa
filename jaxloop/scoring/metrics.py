"""What is logged of scored rollouts, under TRL's names."""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from jaxloop.records import Scored

CLIPPED_TOO_OFTEN = 0.3  # share of completions cut off at the token limit
FAILED_TOO_OFTEN = 0.1  # share of rollouts whose scorer failed
FAILURES = ("nan", "error", "timeout")


def score_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Rewards, their spread, failures and completion lengths of a batch of prompts.

    `reward` is the mean over prompts of the group mean, `reward_std` the mean of the
    groups' unbiased std, `frac_reward_zero_std` the share of groups that teach nothing:
    without spread, or with fewer than two scored rollouts. Unscored rollouts enter none
    of these; `scores/{status}` counts them. `rewards/{component}/mean|std` are over all
    rollouts. Lengths are in tokens, the end of sequence included; the `terminated` ones
    are of completions that ended by themselves (0 where none did, as in TRL). Keys
    whose value would be undefined (nothing scored) are left out.
    """
    assert scored, "metrics of no prompts"
    groups = [
        np.array([score.value for score in row.scores if score.value is not None])
        for row in scored
    ]
    # Asked of the range: equal rewards such as 0.1 can have a std of 1e-17.
    flat = [len(values) < 2 or np.ptp(values) == 0 for values in groups]
    spreads = [
        0.0 if same else values.std(ddof=1)
        for values, same in zip(groups, flat, strict=True)
    ]
    metrics = {"frac_reward_zero_std": float(np.mean(flat))}
    known = [values for values in groups if len(values)]
    if known:
        metrics["reward"] = float(np.mean([values.mean() for values in known]))
        metrics["reward_std"] = float(np.mean(spreads))
    scores = list(chain.from_iterable(row.scores for row in scored))
    for status in ("unscored", *FAILURES):
        count = sum(score.status == status for score in scores)
        metrics[f"scores/{status}"] = float(count)
    metrics["scores/total"] = float(len(scores))
    names = dict.fromkeys(name for score in scores for name in score.components)
    for name in names:
        values = [s.components[name] for s in scores if name in s.components]
        metrics[f"rewards/{name}/mean"] = float(np.mean(values))
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        metrics[f"rewards/{name}/std"] = spread
    return metrics | _length_metrics(scored)


def _length_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    rollouts = list(chain.from_iterable(row.rollouts for row in scored))
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    ended = [len(r.token_ids) for r in rollouts if r.stop != "length"]
    metrics = {"completions/clipped_ratio": 1 - len(ended) / max(len(lengths), 1)}
    for kind, values in (("length", lengths), ("terminated_length", ended)):
        values = values or [0]
        metrics[f"completions/mean_{kind}"] = float(np.mean(values))
        metrics[f"completions/min_{kind}"] = float(min(values))
        metrics[f"completions/max_{kind}"] = float(max(values))
    return metrics


def score_warnings(metrics: Mapping[str, float]) -> list[str]:
    """Sentences for a person, on what silently keeps a run from learning."""
    found = []
    clipped = metrics["completions/clipped_ratio"]
    if clipped > CLIPPED_TOO_OFTEN:
        found.append(
            f"{clipped:.0%} of the completions were cut off at the token limit: raise "
            "recipe.sampling.max_new_tokens"
        )
    if metrics["frac_reward_zero_std"] == 1.0:
        found.append(
            "no prompt has completions of different reward, so there is nothing to "
            "learn from: the problems are too hard or too easy, or the scorer cannot "
            "read the answers"
        )
    total = max(metrics["scores/total"], 1.0)
    for status in FAILURES:
        share = metrics[f"scores/{status}"] / total
        if share > FAILED_TOO_OFTEN:
            found.append(f"{share:.0%} of the completions have the score {status!r}")
    return found + judge_warnings(metrics)


def judge_warnings(metrics: Mapping[str, float]) -> list[str]:
    """The same of judges (`judge_metrics`), of which nothing at all can be learned."""
    found = []
    for name, value in metrics.items():
        judge, _, metric = name.rpartition("/")
        if metric == "invalid_frac" and value == 1.0:
            found.append(
                f"{judge}: not one of its judgements could be read, so it scored "
                "nothing: look at some in the records, and whether the template asks "
                "for what the parser reads"
            )
        if metric == "tied_frac" and value == 1.0:
            found.append(
                f"{judge}: it gave all completions of each prompt the same score, so "
                "it prefers none"
            )
    return found
