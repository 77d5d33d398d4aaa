"""`jaxloop run --sweep`: one process after another, each with its own folder."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from jaxloop.cli.run import resolve
from jaxloop.config.errors import ConfigError
from jaxloop.config.overrides import split_items
from jaxloop.config.secrets import redact_argv
from jaxloop.config.sweep import expand_sweep


def sweep(
    spec: str, default: Any, overrides: Sequence[str], text: str, looking: bool
) -> int:
    """Runs every combination of `text` on top of `overrides`; 0 if all ended with 0.

    All are checked before the first starts. A run that fails does not stop the others;
    Ctrl-C or SIGTERM does, after the run at work has saved. `looking` only prints them.
    """
    combinations = expand_sweep(text)
    base = _checked(default, overrides, combinations)
    jobs = []
    for index, combination in enumerate(combinations):
        name = f"sweep-{index:03d}"
        print(name, *redact_argv(combination), flush=True)
        jobs.append([*overrides, *combination, f"out={base}/{name}"])
    if looking:
        return 0
    codes = []
    for index, words in enumerate(jobs):
        print(f"sweep-{index:03d} of {len(jobs)} starts", flush=True)
        command = [sys.executable, "-m", "jaxloop", "run", spec, *words]
        code, stopped = _run_child(command)
        if stopped:
            return code or 130
        codes.append(code)
    failed = [f"sweep-{index:03d} ({code})" for index, code in enumerate(codes) if code]
    if failed:
        print(f"failed, with exit code: {', '.join(failed)}", file=sys.stderr)
    return next((code for code in codes if code), 0)


def _checked(
    default: Any, overrides: Sequence[str], combinations: Sequence[Sequence[str]]
) -> str:
    """The folder above all runs; ConfigError with the problems of all combinations."""
    if any(name == "out" for name, _ in split_items(combinations[0])[0]):
        raise ConfigError("--sweep: out cannot be swept, each run has a folder in it")
    base = str(resolve(default, overrides).folder)
    problems: dict[str, str] = {}
    for combination in combinations:
        try:
            resolve(default, [*overrides, *combination])
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, " ".join(redact_argv(combination)))
    if problems:
        raise ConfigError([f"{p} (in {where})" for p, where in problems.items()])
    return base


def _run_child(command: Sequence[str]) -> tuple[int, bool]:
    """(exit code, whether we were asked to stop meanwhile). The child is never killed:
    Ctrl-C reaches it by itself, SIGTERM is handed on, and then it is left to save."""
    stopped = False

    def hand_on(*_):
        nonlocal stopped
        stopped = True
        child.terminate()

    child = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        while True:
            try:
                code = child.wait()
                break
            except KeyboardInterrupt:
                stopped = True
    finally:
        signal.signal(signal.SIGTERM, before)
    return (128 - code if code < 0 else code), stopped
