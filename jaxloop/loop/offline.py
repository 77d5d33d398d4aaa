"""The offline stage: the data's own examples, a reference, passes over them."""

import dataclasses
from collections.abc import Sequence

from jaxloop.loop import store
from jaxloop.loop.recipe import OfflineStage
from jaxloop.loop.round_training import Passes, known_logps
from jaxloop.loop.stations import evaluate
from jaxloop.loop.store import Position
from jaxloop.loop.updates import Stage, in_order, train
from jaxloop.loop.workbench import (
    Workbench,
    fitting,
    given_examples,
    longest_prompt,
    rng,
)
from jaxloop.losses.objective import memory_of
from jaxloop.training.batches import Example, Layout, bucket, example_rows
from jaxloop.training.step import abstract_state, fresh_state


def layout_of(examples: Sequence[Example]) -> Layout:
    """Columns for the longest prompt and the longest completion."""
    prompt = longest_prompt([example.prompt for example in examples])
    rows = [rollout for each in example_rows(examples) for _, rollout in each]
    completion = max(len(rollout.token_ids) for rollout in rows)
    return Layout(bucket(prompt, prompt), bucket(completion, completion))


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
    layout, logps, memory = layout_of(examples), {}, memory_of(objective)
    if "reference" in objective.needs:
        # Computed again on resuming: the seed is at hand, and a pass over the data is
        # cheaper than to keep it for every token.
        weights = store.load_seed(bench) if params is None else params
        bench.progress.phase("reference", total=len(examples), unit="examples")
        logps["reference_logp_BC"] = known_logps(
            bench, objective, weights, examples, stage.batch_size, layout
        )
        del weights
    if params is None:
        dtype = bench.config.model.param_dtype
        abstract = abstract_state(bench.model, optimizer, bench.mesh, dtype, memory)
        state = store.load(bench, position, {"state": abstract})["state"]
    else:
        state = fresh_state(
            params, optimizer, bench.shardings(optimizer, memory), memory
        )
    order = rng(bench.config.seed, "order", 2)
    passes = Passes(bench, objective, stage, optimizer)
    total, batches = passes.batches(examples, layout, logps, order, position.done)
    step_fn = bench.train_step(objective, optimizer, start=layout.start)
    updates = Stage(bench, "offline", position, total)
    bench.progress.phase("training", total=total, unit="updates", done=position.done)
    state = train(updates, state, step_fn, in_order(batches))
    position = dataclasses.replace(updates.position, round=1, done=0)
    metrics = evaluate(
        bench, state.params, name="round_001", step=position.step, phase="eval", round=1
    )
    return store.save(bench, position, {"params": state.params}, metrics)
