"""A pool of processes that call one user-made function, each call with a deadline.

A call that is late gets its process killed (SIGKILL, with all that it started) and a
new one takes its place: nothing a function does can hold up the run. One thread of the
caller drives everything, so Ctrl-C and signals work as ever.
"""

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jaxloop.distributed import told
from jaxloop.records import Status

STARTUP = 120.0  # seconds a worker may take to import the user's file
LAST_RESORT = 2.0  # seconds after the deadline at which the kernel ends a lone worker
IDLE_DEATHS = 8  # workers that may die between calls, in one run, before it gives up
WORKER = Path(__file__).with_name("worker.py")


class PoolError(RuntimeError):
    """Worker processes cannot load the function, or do not stay alive."""


class Reply(NamedTuple):
    """What came of one call. `value` is None unless `status` is "scored"."""

    value: float | None
    status: Status
    error: str = ""


@dataclass(frozen=True)
class Target:
    """Where a worker finds the function."""

    module: str
    path: str
    qualname: str


class Worker:
    """One process; `flight` holds the numbers of the calls that it has not answered."""

    def __init__(self, target: Target, deadline: float, limit: float):
        # A group of its own: killed with its children, and untouched by Ctrl-C.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},  # never takes the accelerator
            start_new_session=True,
            bufsize=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.inlet, self.outlet = self.process.stdin, self.process.stdout
        os.set_blocking(self.inlet.fileno(), False)
        os.set_blocking(self.outlet.fileno(), False)
        self.ready = False
        self.flight: set[int] = set()
        self.limit = time.monotonic() + STARTUP
        self.unread = b""
        setup = {
            "sys_path": [str(entry) for entry in sys.path],
            "module": target.module,
            "path": target.path,
            "qualname": target.qualname,
            "deadline": deadline,
            "last_resort": limit + LAST_RESORT,
        }
        try:
            self.send(json.dumps(setup), self.limit)
        except BrokenPipeError:
            code = self.stop()
            raise PoolError(f"{sys.executable} ended with status {code}") from None

    def send(self, line: str, until: float) -> None:
        """Writes a line; BrokenPipeError if the process is gone or does not read."""
        rest = memoryview(line.encode() + b"\n")
        with selectors.DefaultSelector() as selector:
            selector.register(self.inlet, selectors.EVENT_WRITE)
            while rest:
                if not selector.select(until - time.monotonic()):
                    raise BrokenPipeError
                rest = rest[os.write(self.inlet.fileno(), rest) :]

    def receive(self) -> list[dict] | None:
        """The messages that have arrived; None at the end of the process."""
        try:
            chunk = os.read(self.outlet.fileno(), 1 << 20)
        except BlockingIOError:
            return []
        if not chunk:
            return None
        *lines, self.unread = (self.unread + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def stop(self, patience: float = 0.0) -> int:
        """Kills the process with all that it started; its exit status (-N: signal N).
        One that is ending by itself gets `patience` seconds to do so."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if patience:
                self.process.wait(patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.inlet.close()
        self.outlet.close()
        return self.process.wait()


@dataclass
class Work:
    """One run: a JSON line a call, batches of call numbers to hand out, the replies."""

    lines: list[str] = field(default_factory=list)
    waiting: deque[list[int]] = field(default_factory=deque)
    replies: dict[int, Reply] = field(default_factory=dict)
    idle_deaths: int = 0


class Pool:
    """`run(calls)` answers every call, in order. Workers live until `close`, the end of
    the pool object, or the end of the interpreter."""

    def __init__(
        self,
        target: Target,
        *,
        deadline: float,
        grace: float,
        workers: int,
        at_once: int,
    ):
        """A worker is killed `deadline + grace` seconds after it was given a batch of
        `at_once` calls; an async function cancels late calls itself, at `deadline`."""
        self.target = target
        self.deadline = deadline
        self.limit = deadline + grace
        self.size = workers
        self.at_once = at_once
        self.workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, _stop_all, self.workers, os.getpid())

    def close(self) -> None:
        _stop_all(self.workers, os.getpid())

    def start(self) -> None:
        """Loads the function in one worker; PoolError with the traceback on failure."""
        try:
            if not self.workers:
                self._add_worker()
            while not self.workers[0].ready:
                self._collect(Work())
        except BaseException:
            self.close()
            raise

    def run(self, calls: Sequence[dict[str, Any]]) -> list[Reply]:
        """Calls are {"prompt", "completion", "columns"}, of JSON values. A call whose
        process was killed or died while others ran beside it is tried again alone. In a
        job of many processes the first one calls, and all have its replies."""
        return [Reply(*reply) for reply in told(lambda: self._run(calls))]

    def _run(self, calls: Sequence[dict[str, Any]]) -> list[Reply]:
        numbers = list(range(len(calls)))
        work = Work(
            [json.dumps({"number": i} | call) for i, call in enumerate(calls)],
            deque(numbers[i : i + self.at_once] for i in numbers[:: self.at_once]),
        )
        try:
            while len(work.replies) < len(calls):
                self._hand_out(work)
                self._collect(work)
        except BaseException:
            self.close()  # or what is in flight would answer the next run's calls
            raise
        return [work.replies[number] for number in numbers]

    def _add_worker(self) -> None:
        self.workers.append(Worker(self.target, self.deadline, self.limit))

    def _hand_out(self, work: Work) -> None:
        starting = sum(not worker.ready for worker in self.workers)
        idle = [w for w in self.workers if w.ready and not w.flight]
        for worker in idle[: len(work.waiting)]:
            batch = work.waiting.popleft()
            line = "[" + ",".join(work.lines[number] for number in batch) + "]"
            try:
                worker.send(line, time.monotonic() + self.limit)
            except BrokenPipeError:  # it died idle: no call is to blame
                self.workers.remove(worker)
                code = worker.stop()
                work.waiting.appendleft(batch)
                work.idle_deaths += 1
                if work.idle_deaths > IDLE_DEATHS:
                    raise PoolError(
                        f"{self._where()}: its processes end between calls; "
                        f"the last ended with status {code}"
                    ) from None
                continue
            worker.flight = set(batch)
            worker.limit = time.monotonic() + self.limit
        needed = len(work.waiting) - starting
        for _ in range(min(self.size - len(self.workers), needed)):
            self._add_worker()

    def _collect(self, work: Work) -> None:
        """Waits for the next message or deadline, and acts on all that are there."""
        active = [w for w in self.workers if w.flight or not w.ready]
        with selectors.DefaultSelector() as selector:
            for worker in active:
                selector.register(worker.outlet, selectors.EVENT_READ, worker)
            soonest = min((w.limit for w in active), default=0.0)
            events = selector.select(max(soonest - time.monotonic(), 0.0))
        for key, _ in events:
            messages = key.data.receive()
            if messages is None:
                self._lost(key.data, work, late=False)
                active.remove(key.data)
                continue
            for message in messages:
                self._read(key.data, message, work.replies)
        now = time.monotonic()
        for worker in active:
            if now >= worker.limit and (worker.flight or not worker.ready):
                self._lost(worker, work, late=True)

    def _read(self, worker: Worker, message: dict, replies: dict[int, Reply]) -> None:
        if "failed" in message:
            raise PoolError(f"{self._where()} cannot be loaded:\n{message['failed']}")
        if "ready" in message:
            worker.ready = True
            return
        number = message["number"]
        worker.flight.discard(number)
        if "timeout" in message:
            replies[number] = self._timeout()
        elif "error" in message:
            replies[number] = Reply(None, "error", message["error"])
        elif message["value"] is None:
            replies[number] = Reply(None, "unscored")
        elif not math.isfinite(message["value"]):
            replies[number] = Reply(None, "nan")
        else:
            replies[number] = Reply(message["value"], "scored")

    def _lost(self, worker: Worker, work: Work, *, late: bool) -> None:
        """Buries a worker, late or dead, and settles the calls it left unanswered."""
        self.workers.remove(worker)
        code = worker.stop(patience=0.0 if late else 1.0)
        if not worker.ready:
            why = f"took over {STARTUP:.0f} s" if late else f"ended with status {code}"
            raise PoolError(f"{self._where()}: the process {why} while loading it")
        if len(worker.flight) > 1:  # which of them is to blame shows when each is alone
            again = sorted(worker.flight, reverse=True)
            work.waiting.extendleft([number] for number in again)
            return
        for number in worker.flight:
            if late or code == -signal.SIGALRM:
                work.replies[number] = self._timeout()
            else:
                error = f"the process ended with status {code} during the call"
                work.replies[number] = Reply(None, "error", error)

    def _timeout(self) -> Reply:
        return Reply(None, "timeout", f"no answer in {self.deadline:g} s")

    def _where(self) -> str:
        return f"function {self.target.qualname!r} of {self.target.path}"


def _stop_all(workers: list[Worker], owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child's copy: the processes are not its own
    while workers:
        workers.pop().stop()
