"""The supervised stage: packed demonstrations, updates, checkpoints."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxloop.loop import store
from jaxloop.loop.recipe import Rounds, SupervisedStage
from jaxloop.loop.store import Position
from jaxloop.loop.updates import Line, Stage, in_order, train
from jaxloop.loop.workbench import Workbench, rng
from jaxloop.records import Demonstration
from jaxloop.training.batches import Batch, count_batches, micro_batches, shuffled
from jaxloop.training.optimizer import Optimizer, learning_rate
from jaxloop.training.packing import pack, take_rows


def packed_batches(
    demonstrations: Sequence[Demonstration],
    schedule: SupervisedStage | Rounds,
    optimizer: Optimizer,
    pad_id: int,
    order: np.random.Generator,
    *,
    steps: int = 0,
    first: int = 0,
) -> tuple[int, Iterator[tuple[Batch, float, Line]]]:
    """How many updates there are (`steps`, or `epochs` passes), and the batches of
    packed rows from update `first` on, reshuffled at each pass."""
    packed = pack(demonstrations, schedule.row_tokens, pad_id)
    count = len(packed["tokens_BT"])
    total = steps or count_batches(count, schedule.epochs, schedule.batch_size)

    def batches() -> Iterator[tuple[Batch, float, Line]]:
        # More passes than can be needed: each holds at least one batch.
        indices = shuffled(count, total, schedule.batch_size, order)
        for step, picked in enumerate(itertools.islice(indices, total)):
            if step >= first:
                batch = take_rows(packed, picked, schedule.batch_size, pad_id)
                rate = learning_rate(optimizer, step, total)
                yield micro_batches(batch, schedule.accumulation), rate, {}

    return total, batches()


def run_supervised(
    bench: Workbench, stage: SupervisedStage, position: Position
) -> tuple[dict, Position]:
    """The parameters after the stage, and the position behind it."""
    config, pad_id = bench.config, bench.tokenizer.pad_id
    objective, optimizer = stage.objective, stage.optimizer
    params = None if position.done else bench.initial_params()
    state = store.train_state(bench, objective, optimizer, params, position)
    del params
    demonstrations = bench.data.demonstrations
    total, batches = packed_batches(
        demonstrations,
        stage,
        optimizer,
        pad_id,
        rng(config.seed, "order", 0),
        steps=stage.steps,
        first=position.done,
    )
    step_fn = bench.train_step(objective, optimizer)
    run = Stage(bench, "sft", position, total)
    bench.progress.phase(
        "supervised training", total=total, unit="updates", done=position.done
    )
    state = train(run, state, step_fn, in_order(batches))
    position = dataclasses.replace(run.position, done=0, step=total)
    return state.params, position
