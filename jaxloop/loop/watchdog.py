"""Where a run hangs: the stacks of its threads, once it has been silent for long."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from jaxloop.exit_codes import INFRASTRUCTURE


class Watchdog:
    """A context whose `beat` is called at every safe point of a run.

    After `limit` seconds without one it writes the stacks of all threads of this
    process behind what `path` has, and says so; after twice the limit it ends the
    process (`leave`) with the code of a fault of the machines, so that a supervisor can
    start it again from its newest checkpoint. In a job of many processes each has one:
    a hang of one leaves all of them waiting, and all write. A limit of 0 is off.
    """

    def __init__(
        self,
        path: Path,
        limit: float,
        *,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
        leave: Callable[[int], None] = os._exit,
    ):
        self._path, self._limit, self._say, self._leave = path, limit, say, leave
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._limit > 0:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()

    def beat(self) -> None:
        """The run goes on."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        dumped = 0.0
        while not self._ended.wait(min(self._limit / 4, 10.0)):
            last = self._last
            silent = time.monotonic() - last
            if silent > self._limit and dumped != last:
                dumped = last
                self._dump(silent)
            if silent > 2 * self._limit:
                self._say(f"no sign of life for {silent:.0f} s: giving up")
                self._leave(INFRASTRUCTURE)
                return

    def _dump(self, silent: float) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"{when}: no sign of life for {silent:.0f} s\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        self._say(
            f"no sign of life for {silent:.0f} s; where each thread stands is in "
            f"{self._path}. A run that is only slow wants a larger hang_minutes"
        )
