"""Rounds: sample, score, select, reference, train, evaluate; then again.

A round writes what each station made before the next one starts. Started again, it
reads what is there and goes on behind it: sampling by whole chunks, training from the
newest checkpoint. What is read is what would have been computed, so the bits are the
same.
"""

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from jaxloop.config.values import json_like
from jaxloop.distributed import told
from jaxloop.loop import store
from jaxloop.loop.contrast import token_rewards
from jaxloop.loop.drawing import sample
from jaxloop.loop.folder import (
    append_records,
    remove,
    shared_records,
    whole_records,
    write_bytes,
    write_records,
    write_text,
)
from jaxloop.loop.models import bound
from jaxloop.loop.recipe import Recipe, Rounds, produces
from jaxloop.loop.round_training import known_logps, layout_for, train_round
from jaxloop.loop.said_before import earlier_rounds
from jaxloop.loop.selecting import Selected, reasons, select
from jaxloop.loop.stations import evaluate, sampler_gap
from jaxloop.loop.store import Position
from jaxloop.loop.workbench import Workbench, key, rng
from jaxloop.records import Prompt, Scored, without_extra
from jaxloop.scoring.judge_metrics import judge_metrics
from jaxloop.scoring.metrics import score_metrics, score_warnings
from jaxloop.scoring.previous import looks_back


def run_rounds(
    bench: Workbench, recipe: Recipe, params: dict | None, position: Position
) -> tuple[dict, Position]:
    """The parameters after the last round. `params` is None on resuming inside one."""
    rounds, trained, step_fn = schedule_of(recipe).rounds, None, None
    for index in range(position.round, rounds):
        bench.progress.round(index + 1, rounds)
        for change in recipe.changes:
            if change.round == index + 1:
                value = json_like(change.value)
                bench.progress.line(f"from now on {change.field} = {value}")
        current = recipe.of_round(index)
        if step_fn is None or trained != (current.objective, current.optimizer):
            trained = current.objective, current.optimizer
            step_fn = bench.train_step(*trained)
        params, position = one_round(bench, current, step_fn, params, position)
    assert params is not None
    return params, position


def one_round(
    bench: Workbench,
    recipe: Recipe,
    step_fn: Callable,
    params: dict | None,
    position: Position,
) -> tuple[dict, Position]:
    """One round, or the rest of one: `params` is None when its training had begun."""
    index = position.round
    scored, seconds = sampled_and_scored(bench, recipe, params, position)
    selected = select(recipe, scored, rng(bench.config.seed, "selection", index))
    if params is not None:
        _write_selection(bench, recipe, index, selected)
        voting = [without_extra(row) for row in scored]
        size = 2 * schedule_of(recipe).batch_size
        gap = sampler_gap(bench, params, voting, size, recipe.sampling)
        scores = score_metrics(voting) | judge_metrics(scored)
        for warning in score_warnings(scores):
            bench.progress.line(f"round {index + 1}: {warning}")
        line = scores | selected.metrics | gap | seconds
        bench.metrics.write(position.step, line, phase="round", round=index)
        if _looks_back(bench):
            store.save_previous(bench, params)
    bench.engine.release()
    logps = _known_logps(bench, recipe, params, index, selected)
    if params is not None and schedule_of(recipe).start == "seed" and index:
        for leaf in jax.tree.leaves(params):  # callers still hold them, and need not
            leaf.delete()
        params = store.load_seed(bench)
    objective, optimizer = recipe.objective, recipe.optimizer
    state = store.train_state(bench, objective, optimizer, params, position)
    del params
    state, position = train_round(
        bench, recipe, step_fn, state, position, selected, logps
    )
    name, done = f"round_{index + 1:03d}", index + 1
    metrics = evaluate(
        bench,
        state.params,
        name=name,
        step=position.step,
        phase="eval",
        round=done,
        running=index,
    )
    position = replace(position, round=done, done=0)
    position = store.save(bench, position, {"params": state.params}, metrics)
    return state.params, position


def schedule_of(recipe: Recipe) -> Rounds:
    assert isinstance(recipe.schedule, Rounds)
    return recipe.schedule


def _looks_back(bench: Workbench) -> bool:
    """Whether some round's scorer asks the model of the round before."""
    assert bench.config.recipe is not None
    versions = bench.config.recipe.versions().values()
    return any(looks_back(each.scorer) for each in versions)


def round_prompts(bench: Workbench, schedule: Rounds, index: int) -> list[Prompt]:
    """The prompts of round `index`: a fresh draw, or the next part of one shuffle."""
    pool, seed = bench.data.train, bench.config.seed
    count = schedule.prompts or len(pool)
    if schedule.disjoint:
        order = rng(seed, "prompts").permutation(len(pool))
        picked = np.take(order, range(index * count, (index + 1) * count), mode="wrap")
    else:
        picked = rng(seed, "prompts", index).permutation(len(pool))[:count]
    return [pool[i] for i in picked]


