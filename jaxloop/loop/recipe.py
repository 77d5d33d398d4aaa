"""A method is a value: which stations it uses, and in which order they run.

    Recipe(sampling, scorer, filters, selector, weighting, objective, schedule)

Every part is a frozen dataclass that *is* the component; a part of the user's own is
any object with the same call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from jaxloop.losses.objective import Objective
from jaxloop.losses.pairwise import Pairwise
from jaxloop.losses.supervised import Supervised
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
    optimizer: Optimizer = field(default_factory=Optimizer)


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
    optimizer: Optimizer = field(default_factory=Optimizer)


Measure = Callable[[Prompt, Rollout], float]


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
