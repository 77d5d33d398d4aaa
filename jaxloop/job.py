"""Which process of a job this one is: given by the environment, or as jax detects it.

Importing this imports nothing of jax; `jax._src.clusters` has no public name.
"""

import os
from typing import NamedTuple

from jaxloop.config.errors import ConfigError

JOIN_TIMEOUT = "JAXLOOP_JOIN_TIMEOUT"
"""Environment variable: seconds in which all processes must be there."""
JOIN_SECONDS = 1800  # hosts of a preempted slice come back one by one
GIVEN: tuple[str, ...] = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)


class Job(NamedTuple):
    """Where this process stands among those of its job."""

    address: str
    """HOST:PORT of the first process."""
    processes: int
    process: int
    local_devices: tuple[int, ...] | None
    """Those of the host's GPUs that are this process's; None takes all devices."""

    def environment(self) -> dict[str, str]:
        """The variables from which `find_job` reads this again."""
        values = dict(zip(GIVEN, map(str, self[:3]), strict=True))
        if self.local_devices is not None:
            values["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, self.local_devices))
        return values


def find_job() -> Job | None:
    """What the environment says of other processes; None where this is the only one.

    JAX_COORDINATOR_ADDRESS (HOST:PORT), JAX_NUM_PROCESSES and JAX_PROCESS_ID where they
    are given, else what jax detects: Cloud TPU, SLURM, Open MPI, Kubernetes. There
    JAX_COORDINATOR_PORT replaces the port that it would take. ConfigError for variables
    that do not fit together.
    """
    if any(name in os.environ for name in GIVEN[1:]):
        return _given_job()
    from jax._src.clusters import ClusterEnv

    detect = ClusterEnv.auto_detect_unset_distributed_params
    address, count, process, local = detect(
        None, None, None, None, cluster_detection_method=None,
        initialization_timeout=join_seconds(),
    )  # fmt: skip
    if address is None or process is None or count in (None, 1):
        return None
    return Job(address, count, process, None if local is None else tuple(local))


def _given_job() -> Job | None:
    texts = [os.environ.get(name, "") for name in GIVEN]
    if texts[1] == "1":
        return None
    address, count, process = texts
    local = os.environ.get("JAX_LOCAL_DEVICE_IDS", "")
    fits = count.isdecimal() and process.isdecimal() and int(process) < int(count)
    if not fits or not address.rpartition(":")[2].isdecimal():
        shown = ", ".join(f"{n}={t!r}" for n, t in zip(GIVEN, texts, strict=True))
        raise ConfigError(
            f"{shown}: a job of many processes needs the HOST:PORT of its first "
            "process, how many there are, and which of them this is (from 0)"
        )
    devices = tuple(int(text) for text in local.split(",")) if local else None
    return Job(address, int(count), int(process), devices)


def join_seconds() -> int:
    """How long to wait for the other processes."""
    text = os.environ.get(JOIN_TIMEOUT, str(JOIN_SECONDS))
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"{JOIN_TIMEOUT}={text!r} is no number of seconds")
    return int(text)
