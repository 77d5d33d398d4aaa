"""Where a run stands, and how that is written down and found again."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flax import serialization

from jaxloop.config import ConfigError
from jaxloop.loop.workbench import Workbench
from jaxloop.losses.objective import Objective, memory_of
from jaxloop.models.parameters import abstract_params
from jaxloop.training.optimizer import Optimizer
from jaxloop.training.step import TrainState, abstract_state, fresh_state


@dataclass(frozen=True)
class Position:
    """Everything of a run that is not an array. `step` counts its updates.

    `stage` and `round` say what is going on; `done` how many of that stage's (or
    round's) updates are in the weights. `saves` numbers the checkpoints. Data order and
    random keys follow from these and the seed. `sampler_step`: when the sampler got its
    weights; `look_due`: an evaluation was interrupted.
    """

    stage: Literal["sft", "offline", "recipe"]
    round: int = 0
    done: int = 0
    step: int = 0
    saves: int = 0
    metrics_bytes: int = 0
    sampler_step: int = 0
    look_due: bool = False


def save(
    bench: Workbench,
    position: Position,
    tree: dict[str, Any],
    metrics: dict[str, float] | None = None,
    *,
    block: bool = False,
) -> Position:
    """Writes a checkpoint in the background; returns the position with its number.

    ConfigError where `checkpoint.best` is not among the `metrics` of an evaluation, but
    for one of which a judge could say nothing.
    """
    best = bench.config.checkpoint.best
    if best and metrics and best not in metrics and not _unread(metrics):
        raise ConfigError(
            f"checkpoint.best = {best} is not measured; what is: "
            + ", ".join(sorted(metrics))
        )
    position = dataclasses.replace(
        position, saves=position.saves + 1, metrics_bytes=bench.metrics.offset()
    )
    plain = {name: serialization.to_state_dict(part) for name, part in tree.items()}
    with bench.attempt.spending("checkpoint"):
        bench.checkpoints.save(
            position.saves,
            plain,
            dataclasses.asdict(position),
            metrics=metrics,
            block=block,
        )
    bench.attempt.kept()
    return position


def _unread(metrics: Mapping[str, float]) -> bool:
    """Whether a judge left all held-out completions without a score."""
    return any(
        name.endswith("/unjudged_frac") and value == 1.0
        for name, value in metrics.items()
    )


def find(bench: Workbench) -> Position | None:
    """The newest good checkpoint's position, with the metrics file cut back to it.

    ConfigError where there were checkpoints and none is good: what the run measured and
    recorded is not written over.
    """
    number = bench.checkpoints.latest_good()
    for note in bench.checkpoints.notes:
        bench.progress.line(note)
    if number is None:
        if lost := bench.checkpoints.set_aside():
            raise ConfigError(
                f"no checkpoint in {bench.checkpoints.directory} can be read any more: "
                f"{', '.join(lost)} are damaged. Begin anew in another folder "
                "(out=DIR), or here after deleting them; metrics and records are as "
                "they were"
            )
        bench.metrics.truncate_to(0)
        return None
    position = Position(**bench.checkpoints.position(number))
    bench.metrics.truncate_to(position.metrics_bytes)
    return position


def load(bench: Workbench, position: Position, abstract: dict[str, Any]) -> dict:
    """The arrays of a checkpoint, shaped and placed as `abstract` says."""
    plain = {name: serialization.to_state_dict(part) for name, part in abstract.items()}
    restored, _ = bench.checkpoints.restore(position.saves, plain)
    return {
        name: serialization.from_state_dict(part, restored[name])
        for name, part in abstract.items()
    }


def load_state(
    bench: Workbench,
    objective: Objective,
    optimizer: Optimizer,
    position: Position,
    copies: Sequence[str] = (),
) -> dict[str, Any]:
    """`state` of a checkpoint inside a stage, and the `copies` of parameters that were
    saved beside it."""
    dtype, memory = bench.config.model.param_dtype, memory_of(objective)
    abstract = abstract_state(bench.model, optimizer, bench.mesh, dtype, memory)
    trees = {"state": abstract} | dict.fromkeys(copies, abstract.params)
    return load(bench, position, trees)


def train_state(
    bench: Workbench,
    objective: Objective,
    optimizer: Optimizer,
    params: dict | None,
    position: Position,
) -> TrainState:
    """A fresh optimiser around `params`; the checkpoint's state where they are None."""
    if params is None:
        return load_state(bench, objective, optimizer, position)["state"]
    memory = memory_of(objective)
    return fresh_state(params, optimizer, bench.shardings(optimizer, memory), memory)


def params_of(bench: Workbench) -> dict:
    """Shapes, dtypes and placements of the run's parameters."""
    dtype = bench.config.model.param_dtype
    return abstract_params(bench.model.shape, bench.mesh, dtype)


def save_seed(bench: Workbench, params: dict) -> None:
    bench.checkpoints.save_named("seed", {"params": params})


def load_seed(bench: Workbench) -> dict:
    """The weights that the recipe started from, kept off the devices until needed."""
    if bench.config.sft is None:
        return bench.initial_params()
    abstract = {"params": params_of(bench)}
    return bench.checkpoints.restore_named("seed", abstract)["params"]


def save_previous(bench: Workbench, params: dict) -> None:
    """Keeps what a round has sampled from for the next round's `WithPrevious`."""
    bench.checkpoints.save_named("previous", {"params": params})


def load_previous(bench: Workbench) -> dict:
    """The weights that the round before has sampled from."""
    abstract = {"params": params_of(bench)}
    return bench.checkpoints.restore_named("previous", abstract)["params"]


def load_params(bench: Workbench, position: Position) -> dict:
    return load(bench, position, {"params": params_of(bench)})["params"]
