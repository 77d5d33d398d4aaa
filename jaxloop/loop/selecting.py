"""Scored rollouts to what is trained on: filter prompts, select, weigh. Host only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxloop.loop.recipe import Recipe, produces
from jaxloop.records import Demonstration, Prompt, Rollout, Scored
from jaxloop.selection.filters import drop_identical, pair_metrics
from jaxloop.training.batches import Example

IDENTICAL = "chosen equal to rejected"  # counts pairs, where others count prompts


@dataclass(frozen=True)
class Selected:
    """A round's training data; `dropped` counts what was left out, by reason, and
    `left_out` names the prompts that gave nothing, with the reason of each.

    `examples` are pairs, or labelled completions.
    """

    examples: Sequence[Example] = ()
    demonstrations: list[Demonstration] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def reasons(dropped: Mapping[str, float]) -> str:
    """What was left out, for people."""
    return ", ".join(f"{name}: {n:.0f}" for name, n in dropped.items() if n)


def apply_filters(
    filters, scored: Sequence[Scored]
) -> tuple[list[Scored], dict[str, int], dict[str, str]]:
    """What passes every filter, how many prompts each one dropped, and which one
    dropped a prompt, by its id."""
    kept, dropped, left_out = list(scored), {}, {}
    for index, each in enumerate(filters):
        before = kept
        kept, count = each(before)
        reason = f"filter {index} {getattr(each, '__name__', type(each).__name__)}"
        dropped[reason] = count
        left_out |= _without(before, {row.prompt.id for row in kept}, reason)
    return kept, dropped, left_out


def _without(rows: Sequence[Scored], ids: set[str], reason: str) -> dict[str, str]:
    """The reason for each of the prompts that is not among `ids`."""
    return {row.prompt.id: reason for row in rows if row.prompt.id not in ids}


def select(
    recipe: Recipe, scored: Sequence[Scored], rng: np.random.Generator
) -> Selected:
    """What a round trains on, in the order of the prompts."""
    kept, dropped, left_out = apply_filters(recipe.filters, scored)
    made = produces(recipe.selector)
    if made == "labelled":
        labelled = recipe.selector(kept, rng)
        ids = {example.prompt.id for example in labelled}
        dropped["no label"] = len(kept) - len(ids)
        left_out |= _without(kept, ids, "no label")
        good = sum(example.label > 0 for example in labelled)
        share = good / len(labelled) if labelled else 0.0
        metrics = {
            "labelled/kept": float(len(labelled)),
            "labelled/desirable_frac": share,
        }
        return Selected(labelled, [], dropped, metrics, left_out)
    if made == "demonstrations":
        chosen = recipe.selector(kept, rng)
        ids = {prompt.id for prompt, _ in chosen}
        dropped["nothing to imitate"] = len(kept) - len(ids)
        left_out |= _without(kept, ids, "nothing to imitate")
        demonstrations = [imitate(prompt, rollout) for prompt, rollout in chosen]
        metrics = {"demonstrations/kept": float(len(demonstrations))}
        return Selected((), demonstrations, dropped, metrics, left_out)
    pairs, identical = drop_identical(recipe.selector(kept, rng))
    dropped[IDENTICAL] = identical
    paired = {row.prompt.id for row in kept} & {pair.prompt.id for pair in pairs}
    dropped["no pair"] = len(kept) - len(paired)
    left_out |= _without(kept, paired, "no pair")
    if recipe.weighting is not None:
        pairs = recipe.weighting(pairs, kept)
    metrics = pair_metrics(pairs, scored=scored, identical=identical)
    counts = getattr(recipe.selector, "counts", None)  # of several streams
    streams = {} if counts is None else counts(pairs)
    metrics |= {f"pairs/{name}/count": float(n) for name, n in streams.items()}
    return Selected(pairs, [], dropped, metrics, left_out)


def imitate(prompt: Prompt, rollout: Rollout) -> Demonstration:
    """A rollout as a demonstration: the completion is trained on, the prompt is not."""
    mask = (0,) * len(prompt.token_ids) + rollout.mask
    token_ids = prompt.token_ids + rollout.token_ids
    return Demonstration(f"{prompt.id}/{rollout.index}", token_ids, mask)
