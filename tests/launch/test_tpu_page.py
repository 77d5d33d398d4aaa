"""docs/tpu.md: its commands, in their order, as a new user would run them."""

import os
import re
import subprocess
import sys

from tests.launch.conftest import HURRY, ROOT
from tests.launch.test_tpu_run import wait_for

PAGE = (ROOT / "docs" / "tpu.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)
# As on the page, but with no time to lose between looks.
IMPATIENT = """
case "$1" in
    */tpu.py) exec {python} -S "$@" {hurry} ;;
esac
exec {python} -S "$@"
"""


class Shell:
    """Runs block after block in the environment that those before have made."""

    def __init__(self, cloud):
        self.cloud, self.env = cloud, dict(cloud.env)

    def begin(self, block: str) -> subprocess.Popen:
        script = f"set -eu\n{block}\nenv -0 > {self.cloud.folder}/env\n"
        child = subprocess.Popen(
            ["bash", "-c", script],
            cwd=self.cloud.tree,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.cloud.children.append(child)
        return child

    def end(self, child: subprocess.Popen) -> str:
        out, err = child.communicate(timeout=150)
        assert child.returncode == 0, out + err
        entries = (self.cloud.folder / "env").read_bytes().split(b"\0")
        pairs = (os.fsdecode(entry).partition("=") for entry in entries if entry)
        self.env = {name: value for name, _, value in pairs}
        return out + err

    def run(self, block: str) -> str:
        return self.end(self.begin(block))


def test_the_page_from_an_empty_project_to_a_finished_run(cloud):
    """Preempted once on the way, while the other terminal looks on."""
    cloud.plant("configs/self_rewarding.py")
    hurry = " ".join(HURRY)
    # `logs` and the like take them too.
    text = IMPATIENT.format(python=sys.executable, hurry=hurry)
    (cloud.bin / "python3").write_text(f"#!/bin/bash\n{text}\n")
    host_env = {"TOY_DEVICES": "0", "TOY_HOLD": "2"}
    cloud.order(hosts=4, host_env=host_env)
    for name in ("prompts.jsonl", "held_out.jsonl"):
        (cloud.tree / name).write_text('{"prompt": "hello"}\n')
    shell = Shell(cloud)
    (watching,) = [n for n, block in enumerate(BLOCKS) if "tpu.py status" in block]
    for block in BLOCKS[: watching - 1]:
        shell.run(block)
    assert not cloud.calls("queued-resources"), "nothing was created so far"

    running = shell.begin(BLOCKS[watching - 1])
    out = cloud.folder / "buckets" / shell.env["BUCKET"] / "self1"
    wait_for((out / "held-3").exists, seconds=100)
    said = shell.run(re.sub(r" -- ps aux", " -- echo a process", BLOCKS[watching]))
    assert "v6e-16 in europe-west4-a, spot" in said
    assert "begins at step" in said
    assert "a process" in said
    assert "ACTIVE" in said
    cloud.order(preempt=[f"buckets/{shell.env['BUCKET']}/self1"])
    assert "attempt 2: done" in shell.end(running)
    assert cloud.is_empty()

    for block in BLOCKS[watching + 1 :]:
        shell.run(block)
    assert (cloud.tree / "report.html").exists()
    metrics = (cloud.tree / "metrics.jsonl").read_text().splitlines()
    assert metrics == ["step 1", "step 2", "step 3"]
    assert not list((cloud.folder / "buckets").iterdir())


def test_what_the_page_says_is_there():
    for name in re.findall(r"`((?:configs|launch|docs)/[\w./]+)`", PAGE):
        assert (ROOT / name).exists(), name
    shown = " ".join(BLOCKS)
    for verb in ("run", "cost", "status", "logs", "ssh", "list", "delete"):
        assert f"tpu.py {verb}" in shown
    for option in set(re.findall(r"`(--[a-z-]+)", PAGE)):
        files = [*(ROOT / "launch" / "cloud").glob("*.py")]
        known = any(option.lstrip("-") in file.read_text() for file in files)
        assert known, option
