"""The scripts of the claims: every arm is a config that starts, on its seed's problems;
the page keeps what was measured.
"""

import importlib
import json
import sys
from functools import cache
from pathlib import Path

import pytest

from jaxloop.config import apply_overrides, load_config
from jaxloop.experiment import Config, Model

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "claim")
STARTED = ["sft=none", "model.shape=none", "model.path=DIR"]


@pytest.fixture(scope="module")
def script():
    """script(name): the module of that script, or `claim` itself."""
    names = ["claim", *SCRIPTS]
    assert not [name for name in names if name in sys.modules]
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))
    for name in names:
        sys.modules.pop(name, None)


def config_of(spec: str, words: list[str]):
    return apply_overrides(load_config(str(ROOT / "configs" / spec)), words)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_arm_is_a_config_that_starts(name, script):
    claim, stated = script("claim"), script(name).CLAIM
    runs = [(arm, STARTED if stated.start else []) for arm in stated.arms]
    if stated.start:
        runs.append((stated.start, claim.ALONE))
    for arm, more in runs:
        config = config_of(arm.spec, [*claim.settings(arm, 1), *more])
        assert config.problems(config.model.shape, 1) == []
        assert (config.sft is None) == (more is STARTED)


@cache
def problems(config: Config) -> tuple[list[str], list[tuple[int, ...]]]:
    """What is held out, and what is shown."""
    data = config.data.load(config.tokenizer.load(""))
    held_out = [prompt.columns.get("problem", prompt.text) for prompt in data.test]
    return held_out, sorted(row.token_ids for row in data.demonstrations)


@pytest.mark.parametrize("name", SCRIPTS)
def test_arms_of_a_seed_share_their_problems_and_seeds_do_not(name, script):
    """An arm of other problems would compare worlds, and seeds of the same problems
    would hide their spread."""
    claim, stated = script("claim"), script(name).CLAIM
    arms = [*stated.arms, *filter(None, [stated.start])]
    found: dict[int, list] = {0: [], 1: []}
    for seed, seen in found.items():
        for arm in arms:
            config = config_of(arm.spec, claim.settings(arm, seed))
            assert config.seed == seed
            worlds = Config("", Model(), config.data, config.tokenizer)
            seen.append(problems(worlds))
    assert all(each == seen[0] for seen in found.values() for each in seen)
    assert all(one != two for one, two in zip(found[0][0], found[1][0], strict=True))


LINES = [
    {"phase": "eval", "eval/accuracy": 0.25, "eval/flips": 0.5},
    {"phase": "train", "loss": 1.0},
    {"phase": "eval", "eval/accuracy": 0.75},
]


def test_columns_read_what_was_measured_first_and_last(script):
    claim = script("claim")
    before, after = claim.accuracy()
    assert (before.of(LINES), after.of(LINES)) == (25.0, 75.0)
    assert claim.change("eval/accuracy")(LINES) == 0.5
    assert claim.last("eval/flips", scale=100)(LINES) == 50.0


def test_a_cell_is_mean_least_and_most(script):
    assert script("claim").cell([1.0, 2.0, 6.0], ".1f") == "3.0 (1.0 to 6.0)"


def test_a_section_is_replaced_in_its_place(script):
    claim = script("claim")
    page = "# Claims\n\n## One\n\nold\n\n## Two\n\nkept\n"
    page = claim.written(page, "One", "## One\n\nnew\n")
    assert page == "# Claims\n\n## One\n\nnew\n\n## Two\n\nkept\n"
    page = claim.written(page, "Three", "## Three\n\nadded\n")
    assert page.endswith("kept\n\n## Three\n\nadded\n")


def test_a_seed_is_started_once_and_all_arms_begin_there(
    script, monkeypatch, tmp_path, capsys
):
    claim, called = script("claim"), []

    def jaxloop(out, *words):
        called.append(words)
        if words[0] == "convert":
            Path(words[2]).mkdir()
            return
        folder = Path(next(word for word in words if word.startswith("out="))[4:])
        folder.mkdir()
        lines = [json.dumps(line | {"step": 0, "round": None}) for line in LINES]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr(claim, "jaxloop", jaxloop)
    monkeypatch.setattr(
        sys, "argv", ["x.py", "--seeds", "2", "--out", str(tmp_path), "sft.steps=5"]
    )
    arms = (claim.Arm("one", "a.py"), claim.Arm("two", "b.py", ("k={seed}",), ("d.e",)))
    stated = claim.Claim(
        "Name", "Paper.", arms, claim.accuracy(), claim.Arm("start", "a.py")
    )
    claim.main(stated, "x.py")
    verbs = [words[0] for words in called]
    assert verbs == ["run", "convert", "run", "run"] * 2
    started, _, one, two = called[4:]
    assert set(claim.ALONE) < set(started)
    model = tmp_path / "x" / "model-1"
    for words in (one, two):
        assert words[-1] == f"model.path={model}"
        assert {"seed=1", "sft.steps=5", "sft=none"} < set(words)
    assert {"k=1", "d.e.seed=1"} < set(two)
    assert "data.seed=1" in one
    assert "data.seed=1" not in two
    assert "| two | 25.0 (25.0 to 25.0) | 75.0 (75.0 to 75.0) |" in (
        capsys.readouterr().out
    )
