"""The offline stage: the data's own examples, a reference, passes over them."""

import dataclasses
from collections.abc import Sequence

from jaxloop.loop import store
from jaxloop.loop.checks import fitting, given_examples
from jaxloop.loop.contrast import token_rewards
from jaxloop.loop.recipe import OfflineStage
from jaxloop.loop.round_training import Passes, known_logps
from jaxloop.loop.stations import evaluate
from jaxloop.loop.store import Position
from jaxloop.loop.updates import Stage, in_order, train
from jaxloop.loop.workbench import Workbench, rng
from jaxloop.training.batches import Example, Layout, example_rows, longest


def run_offline(
    bench: Workbench, stage: OfflineStage, params: dict | None, position: Position
) -> Position:
    """The position behind the stage. `params` is None on resuming inside it."""
    objective, optimizer = stage.objective, stage.optimizer
    bench.engine.release()
    given = given_examples(stage, bench.data)
    examples = fitting(given, stage)
    if len(examples) < len(given):
        bench.progress.line(
            f"left out {len(given) - len(examples)} of {len(given)} examples whose "
            f"completions are longer than {stage.max_completion_tokens} tokens"
        )
    layout, logps = _layout(examples), {}
    if "reference" in objective.needs:
        # Computed again on resuming: the seed is at hand, and a pass over the data is
        # cheaper than to keep it for every token.
        weights = store.load_seed(bench) if params is None else params
        bench.progress.phase("reference", total=len(examples), unit="examples")
        given = objective, weights, examples, stage.batch_size // stage.accumulation
        logps["reference_logp_BC"] = known_logps(bench, *given, layout)
        if stage.contrast is not None:
            logps["token_reward_BC"] = token_rewards(
                bench, stage.contrast, *given, _layout
            )
        del weights, given
    state = store.train_state(bench, objective, optimizer, params, position)
    order = rng(bench.config.seed, "order", 2)
    passes = Passes(bench, objective, stage, optimizer)
    total, batches = passes.batches(examples, layout, logps, order, position.done)
    step_fn = bench.train_step(objective, optimizer)
    updates = Stage(bench, "offline", position, total)
    bench.progress.phase("training", total=total, unit="updates", done=position.done)
    state = train(updates, state, step_fn, in_order(batches))
    position = dataclasses.replace(updates.position, round=1, done=0)
    metrics = evaluate(
        bench, state.params, name="round_001", step=position.step, phase="eval", round=1
    )
    return store.save(bench, position, {"params": state.params}, metrics)


def _layout(examples: Sequence[Example]) -> Layout:
    """Columns that hold all rows of the examples."""
    return Layout.holding(
        *longest(row for group in example_rows(examples) for row in group)
    )
