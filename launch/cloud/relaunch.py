"""Attempt after attempt under one run id, until the run ends or no progress is made.

A run resumes by itself from its newest good checkpoint, so an attempt is always the
same command. What can be counted on: nobody pays for a slice that is not watched. It
is deleted on success, on failure, on a signal and at its maximum age; by a timer of
its own hosts if this program cannot.
"""

import time
from collections.abc import Callable

from launch.cloud import commands
from launch.cloud.gcloud import Gcloud
from launch.cloud.job import (
    CONFIGURATION,
    DIVERGED,
    INFRASTRUCTURE,
    SUCCESS,
    Attempt,
    Outcome,
    Patience,
)
from launch.cloud.ship import Code
from launch.cloud.slices import ConfigurationError, Slice
from launch.cloud.states import Lost, Phase, Seen, acquire, look, poll, release
from launch.cloud.store import State, Store

Say = Callable[[str], None]


class Unavailable(Exception):
    """No slice is to be had: within the time given, or for the time left."""


class Launcher:
    """The slices of one run, one after the other."""

    def __init__(self, cloud: Gcloud, store: Store, patience: Patience, say: Say):
        self.cloud, self.store, self.patience, self.say = cloud, store, patience, say

    @property
    def state(self) -> State:
        state = self.store.load()
        assert state is not None
        return state

    @property
    def spec(self) -> Slice:
        return self.state.slice

    def remaining(self, *, reserve: float = 0.0) -> int:
        """Seconds for which chips may still be held. Unavailable if it is no more than
        `reserve`."""
        state = self.state
        held = time.time() - state.since if state.since else 0.0
        left = round(state.slice.max_age - state.spent - held)
        if left <= reserve:
            raise Unavailable("the maximum age is reached; --max-age allows more")
        return left

    @property
    def reserve(self) -> float:
        """Seconds that a run needs to stop and save before its hosts are deleted."""
        return 2 * self.patience.grace

    def acquire(self) -> Seen:
        """A slice with its own timer: the one that this run has, or a new one.

        ConfigurationError if there is one of this name that is not ours: it would be
        deleted in the end."""
        remaining = self.remaining()
        self.store.ship.mkdir(parents=True, exist_ok=True)
        script = self.store.ship / "startup.sh"
        script.write_text(commands.startup_script(self.spec, remaining))
        try:
            self._claim()
            seen = acquire(
                self.cloud,
                self.spec,
                startup_script=str(script),
                remaining=remaining,
                first=self.patience.first,
                say=self.say,
            )
        except Lost as error:
            raise Unavailable(str(error)) from None
        self.store.change(since=seen.since or time.time())
        return seen

    def _claim(self) -> None:
        if self.state.asked:
            return
        seen = poll(
            lambda: look(self.cloud, self.spec),
            first=self.patience.first,
            limit=self.patience.connect,
            what=f"asking for {self.spec.name}",
        )
        if seen.phase is not Phase.ABSENT:
            raise ConfigurationError(
                f"{self.spec.name} is in {self.spec.zone} already, and was not made by "
                "this program from here: choose another name, or delete it first"
            )
        self.store.change(asked=True)

    def release(self) -> None:
        """Deletes the slice. Lost, in so many words, if it does not go."""
        release(
            self.cloud,
            self.spec,
            first=self.patience.first,
            limit=self.patience.connect,
            say=self.say,
        )
        state = self.state
        held = max(0.0, time.time() - state.since) if state.since else 0.0
        self.store.change(asked=False, since=0.0, spent=state.spent + held)

    def run(self, code: Code, *, most_failures: int) -> Outcome:
        """All attempts. ConfigurationError if one cannot begin."""
        failures, best = 0, ()
        attach = True
        while True:
            try:
                outcome = self._attempt(code, attach=attach)
            except Unavailable as error:
                return Outcome(INFRASTRUCTURE, str(error), True, best)
            except Lost as error:
                outcome = Outcome(INFRASTRUCTURE, str(error), True)
            attach = False
            self.say(f"attempt {self.state.attempt}: {outcome.why}")
            if outcome.code in (SUCCESS, CONFIGURATION, DIVERGED):
                return outcome
            if outcome.progress > best:
                failures, best = 0, outcome.progress
            failures += 1
            if failures > most_failures:
                why = f"{failures} failures in a row without progress: {outcome.why}"
                return outcome._replace(why=why)
            if outcome.lost:
                self.release()

    def _attempt(self, code: Code, *, attach: bool) -> Outcome:
        self.remaining(reserve=self.reserve)
        seen = self.acquire()
        expires = time.time() + self.remaining(reserve=self.reserve) - self.reserve
        if attach and self.state.attempt:
            attempt = self._at(seen)
            current = self.state.attempt
            if all(r and r.attempt == current and r.alive for r in attempt.reports()):
                self.say(f"attempt {current} is running: watching it")
                if code.hash != self.state.code:
                    self.say(f"it runs code {self.state.code}, not what is here now")
                return attempt.watch(expires=expires)
        number = self.state.attempt + 1
        self.store.change(attempt=number, code=code.hash, ended=None)
        attempt = self._at(seen)
        attempt.start(code, expires=expires)
        return attempt.watch(expires=expires)

    def _at(self, seen: Seen) -> Attempt:
        return Attempt(self.cloud, self.store, self.patience, seen.hosts, self.say)
