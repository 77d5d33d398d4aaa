"""launch/slurm.sbatch and mpirun.sh: what they start, and when they try again."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed import crew
from tests.launch import slurm_node

ROOT = Path(__file__).parents[2]
# An interpreter that makes a venv with the program in it, and installs nothing.
PYTHON = """#!/bin/bash
case "$*" in
    *version_info*) echo 3.12 ;;
    *"sys.version)"*) echo "3.12.0 fake" ;;
    "-m venv"*) mkdir -p "$4/bin"
        cp "$0" "$4/bin/python"
        cp {program} "$4/bin/jaxloop" ;;
esac
"""


@pytest.fixture
def submitted(tmp_path):
    """submitted(program): a repository whose `jaxloop` is that script, and variables
    with which its scripts make do."""

    def made(program: str) -> tuple[Path, dict[str, str]]:
        tree, script = tmp_path / "tree", tmp_path / "program"
        shutil.copytree(ROOT / "launch", tree / "launch")
        (tree / "setup.py").touch()
        python = tmp_path / "python"
        python.write_text(PYTHON.format(program=script))
        script.write_text(f"#!/bin/bash\n{program}\n")
        for path in (python, script):
            path.chmod(0o755)
        return tree, {"JAXLOOP_PYTHON": str(python), "JAXLOOP_EXTRA": "cpu"}

    return made


SRUN = """#!/bin/bash
echo "srun $*"
trap 'exit 143' TERM
echo $$ > {here}/srun.pid
code=$(cat {here}/code)
if [ "$code" = term ]; then kill -TERM "$PPID"; while :; do sleep 0.1; done; fi
exit "$code"
"""
SCANCEL = """#!/bin/bash
echo "scancel $*"
kill -TERM "$(cat {here}/srun.pid)"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*"
kill -KILL "$PPID"
"""


@pytest.fixture
def queue(tmp_path, submitted):
    """queue(code): what a start of the job prints and its exit code (-9 where the job
    was queued again), when srun ends with `code` (or is preempted: "term")."""
    tree, variables = submitted("")
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text.format(here=tmp_path))
        (tmp_path / name).chmod(0o755)
    variables |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    variables |= {"SLURM_SUBMIT_DIR": str(tree), "SLURM_JOB_ID": "7"}
    variables["SLURM_JOB_NAME"] = "jaxloop"

    def start(code: int | str, *words: str) -> tuple[int, str]:
        (tmp_path / "code").write_text(str(code))
        done = subprocess.run(
            ["bash", str(tree / "launch" / "slurm.sbatch"), *words],
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    return start


def test_a_job_that_is_done_leaves_the_queue(queue):
    code, text = queue(0, "some.py", "out=/x y", "a=1")
    assert code == 0
    assert ".venv/bin/jaxloop run some.py out=/x y a=1" in text
    assert "scontrol" not in text


@pytest.mark.parametrize("code", [1, 2, 3])
def test_what_would_end_the_same_again_is_not_tried_again(queue, code):
    found, text = queue(code, "some.py")
    assert found == code
    assert f"exit code {code}: not tried again" in text


def test_a_job_without_a_config_says_so(queue):
    code, text = queue(0)
    assert code == 1
    assert "name a config file" in text


@pytest.mark.parametrize("code", [75, 134, 137])
def test_losses_are_tried_again_but_not_for_ever(queue, code):
    for _ in range(2):
        found, text = queue(code, "some.py")
        assert found == -9
        assert "scontrol requeue 7" in text
    found, text = queue(code, "some.py")
    assert found == code
    assert "3 times in a row" in text
    assert "scontrol" not in text
    assert queue(code, "some.py")[0] == -9  # counted anew


def test_sigterm_ahead_of_time_reaches_the_run(queue):
    for _ in range(4):  # as often as it comes
        code, text = queue("term", "some.py")
        assert code == -9
        assert "scancel --signal=TERM 7" in text
        assert "exit code 143" in text
        assert "scontrol requeue 7" in text


def test_open_mpi_is_told_all_it_needs(tmp_path, submitted):
    """mpirun itself is one that starts nothing."""
    tree, _ = submitted("")
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / ".venv" / "bin" / "jaxloop").write_text("#!/bin/bash\necho ran\n")
    (tree / ".venv" / "bin" / "jaxloop").chmod(0o755)
    (tmp_path / "mpirun").write_text('#!/bin/bash\nprintf "%s|" "$@"; env\n')
    (tmp_path / "mpirun").chmod(0o755)
    script = str(tree / "launch" / "mpirun.sh")
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": "/"}
    variables["JAX_COORDINATOR_PORT"] = "1234"

    def call(*words: str):
        return subprocess.run(
            [script, *words], env=variables, capture_output=True, text=True
        )

    done = call("-np", "2", "--", "some.py", "a=x y")
    assert done.stdout.startswith("-np|2|-x|JAX_COORDINATOR_ADDRESS|"), done
    assert "/.venv/bin/jaxloop|run|some.py|a=x y|" in done.stdout
    assert f"JAX_COORDINATOR_ADDRESS={os.uname().nodename}:1234" in done.stdout
    assert call("-np", "2").returncode == 1
    assert "give options of mpirun" in call("some.py").stderr


def until(condition, seconds: float, what):
    ended = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ended, what()
        time.sleep(0.2)


PROGRAM = """
cd {root}
case ${{SLURM_RESTART_COUNT:-0}} in
    0) export TEST_ENDS="1 9 2" ;;
    1) export TEST_ENDS="0,1 0 2" ;;
