"""Which host the others wait for."""

from collections.abc import Callable

import numpy as np
from jax.experimental import multihost_utils

from jaxloop.distributed import many

SLOW, ROW = 2.0, 20
"""A host is a straggler that took so many times the median so many updates on end."""


class Stragglers:
    """What each host does between two updates while no device works for it: sampling's
    bookkeeping, scoring, making batches. Devices wait for one another inside an update,
    so that their own times are alike on all hosts; these are not."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._slowest, self._row = -1, 0

    def figures(self, seconds: float) -> dict[str, float]:
        """`perf/host_s_min`, `_median`, `_max` and `perf/slowest_host` of an update for
        which this process took `seconds`; nothing of a single process. All must call.
        """
        if not many():
            return {}
        return self.of(multihost_utils.process_allgather(np.float32(seconds)))

    def of(self, seconds_N: np.ndarray) -> dict[str, float]:
        """The same of all processes' seconds."""
        median, slowest = float(np.median(seconds_N)), int(np.argmax(seconds_N))
        most = float(seconds_N[slowest])
        if most <= SLOW * median:
            self._row = 0
        else:
            self._row = self._row + 1 if slowest == self._slowest else 1
        self._slowest = slowest
        if self._row == ROW:
            self._say(
                f"host {slowest} is slow: {most:.2f} s of its own an update, where the "
                f"median host takes {median:.2f}; all wait for it"
            )
        return {
            "perf/host_s_min": float(seconds_N.min()),
            "perf/host_s_median": median,
            "perf/host_s_max": most,
            "perf/slowest_host": float(slowest),
        }
