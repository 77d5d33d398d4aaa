"""Training on what is known beforehand: passes over examples or demonstrations."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxloop.loop.recipe import OfflineStage, Recipe, Rounds, produces
from jaxloop.loop.reference import example_logps
from jaxloop.loop.selecting import Selected
from jaxloop.loop.store import Position
from jaxloop.loop.supervised import packed_batches
from jaxloop.loop.updates import Line, Stage, in_order, train
from jaxloop.loop.workbench import Workbench, rng
from jaxloop.losses.objective import Objective
from jaxloop.training.batches import (
    Batch,
    Example,
    Layout,
    count_batches,
    example_batch,
    example_rows,
    longest,
    micro_batches,
    shuffled,
)
from jaxloop.training.optimizer import Optimizer, learning_rate

WIDER = 64
Logps = Mapping[str, np.ndarray]
Batches = Iterator[tuple[Batch, float, Line]]


def train_round(
    bench: Workbench,
    recipe: Recipe,
    step_fn: Callable,
    state,
    position: Position,
    selected: Selected,
    logps: Logps,
):
    """The state after the round's updates, and the position behind them."""
    total, batches = round_batches(bench, recipe, position, selected, logps)
    stage = Stage(bench, "train", position, total)
    bench.progress.phase("training", total=total, unit="updates", done=position.done)
    state = train(stage, state, step_fn, in_order(batches))
    return state, dataclasses.replace(
        stage.position, done=0, step=position.step - position.done + total
    )


def round_batches(
    bench: Workbench,
    recipe: Recipe,
    position: Position,
    selected: Selected,
    logps: Logps,
) -> tuple[int, Batches]:
    """How many updates the round has, and the batches of those still to come."""
    schedule, pad_id = recipe.schedule, bench.tokenizer.pad_id
    assert isinstance(schedule, Rounds)
    order = rng(bench.config.seed, "order", 1, position.round)
    if produces(recipe.selector) != "demonstrations":
        passes = Passes(bench, recipe.objective, schedule, recipe.optimizer)
        examples = selected.examples
        layout = layout_for(bench, examples)
        return passes.batches(examples, layout, logps, order, position.done)
    demonstrations = selected.demonstrations
    if schedule.rehearse:
        demonstrations = demonstrations + list(bench.data.demonstrations)
    if not demonstrations:
        return 0, iter(())
    return packed_batches(
        demonstrations,
        schedule,
        recipe.optimizer,
        pad_id,
        order,
        first=position.done,
    )


def layout_for(bench: Workbench, examples: Sequence[Example]) -> Layout:
    """The run's columns; wider ones, of few sizes, where judge prompts or judgements
    among the examples do not fit."""
    prompt, completion = longest(row for rows in example_rows(examples) for row in rows)
    whole = bench.layout
    if prompt <= whole.prompt and completion <= whole.completion:
        return whole
    prompt, completion = _wider(prompt), _wider(completion)
    return Layout(max(prompt, whole.prompt), max(completion, whole.completion))


def _wider(size: int) -> int:
    """Up to a multiple of 64, of larger sizes up to one of four in each doubling."""
    part = max(WIDER, 1 << max(size.bit_length() - 3, 0))
    return -(-size // part) * part


def rows_each(objective: Objective) -> int:
    """How many rows an example has under the objective."""
    paired = objective.trains_on == "pairs" or "mismatch" in objective.needs
    return 2 if paired else 1


def rows_under(objective: Objective, examples: Sequence[Example]):
    """`example_rows` as the objective wants them."""
    return example_rows(examples, mismatched="mismatch" in objective.needs)


def known_logps(
    bench: Workbench,
    objective: Objective,
    params: dict,
    examples: Sequence[Example],
    size: int,
    layout: Layout,
) -> np.ndarray:
    """(examples, R, C) float32: log-probabilities of all rows, by `size` examples."""
    groups = rows_under(objective, examples)
    return example_logps(bench, params, groups, rows_each(objective) * size, layout)


@dataclasses.dataclass(frozen=True)
class Passes:
    """Passes over examples, a new order each, under one objective."""

    bench: Workbench
    objective: Objective
    schedule: Rounds | OfflineStage
    optimizer: Optimizer

    def batches(
        self,
        examples: Sequence[Example],
        layout: Layout,
        logps: Logps,
        order: np.random.Generator,
        first: int,
    ) -> tuple[int, Batches]:
        """How many updates there are, and the batches from update `first` on."""
        size, epochs = self.schedule.batch_size, self.schedule.epochs
        total = count_batches(len(examples), epochs, size)
        groups = rows_under(self.objective, examples)
        indices = shuffled(len(examples), epochs, size, order)

        def made() -> Batches:
            for step, picked in enumerate(itertools.islice(indices, total)):
                if step < first:
                    continue
                batch = example_batch(
                    [examples[i] for i in picked],
                    [groups[i] for i in picked],
                    layout,
                    self.bench.tokenizer.pad_id,
                    size,
                    {name: logp_NRC[picked] for name, logp_NRC in logps.items()},
                    kind=self.objective.trains_on,
                    each=rows_each(self.objective),
                    edits="edits" in self.objective.needs,
                )
                rate = learning_rate(self.optimizer, step, total)
                yield micro_batches(batch, self.schedule.accumulation), rate, {}

        return total, made()
