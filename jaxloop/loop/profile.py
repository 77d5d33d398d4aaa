"""`--profile STEPS`: a profile of some updates, as jax writes it, in OUT/profile."""

import re
from pathlib import Path
from typing import NamedTuple

import jax

from jaxloop.config.errors import ConfigError


class Steps(NamedTuple):
    """Updates `first` to `last`, counted from 1 over the whole run."""

    first: int
    last: int

    @classmethod
    def read(cls, text: str) -> "Steps":
        """Of "12" or "12-15". ConfigError for anything else."""
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        first, last = (int(n or found[1]) for n in found.groups()) if found else (0, 0)
        if not 1 <= first <= last:
            raise ConfigError(
                f"--profile {text}: give the updates to profile, counted from 1: "
                "--profile 12 or --profile 12-15"
            )
        return cls(first, last)


class Profiler:
    """Begins before the first of the updates and ends behind the last. An online
    update's samples are drawn in it, those of a round before its updates."""

    def __init__(self, folder: Path, steps: Steps | None):
        self.folder, self.steps = folder, steps
        self._running = False

    def before(self, done: int) -> None:
        """An update begins, the one behind `done`."""
        if self.steps is None or self._running:
            return
        if self.steps.first <= done + 1 <= self.steps.last:
            jax.profiler.start_trace(str(self.folder))
            self._running = True

    def after(self, done: int, result) -> bool:
        """`done` updates are dispatched, the last with that result; whether the profile
        is written now."""
        if not self._running or self.steps is None or done < self.steps.last:
            return False
        jax.block_until_ready(result)
        self.close()
        return True

    def close(self) -> None:
        """Writes what there is of the profile."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
