"""`cloud`: a project of its own, a fake gcloud, and hosts that are local processes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HURRY = ("--poll=0.3", "--first=0.05", "--connect=20", "--grace=5", "--quiet=2")

TOOLS = {
    # -S: quick to start, and nothing but the standard library is needed.
    "gcloud": 'exec {python} -S {here}/fake_gcloud.py "$@"',
    # The interpreter of the image, and one that is new enough.
    "python3": 'exec {python} -S "$@"',
    "python3.13": """
if [ "$1" = -c ]; then exit 0; fi
[ "$1 $2" = "-m venv" ] || exit 9
mkdir -p "$3/bin" && ln -s {bin}/venv-python "$3/bin/python"
echo "venv ${{3##*/}}" >> "$FAKE_CLOUD/installs"
""",
    "venv-python": """
case "$*" in
    "-m pip"*) echo "$HOME $*" >> "$FAKE_CLOUD/installs" && exit 0 ;;
    *"supervise.py devices") [ -z "$TOY_DEVICES" ] || exit "$TOY_DEVICES" ;;
    "-m jaxloop"*) [ -z "$TOY_DEVICES" ] || exec {toy} "${{@:3}}" ;;
esac
exec {python} "$@"
""",
    "gcsfuse": """
folder="${{@: -1}}" bucket="${{@: -2:1}}"
mkdir -p "$FAKE_CLOUD/buckets/$bucket" && rmdir "$folder" || exit 1
ln -s "$FAKE_CLOUD/buckets/$bucket" "$folder"
""",
    "mountpoint": '[ -L "$2" ]',
}


class Cloud:
    """One test's cloud, and the tree that is launched from."""

    def __init__(self, folder: Path):
        self.folder, self.tree = folder / "cloud", folder / "tree"
        self.bin = folder / "bin"
        self.folder.mkdir()
        self.bin.mkdir()
        self.children: list[subprocess.Popen] = []
        self.orders = {"host_env": {"TOY_DEVICES": "0"}}
        for name, body in TOOLS.items():
            toy = f"{sys.executable} -S {HERE}/toy_job.py"
            text = body.format(python=sys.executable, here=HERE, bin=self.bin, toy=toy)
            (self.bin / name).write_text(f"#!/bin/bash\n{text}\n")
            (self.bin / name).chmod(0o755)
        self.env = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder),
            "FAKE_CLOUD": str(self.folder),
            "GIT_CONFIG_GLOBAL": "/dev/null",
        }
        self.order()

    def plant(self, *parts: str) -> None:
        """A repository with these parts of ours, and one commit."""
        for part in ("launch", "setup.py", ".gitignore", *parts):
            source, target = ROOT / part, self.tree / part
            target.parent.mkdir(parents=True, exist_ok=True)
            ignore = shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, target, ignore=ignore)
            else:
                shutil.copy(source, target)
        who = ("-c", "user.name=t", "-c", "user.email=t@t")
        self.git("init", "-q")
        self.git("add", ".")
        self.git(*who, "commit", "-q", "-m", "one")

    def git(self, *words: str) -> str:
        done = subprocess.run(
            ["git", *words],
            cwd=self.tree,
            env=self.env,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def order(self, **orders) -> None:
        self.orders |= orders
        (self.folder / "orders.json").write_text(json.dumps(self.orders))

    def popen(self, *words: str, hurry=HURRY) -> subprocess.Popen:
        child = subprocess.Popen(
            [sys.executable, str(self.tree / "launch" / "tpu.py"), *words, *hurry],
            cwd=self.tree,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.children.append(child)
        return child

    def tpu(self, *words: str, limit: float = 150, hurry=HURRY):
        """Runs launch/tpu.py: (exit code, stdout, stderr)."""
        child = self.popen(*words, hurry=hurry)
        try:
            out, err = child.communicate(timeout=limit)
        finally:
            child.kill()
        return subprocess.CompletedProcess(words, child.returncode, out, err)

    def calls(self, *parts: str) -> list[list[str]]:
        """The command lines so far that hold all the parts."""
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [
            words
            for words in map(json.loads, lines)
            if all(part in " ".join(words) for part in parts)
        ]

    def state(self) -> dict:
        file = self.folder / "state.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def is_empty(self) -> bool:
        """Nothing is left that costs money."""
        now = self.state()
        return not now.get("queued") and not now.get("nodes")

    def outputs(self, name: str) -> Path:
        return self.folder / "buckets" / "b" / name

    def remembered(self, name: str) -> dict:
        return json.loads((self.tree / "runs/tpu" / name / "state.json").read_text())

    def end(self) -> None:
        """Whatever a failed test left running, here and on the hosts."""
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
        before = dict(os.environ)
        os.environ["FAKE_CLOUD"] = str(self.folder)
        try:
            space: dict = {"__name__": "fake"}
            exec((HERE / "fake_gcloud.py").read_text(), space)
            space["kill_all"](str(self.folder) + "/")
        finally:
            os.environ.clear()
            os.environ.update(before)


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.end()


@pytest.fixture
def small(cloud):
    """With a tree of the launcher and one config."""
    cloud.plant("configs/quickstart.py")
    return cloud
