"""The training of one round: passes over its pairs or its packed demonstrations."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from jaxloop.loop.recipe import Recipe, Rounds, produces
from jaxloop.loop.selecting import Selected
from jaxloop.loop.store import Position
from jaxloop.loop.supervised import packed_batches
from jaxloop.loop.updates import Line, Stage, in_order, train
from jaxloop.loop.workbench import Workbench, rng
from jaxloop.training.batches import (
    Batch,
    count_batches,
    micro_batches,
    pair_batch,
    shuffled,
)
from jaxloop.training.optimizer import learning_rate


def train_round(
    bench: Workbench,
    recipe: Recipe,
    step_fn: Callable,
    state,
    position: Position,
    selected: Selected,
    logp_P2C: np.ndarray | None,
):
    """The state after the round's updates, and the position behind them."""
    total, batches = round_batches(bench, recipe, position, selected, logp_P2C)
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
    logp_P2C: np.ndarray | None,
) -> tuple[int, Iterator[tuple[Batch, float, Line]]]:
    """How many updates the round has, and the batches of those still to come."""
    schedule, pad_id = recipe.schedule, bench.tokenizer.pad_id
    assert isinstance(schedule, Rounds)
    order = rng(bench.config.seed, "order", 1, position.round)
    if produces(recipe.selector) == "pairs":
        total = count_batches(len(selected.pairs), schedule.epochs, schedule.batch_size)
        return total, _pair_batches(
            bench, recipe, selected.pairs, logp_P2C, order, total, position.done
        )
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


def _pair_batches(bench, recipe: Recipe, pairs, logp_P2C, order, total, first):
    schedule = recipe.schedule
    assert isinstance(schedule, Rounds)
    indices = shuffled(len(pairs), schedule.epochs, schedule.batch_size, order)
    for step, picked in enumerate(itertools.islice(indices, total)):
        if step < first:
            continue
        batch = pair_batch(
            [pairs[i] for i in picked],
            bench.layout,
            bench.tokenizer.pad_id,
            schedule.batch_size,
            None if logp_P2C is None else logp_P2C[picked],
        )
        rate = learning_rate(recipe.optimizer, step, total)
        yield micro_batches(batch, schedule.accumulation), rate, {}
