"""Is a judge taken in? Answers that are none, judged beside real ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from jaxloop.records import Prompt, Rollout, Scored
from jaxloop.scoring.guard import CANARIES
from jaxloop.scoring.judge import Judge
from jaxloop.scoring.meta_judge import MetaJudged
from jaxloop.scoring.parts import parts
from jaxloop.scoring.scorer import Groups, Models, Scorer

PROMPTS = 4  # that canaries are answers to, in each evaluation
ALARM = 0.5  # as good as the real answers


def answer_judges(scorer: Scorer) -> list[Judge]:
    """The judges of answers in a scorer; those of judgements are none."""
    every = [part for _, part in parts(scorer)]
    metas = [part.meta for part in every if isinstance(part, MetaJudged)]
    return [part for part in every if isinstance(part, Judge) and part not in metas]


def judge_canaries(
    scorer: Scorer, models: Models, prompts: Sequence[Prompt], rollouts: Groups
) -> tuple[dict[str, float], list[Scored]]:
    """(`JUDGE/canary/NAME`, what was judged): for each judge of answers and each of
    `CANARIES` how often it beats the first rollout of a prompt, a tie counting half, on
    the first few prompts that the judge can be asked about.

    What the judge does not see (`Judge.sees`), what its tokenizer cannot write and what
    it says nothing valid of is left out.
    """
    metrics, told = {}, []
    for judge in answer_judges(scorer):
        asked, groups = _asked(judge, models, prompts, rollouts)
        if not asked:
            continue
        scored = replace(judge, truth=None).score(models, asked, groups)
        for name, wins in _wins(scored).items():
            metrics[f"{judge.name}/canary/{name}"] = float(np.mean(wins))
        told += scored
    return metrics, told


def canary_warnings(metrics: Mapping[str, float]) -> list[str]:
    """A sentence for each judge that likes a canary as much as the answers or more."""
    liked: dict[str, list[str]] = {}
    for metric, value in metrics.items():
        judge, found, name = metric.partition("/canary/")
        if found and value >= ALARM:
            liked.setdefault(judge, []).append(f"{name} ({value:.2f})")
    return [
        f"{judge}: answers that are none score as high as real ones: "
        f"{', '.join(names)}. Is the judge taken in, or are the answers no better?"
        for judge, names in liked.items()
    ]


def _asked(
    judge: Judge, models: Models, prompts: Sequence[Prompt], rollouts: Groups
) -> tuple[list[Prompt], list[tuple[Rollout, ...]]]:
    """Groups of a real answer and canaries: all of these where the judge looks at one
    answer at a time, else each by itself."""
    named = [
        (name, text)
        for name, text in CANARIES
        if judge.sees(text) is not None and _can_write(judge, models, text)
    ]
    if not named:
        return [], []
    alone = len(judge.show(2)[0]) == 1
    sets = [named] if alone else [[canary] for canary in named]
    wanted = [name for name in (judge.question, *(c for _, c in judge.columns)) if name]
    asked, groups = [], []
    for prompt, group in zip(prompts, rollouts, strict=True):
        lacking = any(prompt.columns.get(name) is None for name in wanted)
        if not group or lacking or judge.sees(group[0].text) is None:
            continue
        for place, canaries in enumerate(sets):
            id = f"{prompt.id}:canary:{place}"
            asked.append(replace(prompt, id=id))
            groups.append((group[0], *(_rollout(id, i) for i in canaries)))
        if len(asked) >= PROMPTS * len(sets):
            break
    return asked, groups


def _rollout(id: str, canary: tuple[str, str]) -> Rollout:
    """A canary as an answer, at its place in the list."""
    place = CANARIES.index(canary)
    return Rollout(id, 1 + place, (), canary[1], (), (), "eos")


def _can_write(judge: Judge, models: Models, text: str) -> bool:
    try:
        models.prompts({"canary": text}, by=judge.by)
    except ValueError:
        return False
    return True


def _wins(scored: Sequence[Scored]) -> dict[str, list[float]]:
    """By canary, in the order of `CANARIES`: 1 where it beat the answer, 1/2 for a
    tie."""
    wins: dict[str, list[float]] = {name: [] for name, _ in CANARIES}
    for row in scored:
        answer = row.scores[0].value
        for rollout, score in zip(row.rollouts[1:], row.scores[1:], strict=True):
            if answer is not None and score.value is not None:
                won = (np.sign(score.value - answer) + 1) / 2
                wins[CANARIES[rollout.index - 1][0]].append(float(won))
    return {name: each for name, each in wins.items() if each}
