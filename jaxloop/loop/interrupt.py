"""SIGTERM is a request: the run stops at the next safe point, with all that it has.

A process that jax's distributed runtime does not watch dies of SIGTERM with nothing
saved, so the handler here only remembers the signal. Where it does watch (a job of many
processes), a SIGTERM to any of them stops all at the same safe point. Safe points are
frequent (every chunk of sampling, every update, every batch of evaluation); the
periodic checkpoint is the guarantee for everything else.
"""

import signal
import threading
from collections.abc import Callable

from jax.experimental import multihost_utils

from jaxloop.distributed import many


class Preempted(Exception):
    """Raised at a safe point after SIGTERM; what the run had is on the disk."""


class Interrupt:
    """A context in which SIGTERM sets a flag instead of killing the process."""

    def __init__(self):
        self._asked = False
        self._points = 0
        self.listeners: list[Callable[[], None]] = []
        self._before = None

    def __enter__(self):
        # Only the main thread may set handlers; elsewhere (notebooks, tests) SIGTERM
        # keeps its meaning. With many processes jax's runtime has set its own.
        if threading.current_thread() is threading.main_thread() and not many():
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _remember(self, *_):
        self._asked = True

    def asked(self) -> bool:
        """Whether to stop here. Of many processes each must come to the same safe
        points: jax agrees on the number of one that none of them has passed."""
        if many() and not self._asked:
            self._points += 1
            self._asked = multihost_utils.reached_preemption_sync_point(self._points)
        return self._asked

    def beat(self) -> None:
        """The run is at a safe point: whoever wants to know is told."""
        for listener in self.listeners:
            listener()

    def check(self) -> None:
        """A safe point where the run may stop: raises Preempted if it was asked to."""
        self.beat()
        if self.asked():
            raise Preempted
