"""The launch scripts: clean, and clear about what is missing. Nothing is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted(ROOT.glob("launch/*.sh")), ROOT / ".ci" / "run"]
TOOLS = ("bash", "cat", "chmod", "cksum", "cp", "dirname", "head", "mkdir", "sed")


@pytest.fixture
def machine(tmp_path):
    """A copy of the scripts, and a PATH with a few tools and what a test fakes."""

    class Machine:
        bin = tmp_path / "bin"
        tree = tmp_path / "tree"

        def fake(self, name: str, body: str) -> None:
            path = self.bin / name
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)

        def launch(self, *args: str, **variables: str):
            return subprocess.run(
                [str(self.tree / "launch" / "local.sh"), *args],
                env={"PATH": str(self.bin), "HOME": str(tmp_path)} | variables,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
            )

    machine = Machine()
    machine.bin.mkdir()
    shutil.copytree(ROOT / "launch", machine.tree / "launch")
    (machine.tree / "setup.py").write_text("# one\n")
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (machine.bin / tool).symlink_to(found)
    (tmp_path / "some_config.py").touch()
    return machine


def answers(version: str, venv: bool = True) -> str:
    """A fake interpreter: says its version, and whether it has venv."""
    return f"""case "$*" in
    *"import venv"*) exit {0 if venv else 1} ;;
    *version_info*) echo {version} ;;
    --version) echo "Python {version}.0" ;;
    *"sys.version)"*) echo "{version}.0 fake" ;;
    "-m venv"*) exit 1 ;;
esac"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    subprocess.run(["bash", "-n", script], check=True)
    here = str(Path(sys.executable).parent)
    shellcheck = shutil.which("shellcheck", path=f"{here}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not on the PATH; ./launch/test.sh runs it")
    subprocess.run([shellcheck, "-x", script], check=True, cwd=ROOT)


def test_scripts_that_are_called_can_be():
    for script in SCRIPTS:
        called = script.name != "common.sh"
        assert os.access(script, os.X_OK) == called, script


def test_an_old_python_is_named_with_what_is_needed(machine):
    machine.fake("python3", answers("3.9"))
    done = machine.launch("some_config.py")
    assert done.returncode == 1
    assert "passed over python3: it is Python 3.9, but 3.11 or newer" in done.stderr
    assert "error: no Python 3.11 or newer with venv was found" in done.stderr
    assert "JAXLOOP_PYTHON=" in done.stderr


def test_a_python_without_venv_is_named_with_the_package(machine):
    machine.fake("python3", answers("3.12", venv=False))
    done = machine.launch("some_config.py")
    assert done.returncode == 1
    assert "without the venv module" in done.stderr
    assert "python3.12-venv" in done.stderr


def test_a_python_on_the_path_that_does_not_run_is_passed_over(machine):
    """Version managers leave names on the PATH whose interpreter is not installed."""
    machine.fake("python3", "exit 127")
    machine.fake("python3.12", answers("3.12"))
    done = machine.launch("some_config.py")
    assert "passed over python3: it does not run" in done.stderr
    assert f"({machine.bin}/python3.12); device: CPU" in done.stderr


def test_a_config_that_is_not_there_is_refused_before_anything_else(machine):
    done = machine.launch("no_such.py:tiny")
    assert done.returncode == 1
    assert "there is no config no_such.py" in done.stderr
    assert "found Python" not in done.stderr
    assert "configs/quickstart.py" in machine.launch().stderr


def test_an_unknown_device_is_refused(machine):
    done = machine.launch("some_config.py", JAXLOOP_EXTRA="gpu")
    assert done.returncode == 1
    assert "JAXLOOP_EXTRA=gpu is none of cpu, cuda, tpu" in done.stderr


def test_a_gpu_is_found_by_asking_the_driver(machine):
    machine.fake("python3", answers("3.12"))
    machine.fake("nvidia-smi", 'echo "GPU 0: NVIDIA H100 (UUID: GPU-1)"')
    assert "device: GPU 0: NVIDIA H100\n" in machine.launch("some_config.py").stderr
    machine.fake("nvidia-smi", "exit 9")
    assert "device: CPU" in machine.launch("some_config.py").stderr


MAKES_A_VENV = """
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$4/bin"
    cp "$0" "$4/bin/python"
    printf '#!/bin/bash\\nprintf "%%s\\\\n" "$@"\\n' > "$4/bin/jaxloop"
    chmod +x "$4/bin/jaxloop"
    exit 0
fi
"""


def test_the_second_start_goes_straight_to_the_run(machine, tmp_path):
    machine.fake("python3", MAKES_A_VENV + answers("3.12"))
    command = ["some_config.py:tiny", "a.b=3", "c=x y"]
    wanted = ["run", f"{tmp_path}/some_config.py:tiny", "a.b=3", "c=x y"]

    done = machine.launch(*command)
    assert done.stdout.splitlines() == wanted, done.stderr
    assert "installing jaxloop into .venv" in done.stderr
    done = machine.launch(*command)
    assert done.stdout.splitlines() == wanted, done.stderr
    assert "installing" not in done.stderr

    (machine.tree / "setup.py").write_text("# other requirements\n")
    assert "installing jaxloop" in machine.launch(*command).stderr
