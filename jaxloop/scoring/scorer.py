"""What every scorer shares: the protocol, reading a gold column, scoring one by one."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxloop.records import Prompt, Rollout, Score, Scored


class Scorer(Protocol):
    """Prompts and the rollouts of each -> the same, scored, in the same order.

    A scorer may also have `check(prompts)`, which raises ValueError on the first row
    that it could not score (called before anything is compiled), `close()`, and
    `with_models(models)`, which gives the scorer that asks those models.
    """

    def __call__(
        self, prompts: Sequence[Prompt], rollouts: Sequence[tuple[Rollout, ...]]
    ) -> list[Scored]: ...


class Models(Protocol):
    """What a loop lets scorers ask of models. Items are (prompt, rollout)."""

    def logps(
        self, items: Sequence[tuple[Prompt, Rollout]], *, first: bool = False
    ) -> np.ndarray:
        """(N,): summed log-probability of each completion, under the policy or under
        the `first` model, which the recipe started from."""
        ...

    def outputs(
        self, items: Sequence[tuple[Prompt, Rollout]], *, path: str = ""
    ) -> np.ndarray:
        """(N, K): a scalar head's outputs after each completion, of the policy or of
        the model in the directory `path`."""
        ...


def bind(scorer: Scorer, models: Models) -> Scorer:
    """The scorer with the models that it asks for, where it does (`with_models`)."""
    own = getattr(scorer, "with_models", None)
    return scorer if own is None else own(models)


def score_each(
    prompts: Sequence[Prompt],
    rollouts: Sequence[tuple[Rollout, ...]],
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
