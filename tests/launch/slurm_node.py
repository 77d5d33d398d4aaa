"""A SLURM cluster of one node: this machine, for as long as a test takes."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
SBIN = "/usr/sbin"


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    path = f"{os.environ['PATH']}:{SBIN}"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not there (Debian: slurmctld slurmd slurm-client)"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as root only"


def _config(folder: Path, ports: tuple[int, int]) -> str:
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    return f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def cluster(folder: Path, ports: tuple[int, int]) -> Iterator[dict[str, str]]:
    """The environment in which `sbatch` and the like find the cluster."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    config = folder / "slurm.conf"
    config.write_text(_config(folder, ports))
    path = f"{os.environ['PATH']}:{SBIN}"
    environment = os.environ | {"SLURM_CONF": str(config), "PATH": path}
    daemons = [
        subprocess.Popen(
            [shutil.which(name, path=path) or name, "-D", "-f", str(config)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in ("slurmctld", "slurmd")
    ]
    try:
        for _ in range(100):
            asked = ["sinfo", "--noheader", "--format=%T"]
            told = subprocess.run(
                asked, env=environment, capture_output=True, text=True
            )
            if told.stdout.strip() == "idle":
                break
            time.sleep(0.3)
        else:
            log = (folder / "slurmctld.log").read_text()
            raise TimeoutError(f"the node does not come up: {told}\n{log}")
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
