"""The launch scripts: clean, and clear about what is missing. Nothing is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    *sorted(ROOT.glob("launch/*.sh")),
    ROOT / "launch" / "slurm.sbatch",
    ROOT / ".ci" / "run",
]
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
    assert "JAXLOOP_EXTRA=gpu is none of cpu, cuda, cuda13, tpu" in done.stderr


def gpus(driver: str, *capabilities: str) -> str:
    """A fake nvidia-smi of a machine with one GPU for each compute capability."""
    names = [f"GPU {i}: NVIDIA X{i} (UUID: GPU-{i})" for i in range(len(capabilities))]
    drivers = [driver] * len(capabilities)
    answers = {"-L": names, "*driver*": drivers, "*compute_cap*": capabilities}
    cases = "".join(
        f"    {pattern}) printf '%s\\n' {' '.join(map(repr, lines))} ;;\n"
        for pattern, lines in answers.items()
    )
    return f'case "$*" in\n{cases}esac'


@pytest.mark.parametrize(
    ("fake", "found", "extra"),
    [
        (gpus("580.65.06", "9.0", "9.0"), "2 x NVIDIA X0, CUDA 13", "[cuda13]"),
        (gpus("570.10", "9.0"), "1 x NVIDIA X0, CUDA 12", "[cuda]"),
        (gpus("590.1", "9.0", "7.0"), "2 x NVIDIA X0, CUDA 12", "[cuda]"),
        ("exit 9", "CPU", ""),
    ],
)
def test_the_driver_that_is_found_decides(machine, fake, found, extra):
    machine.fake("python3", MAKES_A_VENV + answers("3.12"))
    machine.fake("nvidia-smi", fake)
    done = machine.launch("some_config.py")
    assert f"device: {found}\n" in done.stderr
    assert f"installing jaxloop{extra} into .venv" in done.stderr


def test_a_driver_that_is_too_old_is_named(machine):
    machine.fake("nvidia-smi", gpus("470.1", "8.0"))
    done = machine.launch("some_config.py")
    assert done.returncode == 1
    assert "NVIDIA driver 470.1 is too old" in done.stderr
    assert "JAXLOOP_EXTRA=cpu" in done.stderr


SHOWS = (
    'for n in XLA_FLAGS JAX_PLATFORMS CUDA_VISIBLE_DEVICES; do echo "$n=${!n:-}"; done'
)


def started_with(machine, *arguments: str, **variables: str) -> dict[str, str]:
    """The variables that a run is started with."""
    machine.fake("python3", MAKES_A_VENV + answers("3.12"))
    done = machine.launch(*arguments, **variables)
    assert done.returncode == 0, done.stderr
    program = machine.tree / ".venv" / "bin" / "jaxloop"
    program.write_text(f"#!/bin/bash\n{SHOWS}\n")
    done = machine.launch(*arguments, **variables)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_the_cpu_as_many_devices(machine):
    """Beside what the caller has in XLA_FLAGS, and where there are GPUs, too."""
    machine.fake("nvidia-smi", gpus("580.1", "9.0"))
    shown = started_with(
        machine, "--simulate", "8", "some_config.py", "a=1", XLA_FLAGS="--one"
    )
    flags = "--one --xla_force_host_platform_device_count=8"
    assert shown["XLA_FLAGS"] == flags
    assert shown["JAX_PLATFORMS"] == "cpu"
    said = machine.launch("--simulate", "8", "some_config.py").stderr
    assert "device: CPU as 8 devices" in said


def test_some_of_the_gpus(machine):
    machine.fake("nvidia-smi", gpus("580.1", "9.0", "9.0", "9.0"))
    shown = started_with(machine, "--devices", "2", "some_config.py")
    assert shown["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert shown["JAX_PLATFORMS"] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "4", "some_config.py"], "there are 1 GPUs"),
        (["--devices", "x", "some_config.py"], "takes a number of devices, not 'x'"),
        (["--simulate", "0", "some_config.py"], "takes a number of devices"),
        (["--simulate"], "takes a number of devices, not ''"),
        (["--simulate", "2", "--devices", "2", "some_config.py"], "exclude each other"),
        (["--dry-run", "some_config.py"], "options of the run come after the config"),
        (["--simulate", "2"], "name a config file"),
    ],
)
def test_wrong_options_are_named(machine, words, message):
    machine.fake("nvidia-smi", gpus("580.1", "9.0"))
    done = machine.launch(*words)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_cpu_is_one_device(machine):
    done = machine.launch("--devices", "2", "some_config.py")
    assert done.returncode == 1
    assert "--simulate 2 makes 2 of it" in done.stderr


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


@pytest.mark.parametrize("obeys", [True, False])
def test_a_hanging_test_pool_ends_and_fails(machine, obeys):
    """Whether or not pytest ends when it is told to."""
    for tool in ("sleep", "timeout"):
        (machine.bin / tool).symlink_to(str(shutil.which(tool)))
    hangs = (
        "exec sleep 300" if obeys else "trap '' TERM; while true; do sleep 0.2; done"
    )
    pytest_hangs = f'case "$*" in *"-m pytest"*) {hangs} ;; esac\n'
    machine.fake("python3", MAKES_A_VENV + pytest_hangs + answers("3.12"))
    script = machine.tree / "launch" / "test.sh"
    if not obeys:
        script.write_text(
            script.read_text().replace("--kill-after=60", "--kill-after=1")
        )
    done = subprocess.run(
        [script, "tests/some"],
        env={"PATH": str(machine.bin), "HOME": "/", "JAXLOOP_TEST_MINUTES": "0.02"},
        cwd=machine.tree,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "pytest was stopped after 0.02 minutes: a test hangs" in done.stderr
    assert "error: failed: pytest;" in done.stderr
