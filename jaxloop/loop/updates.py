"""The loop that every stage trains with, one update ahead of its metrics.

Update n + 1 is dispatched before the metrics of n are fetched, so the devices never
wait for the host. Before anything is written down, the metrics in flight are fetched.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxloop.distributed import fetch, is_first
from jaxloop.loop import store
from jaxloop.loop.interrupt import Preempted
from jaxloop.loop.stations import evaluate
from jaxloop.loop.store import Position
from jaxloop.loop.stragglers import Stragglers
from jaxloop.loop.workbench import Workbench
from jaxloop.training.batches import Batch

Line = dict[str, float]


@dataclass
class Stage:
    """A stretch of updates: `position` moves through `total` of them.

    `extra` are trees that belong into its checkpoints beside the train state. Every
    `stride` updates all that it holds can be found again: only there it stops or saves.
    """

    bench: Workbench
    phase: str
    position: Position
    total: int
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    stride: int = 1

    @property
    def round(self) -> int | None:
        return None if self.phase == "sft" else self.position.round

    def due(self, every: int) -> bool:
        """Whether a multiple of `every` updates was passed since the last stop."""
        done = self.position.done
        return every > 0 and done // every > (done - self.stride) // every

    def advance(self) -> None:
        at = self.position
        self.position = dataclasses.replace(at, done=at.done + 1, step=at.step + 1)

    def save(self, state, metrics: Line | None = None, *, block: bool = False) -> None:
        tree = {"state": state, **self.extra}
        at = self.position
        self.position = store.save(self.bench, at, tree, metrics, block=block)


class Diverged(RuntimeError):
    """Too many updates in a row were not finite; the message says where to look."""


class Ledger:
    """Writes an update's metrics one update late; stops a run that has diverged."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self._pending: tuple[Position, Any, Line, Batch] | None = None
        self._last = time.perf_counter()
        self._stragglers = Stragglers(stage.bench.progress.line)

    def push(self, metrics, host: Line, batch: Batch) -> None:
        self.flush()
        self._pending = (self.stage.position, metrics, host, batch)

    def flush(self) -> None:
        if self._pending is None:
            return
        position, metrics, host, batch = self._pending
        self._pending = None
        begun = time.perf_counter()
        line = {n: float(x) for n, x in fetch(metrics).items()} | host
        now = time.perf_counter()
        line["timing_s/step"], waited = now - self._last, now - begun
        self._last = now
        line |= self._stragglers.figures(line["timing_s/step"] - waited)
        self._refuse_divergence(position.step, line, batch)
        line.pop("skipped_in_row")
        bench, stage = self.stage.bench, self.stage
        shown = {name: line[name] for name in ("loss", "reward") if name in line}
        bench.progress.update(position.done, **shown)
        line |= bench.attempt.account().figures
        bench.metrics.write(position.step, line, phase=stage.phase, round=stage.round)

    def _refuse_divergence(self, step: int, line: Line, batch: Batch) -> None:
        bench = self.stage.bench
        limit = bench.config.max_skipped_in_row
        if line["skipped_in_row"] < limit:
            return
        dump = bench.folder.path / f"skipped_batch_{step:06d}.npz"
        if is_first():
            np.savez(dump, **batch)  # pyright: ignore[reportArgumentType]
        raise Diverged(
            f"{limit} updates in a row had a loss or gradient that is not finite and "
            f"were skipped; the last batch is in {dump}. The newest checkpoint has the "
            "weights before them. Look for a learning rate that is too high or a "
            "reward that is not bounded."
        )


MakeBatch = Callable[[dict, int], tuple[Batch, float, Line]]


def in_order(batches: Iterator[tuple[Batch, float, Line]]) -> MakeBatch:
    """Batches that are known beforehand, for `train`."""
    return lambda params, done: next(batches)


def train(stage: Stage, state, step_fn: Callable, make_batch: MakeBatch):
    """Updates until the stage's `total`; returns the last state.

    `make_batch(params, done)` gives (batch, rate, host metrics) of the next update.
    Saves every `checkpoint.every` updates and evaluates every `evaluation.every`, but
    not after the last one: what follows a stage saves and evaluates itself.
    """
    bench, ledger = stage.bench, Ledger(stage)
    if stage.position.look_due:
        look(stage, state)
    while stage.position.done < stage.total:
        bench.interrupt.beat()
        bench.profiler.before(stage.position.step)
        try:
            batch, rate, host = make_batch(state.params, stage.position.done)
        except Preempted:  # in the middle of sampling
            ledger.flush()
            if stage.position.done:  # else nothing has changed since the last stage
                stage.save(state, block=True)
            raise
        tokens = int((batch["segments_BT"] > 0).sum())
        with jax.set_mesh(bench.mesh):
            state, metrics = step_fn(state, batch, np.float32(rate))
        stage.advance()
        if bench.profiler.after(stage.position.step, metrics):
            bench.progress.line(f"the profile is in {bench.profiler.folder}")
        host = host | {"learning_rate": rate, "num_tokens": tokens}
        ledger.push(metrics, host, batch)
        look_and_save(stage, ledger, state)
    ledger.flush()
    return state


def look(stage: Stage, state) -> None:
    """An evaluation inside a stage; what was measured may turn out the best."""
    bench, at = stage.bench, stage.position
    metrics = evaluate(
        bench,
        state.params,
        name=f"step_{at.step:06d}",
        step=at.step,
        phase="eval",
        running=at.round,
        first=state.params if at.stage == "sft" else None,
    )
    stage.position = dataclasses.replace(at, look_due=False)
    if bench.config.checkpoint.best:
        stage.save(state, metrics)
    bench.progress.phase(stage.phase, stage.total, unit="updates", done=at.done)


def look_and_save(stage: Stage, ledger: Ledger, state) -> None:
    """What is due after an update; a safe point. Raises Preempted once all is saved."""
    bench, config = stage.bench, stage.bench.config
    done = stage.position.done
    if done % stage.stride:
        return
    more = done < stage.total
    due = stage.due(config.checkpoint.every)
    if more and stage.due(config.evaluation.every):
        due = due and not config.checkpoint.best  # then the look itself saves
        ledger.flush()
        stage.position = dataclasses.replace(stage.position, look_due=True)
        try:
            look(stage, state)
        except Preempted:
            stage.save(state, block=True)
            raise
    asked = bench.interrupt.asked()
    if asked or (more and due):
        ledger.flush()
        stage.save(state, block=asked)
    if asked:
        raise Preempted
