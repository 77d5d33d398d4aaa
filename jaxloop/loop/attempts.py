"""Where a run's hours went, over all the processes that it took: OUT/attempts/*.json.

An attempt is one process, from its start to its end or to the last that was heard of
it. metrics.jsonl cannot tell: on resuming it is cut back to the checkpoint, and what
was lost with the rest is the very thing to know.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax

from jaxloop.loop.folder import write_text

FOLDER = "attempts"
WAITING = ("scoring",)
"""Phases in which the host works and the devices wait for it."""
EVERY = 10.0
"""Seconds between two writings of an attempt that is under way."""

# Tracing is left out: jax reports it for every function inside another one again.
_COMPILING = (
    "/jax/core/compile/backend_compile_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
)


class Attempt:
    """This process's account, until it is closed.

    Time belongs to the activity entered last, but for what jax says that it compiled.
    The first is "loading", until the first phase begins. Of many processes one
    `writes`; to the others the account is of no use, but is kept all the same.
    """

    def __init__(
        self,
        out: Path,
        *,
        writes: bool = True,
        clock: Callable[[], float] = time.time,
    ):
        folder, self._writes = out / FOLDER, writes
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
        self._earlier = read_attempts(out)
        self._path = folder / f"{len(self._earlier):04}.json"
        self._clock = clock
        self._activity = "loading"
        self._started = self._since = self._written = clock()
        self._seconds: dict[str, float] = {}
        self._kept: dict[str, float] = {}
        self._end = ""
        jax.monitoring.register_event_duration_secs_listener(self._compiled)
        self._write()

    def close(self, end: str = "finished") -> None:
        """How it ended; the first to say so is right."""
        if not self._end:
            jax.monitoring.unregister_event_duration_listener(self._compiled)
            self._end = end
            self._write()

    def phase(self, name: str) -> None:
        """A phase of the run begins."""
        self._enter("waiting" if name in WAITING else "productive")
        self.beat()

    @contextmanager
    def spending(self, activity: str) -> Iterator[None]:
        """What runs inside is that, and what was before goes on after it."""
        before = self._activity
        self._enter(activity)
        try:
            yield
        finally:
            self._enter(before)

    def kept(self) -> None:
        """Whatever was done until now is in a checkpoint, or being written to one."""
        self._enter(self._activity)
        self._kept = dict(self._seconds)
        self._write()

    def beat(self) -> None:
        """The process is alive; cheap enough for every safe point."""
        if self._clock() - self._written >= EVERY:
            self._write()

    def account(self) -> "Account":
        """Of all attempts until now."""
        self._enter(self._activity)
        return add_up([*self._earlier, self._record()])

    def _enter(self, activity: str) -> None:
        now = self._clock()
        spent = self._seconds.get(self._activity, 0.0) + now - self._since
        self._seconds[self._activity] = spent
        self._activity, self._since = activity, now

    def _compiled(self, event: str, duration_secs: float, **_) -> None:
        if event in _COMPILING:
            self._enter(self._activity)
            shares = {"compiling": duration_secs, self._activity: -duration_secs}
            for name, share in shares.items():
                self._seconds[name] = self._seconds.get(name, 0.0) + share

    def _record(self) -> dict:
        return {
            "started": self._started,
            "last": self._since,
            "end": self._end,
            "seconds": self._seconds,
            "kept": self._kept,
        }

    def _write(self) -> None:
        self._enter(self._activity)
        self._written = self._since
        if self._writes:
            write_text(self._path, json.dumps(self._record()) + "\n")


def read_attempts(out: Path) -> list[dict]:
    """All attempts of a run folder, in order; none where it has no account."""
    paths = sorted((out / FOLDER).glob("*.json"))
    return [json.loads(path.read_text()) for path in paths]


class Account(NamedTuple):
    """Wall time from the first attempt's start to the last one's last sign of life."""

    seconds: Mapping[str, float]
    """productive, compiling, waiting (devices for the host), checkpoint, loading;
    repeated: done after the last checkpoint of an attempt that another one followed;
    down: between two attempts."""
    attempts: int

    @property
    def goodput(self) -> float:
        """Productive share of the time, 0 of none."""
        total = sum(self.seconds.values())
        return self.seconds.get("productive", 0.0) / total if total else 0.0

    @property
    def figures(self) -> dict[str, float]:
        """As metrics: `perf/goodput`, and each of the seconds as `perf/NAME_s`."""
        seconds = {f"perf/{name}_s": value for name, value in self.seconds.items()}
        return {"perf/goodput": self.goodput} | seconds


def add_up(attempts: list[dict]) -> Account:
    """The account of a run's attempts, in their order."""
    total: dict[str, float] = {}

    def add(name: str, seconds: float) -> None:
        total[name] = total.get(name, 0.0) + max(seconds, 0.0)

    for index, attempt in enumerate(attempts):
        after = attempts[index + 1 : index + 2]
        # A later attempt starts from the checkpoint; loading and compiling are no work
        # that was lost, but are done again in any case.
        counted = attempt["kept"] if after else attempt["seconds"]
        for name, seconds in attempt["seconds"].items():
            lost = name in ("productive", "waiting")
            add(name, counted.get(name, 0.0) if lost else seconds)
            if lost and after:
                add("repeated", seconds - counted.get(name, 0.0))
        for other in after:
            add("down", other["started"] - attempt["last"])
    return Account(total, len(attempts))
