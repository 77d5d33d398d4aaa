"""docs/gpu.md and launch/Dockerfile: what they say can be done."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from jaxloop import exit_codes
from jaxloop.cli.main import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gpu.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)
LINES = [
    line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line
]
DOCKERFILE = (ROOT / "launch" / "Dockerfile").read_text()


def of_the_run(line: str) -> list[str]:
    """What follows `jaxloop run` in a command that starts one; [] in others."""
    words = shlex.split(line)
    config = next((i for i, w in enumerate(words) if w.startswith("configs/")), None)
    return [] if config is None else [w for w in words[config:] if w != "--dry-run"]


def test_the_page_has_all_ways_to_start():
    starts = " ".join(line.split()[0] for line in LINES)
    for name in ("local.sh", "sbatch", "mpirun.sh", "jaxloop", "docker"):
        assert name in starts


@pytest.mark.parametrize("line", [line for line in LINES if of_the_run(line)])
def test_every_run_of_the_page_would_start(line, monkeypatch, capsys):
    """Under eight devices, where the command does not ask for two."""
    monkeypatch.chdir(ROOT)
    words = of_the_run(line)
    if "--devices 2" in line:
        words = [w for w in words if not w.startswith("mesh.")] + ["mesh.data=8"]
    code = main(["run", *words, "--dry-run"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "decoder rows" in shown.out


def test_the_scripts_of_the_page_are_there():
    for name in re.findall(r"launch/[\w.]+", PAGE):
        assert (ROOT / name).exists(), name


def test_the_page_has_the_exit_codes():
    table = PAGE[PAGE.index("|exit code") :]
    for name, code in vars(exit_codes).items():
        if name.isupper() and isinstance(code, int):
            assert re.search(rf"\b{code}\b", table), name


def test_the_image_copies_what_there_is_and_installs_what_setup_offers(monkeypatch):
    asked = {}
    monkeypatch.setattr("setuptools.setup", lambda **given: asked.update(given))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    ignored = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
    for sources in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source
    extras = re.findall(r"EXTRA=(\w+)", DOCKERFILE + PAGE)
    assert {"cuda13", "cuda", "tpu"} <= {*extras}
    assert {*extras} <= {*asked["extras_require"]}
    needed = asked["python_requires"].removeprefix(">=")
    version = re.search(r"ARG PYTHON=([\d.]+)", DOCKERFILE)
    assert version is not None
    assert [*map(int, version[1].split("."))] >= [*map(int, needed.split("."))]
    # The program gets signals itself: no shell stands between.
    assert 'ENTRYPOINT ["jaxloop"]' in DOCKERFILE
