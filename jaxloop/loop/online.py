"""Online: every step samples, scores, selects and updates once.

Two kinds of staleness are set apart: `sync_every` steps lie between copies of the
weights to the sampler, `sync_reference_every` between copies to the reference. With
`sync_every=1` the sampler uses the trained weights themselves and nothing is copied.
"""

import dataclasses
import re
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.loop import store
from jaxloop.loop.folder import write_records
from jaxloop.loop.recipe import Online, Recipe
from jaxloop.loop.reference import pair_logps, rollout_logps
from jaxloop.loop.selecting import apply_filters, select
from jaxloop.loop.stations import evaluate, sample, sampler_gap
from jaxloop.loop.store import Position
from jaxloop.loop.updates import Line, Stage, train
from jaxloop.loop.workbench import Workbench, key, rng
from jaxloop.records import Prompt
from jaxloop.scoring.metrics import score_metrics, score_warnings
from jaxloop.selection.advantages import groups as as_groups
from jaxloop.training.batches import Batch, group_batch, micro_batches, pair_batch
from jaxloop.training.optimizer import learning_rate
from jaxloop.training.step import abstract_state, fresh_state

copy_tree = jax.jit(partial(jax.tree.map, jnp.copy))


def step_prompts(bench: Workbench, count: int, step: int) -> list[Prompt]:
    """The prompts of step `step`: passes over the data, reshuffled each pass.

    What is left at the end of a pass and fills no step sits that pass out, so no prompt
    is in a step twice.
    """
    pool, seed = bench.data.train, bench.config.seed
    epoch, place = divmod(step, len(pool) // count)
    order = rng(seed, "prompts", epoch).permutation(len(pool))
    return [pool[i] for i in order[place * count : (place + 1) * count]]


class Actors:
    """The weights that sample and the weights that are the reference, where they are
    not the trained ones, and the step at which each was copied."""

    def __init__(self, schedule: Online, needs_reference: bool):
        self.schedule = schedule
        self.copies_sampler = schedule.sync_every != 1
        self.copies_reference = needs_reference
        self.trees: dict[str, dict] = {}
        self.sampler_step = 0

    def names(self) -> list[str]:
        wanted = {"sampler": self.copies_sampler, "reference": self.copies_reference}
        return [name for name, copied in wanted.items() if copied]

    def begin(self, params: dict) -> None:
        self.trees = {name: copy_tree(params) for name in self.names()}

    def refresh(self, params: dict, step: int) -> None:
        """What is due before step `step` (from 0) samples."""
        every, every_reference = (
            self.schedule.sync_every,
            self.schedule.sync_reference_every,
        )
        if every == 1:
            self.sampler_step = step
        elif every and step and step % every == 0:
            self.trees["sampler"], self.sampler_step = copy_tree(params), step
        due = every_reference and step and step % every_reference == 0
        if self.copies_reference and due:
            self.trees["reference"] = copy_tree(params)

    def sampler(self, params: dict) -> dict:
        return self.trees["sampler"] if self.copies_sampler else params


def run_online(
    bench: Workbench, recipe: Recipe, params: dict | None, position: Position
) -> tuple[dict, Position]:
    """The parameters after the last step. `params` is None when resuming inside."""
    schedule, optimizer = recipe.schedule, recipe.optimizer
    assert isinstance(schedule, Online)
    needs_reference = recipe.objective.needs_reference
    actors = Actors(schedule, needs_reference)
    if params is None:
        dtype = bench.config.model.param_dtype
        abstract = abstract_state(bench.model, optimizer, bench.mesh, dtype)
        trees = {"state": abstract} | dict.fromkeys(actors.names(), abstract.params)
        loaded = store.load(bench, position, trees)
        state = loaded.pop("state")
        actors.trees, actors.sampler_step = loaded, position.sampler_step
    else:
        actors.begin(params)
        state = fresh_state(params, optimizer, bench.shardings(optimizer))
    temperature = 1.0
    if recipe.objective.temperature_from_sampling:
        temperature = recipe.sampling.temperature or 1.0
    step_fn = bench.train_step(
        recipe.objective,
        optimizer,
        start=bench.layout.start,
        temperature=temperature,
    )
    stage = Stage(bench, "online", position, schedule.steps, extra=actors.trees)
    bench.progress.phase(
        "online", total=schedule.steps, unit="updates", done=position.done
    )
    make_batch = partial(online_batch, stage, recipe, actors, temperature)
    state = train(stage, state, step_fn, make_batch)
    position = dataclasses.replace(stage.position, round=1, done=0)
    metrics = evaluate(
        bench, state.params, name="round_001", step=position.step, phase="eval", round=1
    )
    position = store.save(bench, position, {"params": state.params}, metrics)
    return state.params, position


def online_batch(
    stage: Stage,
    recipe: Recipe,
    actors: Actors,
    temperature: float,
    params: dict,
    step: int,
) -> tuple[Batch, float, Line]:
    """Samples, scores and selects step `step` (from 0) under the weights `params`."""
    bench, schedule = stage.bench, recipe.schedule
    assert isinstance(schedule, Online)
    actors.refresh(params, step)
    stage.position = dataclasses.replace(
        stage.position, sampler_step=actors.sampler_step
    )
    prompts = step_prompts(bench, schedule.prompts, step)
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
    scored = recipe.scorer(prompts, rollouts)
    ended = time.perf_counter()
    scores = score_metrics(scored)
    warn_once(bench, score_warnings(scores), step)
    line = scores | {
        "sample/staleness_mean": float(step - actors.sampler_step),
        "timing_s/gen": drawn - began,
        "timing_s/score": ended - drawn,
    }
    if recipe.advantage is not None:
        batch, more = policy_batch(bench, recipe, actors, scored, temperature)
    else:
        batch, more = pairwise_batch(bench, recipe, actors, scored, step)
    if recipe.advantage is None or actors.copies_sampler:
        # The trainer's own pass is under other weights, or at another temperature.
        size = schedule.prompts * recipe.sampling.n
        more |= sampler_gap(bench, sampler, scored, size)
    write_records(bench.folder.online(step), scored)
    rate = learning_rate(recipe.optimizer, step, schedule.steps)
    return micro_batches(batch, schedule.accumulation), rate, line | more


def warn_once(bench: Workbench, warnings: list[str], step: int) -> None:
    """Shows each kind of warning (what it says beside its numbers) once a run."""
    for warning in warnings:
        kind = re.sub(r"\d+", "", warning)
        if kind not in bench.warned:
            bench.warned.add(kind)
            bench.progress.line(f"step {step + 1}: {warning}")


def policy_batch(bench, recipe: Recipe, actors: Actors, scored, temperature: float):
    """All rollouts and their advantages; dropped prompts are rows that do not count."""
    assert recipe.advantage is not None
    kept, dropped = apply_filters(recipe.filters, scored)
    size = recipe.schedule.prompts * recipe.sampling.n
    groups = as_groups(kept, recipe.advantage)
    batch = group_batch(groups, bench.layout, bench.tokenizer.pad_id, size)
    if actors.copies_sampler:  # else the weights that sampled are those being trained
        batch["old_logp_BC"] = batch.pop("sampler_logp_BC")
    if actors.copies_reference:
        items = [(g.prompt, rollout) for g in groups for rollout in g.rollouts]
        logp_BC = rollout_logps(
            bench, actors.trees["reference"], items, size, temperature=temperature
        )
        reference_BC = np.zeros_like(batch["mask_BC"])
        reference_BC[: len(items)] = logp_BC[:, : reference_BC.shape[1]]
        batch["reference_logp_BC"] = reference_BC
    return batch, {f"dropped/{name}": float(n) for name, n in dropped.items()}


def pairwise_batch(bench, recipe: Recipe, actors: Actors, scored, step: int):
    """The step's pairs, with the reference's log-probabilities where it has one."""
    selected = select(recipe, scored, rng(bench.config.seed, "selection", step))
    size = recipe.schedule.prompts * getattr(recipe.selector, "pairs", 1)
    if len(selected.pairs) > size:
        raise ValueError(
            f"{type(recipe.selector).__name__} made {len(selected.pairs)} pairs of "
            f"{recipe.schedule.prompts} prompts: give it a field `pairs`, the most "
            "that it makes of one prompt"
        )
    logp_P2C = None
    if actors.copies_reference:
        reference = actors.trees["reference"]
        logp_P2C = pair_logps(bench, reference, selected.pairs, 2 * size)
    batch = pair_batch(
        selected.pairs, bench.layout, bench.tokenizer.pad_id, size, logp_P2C
    )
    dropped = {f"dropped/{name}": float(n) for name, n in selected.dropped.items()}
    return batch, selected.metrics | dropped
