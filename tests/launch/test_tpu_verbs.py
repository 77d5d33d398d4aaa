"""launch/tpu.py: looking at a run, ending it by hand, help and mistakes."""

import os
import signal

import pytest

from tests.launch.test_tpu_run import CONFIG, ONE, TWO, wait_for


def test_status_logs_ssh_stop_and_list(small):
    small.order(hosts=2)
    child = small.popen("run", "try1", *TWO, CONFIG, "hold=2")
    wait_for((small.outputs("try1") / "held-1").exists)
    status = small.tpu("status", "try1")
    assert "v4-16 in z, spot" in status.stdout
    assert "try1 worker 1: run" in status.stdout
    assert "newest checkpoint: step 1" in status.stdout
    text = small.tpu("logs", "try1", "--worker", "1").stdout
    assert "attempt 1 on host 1" in text
    assert "begins at step" in text
    assert small.tpu("logs", "try1", "--worker", "2").returncode == 2
    done = small.tpu("ssh", "try1", "--worker", "1", "pwd")
    assert done.stdout.strip() == str(small.folder / "hosts/try1/1")
    assert "a shell on" in small.tpu("ssh", "try1").stdout
    rows = small.tpu("list", "--zone", "z").stdout.splitlines()
    assert [row.split()[:2] for row in rows[1:]] == [["try1", "ACTIVE"]]

    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert small.tpu("stop", "try1").returncode == 0
    status = small.tpu("status", "try1").stdout
    assert "try1 worker 0: ended, exit code 143" in status
    assert small.tpu("delete", "try1").returncode == 0
    assert small.is_empty()
    assert "absent" in small.tpu("status", "try1").stdout
    assert small.tpu("logs", "try1").returncode == 2


def test_logs_follow_one_worker(small):
    child = small.popen("run", "try1", *ONE, CONFIG, "hold=2")
    wait_for((small.outputs("try1") / "held-0").exists)
    following = small.popen("logs", "try1", "-f")
    line = ""
    while "begins at step" not in line:
        line = following.stdout.readline()
        assert line
    host_log = small.folder / "hosts/try1/0/.jaxloop/try1/log"
    with open(host_log, "a") as file:
        file.write("something new\n")
    assert following.stdout.readline() == "something new\n"
    os.killpg(following.pid, signal.SIGKILL)
    following.communicate()
    os.kill(child.pid, signal.SIGTERM)
    child.communicate(timeout=100)


@pytest.mark.parametrize(
    "verb",
    ["create", "run", "logs", "status", "ssh", "stop", "delete", "list", "cost"],
)
def test_every_verb_has_help(small, verb):
    done = small.tpu(verb, "--help", hurry=())
    assert done.returncode == 0
    assert "--dry-run" in done.stdout
    assert "exit codes" in small.tpu("--help", hurry=()).stdout.lower()


def test_mistakes_on_the_command_line(small):
    words = ("--zone", "z", "--accelerator", "v6e-8", "--bucket", "gs://b")
    for command, says in (
        (("run", "a", *words, "configs/none.py", "--yes"), "configs/none.py is not"),
        (("run", "a", *words, "configs/quickstart.py"), "nobody is here to agree"),
        (("run", "a", "configs/quickstart.py"), "give --zone and --accelerator"),
        (("status", "a"), "nothing is remembered of a"),
        (("run", "a", *words, "configs/quickstart.py", "--what"), "unrecognized"),
    ):
        done = small.tpu(*command)
        assert done.returncode == 2
        assert says in done.stderr
    assert not small.calls()
