"""The parents of a job's processes, with programs that need no jax."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxloop.config import ConfigError
from jaxloop.job import Job, find_job
from tests.distributed import crew

SUPERVISE = """
import sys
from jaxloop.cli import supervisor
from jaxloop.job import find_job
supervisor.SETTLE = 0.7
sys.exit(supervisor.supervise([sys.executable, "-c", *sys.argv[1:]], find_job()))
"""
WAIT = "time.sleep(60)"


def job(tmp_path, *bodies: str, **more: str) -> crew.Ended:
    """Process k runs `bodies[k]`, with `process` and `time` at hand."""
    cases = "".join(
        f"\nif process == {k}:\n    {body}" for k, body in enumerate(bodies)
    )
    text = "import os, signal, sys, time\nprocess = int(os.environ['JAX_PROCESS_ID'])"
    return crew.run(tmp_path, ["-c", SUPERVISE, text + cases], len(bodies), **more)


def test_all_are_called_before_any_starts_and_end_together(tmp_path):
    there = f"open({str(tmp_path)!r} + f'/{{process}}', 'w').close()"
    count = f"print(len([n for n in os.listdir({str(tmp_path)!r}) if len(n) == 1]))"
    ended = job(tmp_path, there, there, f"time.sleep(1); {count}")
    assert ended.codes == [0, 0, 0], ended.logs
    assert "2\n" in ended.logs[2]
    assert "3 processes are here" in ended.logs[0]


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("sys.exit(2)", 2, "process 1 ({host}) ended with exit code 2"),
        ("sys.exit(1)", 1, "process 1 ({host}) ended with exit code 1"),
        ("os.kill(os.getpid(), 9)", 75, "process 1 ({host}) was lost"),
        ("os.kill(os.getppid(), 9)", 75, "process 1 ({host}) was lost"),
        ("os.abort()", 75, "process 1 ({host}) lost the others"),
    ],
)
def test_the_end_of_one_is_the_end_of_all(tmp_path, body, code, words):
    ended = job(tmp_path, WAIT, body, WAIT)
    itself = -9 if "getppid" in body else code
    assert ended.codes == [code, itself, code], ended.logs
    assert ended.seconds < 30
    said = words.format(host=os.uname().nodename)
    assert said in ended.logs[0]
    assert said in ended.logs[2]


def test_without_the_first_process_the_others_end_too(tmp_path):
    """And nothing of the first one's program is left running."""
    pid = tmp_path / "pid"
    body = f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(1)"
    body += "; os.kill(os.getppid(), 9); time.sleep(60)"
    ended = job(tmp_path, body, WAIT)
    assert ended.codes == [-9, 75]
    assert "process 0" in ended.logs[1]
    assert "was lost" in ended.logs[1]
    time.sleep(0.2)
    stat = Path("/proc", pid.read_text(), "stat")  # gone, or dead and not yet buried
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_a_cause_is_told_from_its_consequences(tmp_path):
    """Process 0 fails; process 1 is aborted for having lost it, and is seen first."""
    ended = job(tmp_path, "time.sleep(0.5); sys.exit(2)", "os.abort()")
    assert ended.codes == [2, 2], ended.logs


def test_sigterm_is_handed_on_and_waited_for(tmp_path):
    obey = "signal.signal(15, lambda *_: (time.sleep(1), sys.exit(143)))"
    obey += "; os.kill(os.getppid(), 15); time.sleep(60)"
    ended = job(tmp_path, obey, obey)
    assert ended.codes == [143, 143], ended.logs


def test_who_does_not_come_is_named(tmp_path):
    alone = {"JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "0"}
    alone["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{crew.free_port()}"
    words = ["-c", SUPERVISE, "pass"]
    ended = crew.run(tmp_path, words, 1, JAXLOOP_JOIN_TIMEOUT="2", **alone)
    assert ended.codes == [75]
    assert "1 of 3 processes are here: 0 (" in ended.logs[0]
    assert "waiting for 1, 2 after 2 s; exit code 75" in ended.logs[0]
    late = {**alone, "JAX_PROCESS_ID": "2"}
    ended = crew.run(tmp_path, words, 1, JAXLOOP_JOIN_TIMEOUT="1", **late)
    assert ended.codes == [75]
    assert "process 2: not all processes were at 127.0.0.1:" in ended.logs[0]


def test_different_commands_are_refused(tmp_path):
    variables = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{crew.free_port()}"}
    variables["JAX_NUM_PROCESSES"] = "2"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, "pass", f"seed={process}"],
            env=os.environ | variables | {"JAX_PROCESS_ID": str(process)},
            cwd=crew.ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    for child in children:
        _, text = child.communicate(timeout=60)
        assert child.returncode == 2, text
        assert "process 1" in text
        assert "was started otherwise than process 0" in text


def test_sigterm_while_others_are_waited_for(tmp_path):
    variables = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{crew.free_port()}"}
    variables |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, "pass"],
        env=os.environ | variables,
        cwd=crew.ROOT,
    )
    time.sleep(2.0)
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 143


NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (("host:1234", "4", "3"), Job("host:1234", 4, 3, None)),
        (("host:1234", "1", "0"), None),
        (("host:1234", "2", "2"), ConfigError),
        (("host", "2", "1"), ConfigError),
        (("host:1234", "two", "1"), ConfigError),
    ],
)
def test_the_environment_names_the_job(monkeypatch, values, found):
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, value)
    if found is ConfigError:
        with pytest.raises(ConfigError, match=r"needs the HOST:PORT"):
            find_job()
    else:
        assert find_job() == found


def test_slurm_open_mpi_and_nothing_are_told_apart(monkeypatch):
    assert find_job() is None
    slurm = {"SLURM_JOB_ID": "70000", "SLURM_STEP_NODELIST": "node[07-09],other"}
    slurm |= {"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    slurm["SLURM_STEP_NUM_NODES"] = "4"
    with monkeypatch.context() as patch:
        for name, value in slurm.items():
            patch.setenv(name, value)
        patch.setenv("JAX_COORDINATOR_PORT", "8476")
        assert find_job() == Job("node07:8476", 8, 5, (1,))
        patch.setenv("SLURM_NTASKS", "1")
        assert find_job() is None
    ompi = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
    ompi |= {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
    ompi["OMPI_COMM_WORLD_LOCAL_RANK"] = "0"
    for name, value in ompi.items():
        monkeypatch.setenv(name, value)
    found = find_job()
    assert found is not None
    assert found[1:] == (2, 1, (0,))
    assert found.address.startswith("10.96.0.1:")


def test_a_job_is_found_again_in_the_environment_of_its_child(monkeypatch):
    given = Job("[::1]:99", 3, 2, (1, 4))
    for name, value in given.environment().items():
        monkeypatch.setenv(name, value)
    assert find_job() == given
