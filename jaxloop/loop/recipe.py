"""A method is a value: which stations it uses, and in which order they run.

    Recipe(sampling, scorer, filters, selector, weighting, objective, schedule)

What is different in later rounds is a value too: `changes`.

Every part is a frozen dataclass that *is* the component; a part of the user's own is
any object with the same call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from jaxloop.config.fields import children, field_types, has_parts, is_part
from jaxloop.config.values import json_like, matches, type_name
from jaxloop.losses.objective import Objective
from jaxloop.losses.pairwise import Pairwise
from jaxloop.losses.supervised import Supervised
from jaxloop.prompts.maker import Maker
from jaxloop.records import Prompt, Rollout, Scored
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring.scorer import Scorer
from jaxloop.selection.advantages import Advantage
from jaxloop.training.optimizer import Optimizer


class Filter(Protocol):
    def __call__(self, scored: Sequence[Scored]) -> tuple[list[Scored], int]: ...


@dataclass(frozen=True)
class Rounds:
    """Sample, score, select, train; then again from what came out."""

    rounds: int = 3
    prompts: int = 0
    """Prompts a round, drawn anew each round; 0 takes them all."""
    disjoint: bool = False
    """Rounds draw from one shuffled list without repeating a prompt."""
    epochs: int = 1
    """Passes over a round's pairs."""
    batch_size: int = 64
    """Pairs (or packed rows) an update."""
    accumulation: int = 1
    """Parts that an update's batch is cut into, one after the other, to save memory."""
    start: Literal["previous", "seed"] = "previous"
    """Which weights a round starts training from; it samples from the previous ones."""
    reference: Literal["previous", "seed"] = "previous"
    """Which weights are the reference of a round's objective."""
    rehearse: bool = False
    """Train on the demonstrations of the data too (only where demonstrations are
    trained on)."""
    row_tokens: int = 512
    """Length of a packed row (only where demonstrations are trained on)."""


@dataclass(frozen=True)
class Online:
    """Updates on batches of fresh samples. The two kinds of staleness are apart:
    when the sampler gets the trained weights, and when the reference does."""

    steps: int = 1000
    prompts: int = 32
    """Prompts a step."""
    together: str = ""
    """A field of the data's rows: prompts that share a value are drawn together, as
    both orders of a judge's pair must be. Empty draws each by itself."""
    accumulation: int = 1
    """Parts that an update's batch is cut into, one after the other, to save memory."""
    sync_every: int = 1
    """Steps between copies of the weights to the sampler; 1 is on-policy, 0 never."""
    sync_reference_every: int = 0
    """Steps between copies of the weights to the reference; 0 never."""
    updates: int = 1
    """Updates on each step's samples; from the second on ratios leave 1."""


@dataclass(frozen=True)
class Teacher:
    """Whose distribution a `Distill` objective follows, token by token, on the
    student's own samples (online)."""

    paths: tuple[str, ...] = ("",)
    """Hugging Face directories that share the student's tokenizer; an empty one is the
    model that the recipe starts from. Of several, the mean of their distributions."""
    context: str = ""
    """Text that only the teacher reads before each prompt, with fields of the data's
    row in braces, for example `Answer: {answer}` (prompt distillation)."""
    k: int = 64
    """How many of its likeliest tokens the teacher tells; the vocabulary's size makes
    the objective exact."""

    def __post_init__(self):
        if self.k < 1 or not self.paths:
            raise ValueError(
                f"Teacher: k = {self.k} and the number of paths must be at least 1"
            )


@dataclass(frozen=True)
class Contrast:
    """Where the rewards by token of `Pairwise(token_regulariser=...)` come from: the
    reference reads each completion behind two prompts, one that asks for a better
    answer and one that asks for a worse one (T-REG; `pair_terms.contrastive_reward`).

    Both are texts before the whole prompt, with fields of the data's row in braces, as
    those of a `Teacher`. The wording is our own.
    """

    better: str = "Answer correctly, helpfully and in full.\n\n"
    worse: str = "Answer wrongly, unhelpfully and in part.\n\n"

    def __post_init__(self):
        if self.better == self.worse:
            raise ValueError("Contrast: `better` and `worse` are the same text")


@dataclass(frozen=True)
class From:
    """A setting that changes on the way: from a round on, a field of the recipe has
    another value. All other fields stay as the recipe has them."""

    round: int
    """The first round with that value; a run begins with round 1."""
    field: str
    """The recipe's field, as the command line writes it: `sampling.temperature`,
    `filters.0.minimum`, `selector`."""
    value: Any
    """A number, a text, or a whole part."""

    def __post_init__(self):
        if self.round < 2:
            raise ValueError(
                f"From: round = {self.round} must be at least 2; what holds in round 1 "
                "is written in the recipe itself"
            )
        if self.field.partition(".")[0] in ("schedule", "changes"):
            raise ValueError(f"From: {self.field} stays the same in all rounds")


