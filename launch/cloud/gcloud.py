"""Calling gcloud: time limits, kinds of errors, and a dry run of the same code.

No call is trusted to return, to succeed or to print what it should.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from launch.cloud.slices import ConfigurationError

QUICK, SLOW = 120.0, 1800.0  # seconds for a question; for copying and installing

# What gcloud and the API say, as far as it decides what to do next.
ABSENT = re.compile(r"NOT_FOUND|was not found|does not exist", re.I)
EXISTS = re.compile(r"ALREADY_EXISTS|already exists", re.I)
QUOTA = re.compile(r"RESOURCE_EXHAUSTED.*quota|quota.*(exceeded|limit)", re.I | re.S)
FOR_USERS = re.compile(
    r"PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT"
    r"|unrecognized arguments|Invalid choice|gcloud auth login|does not have permission"
    r"|required property \[(project|compute/zone)\]",
    re.I,
)


class CloudError(Exception):
    """gcloud failed in a way that may pass: no answer, no sense, no connection."""


class NotThere(Exception):
    """There is no such resource."""


class Done(NamedTuple):
    code: int
    out: str
    err: str


Answer = Callable[[Sequence[str]], Done]


class Gcloud:
    """Runs command lines.

    `dry`: prints them instead, and answers as an obliging cloud would (`answer`), so
    that what is printed is what the same code would run.
    """

    def __init__(self, *, dry: bool = False, answer: Answer | None = None):
        self.dry = dry
        self._answer = answer
        self._running: set[subprocess.Popen] = set()

    def abort(self) -> None:
        """Kills what is under way in other threads; they raise CloudError."""
        for child in list(self._running):
            kill_group(child)

    def call(self, argv: Sequence[str], *, limit: float = QUICK) -> Done:
        """The result, whatever the exit code. CloudError if there is none in time."""
        if self.dry:
            print(shlex.join(argv), flush=True)
            return self._answer(argv) if self._answer else Done(0, "", "")
        try:
            # A session of its own: Ctrl-C is ours to handle, and a hanging gcloud has
            # children.
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except FileNotFoundError:
            raise ConfigurationError(
                f"{argv[0]} is not on the PATH: https://cloud.google.com/sdk/docs/install"
            ) from None
        self._running.add(child)
        try:
            out, err = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise CloudError(
                f"no answer within {limit:g} s: {shlex.join(argv)}"
            ) from None
        finally:
            self._running.discard(child)
            if child.poll() is None:
                kill_group(child)
                child.communicate()
        return Done(child.returncode, out, err)

    def run(self, argv: Sequence[str], *, limit: float = QUICK) -> str:
        """What a command printed; NotThere, ConfigurationError or CloudError else."""
        done = self.call(argv, limit=limit)
        if done.code != 0:
            raise error_of(argv, done)
        return done.out

    def json(self, argv: Sequence[str]) -> Any:
        """The parsed answer; CloudError if it is no JSON."""
        text = self.run(argv)
        try:
            return json.loads(text)
        except ValueError:
            raise CloudError(
                f"this is no JSON: {text[:80]!r} ({shlex.join(argv)})"
            ) from None

    def attach(self, argv: Sequence[str]) -> int:
        """Runs with the user's own terminal; returns the exit code."""
        if self.dry:
            print(shlex.join(argv), flush=True)
            return 0
        try:
            return subprocess.call(argv)
        except FileNotFoundError:
            raise ConfigurationError(
                f"{argv[0]} is not on the PATH: https://cloud.google.com/sdk/docs/install"
            ) from None


def kill_group(child: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def error_of(argv: Sequence[str], done: Done) -> Exception:
    """What a failed command means."""
    said = done.err.strip() or done.out.strip() or f"exit code {done.code}"
    if QUOTA.search(said):
        return ConfigurationError(
            f"the quota does not allow this; IAM & Admin > Quotas shows it and takes "
            f"requests for more.\n{said}"
        )
    if ABSENT.search(said):
        return NotThere(said)
    if FOR_USERS.search(said):
        return ConfigurationError(f"{shlex.join(argv)}\n{said}")
    return CloudError(f"{said} ({shlex.join(argv[:5])} ...)")
