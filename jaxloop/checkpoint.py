"""Checkpoints: orbax writes the arrays, the guarantees around them are ours.

    DIRECTORY/step_00000012/arrays/         orbax
                            position.json   where the run was, metrics, shapes, dtypes
                            manifest.json   size and SHA-256 of every file
    DIRECTORY/seed/                         a named tree, outside the steps; likewise

A step is written under `unfinished-...` and takes its name when its manifest is there,
so a kill at any instant leaves whole steps only. Before a step is used its manifest is
verified; a damaged one is moved aside to `corrupt-...`, the newest good one is taken.
"""

import json
import logging
import math
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import orbax.checkpoint as ocp

from jaxloop import array_store, folders
from jaxloop.distributed import barrier, told

T = TypeVar("T")
LOGGER = logging.getLogger(__name__)
ARRAYS, POSITION = "arrays", "position.json"
STEP_NAME = re.compile(r"step_(\d{8,})")
TREE_NAME = re.compile(r"(?!step_)[a-z][a-z0-9_]*")
LISTED_LEAVES = 20


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or cannot be used; the message says why."""


class Checkpointer:
    """Saves and restores the trees of one run.

    A save copies device arrays to the host and returns; files, hashes and the commit
    follow in a thread. What goes wrong there is raised as CheckpointError by the next
    call (`save`, `wait`, `close`, ...), with the last good step untouched.

    `keep` is how many of the newest steps stay, besides the best by `best_metric`.
    `notes` collects in words whatever was passed over or moved aside (also logged).
    A `read_only` one changes nothing in the directory and may look at a running run.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        keep: int = 2,
        best_metric: str | None = None,
        best_mode: Literal["max", "min"] = "max",
        read_only: bool = False,
    ):
        if keep < 1 or best_mode not in ("max", "min"):
            raise ValueError(
                f"checkpoints: keep={keep} must be at least 1 and "
                f"best_mode={best_mode!r} 'max' or 'min'"
            )
        self.directory = Path(directory).absolute()
        self.keep, self.best_metric, self.best_mode = keep, best_metric, best_mode
        self.read_only = read_only
        self.notes: list[str] = []
        self._verified: dict[str, list[str]] = {}
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        self._orbax: ocp.AsyncCheckpointer | None = None
        self._quiet = _NoTracebacks()
        if not read_only:
            try:
                folders.probe(self.directory)
                if jax.process_index() == 0:
                    folders.clear_leftovers(self.directory)
            except OSError as error:
                raise CheckpointError(
                    f"checkpoints cannot be written to {self.directory}: {error}. "
                    "Give a folder that can be written with out=DIR."
                ) from error

    # Saving

    def save(
        self,
        step: int,
        tree,
        position: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        block: bool = False,
    ) -> None:
        """Starts writing `tree` (arrays, PRNG keys) as `step`.

        The arrays may be donated or changed as soon as this returns. `position` must be
        JSON. A step that is there already is replaced. `block` waits until the step is
        good.
        """
        finite = {k: float(v) for k, v in (metrics or {}).items() if math.isfinite(v)}
        self._start(step_name(step), tree, step, position, finite)
        if block:
            self.wait()

    def save_named(self, name: str, tree, *, block: bool = False) -> None:
        """The same for a tree outside the steps (the seed model); never pruned."""
        if not TREE_NAME.fullmatch(name):
            raise ValueError(f"{name!r}: use lower-case letters, digits and _")
        self._start(name, tree, None, {}, {})
        if block:
            self.wait()

    def wait(self) -> None:
        """Until the save under way is good; raises what went wrong in it."""
        saving = self._thread is not None
        self._join()
        if saving:
            barrier()  # it is good when the first process has sealed it

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Waits, then gives the threads back; also twice, and by one process alone."""
        try:
            self._join()
        finally:
            logging.getLogger("absl").removeFilter(self._quiet)
            if self._orbax is not None:
                self._orbax.close()
                self._orbax = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _start(self, name: str, tree, step: int | None, position, metrics) -> None:
        if self.read_only:
            raise CheckpointError(f"{self.directory} was opened for reading only")
        self.wait()
        arrays = array_store.by_path(tree)
        record = {
            "step": step,
            "position": position,
            "metrics": metrics,
            "best": [self.best_metric, self.best_mode],
            "leaves": {p: array_store.describe(leaf) for p, leaf in arrays.items()},
        }
        text = json.dumps(record, allow_nan=False)  # a copy, and fails here if not JSON
        folder = self.directory / (folders.UNFINISHED + name)
        values = array_store.storable(arrays)
        try:
            if jax.process_index() == 0:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            if self._orbax is None:
                self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
                logging.getLogger("absl").addFilter(self._quiet)
            self._orbax.save(folder / ARRAYS, args=ocp.args.PyTreeSave(values))
        except Exception as error:
            raise self._failed(name, folder, error) from error
        self._thread = threading.Thread(
            name="checkpoint", target=self._finish, args=(name, folder, text)
        )
        self._thread.start()

    def _finish(self, name: str, folder: Path, record: str) -> None:
        """In the background: waits for the arrays, seals the folder, makes room."""
        try:
            assert self._orbax is not None
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                folders.write_json(folder / POSITION, json.loads(record))
                folders.seal(folder)
                folders.put_in_place(folder)
        except Exception as error:
            failure = self._failed(name, folder, error)
            failure.__cause__ = error
            self._error = failure
            return
        self._verified.pop(name, None)
        if jax.process_index() == 0 and STEP_NAME.fullmatch(name):
            self._retain(newest=name)

    def _failed(self, name: str, folder: Path, error: Exception) -> CheckpointError:
        self._orbax = None  # it may be left half-way through a save
        shutil.rmtree(folder, ignore_errors=True)  # a full disk needs the room
        steps = self.steps()
        left = f"step {steps[-1]} is still there" if steps else "there is no older step"
        why = array_store.reason(error)
        return CheckpointError(
            f"saving {name} to {self.directory} failed: {why}\n{left}. "
            "Make room or restore write permission, then run the same command again."
        )

    def _retain(self, newest: str) -> None:
        """Deletes what is neither among the last `keep` nor the best nor `newest`."""
        steps = self.steps()
        kept = {newest, *map(step_name, steps[-self.keep :])}
        best = self.best()
        if best is not None:
            kept.add(step_name(best))
        for name in map(step_name, steps):
            if name not in kept:
                try:
                    folders.delete(self.directory / name)
                except OSError as error:
                    self._note(f"the old {name} could not be deleted: {error}")

    # Looking

    def steps(self) -> list[int]:
        """The steps that are there, oldest first; their manifests are not verified."""
        if not self.directory.is_dir():
            return []
        names = (STEP_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def latest_good(self) -> int | None:
        """The newest step whose files are all as they were written, or None.

        Damaged ones before it are moved aside, noted and logged.
        """
        self.wait()
        self._verified.clear()
        passed = 0
        for step in reversed(self._agreed(self.steps)):
            if self._is_good(step_name(step)):
                if passed:
                    self._note(f"continuing from step {step}, the newest good one")
                return step
            passed += 1
        if passed:
            self._note(f"no good step is left in {self.directory}")
        return None

    def set_aside(self) -> list[str]:
        """The folders of damaged steps that were moved out of the way."""
        found = self.directory.glob(f"{folders.CORRUPT}step_*")
        return self._agreed(lambda: sorted(path.name for path in found))

    def has_named(self, name: str) -> bool:
        """Whether the named tree is there and whole; a damaged one is moved aside."""
        self.wait()
        return (self.directory / name).is_dir() and self._is_good(name)

    def best(self) -> int | None:
        """The step with the best `best_metric` (the newest of equals), or None.

        A reader without a metric goes by the one that the newest step was saved under.
        """
        metric, mode, steps = self.best_metric, self.best_mode, self.steps()
        if metric is None and self.read_only and steps:
            newest = self._record(step_name(steps[-1]))
            metric, mode = newest.get("best", (None, mode))
        if metric is None:
            return None
        sign, values = 1 if mode == "max" else -1, {}
        for step in steps:
            try:
                value = self._record(step_name(step))["metrics"].get(metric)
            except CheckpointError:
                continue
            if value is not None:
                values[step] = sign * value
        return max(values, key=lambda step: (values[step], step), default=None)

    def position(self, step: int) -> dict:
        """The `position` that `step` was saved with."""
        return self._record(step_name(step))["position"]

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics that `step` was saved with (finite ones only)."""
        return self._record(step_name(step))["metrics"]

    def leaves(self, name: int | str) -> dict[str, tuple[tuple[int, ...], str]]:
        """Path -> (shape, dtype) of every array of a step or a named tree."""
        record = self._record(step_name(name) if isinstance(name, int) else name)
        stored = record["leaves"].items()
        return {path: (tuple(leaf["shape"]), leaf["dtype"]) for path, leaf in stored}

    # Restoring

    def restore(self, step: int, abstract_tree, *, partial: bool = False):
        """(tree, position) of `step`, each array on the sharding of its leaf.

        `abstract_tree` has jax.ShapeDtypeStruct leaves (or arrays) with a sharding, of
        any mesh; without one an array goes to the first device. CheckpointError if
        paths, shapes or dtypes differ from what was saved (the first 20 are listed), or
        the files are damaged. `partial` restores a part of what was saved.
        """
        tree = self.restore_named(step_name(step), abstract_tree, partial=partial)
        return tree, self.position(step)

    def restore_named(self, name: str, abstract_tree, *, partial: bool = False):
        """The tree that `save_named` wrote; as `restore`."""
        self.wait()
        folder = self.directory / name
        if not folder.is_dir():
            there = ", ".join(map(step_name, self.steps())) or "no steps"
            raise CheckpointError(f"{folder} is not there; the directory has {there}")
        if not self._is_good(name):
            raise CheckpointError(f"{folder}: {'; '.join(self._verified[name][:3])}")
        stored = self._record(name)["leaves"]
        wanted = array_store.by_path(abstract_tree)
        if lines := array_store.differences(stored, wanted, partial=partial):
            more = len(lines) - LISTED_LEAVES
            rest = [f"... and {more} more"] if more > 0 else []
            raise CheckpointError(
                f"{folder} is of another model or optimiser; {len(lines)} differences:"
                + "".join(f"\n  {line}" for line in lines[:LISTED_LEAVES] + rest)
            )
        try:
            return array_store.read(folder / ARRAYS, abstract_tree, stored)
        except Exception as error:
            text = f"{folder} cannot be read: {array_store.reason(error)}"
            raise CheckpointError(text) from error

    def _record(self, name: str) -> dict:
        path = self.directory / name / POSITION
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    def _is_good(self, name: str) -> bool:
        if name not in self._verified:
            found = self._agreed(lambda: folders.problems(self.directory / name))
            self._verified[name] = found
            if found:
                more = f" and {len(found) - 1} more" if len(found) > 1 else ""
                self._note(f"{name} is damaged: {found[0]}{more}{self._aside(name)}")
        return not self._verified[name]

    def _agreed(self, look: Callable[[], T]) -> T:
        return look() if self.read_only else told(look)  # a reader is alone

    def _aside(self, name: str) -> str:
        """Moves a damaged folder out of the way of the next save; evidence stays."""
        if self.read_only or jax.process_index() != 0:
            return ""
        try:
            return f"; moved to {folders.move_aside(self.directory / name).name}"
        except OSError as error:
            return f" (and could not be moved aside: {error})"

    def _note(self, text: str) -> None:
        self.notes.append(text)
        LOGGER.warning("checkpoints: %s", text)


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def find_step(path: Path | str) -> tuple[Path, int]:
    """(checkpoint directory, step) that a user means by `path`.

    `OUT`, `OUT/checkpoints` and `OUT/checkpoints/latest` mean the newest good step
    (there is no link: buckets have none), `OUT/checkpoints/best` the one with the best
    value of the metric that the run kept its best by, and
    `OUT/checkpoints/step_00000012` that one. CheckpointError if there is none.
    """
    path = Path(path)
    if match := STEP_NAME.fullmatch(path.name):
        if path.is_dir():
            return path.parent, int(match[1])
        raise CheckpointError(f"{path} is not there")
    directory = path.parent if path.name in ("latest", "best") else path
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    reader = Checkpointer(directory, read_only=True)
    step = reader.latest_good()
    if step is None:
        why = "; ".join(reader.notes) or "it holds no step_... folder"
        raise CheckpointError(f"no checkpoint in {directory}: {why}")
    if path.name == "best" and (step := reader.best()) is None:
        raise CheckpointError(
            f"{directory} keeps no best step: run with checkpoint.best=METRIC (of the "
            "held-out evaluation), or name `latest` or a step"
        )
    return directory, step


class _NoTracebacks(logging.Filter):
    """Orbax logs a traceback for each thread that failed; we raise the error, once."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or not record.exc_info