esac
export PYTHONPATH={path} JAX_PLATFORMS=cpu TEST_PAUSE=20
export XLA_FLAGS=--xla_force_host_platform_device_count=4
export JAX_COMPILATION_CACHE_DIR={compiled} JAX_DISABLE_MOST_OPTIMIZATIONS=1
exec {python} -m jaxloop "$@"
"""


def program(folder: Path) -> str:
    """The real `jaxloop`, on four devices a process. In its first start under SLURM
    process 1 is killed, in its second it stands still for a while."""
    return PROGRAM.format(
        root=ROOT,
        path=":".join(filter(None, sys.path)),
        compiled=folder / "compiled",
        python=sys.executable,
    )


@pytest.mark.full
@pytest.mark.skipif(bool(slurm_node.missing()), reason=slurm_node.missing())
def test_a_job_under_slurm_is_lost_preempted_and_done(tmp_path, submitted):
    tree, variables = submitted(program(tmp_path))
    log, out = tree / "log", tmp_path / "out"
    config = f"{ROOT}/tests/distributed/small.py:grpo"
    ports = crew.free_port(), crew.free_port()
    with slurm_node.cluster(tmp_path / "slurm", ports) as environment:

        def slurm(*words: str) -> str:
            done = subprocess.run(
                words,
                env=environment | variables,
                cwd=tree,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done
            return done.stdout

        def said() -> str:
            return log.read_text(errors="replace") if log.exists() else ""

        asked = ["sbatch", "--ntasks=2", f"--output={log}", "--parsable"]
        job = slurm(*asked, "launch/slurm.sbatch", config, f"out={out}").strip()

        def queued_again(times: int) -> None:
            until(lambda: said().count("is queued again") == times, 200, said)
            shown = ["squeue", f"--job={job}", "--noheader", "--format=%T"]
            until(lambda: "PENDING" in slurm(*shown), 60, said)
            # SLURM waits two minutes by itself.
            slurm("scontrol", "update", f"JobId={job}", "StartTime=now")

        queued_again(1)
        assert "was lost: the job ends with exit code 75" in said()
        until(lambda: said().count("update 2 in process") >= 3, 200, said)
        slurm("scancel", "--batch", "--signal=TERM", job)
        queued_again(2)
        assert "stopped; the same command goes on" in said()
        until((out / "summary.json").exists, 200, said)
        shown = ["scontrol", "show", "job", job]
        until(lambda: "JobState=COMPLETED" in slurm(*shown), 60, said)
    assert f"job {job}, start 3: 2 processes" in said()


@pytest.mark.full
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun (openmpi-bin)")
def test_a_job_under_open_mpi(tmp_path, submitted):
    tree, _ = submitted("")
    (tree / ".venv" / "bin").mkdir(parents=True)
    jaxloop = tree / ".venv" / "bin" / "jaxloop"
    jaxloop.write_text(f"#!/bin/bash\nSLURM_RESTART_COUNT=2\n{program(tmp_path)}")
    jaxloop.chmod(0o755)
    config = f"{ROOT}/tests/distributed/small.py:grpo"
    script = str(tree / "launch" / "mpirun.sh")
    options = ["-np", "2", "--allow-run-as-root", "--oversubscribe"]
    port = {"JAX_COORDINATOR_PORT": str(crew.free_port())}
    done = subprocess.run(
        [script, *options, "--", config, f"out={tmp_path / 'out'}"],
        env=os.environ | port,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes are here" in done.stderr
    assert (tmp_path / "out" / "summary.json").exists()
