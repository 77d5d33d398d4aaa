"""Online: every step samples, scores and selects, then updates.

Two kinds of staleness are set apart: `sync_every` steps lie between copies of the
weights to the sampler, `sync_reference_every` between copies to the reference. With
`sync_every=1` the sampler uses the trained weights themselves and nothing is copied.
"""

import dataclasses
import re
import time
from functools import partial

import jax

from jaxloop.loop import store
from jaxloop.loop.actors import Actors
from jaxloop.loop.drawing import sample
from jaxloop.loop.folder import write_records
from jaxloop.loop.models import bound
from jaxloop.loop.online_batches import StepBatches
from jaxloop.loop.recipe import Online, Recipe
from jaxloop.loop.selecting import IDENTICAL, reasons
from jaxloop.loop.stations import evaluate, sampler_gap
from jaxloop.loop.store import Position
from jaxloop.loop.together import drawn_together
from jaxloop.loop.updates import Line, Stage, train
from jaxloop.loop.workbench import Workbench, key, rng
from jaxloop.records import Prompt
from jaxloop.scoring.judge_metrics import judge_metrics
from jaxloop.scoring.metrics import score_metrics, score_warnings
from jaxloop.training.batches import Batch, micro_batches
from jaxloop.training.optimizer import learning_rate


def step_prompts(
    bench: Workbench, count: int, step: int, together: str = ""
) -> list[Prompt]:
    """The prompts of step `step`: passes over the data, reshuffled each pass. Those
    that share the field `together` stay side by side.

    What is left at the end of a pass and fills no step sits that pass out, so no prompt
    is in a step twice.
    """
    pool, seed = drawn_together(bench.data.train, together), bench.config.seed
    count //= len(pool[0])
    epoch, place = divmod(step, len(pool) // count)
    order = rng(seed, "prompts", epoch).permutation(len(pool))
    picked = order[place * count : (place + 1) * count]
    return [prompt for i in picked for prompt in pool[i]]


def run_online(
    bench: Workbench, recipe: Recipe, params: dict | None, position: Position
) -> tuple[dict, Position]:
    """The parameters after the last step. `params` is None when resuming inside."""
    schedule, optimizer = recipe.schedule, recipe.optimizer
    assert isinstance(schedule, Online)
    actors = Actors(schedule, recipe.objective)
    if params is None:
        loaded = store.load_state(
            bench, recipe.objective, optimizer, position, actors.names()
        )
        state = loaded.pop("state")
        actors.trees, actors.sampler_step = loaded, position.sampler_step
    else:
        actors.begin(params)
        state = store.train_state(bench, recipe.objective, optimizer, params, position)
    temperature = 1.0
    if recipe.objective.temperature_from_sampling:
        temperature = recipe.sampling.temperature or 1.0
    step_fn = bench.train_step(recipe.objective, optimizer, temperature=temperature)
    total = schedule.steps * schedule.updates
    stage = Stage(
        bench, "online", position, total, extra=actors.trees, stride=schedule.updates
    )
    bench.progress.phase("online", total=total, unit="updates", done=position.done)
    batches = StepBatches(bench, recipe, actors, temperature)
    state = train(stage, state, step_fn, partial(online_batch, stage, recipe, batches))
    position = dataclasses.replace(stage.position, round=1, done=0)
    metrics = evaluate(
        bench, state.params, name="round_001", step=position.step, phase="eval", round=1
    )
    position = store.save(bench, position, {"params": state.params}, metrics)
    return state.params, position


def online_batch(
    stage: Stage, recipe: Recipe, batches: StepBatches, params: dict, done: int
) -> tuple[Batch, float, Line]:
    """The batch of the next update: of fresh samples, or those of the update before."""
    schedule = recipe.schedule
    assert isinstance(schedule, Online)
    step, again = divmod(done, schedule.updates)
    line: Line = {}
    if not again:
        batches.held, line = _sampled_batch(stage, recipe, batches, params, step)
    batch = batches.held
    rate = learning_rate(recipe.optimizer, done, schedule.steps * schedule.updates)
    return micro_batches(batch, schedule.accumulation), rate, line


def _sampled_batch(
    stage: Stage, recipe: Recipe, batches: StepBatches, params: dict, step: int
) -> tuple[Batch, Line]:
    """Samples, scores and selects step `step` (from 0) under the weights `params`."""
    bench, schedule, actors = stage.bench, recipe.schedule, batches.actors
    assert isinstance(schedule, Online)
    actors.refresh(params, step)
    stage.position = dataclasses.replace(
        stage.position, sampler_step=actors.sampler_step
    )
    prompts = step_prompts(bench, schedule.prompts, step, schedule.together)
    sampler = actors.sampler(params)
    jax.block_until_ready(sampler)  # the update before is not sampling time
    began = time.perf_counter()
    rollouts = sample(
        bench,
        sampler,
        prompts,
        recipe.sampling,
        key(bench.config.seed, "sampling", step),
        actors.sampler_step,
        show=False,
    )
    drawn = time.perf_counter()
    scorer = bound(
        bench,
        recipe.scorer,
        params,
        key(bench.config.seed, "judging", 1, step),
        version=step * schedule.updates,
    )
    with bench.attempt.spending("waiting"):
        scored = scorer(prompts, rollouts)
    ended = time.perf_counter()
    scores = score_metrics(scored) | judge_metrics(scored)
    warn_once(bench, score_warnings(scores), step)
    line = scores | {
        "sample/staleness_mean": float(step - actors.sampler_step),
        "timing_s/gen": drawn - began,
        "timing_s/score": ended - drawn,
    }
    batch, more = batches.make(params, scored, step)
    warn_once(bench, emptied(more, len(scored)), step)
    if "advantage" not in recipe.objective.needs or actors.copies_sampler:
        # The objective does not measure it, or under other weights.
        size = schedule.prompts * recipe.sampling.n
        more |= sampler_gap(bench, sampler, scored, size, recipe.sampling)
    write_records(bench.folder.online(step), scored)
    return batch, line | more


def emptied(line: Line, prompts: int) -> list[str]:
    """Says so where every prompt was left out."""
    counts = {
        name.removeprefix("dropped/"): count
        for name, count in line.items()
        if name.startswith("dropped/")
    }
    lost = sum(count for name, count in counts.items() if name != IDENTICAL)
    if lost < prompts:
        return []
    return [f"nothing was selected ({reasons(counts)}), so it has no update"]


def warn_once(bench: Workbench, warnings: list[str], step: int) -> None:
    """Shows each kind of warning (what it says beside its numbers) once a run."""
    for warning in warnings:
        kind = re.sub(r"\d+", "", warning)
        if kind not in bench.warned:
            bench.warned.add(kind)
            bench.progress.line(f"step {step + 1}: {warning}")
