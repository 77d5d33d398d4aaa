"""The parent of each process of a job: calls the roll, watches, ends all as one.

jax joins its processes in silence, and one that loses another hangs in a collective or
is aborted. So every process of a job has a parent here, which holds a connection to the
parent of the first process: to be counted before the program starts, to hear at once
when another ends, and to end with the one exit code of the job (`exit_codes`). The
connections use the coordinator's port; the roll call is over before jax needs it.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from selectors import EVENT_READ, DefaultSelector

import jaxloop
from jaxloop import exit_codes
from jaxloop.cli.rollcall import Link, Refused, answer_roll, call_roll
from jaxloop.job import Job, find_job, join_seconds

SUPERVISED = "JAXLOOP_SUPERVISED"
SETTLE = 2.0
"""Seconds for the cause to show, where what comes first may be its consequence."""
GRACE = 60.0
"""Seconds for the others to end too, where all come to the same end."""
KILLED, ABORTED = 128 + signal.SIGKILL, 128 + signal.SIGABRT
CONSEQUENCES = (exit_codes.INFRASTRUCTURE, ABORTED)
"""How a process ends that lost another one."""


class Terminated(Exception):
    """SIGTERM before the program has started."""


def enter(argv: Sequence[str]) -> int | None:
    """To be called where `jaxloop ARGV` starts its work. None: go on, now joined to the
    other processes if there are any. Else the work was done, by a child of this
    process, and this is the exit code."""
    job = None if {"-h", "--help"} & set(argv) else find_job()
    if job is None:
        return None
    if SUPERVISED in os.environ:
        from jaxloop.distributed import init_distributed

        init_distributed(job)
        return None
    return supervise([sys.executable, "-m", "jaxloop", *argv], job)


def supervise(command: Sequence[str], job: Job) -> int:
    """Runs `command` as process `job.process` once all are there; the job's exit code.

    SIGTERM is handed on. Whatever happens, nothing of the command is left running.
    """
    child: subprocess.Popen | None = None

    def hand_on(*_):
        if child is None:
            raise Terminated
        child.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        hosts, links = _gather(command, job)
        environment = os.environ | job.environment() | {SUPERVISED: "1"}
        child = subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent)
        # Ctrl-C reaches the child by itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _Watch(job, hosts, links, child).until_over()
    except Refused as error:
        say(str(error))
        return exit_codes.CONFIGURATION
    except (TimeoutError, OSError) as error:
        say(f"{error}; exit code {exit_codes.INFRASTRUCTURE}: try again")
        return exit_codes.INFRASTRUCTURE
    except Terminated:
        return exit_codes.PREEMPTED
    finally:
        if child is not None:
            child.kill()
            child.wait()
        signal.signal(signal.SIGTERM, before)


def _gather(command: Sequence[str], job: Job) -> tuple[list[str], dict[int, Link]]:
    """The hosts by process, and the links: the first process's to all others, any
    other's to the first."""
    versions = f"jaxloop {jaxloop.__version__}, Python {sys.version.split()[0]}"
    words = hashlib.sha256("\0".join(command[1:]).encode()).hexdigest()[:12]
    same = f"{versions}, command {words}"
    deadline = time.monotonic() + join_seconds()
    if job.process == 0:
        return call_roll(job, same, deadline, say)
    hosts, link = answer_roll(job, same, deadline, say)
    return hosts, {0: link}


def _end_with_parent() -> None:
    """In the child: no program goes on whose supervisor was killed."""
    import ctypes

    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class _Watch:
    """From the start of the children until all are to end.

    `ended`: raw exit codes (128 + signal) by process in the order in which they became
    known. The first process decides; the others tell it and wait for its word.
    """

    def __init__(
        self,
        job: Job,
        hosts: list[str],
        links: dict[int, Link],
        child: subprocess.Popen,
    ):
        self.job, self.hosts, self.links, self.child = job, hosts, links, child
        self.ended: dict[int, int] = {}
        self.word: tuple[int, str] | None = None
        self.limit = float("inf")

    def until_over(self) -> int:
        """The job's exit code."""
        pid = os.pidfd_open(self.child.pid)
        with DefaultSelector() as selector:
            selector.register(pid, EVENT_READ, None)
            for process, link in self.links.items():
                selector.register(link.socket, EVENT_READ, (process, link))
            while self.word is None:
                wait = max(self.limit - time.monotonic(), 0)
                for key, _ in selector.select(None if wait == float("inf") else wait):
                    if key.data is None:
                        selector.unregister(pid)
                        self._own_end()
                    elif not self._heard(*key.data):
                        selector.unregister(key.fileobj)
                self._decide()
        os.close(pid)
        code, why = self.word
        if why:
            say(why)
        for link in self.links.values():
            link.send({"over": code, "why": why})
            link.socket.close()
        return code

    def _own_end(self) -> None:
        status = self.child.wait()
        code = status if status >= 0 else 128 - status
        self._note(self.job.process, code)
        if self.job.process:
            self.links[0].send({"ended": code})

    def _heard(self, process: int, link: Link) -> bool:
        """Reads what another parent says; False at its end."""
        lines = link.receive()
        for line in lines or ():
            if "over" in line and not self.job.process:
                continue
            if "over" in line:
                self.word = int(line["over"]), str(line["why"])
            elif "ended" in line:
                self._note(process, int(line["ended"]))
        if lines is None and process not in self.ended and self.word is None:
            self._note(process, KILLED)
            if self.job.process:  # nobody is left who could decide
                self.word = self._verdict()
        return lines is not None

    def _note(self, process: int, code: int) -> None:
        self.ended[process] = code
        wait = GRACE if code in exit_codes.AGREED else SETTLE
        self.limit = min(self.limit, time.monotonic() + wait)

    def _decide(self) -> None:
        if self.word is not None:
            return
        late = time.monotonic() >= self.limit
        if self.job.process == 0 and (late or len(self.ended) == self.job.processes):
            self.word = self._verdict()
        elif self.job.process and time.monotonic() >= self.limit + 2 * SETTLE:
            self.word = self._verdict()  # the first parent does not say anything

    def _verdict(self) -> tuple[int, str]:
        """(exit code, what to say of it): the first cause, else a consequence."""
        missing = [k for k in range(self.job.processes) if k not in self.ended]
        bad = {k: code for k, code in self.ended.items() if code}
        causes = {k: c for k, c in bad.items() if c not in CONSEQUENCES} or bad
        if not causes:
            if not missing or self.job.process:
                return exit_codes.DONE, ""
            causes = {missing[0]: KILLED}  # all is done, and it does not end
        process, code = next(iter(causes.items()))
        who = f"process {process} ({self.hosts[process]})"
        if code in (KILLED, *CONSEQUENCES):
            code = exit_codes.INFRASTRUCTURE
            lost = self.ended.get(process, KILLED) == KILLED
            what = "was lost" if lost else "lost the others"
            return code, f"{who} {what}: the job ends with exit code {code}, try again"
        if code in exit_codes.AGREED or code == exit_codes.INTERRUPTED:
            return code, ""
        return code, f"{who} ended with exit code {code}; its own output says why"


def say(text: str) -> None:
    print(f"jaxloop: {text}", file=sys.stderr, flush=True)