@dataclass(frozen=True)
class Recipe:
    """One self-improvement method."""

    sampling: Sampling
    scorer: Scorer
    objective: Objective
    schedule: Rounds | Online
    selector: Any = None
    """Scored rollouts to pairs, labelled completions or demonstrations; none for group
    objectives."""
    filters: tuple[Filter, ...] = ()
    """What drops whole prompts before anything is selected."""
    weighting: Any = None
    """Sets the pairs' weights; none leaves them at 1."""
    advantage: Advantage | None = None
    """Rewards of a group to advantages, for policy objectives."""
    teacher: Teacher | None = None
    """Whom a `Distill` objective follows."""
    contrast: Contrast | None = None
    """How tokens are rewarded, for an objective with a `token_regulariser`."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    extra: Sampling | None = None
    """Further samples of each prompt, drawn in another way (hotter, say), as a source
    of rejected completions only: they are never chosen and have no vote."""
    changes: tuple[From, ...] = ()
    """What is different from some round on."""

    def of_round(self, index: int) -> "Recipe":
        """What round `index` (from 0) runs. ValueError where a change does not fit."""
        recipe = self
        for change in sorted(self.changes, key=lambda each: each.round):
            if change.round <= index + 1:
                recipe = _with_field(recipe, change.field, change.value)
        return replace(recipe, changes=())

    def versions(self) -> dict[int, "Recipe"]:
        """The recipe by the round from which it holds: 1, and where it changes."""
        rounds = sorted({1, *(change.round for change in self.changes)})
        return {first: self.of_round(first - 1) for first in rounds}

    def scorers(self) -> list[Scorer]:
        """Those of all rounds, each once."""
        return list({id(r.scorer): r.scorer for r in self.versions().values()}.values())

    @property
    def max_new_tokens(self) -> int:
        """Of the longest completion that some round samples."""
        drawn = [s for r in self.versions().values() for s in (r.sampling, r.extra)]
        return max(sampling.max_new_tokens for sampling in drawn if sampling)


def _with_field(part: Any, name: str, value: Any) -> Any:
    """The part (or tuple of parts) with another value in the field of that name."""
    first, _, rest = name.partition(".")
    kinds = field_types(type(part)) if is_part(part) else {}
    fields = {field_name: child for field_name, child, _ in children(part)}
    if first not in fields:
        raise ValueError(
            f"{type(part).__name__} has no field {first!r}; it has {', '.join(fields)}"
        )
    if rest:
        if not has_parts(fields[first]):
            raise ValueError(f"{first!r} has no fields, so no {rest!r}")
        value = _with_field(fields[first], rest, value)
    elif not matches(value, kind := kinds.get(first, Any)):
        raise ValueError(f"{first} = {json_like(value)} must be {type_name(kind)}")
    if is_part(part):
        return replace(part, **{first: value})
    fields[first] = value
    return tuple(fields.values())


def produces(selector) -> Literal["pairs", "labelled", "demonstrations"]:
    """What a selector makes; one of the user's own makes pairs unless it says more."""
    return getattr(selector, "produces", "pairs")


@dataclass(frozen=True)
class SupervisedStage:
    """Supervised fine-tuning on the data's demonstrations, packed into rows."""

    steps: int = 0
    """Updates; 0 takes `epochs` passes."""
    epochs: int = 1
    batch_size: int = 16
    """Packed rows an update."""
    row_tokens: int = 512
    """Length of a packed row; longer demonstrations are an error."""
    accumulation: int = 1
    objective: Objective = field(default_factory=Supervised)
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(learning_rate=1e-5, schedule="cosine")
    )


@dataclass(frozen=True)
class OfflineStage:
    """Training on the data's own pairs or labelled completions: DPO, KTO, reward models
    as they are mostly known. The reference is the model that the stage starts from."""

    objective: Objective = field(default_factory=Pairwise)
    epochs: int = 1
    batch_size: int = 64
    """Pairs or completions an update."""
    accumulation: int = 1
    max_completion_tokens: int = 512
    """Longest completion."""
    on_long: Literal["error", "filter"] = "error"
    """What happens to examples with longer completions."""
    contrast: Contrast | None = None
    """How tokens are rewarded, for an objective with a `token_regulariser`."""
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass(frozen=True)
class PromptStage:
    """Prompts that the model writes, shown some of the data's. What is left of them is
    what the recipe is trained on, in the place of the data's own."""

    maker: Maker
    """How they are asked for and read."""
    sampling: Sampling | None = None
    """How each is answered, for `scorer` and `filters` to tell whether it is any good;
    none filters without answers."""
    scorer: Scorer | None = None
    """What the answers are worth."""
    filters: tuple[Filter, ...] = ()
    """What drops written prompts, all of them seen at once."""

    def __post_init__(self):
        if (self.sampling is None) != (self.scorer is None):
            raise ValueError(
                "PromptStage: `sampling` and `scorer` go together: answers are drawn "
                "to be scored"
            )


Measure = Callable[[Prompt, Rollout], float]
Summary = Callable[[Sequence[Scored]], dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on held-out prompts: before, after each round, every `every` steps."""

    scorer: Scorer | None = None
    """What an answer is worth; must not be what the training learns from a vote."""
    sampling: Sampling = field(default_factory=lambda: Sampling(n=1, temperature=0.0))
    """Greedy with one sample gives accuracy; n samples give pass@n and maj@n too."""
    prompts: int = 0
    """At most so many held-out prompts; 0 takes all."""
    every: int = 0
    """Updates between evaluations inside a stage; 0 evaluates only between stages."""
    measures: tuple[Measure, ...] = ()
    """Further functions of (prompt, rollout), averaged and logged under their names."""
    summaries: tuple[Summary, ...] = ()
    """Functions of the scored prompts that give further metrics by name, such as
    `jaxloop.evaluation.consistency.order_consistency`."""
