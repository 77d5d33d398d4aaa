"""`run(config)`: the whole line, from wherever the folder says that it stands."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxloop.config import ConfigError
from jaxloop.distributed import is_first, told
from jaxloop.exit_codes import DIVERGED, DONE, PREEMPTED
from jaxloop.experiment import Config
from jaxloop.loop import store
from jaxloop.loop.dry_run import dry_run
from jaxloop.loop.folder import RunFolder, write_text
from jaxloop.loop.interrupt import Interrupt, Preempted
from jaxloop.loop.memory import is_out_of_memory, report
from jaxloop.loop.offline import run_offline
from jaxloop.loop.online import run_online
from jaxloop.loop.profile import Steps
from jaxloop.loop.recipe import Online
from jaxloop.loop.rounds import run_rounds
from jaxloop.loop.serve import describe_model
from jaxloop.loop.stations import evaluate as look
from jaxloop.loop.store import Position
from jaxloop.loop.summary import summarise, summary_text
from jaxloop.loop.supervised import run_supervised
from jaxloop.loop.updates import Diverged
from jaxloop.loop.watchdog import Watchdog
from jaxloop.loop.workbench import Workbench, build, prepare
from jaxloop.loop.writing import with_written
from jaxloop.report import build_report

__all__ = ["dry_run", "evaluate", "run"]


def run(
    config: Config, *, argv: Sequence[str] = (), profiled: Steps | None = None
) -> int:
    """Runs or continues the experiment; returns the exit code.

    profiled: updates of which a profile is written.

    Raises ConfigError for whatever a user can mend: before anything is compiled, but
    for devices that turn out too small.
    """
    folder = RunFolder(Path(config.folder))
    if told(folder.summary.exists):
        folder.check(config)
        _finish(folder, json.loads(folder.summary.read_text()))
        return DONE
    notes = told(lambda: folder.check(config))
    materials = prepare(config)
    folder.claim(config, argv)
    if is_first():
        describe_model(folder.path, materials.shape, materials.tokenizer)
    began = time.perf_counter()
    stacks = folder.path / "stacks" / f"process_{jax.process_index()}.txt"
    with Interrupt() as interrupt, Watchdog(stacks, 60 * config.hang_minutes) as dog:
        bench = build(config, materials, folder, interrupt, profiled)
        interrupt.listeners.append(dog.beat)
        for note in [*notes, *bench.data.notes]:
            bench.progress.line(note)
        try:
            run_stages(bench)
        except (Preempted, KeyboardInterrupt) as stopped:
            if isinstance(stopped, Preempted):  # else other processes may go on
                bench.checkpoints.wait()
            bench.progress.line(
                f"stopped; the same command goes on from here ({folder.path})"
            )
            bench.attempt.close("stopped")
            if isinstance(stopped, KeyboardInterrupt):
                raise
            return PREEMPTED
        except Diverged as error:
            bench.progress.line(str(error))
            bench.attempt.close("diverged")
            return DIVERGED
        except Exception as error:
            bench.attempt.close(type(error).__name__)
            if not is_out_of_memory(error):
                raise
            phase = bench.progress.now
            raise ConfigError(report(config, materials.shape, phase, error)) from error
        finally:
            bench.close()
    if is_first():
        seconds = round(time.perf_counter() - began, 1)
        summary = summarise(folder) | {"seconds": seconds}
        write_text(folder.summary, json.dumps(summary, indent=2) + "\n")
        _finish(folder, summary)
    return DONE


def _finish(folder: RunFolder, summary: dict) -> None:
    """The report, and the end of what the user sees; may be done again."""
    if not is_first():
        return
    build_report(folder.path)
    print(summary_text(summary, folder.path))


def evaluate(config: Config) -> dict[str, float]:
    """The config's evaluation on its starting model; writes to its folder + `-eval`."""
    if config.evaluation.scorer is None:
        raise ConfigError("the config has no evaluation.scorer: nothing to measure")
    # What would be trained on need not be there.
    config = dataclasses.replace(
        config, sft=None, offline=None, recipe=None, prompts=None
    )
    folder = RunFolder(Path(config.folder + "-eval"))
    materials = prepare(config)
    folder.check_shared()
    with Interrupt() as interrupt:
        bench = build(config, materials, folder, interrupt)
        bench.metrics.truncate_to(0)
        try:
            return look(
                bench, bench.initial_params(), name="eval", step=0, phase="eval"
            )
        finally:
            bench.close()


def run_stages(bench: Workbench) -> None:
    """What is left of: supervised stage, evaluation, offline stage or recipe."""
    config = bench.config
    found = store.find(bench)
    second = "offline" if config.offline is not None else "recipe"
    position = found or Position(stage=second if config.sft is None else "sft")
    if found is not None:
        bench.progress.line(
            f"continuing at {position.stage}, round {position.round + 1}, "
            f"update {position.done} (step {position.step})"
        )
    params = None
    if position.stage == "sft":
        assert config.sft is not None
        params, position = run_supervised(bench, config.sft, position)
        position = dataclasses.replace(position, stage=second)
        if config.offline is not None or config.recipe is not None:
            store.save_seed(bench, params)
        params, position = _first_look(bench, params, position)
    elif found is None:
        params, position = _first_look(bench, bench.initial_params(), position)
    elif position.done == 0:
        params = store.load_params(bench, position)
    if config.offline is not None and not position.round:
        run_offline(bench, config.offline, params, position)
    if config.prompts is not None:
        log = position.round == 0 and params is not None
        bench = with_written(bench, config.prompts, params, step=position.step, log=log)
    if config.recipe is not None:
        _improve(bench, config.recipe, params, position)


def _first_look(bench: Workbench, params: dict, position: Position):
    """Evaluates what the recipe starts from, and makes that a place to resume from."""
    metrics = look(
        bench, params, name="round_000", step=position.step, phase="eval", round=0
    )
    return params, store.save(bench, position, {"params": params}, metrics)


def _improve(bench: Workbench, recipe, params: dict | None, position: Position) -> None:
    online = isinstance(recipe.schedule, Online)
    finished = position.round >= (1 if online else recipe.schedule.rounds)
    if not finished:
        improve = run_online if online else run_rounds
        improve(bench, recipe, params, position)
