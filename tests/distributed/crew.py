"""Starts jobs of many processes on this machine and waits for their end."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests" / "distributed" / "small.py"
DEVICES = 8


class Ended(NamedTuple):
    codes: list[int]
    logs: list[str]
    """Of each process: stdout and stderr."""
    seconds: float


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def run(
    folder: Path,
    words: Sequence[str],
    processes: int,
    inside: Sequence[Path] = (),
    /,
    **more: str,
) -> Ended:
    """`python WORDS...` as so many processes, with eight devices among them; `more`
    are environment variables, `inside` the current folder of each process. All are
    killed after five minutes."""
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    devices = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": devices,
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in less time
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    if processes > 1:
        environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
        environment["JAX_NUM_PROCESSES"] = str(processes)
    logs = [folder / f"log-{time.time_ns()}-{k}" for k in range(processes)]
    began, children = time.monotonic(), []
    for process, log in enumerate(logs):
        own = {"JAX_PROCESS_ID": str(process)} if processes > 1 else {}
        with log.open("wb") as file:
            child = subprocess.Popen(
                [sys.executable, *words],
                env=environment | own | more,
                stdout=file,
                stderr=file,
                cwd=inside[process] if inside else ROOT,
            )
        children.append(child)
    try:
        for child in children:
            child.wait(300)
    finally:
        for child in children:
            child.kill()
    seconds = time.monotonic() - began
    codes = [child.wait() for child in children]
    return Ended(codes, [log.read_text(errors="replace") for log in logs], seconds)


def train(folder: Path, name: str, kind: str, processes: int, ends: str = "") -> Ended:
    """`jaxloop run` of the small config into folder/name; ends: see small.py."""
    words = ["-m", "jaxloop", "run", f"{SMALL}:{kind}", f"out={folder / name}"]
    return run(folder, words, processes, TEST_ENDS=ends)


def finished(folder: Path, name: str, kind: str, processes: int) -> Path:
    """The folder of a run that came to its end."""
    ended = train(folder, name, kind, processes)
    assert ended.codes == [0] * processes, "\n".join(ended.logs)
    return folder / name