def sampled_and_scored(
    bench: Workbench, recipe: Recipe, params: dict | None, position: Position
) -> tuple[list[Scored], dict[str, float]]:
    """The round's scored rollouts, read if they are there, else made and written; and
    how long the making took."""
    folder = bench.folder.round(position.round)
    finished, growing = folder / "rollouts.jsonl", folder / "samples.jsonl"
    judgements = folder / "judgements.jsonl"
    if told(finished.exists):
        remove(growing)
        remove(judgements)
        return shared_records(finished, Scored), {}
    assert params is not None, f"{finished} is gone, and the weights that made it too"
    assert bench.config.recipe is not None
    prompts = round_prompts(bench, schedule_of(recipe), position.round)
    began = time.perf_counter()
    sampled = _sample_all(bench, recipe, params, prompts, position, growing)
    drawn = time.perf_counter()
    bench.progress.phase("scoring", total=len(prompts), unit="prompts")
    if position.round and _looks_back(bench):
        bench.kept["previous"] = store.load_previous(bench)
    scorer = bound(
        bench,
        recipe.scorer,
        params,
        key(bench.config.seed, "judging", 0, position.round),
        version=position.step,
        journal=judgements,
        earlier=earlier_rounds(bench.folder, bench.config.recipe, position.round),
    )
    scored = scorer(prompts, [s.rollouts for s in sampled])
    bench.kept.pop("previous", None)
    write_records(finished, scored)
    remove(growing)
    remove(judgements)  # they are in the rollouts' records
    ended = time.perf_counter()
    return scored, {"timing_s/gen": drawn - began, "timing_s/score": ended - drawn}


def _sample_all(bench, recipe, params, prompts, position, growing) -> list[Scored]:
    """Samples by chunks and appends each to `growing`, behind what lies there."""
    sampled = whole_records(growing, Scored)
    # Enough prompts a chunk to keep the decoder full, few enough to lose little.
    size = max(8 * recipe.sampling.rows // recipe.sampling.n, 1)
    each = recipe.sampling.n + (recipe.extra.n if recipe.extra else 0)
    bench.progress.phase("sampling", total=len(prompts) * each)
    for first in range(0, len(prompts), size):
        chunk = prompts[first : first + size]
        if len(sampled) >= first + len(chunk):
            continue  # drawn before the run was interrupted
        drawn = _sample_chunk(bench, recipe, params, chunk, position, first * each)
        new = drawn[len(sampled) - first :]
        append_records(growing, new)
        sampled += new
        bench.interrupt.check()
    return sampled


def _sample_chunk(
    bench: Workbench,
    recipe: Recipe,
    params: dict,
    chunk: Sequence[Prompt],
    position: Position,
    done: int,
) -> list[Scored]:
    """The rollouts of some prompts, those of the recipe's `extra` sampling last;
    `done` came before."""
    seed, index = bench.config.seed, position.round
    draw = partial(sample, bench, params, chunk, version=position.step)
    groups = draw(recipe.sampling, key(seed, "sampling", index), done=done)
    if recipe.extra is not None:
        n = recipe.sampling.n
        done += len(chunk) * n
        more = draw(recipe.extra, key(seed, "sampling", index, 1), done=done)
        groups = [
            (*group, *(replace(r, index=n + r.index, extra=True) for r in others))
            for group, others in zip(groups, more, strict=True)
        ]
    return [Scored(p, group, ()) for p, group in zip(chunk, groups, strict=True)]


def _write_selection(
    bench: Workbench, recipe: Recipe, index: int, selected: Selected
) -> None:
    folder = bench.folder.round(index)
    if produces(recipe.selector) != "demonstrations":
        name = produces(recipe.selector)
        write_records(folder / f"{name}.jsonl", selected.examples)
    else:
        write_records(folder / "demonstrations.jsonl", selected.demonstrations)
    write_text(folder / "dropped.json", json.dumps(selected.dropped, indent=2) + "\n")
    write_text(folder / "left_out.json", json.dumps(selected.left_out, indent=2) + "\n")
    if not selected.examples and not selected.demonstrations:
        bench.progress.line(
            f"round {index + 1}: nothing was selected "
            f"({reasons(selected.dropped)}), so it has no updates"
        )


def _known_logps(
    bench, recipe, params, index: int, selected: Selected
) -> dict[str, np.ndarray]:
    """Log-probabilities of the round's examples under weights that do not change in it,
    computed once: the reference's, and the round's first weights' where the objective
    looks at both (`needs`). With a `contrast` the reference's token rewards too."""
    wanted = recipe.objective.needs & {"reference", "previous"}
    if not wanted or not selected.examples:
        return {}
    path = bench.folder.round(index) / "reference.npz"
    if told(path.exists):
        return dict(np.load(path))
    schedule, logps = schedule_of(recipe), {}
    size = schedule.batch_size // schedule.accumulation
    layout = layout_for(bench, selected.examples)
    for name in sorted(wanted):
        seed = name == "reference" and schedule.reference == "seed"
        weights = store.load_seed(bench) if seed else params
        given = recipe.objective, weights, selected.examples, size
        logps[f"{name}_logp_BC"] = known_logps(bench, *given, layout)
        if name == "reference" and recipe.contrast is not None:
            logps["token_reward_BC"] = token_rewards(
                bench, recipe.contrast, *given, partial(layout_for, bench)
            )
    buffer = io.BytesIO()
    np.savez(buffer, **logps)
    write_bytes(path, buffer.getvalue())
    return logps
