"""SIGTERM is a request: the run stops at the next safe point, with all that it has.

A process that jax's distributed runtime does not watch dies of SIGTERM with nothing
saved, so the handler here only remembers the signal. Safe points are frequent (every
chunk of sampling, every update, every batch of evaluation); the periodic checkpoint is
the guarantee for everything else.
"""

import signal
import threading


class Preempted(Exception):
    """Raised at a safe point after SIGTERM; what the run had is on the disk."""


class Interrupt:
    """A context in which SIGTERM sets a flag instead of killing the process."""

    def __init__(self):
        self.asked = False
        self._before = None

    def __enter__(self):
        # Only the main thread may set handlers; elsewhere (notebooks, tests) SIGTERM
        # keeps its meaning.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _remember(self, *_):
        self.asked = True

    def check(self) -> None:
        if self.asked:
            raise Preempted
