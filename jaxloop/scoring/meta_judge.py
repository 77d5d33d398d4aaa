"""A judge of judgements: which of two judgements of an answer is the better one?

A judgement is a rollout like any other, so the meta-judge is a `Judge` to which the
judgements are the completions. What it says goes beside them (`Judgement.scores`),
where `JudgePairs` finds it: that is how a judge learns from itself. The scores of the
answers stay those of the judge.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jaxloop.records import Judgement, Prompt, Rollout, Scored
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring.judge import Judge, both_orders, each
from jaxloop.scoring.ratings import (
    bradley_terry,
    debiased_wins,
    order_wins,
    position_weights,
)
from jaxloop.scoring.rubric import filled
from jaxloop.scoring.scorer import Groups, Models, OfModels
from jaxloop.scoring.verdicts import Verdict


def meta_judge() -> Judge:
    """The judge of pairs of judgements that comes along."""
    return Judge(
        template="meta",
        parse=Verdict(tie=""),
        show=both_orders,
        sampling=Sampling(n=1, temperature=0.7, max_new_tokens=512),
        columns=(("answer", "judged_answer"), ("rubric", "judge_rubric")),
        shown_as="judgement",
        name="meta_judge",
    )


@dataclass(frozen=True)
class MetaJudged(OfModels):
    """A judge's scores; and of each prompt, the judgements that disagree most are
    judged in pairs themselves.

    Meta-Rewarding (Wu et al. 2024, arXiv 2407.19594; as recalled, not checked against
    the paper): a win counts less in the place that wins more often over the whole
    batch, and the score of a judgement is its strength in the Bradley-Terry fit of
    these wins. `judge.by` and `meta.by` say who does either.
    """

    judge: Judge = field(default_factory=Judge)
    """Scores the answers, one at a time."""
    meta: Judge = field(default_factory=meta_judge)
    """Compares judgements. Its `columns` may name, beside the row's fields,
    `judged_answer` and `judge_rubric`: what the judge was shown."""
    prior: float = 0.1
    """How strongly strengths are held at 0 (`bradley_terry`)."""

    def __post_init__(self):
        if self.judge.show is not each:
            raise ValueError("MetaJudged: its judge must look at one answer at a time")
        if len(self.meta.show(2)[0]) != 2:
            raise ValueError("MetaJudged: its meta-judge must look at pairs")
        if self.judge.name == self.meta.name:
            raise ValueError(f"MetaJudged: both judges are called {self.meta.name!r}")

    def check(self, prompts: Sequence[Prompt]) -> None:
        self.judge.check(prompts)
        self.meta.check([self._told(prompt, "", "") for prompt in prompts])

    def close(self) -> None:
        self.judge.close()
        self.meta.close()

    def score(
        self, models: Models, prompts: Sequence[Prompt], rollouts: Groups
    ) -> list[Scored]:
        scored = self.judge.score(models, prompts, rollouts)
        looked_at = {
            i: most for i, row in enumerate(scored) if (most := _most_disputed(row))
        }
        valid = {i: _valid(most) for i, most in looked_at.items()}
        told = self.meta.score(
            models,
            [self._asked(scored[i], most) for i, most in looked_at.items()],
            [tuple(looked_at[i].rollouts[k] for k in ks) for i, ks in valid.items()],
        )
        verdicts = [
            [(j.of, values) for j in row.judgements for values in j.values]
            for row in told
        ]
        weights = position_weights(*order_wins(v for row in verdicts for v in row))
        for (i, most), row, own in zip(looked_at.items(), told, verdicts, strict=True):
            wins_NN = debiased_wins(own, len(valid[i]), weights)
            found = self._scores(row.rollouts, wins_NN)
            by_place = dict(zip(valid[i], found, strict=True))
            scores = tuple(by_place.get(k) for k in range(len(most.rollouts)))
            judgements = tuple(
                replace(judgement, scores=scores) if judgement is most else judgement
                for judgement in scored[i].judgements
            )
            meta = tuple(
                replace(judgement, of=tuple(valid[i][k] for k in judgement.of))
                for judgement in row.judgements
            )
            scored[i] = replace(scored[i], judgements=(*judgements, *meta))
        return scored

    def _asked(self, row: Scored, most: Judgement) -> Prompt:
        """What the meta-judge is asked about: a prompt of its own."""
        seen = self.judge.sees(row.rollouts[most.of[0]].text)
        names = {name: f"({name})" for name in self.judge.template_fields()}
        rubric = filled(self.judge.text, names)
        told = self._told(row.prompt, seen or "", rubric)
        return replace(told, id=f"{row.prompt.id}:{most.of[0]}")

    @staticmethod
    def _told(prompt: Prompt, answer: str, rubric: str) -> Prompt:
        """The prompt with the two further columns."""
        more = {"judged_answer": answer, "judge_rubric": rubric}
        return replace(prompt, columns=dict(prompt.columns) | more)

    def _scores(
        self, judgements: Sequence[Rollout], wins_NN: np.ndarray
    ) -> list[float | None]:
        """Of each judgement; those that read the same to the meta-judge share theirs,
        those that nothing was set against have none."""
        strength_N = bradley_terry(wins_NN, prior=self.prior)
        compared_N = (wins_NN + wins_NN.T).sum(axis=1) > 0
        seen = [self.meta.sees(rollout.text) for rollout in judgements]
        first = [seen.index(text) for text in seen]
        return [
            float(strength_N[i]) if text is not None and compared_N[i] else None
            for i, text in zip(first, seen, strict=True)
        ]


def _most_disputed(row: Scored) -> Judgement | None:
    """The request of the prompt whose answers disagree most; None where all agree."""
    most = max(row.judgements, key=lambda j: j.disagreement, default=None)
    return most if most is not None and most.disagreement > 0 else None


def _valid(judgement: Judgement) -> list[int]:
    """Which of its answers could be parsed."""
    return [k for k, values in enumerate(judgement.values) if values is not None]
