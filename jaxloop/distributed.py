"""Many processes run one program: each does the same host work and has its own devices.

All processes hold the same prompts, records and decisions. What the devices compute is
one global program; its results come to every process (`fetch`), and what it takes from
the host is the same everywhere (`place`). Whatever could differ from host to host, or
from one instant to the next (files, clocks, the network), is looked at by the first
process alone, which tells the others (`told`): two processes that decide differently
wait for each other for ever. The first alone writes files; checkpoints are by all.

With a single process all of this does nothing.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxloop.config.errors import ConfigError
from jaxloop.exit_codes import AGREED
from jaxloop.job import Job, find_job, join_seconds

T = TypeVar("T")

HEARTBEAT_SECONDS = 100  # jax's own; the supervisor notices an end at once
SHUTDOWN_SECONDS = 1800  # the first process writes the report meanwhile


def init_distributed(job: Job | None = None) -> None:
    """Joins the other processes of the job (that of the environment), if there are any.
    Once a process, before jax has looked at its devices."""
    job = job or find_job()
    if job is None:
        return
    jax.distributed.initialize(
        job.address,
        job.processes,
        job.process,
        local_device_ids=job.local_devices,
        cluster_detection_method="deactivate",  # detected already
        initialization_timeout=join_seconds(),
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )


def leave(code: int) -> None:
    """To be called last in a process that ends with `code`. Where not all end so, it
    does not wait for the others, as jax does at exit: this call then ends the process.
    """
    if not many():
        return
    if code in AGREED:
        jax.distributed.shutdown()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def many() -> bool:
    """Whether this process has others beside it. Starts nothing of jax's."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return not many() or jax.process_index() == 0


def fetch(tree: Any) -> Any:
    """The tree with numpy arrays, the same in every process; all must call."""
    if not many():
        return jax.device_get(tree)

    def whole(x):
        apart = isinstance(x, jax.Array) and not x.is_fully_addressable
        if apart and not x.is_fully_replicated:
            return multihost_utils.process_allgather(x, tiled=True)
        return jax.device_get(x)

    return jax.tree.map(whole, tree)


def place(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Host arrays, the same in every process, as global arrays cut by `sharding`. With
    a single process jit does that by itself."""
    if not many():
        return tree

    def one(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree)


def told(look: Callable[[], T]) -> T:
    """`look()` (a JSON value) of the first process, in every process. All must call; it
    is a barrier, too. Where the first one raises, the job ends with its error."""
    if not many():
        return look()
    text = json.dumps(look()).encode() if is_first() else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    # Few sizes, so that few programs are compiled.
    padded = np.zeros(1 << max(length - 1, 255).bit_length(), np.uint8)
    if is_first():
        padded[:length] = np.frombuffer(text, np.uint8)
    data = multihost_utils.broadcast_one_to_all(padded)
    return json.loads(data[:length].tobytes())


def barrier() -> None:
    """Until all processes are here: what the first wrote before it is there."""
    told(lambda: None)


class Unlike(ConfigError):
    """The processes of a job were not started alike."""


def same_everywhere(what: str, text: Callable[[], str], mend: str) -> None:
    """Unlike, in all processes, where `text()` is not the same in all of them; `mend`
    says what to do then."""
    if not many():
        return
    import hashlib

    digest = hashlib.sha256(text().encode()).digest()
    mine = np.frombuffer(digest, np.uint8)
    all_N32 = multihost_utils.process_allgather(mine)
    other = np.flatnonzero((all_N32 != all_N32[0]).any(axis=1))
    if other.size:
        names = ", ".join(map(str, other.tolist()))
        raise Unlike(f"{what} of process {names} is not that of process 0: {mend}")


# What jax, its collectives and its coordination service say when others are gone.
_LOST = (
    *("connection closed", "connection reset", "connection refused", "broken pipe"),
    *("socket closed", "unavailable:", "heartbeat", "coordination service"),
    *("deadline_exceeded", "timed out waiting", "nccl operation", "barrier"),
)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error of jax's tells that another process of the job has gone."""
    chain: BaseException | None = error
    while chain is not None:
        text = str(chain).lower()
        if isinstance(chain, RuntimeError) and any(words in text for words in _LOST):
            return many()
        chain = chain.__cause__ or chain.__context__
    return False
