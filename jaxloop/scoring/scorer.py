"""What every scorer shares: the protocol, reading a gold column, scoring one by one."""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jaxloop.records import Prompt, Rollout, Score, Scored
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring.writer import By

Groups = Sequence[tuple[Rollout, ...]]
"""The rollouts of each prompt."""


class Scorer(Protocol):
    """Prompts and the rollouts of each -> the same, scored, in the same order.

    A scorer may also have `check(prompts)`, which raises ValueError on the first row
    that it could not score (called before anything is compiled), `close()`, and
    `with_models(models)`, which gives the scorer that asks those models.
    """

    def __call__(self, prompts: Sequence[Prompt], rollouts: Groups) -> list[Scored]: ...


class Models(Protocol):
    """What a loop lets scorers ask of models. Items are (prompt, rollout)."""

    @property
    def previous(self) -> "Models":
        """The same with the previous round's policy in the policy's place; in a first
        round the policy itself."""
        ...

    def logps(
        self, items: Sequence[tuple[Prompt, Rollout]], *, by: str = "policy"
    ) -> np.ndarray:
        """(N,): summed log-probability of each completion, under the "policy", the
        "first" model, which the recipe started from, or that of a directory."""
        ...

    def outputs(
        self, items: Sequence[tuple[Prompt, Rollout]], *, path: str = ""
    ) -> np.ndarray:
        """(N, K): a scalar head's outputs after each completion, of the policy or of
        the model in the directory `path`."""
        ...

    def tokens(self, text: str) -> tuple[int, ...]:
        """Of a text as the policy writes it, nothing added."""
        ...

    def prompts(self, texts: Mapping[str, str], *, by: By = "policy") -> list[Prompt]:
        """Requests to a model, as its tokenizer and chat template have them: a prompt
        for each id and text."""
        ...

    def special_tokens(self, *, by: By = "policy") -> Collection[str]:
        """What no text that others wrote may spell in a request to that model."""
        ...

    def fitting(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, by: By = "policy"
    ) -> list[Prompt]:
        """Those among such prompts that leave room for an answer; the run says once
        how many do not."""
        ...

    def write(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, by: By = "policy"
    ) -> list[tuple[Rollout, ...]]:
        """What a model answers to such prompts: the "policy", the "first" model, which
        the recipe started from, that of a directory, or an endpoint. () to a prompt
        that leaves no room for an answer."""
        ...


class OfModels:
    """A scorer that asks models, which a loop passes in (`bind`)."""

    def score(
        self, models: Models, prompts: Sequence[Prompt], rollouts: Groups
    ) -> list[Scored]:
        raise NotImplementedError

    def with_models(self, models: Models) -> "Bound":
        return Bound(self, models)

    def __call__(self, prompts: Sequence[Prompt], rollouts: Groups) -> list[Scored]:
        name = type(self).__name__
        raise ValueError(f"{name} asks a model, and was given none by a loop")


@dataclass(frozen=True)
class Bound:
    """Such a scorer with its models."""

    scorer: OfModels
    models: Models

    def __call__(self, prompts: Sequence[Prompt], rollouts: Groups) -> list[Scored]:
        return self.scorer.score(self.models, prompts, rollouts)


def bind(scorer: Scorer, models: Models) -> Scorer:
    """The scorer with the models that it asks for, where it does (`with_models`)."""
    own = getattr(scorer, "with_models", None)
    return scorer if own is None else own(models)


def score_each(
    prompts: Sequence[Prompt],
    rollouts: Groups,
    score: Callable[[Prompt, Rollout], Score],
) -> list[Scored]:
    """`score(prompt, rollout)` for every rollout; each belongs to the prompt beside
    it."""
    return [
        Scored(prompt, group, tuple(score(prompt, rollout) for rollout in group))
        for prompt, group in zip(prompts, rollouts, strict=True)
    ]


def column(prompt: Prompt, name: str) -> Any:
    """The row's field `name`; a missing or null one is a ValueError naming the row, the
    fields present and the nearest of them."""
    if prompt.columns.get(name) is not None:
        return prompt.columns[name]
    what = "is null" if name in prompt.columns else "is missing"
    raise ValueError(
        f"row {prompt.id!r}: column {name!r} {what}; {_present(prompt.columns, name)}"
    )


def _present(columns: Mapping[str, Any], name: str) -> str:
    others = [other for other in columns if other != name]
    nearest = difflib.get_close_matches(name, others, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"the row has {', '.join(map(repr, others)) or 'no other columns'}{hint}"


def check(scorer: Scorer, prompts: Sequence[Prompt]) -> None:
    """The scorer's own check of the rows, where it has one."""
    own = getattr(scorer, "check", None)
    if own is not None:
        own(prompts)


def close(scorer: Scorer) -> None:
    """Ends what the scorer keeps running, if anything."""
    own = getattr(scorer, "close", None)
    if own is not None:
        own()
