"""docs/new_method.md: its file runs as it stands, from outside of the repository."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxloop.config.loading import load_config
from jaxloop.records import Pair, Prompt, Rollout

PAGE = Path(__file__).parents[2] / "docs" / "new_method.md"


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def config_file(blocks, tmp_path_factory) -> Path:
    name = re.match(r"# (\S+\.py)\n", blocks[0])
    assert name, "the first block begins with the name of its file"
    file = tmp_path_factory.mktemp("outside") / name[1]
    file.parent.mkdir()
    file.write_text(blocks[0])
    return file


@pytest.fixture
def recipe(config_file, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    return load_config(str(config_file)).recipe


def jaxloop(config_file: Path, *words: str) -> str:
    """What `jaxloop run` prints, from the folder of a user who has installed it."""
    installed = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-m", "jaxloop", "run", str(config_file), *words],
        cwd=config_file.parent.parent,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(installed), "JAX_PLATFORMS": "cpu"}
        | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rollouts(prompt: Prompt, *texts: str) -> tuple[Rollout, ...]:
    return tuple(
        Rollout(prompt.id, i, tuple(range(len(text))), text, (), (), "eos")
        for i, text in enumerate(texts)
    )


def test_the_file_passes_a_dry_run_with_its_own_settings(config_file):
    text = jaxloop(config_file, "--dry-run", "recipe.scorer.price=0.02")
    assert "frugal: qwen2" in text
    assert "update batch" in text


def test_the_fields_of_own_parts_are_in_the_help(config_file):
    text = jaxloop(config_file, "--help")
    assert "recipe.scorer.price: float = 0.01\n        What a token costs." in text
    assert "recipe.selector.gap: float = 0.5" in text


def test_the_parts_do_what_the_page_says(recipe):
    prompt = Prompt("p", "2+2=", (), {"answer": "4"})
    group = rollouts(prompt, "2+2+0=4#4", "#4", "4#4", "4", "#5")
    (scored,) = recipe.scorer([prompt], [group])
    values = [score.value for score in scored.scores]
    assert values == pytest.approx([0.91, 0.98, 0.97, None, -0.02])
    assert scored.scores[3].status == "unscored"
    assert scored.scores[4].components == {"right": 0.0}
    for gap, rejected in ((0.005, "4#4"), (0.05, "2+2+0=4#4"), (0.5, "#5")):
        selector = replace(recipe.selector, gap=gap)
        (pair,) = selector([scored], np.random.default_rng(0))
        assert isinstance(pair, Pair)
        assert (pair.chosen.text, pair.rejected.text) == ("#4", rejected)


def test_a_function_as_scorer(blocks, tmp_path, monkeypatch):
    file = tmp_path / "shortness.py"
    file.write_text(blocks[2])
    monkeypatch.syspath_prepend(str(tmp_path))
    import shortness  # pyright: ignore[reportMissingImports]

    prompt = Prompt("p", "2+2=", (), {"answer": "4", "source": "me"})
    scorer = shortness.SCORER
    try:
        scorer.check([prompt])
        (scored,) = scorer([prompt], [rollouts(prompt, "#4", "#5")])
    finally:
        scorer.close()
    assert [s.value for s in scored.scores] == pytest.approx([0.998, -0.002])


def test_a_judge_of_ones_own(blocks, tmp_path, monkeypatch):
    file = tmp_path / "beginners.py"
    file.write_text(blocks[1])
    monkeypatch.setattr(sys, "path", list(sys.path))
    judge = load_config(str(file)).recipe.scorer
    prompt = Prompt("p", "Why?", (), {})
    asked = judge.request(prompt, ["Because.", "Why not?"])
    assert asked.index("Because.") < asked.index("Why not?")
    for text, values in (
        ("I like both. Better: two", (0.0, 1.0)),
        ("Better: one.", (1.0, 0.0)),
        ("Better: one, or not", None),
        ("", None),
    ):
        assert judge.parse(text, 2) == values


@pytest.mark.full
def test_a_small_run_of_the_file(config_file, tmp_path):
    small = ["sft.steps=40", "recipe.schedule.rounds=1", "recipe.schedule.prompts=64"]
    small += ["recipe.schedule.epochs=1", "data.test=32", "tensorboard=false"]
    jaxloop(config_file, f"out={tmp_path / 'run'}", *small)
    lines = (tmp_path / "run/records/round_000/pairs.jsonl").read_text().splitlines()
    assert lines
    assert "against the next" in json.loads(lines[0])["reason"]
