"""Every config is short, and passes `--dry-run` in every variant: real ones with a
model directory, which has no weights, and a few rows.
"""

import ast
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from configs import sft
from jaxloop.config import ConfigError, apply_overrides, load_config
from jaxloop.experiment import Config
from jaxloop.loop import dry_run as module
from jaxloop.loop.run import dry_run
from jaxloop.models.decoder import ModelShape
from jaxloop.prompts.candidates import CandidateData
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.scoring.parts import parts
from jaxloop.scoring.server import Server

CONFIGS = Path(sft.__file__).parent
GOLDEN = Path(__file__).parents[1] / "golden" / "qwen2_tied" / "config.json"
ROW = {
    **{"answer": "It is 7.\n#### 7", "completion": "It is 7.", "label": True},
    **{"chosen": "a long answer", "rejected": "short", "limit": 9},
    "instances": [{"input": "", "output": "It is 7."}],
}


def variants(path: Path) -> list[str]:
    """As an unknown one is told them."""
    with pytest.raises(ConfigError) as error:
        load_config(f"{path}:tinny")
    known = re.search(r"\(known: (.*?)\)", str(error.value))
    assert known is not None
    return [name for name in known[1].split(", ") if name]


def specs() -> list[str]:
    """Each file and `file:variant`. `objectives` has a variant for each objective, and
    the first of them stands for all (tests/objectives runs them); `mta_toy` makes its
    data, at full size for minutes."""
    found = []
    for path in sorted(CONFIGS.glob("*.py")):
        known = variants(path)
        if path.stem == "objectives":
            known = known[:1]
        elif path.stem != "mta_toy":
            found.append(path.name)
        found += [f"{path.name}:{variant}" for variant in known]
    return found


METHODS = [
    path
    for path in sorted(CONFIGS.glob("*.py"))
    if path.stem not in ("quickstart", "objectives", "mta_toy")  # none of these is one
]


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_is_about_60_lines_and_its_docstring(path):
    text = path.read_text()
    docstring, *_ = ast.parse(text).body
    assert len(text.splitlines()) - (docstring.end_lineno or 0) <= 62


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_docstring_has_the_paper_the_command_and_every_variant(path):
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert re.search(r"arXiv\s\d{4}\.\d{5}", docstring)
    assert re.search(rf"jaxloop \w+ configs/{path.stem}.py model.path=DIR", docstring)
    assert "Expected" in docstring
    assert all(variant in docstring for variant in variants(path))


SPECS = specs()


@pytest.mark.parametrize("spec", SPECS)
def test_a_run_has_a_name_of_its_own(spec):
    name = spec.replace(".py", "").replace(":", "-")
    assert load_config(str(CONFIGS / spec)).name == name


@pytest.mark.parametrize("spec", SPECS)
def test_a_tiny_one_starts_as_it_is_and_a_real_one_asks_for_its_files(spec):
    config = load_config(str(CONFIGS / spec))
    shape = config.model.shape
    if shape is None:
        found = config.problems(None, 1)
        asked = [re.findall(r"([\w.]+)=(?:FILE|DIR)", problem) for problem in found]
        assert all(asked)
        names = {name for each in asked for name in each}
        assert {"model.path"} < names
        outputs = config.model.outputs
        shape = ModelShape(vocab=128, heads=4, kv_heads=2, outputs=outputs)
        config = apply_overrides(config, [f"{name}=x.jsonl" for name in sorted(names)])
    for devices in (1, 8):
        assert config.problems(shape, devices) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two model directories without weights, the second with a scalar head, and rows
    that have every field."""
    folder = tmp_path_factory.mktemp("real")
    signs = set("".join(map(chr, range(32, 127))) + "\n\t")
    for path in Path(sft.__file__).parents[1].glob("jaxloop/**/*.txt"):
        signs |= set(path.read_text())
    shape = {"vocab_size": 128, "max_position_embeddings": 16384, "eos_token_id": 1}
    head = {"architectures": ["Qwen2ForSequenceClassification"], "num_labels": 1}
    for name, more in (("model", {}), ("reward", head)):
        character_tokenizer("".join(sorted(signs))).save(folder / name)
        shape = json.loads(GOLDEN.read_text()) | shape | more
        (folder / name / "config.json").write_text(json.dumps(shape))
    for name, count in (("train", 32), ("test", 4)):
        rows = [
            {"question": text, "prompt": text, "instruction": text, "turns": [text]}
            for text in (f"Why {name} {i}?" for i in range(count))
        ]
        lines = (json.dumps(row | ROW) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def given(config: Config, folder: Path) -> Config:
    """With the files that the config asks for, and so few prompts a round."""
    asked = "\n".join(config.validate())
    words = {
        f"{name}={folder / ('test' if 'test' in name else 'train')}.jsonl"
        for name in re.findall(r"([\w.]+)=FILE", asked)
    }
    if isinstance(config.data, CandidateData):  # it wants one of two
        other = "pairs" if config.name.endswith("questions") else "test"
        words = {word for word in words if not word.startswith(f"data.{other}=")}
    words.add(f"model.path={folder / 'model'}")
    if config.recipe is not None:
        words |= {"recipe.schedule.prompts=8", "recipe.schedule.accumulation=1"}
        directories = {"BASE": folder / "model", "REWARD_MODEL": folder / "reward"}
        words |= {
            f"{path}.{name}={directories[value]}"
            for path, part in parts(config.recipe.scorer, "recipe.scorer")
            for name in ("path", "against")
            if (value := getattr(part, name, None)) in directories
        }
    return apply_overrides(config, sorted(words))


@pytest.fixture(scope="module", autouse=True)
def once():
    """Most have the same shapes, which are traced once; and no server is there."""
    with pytest.MonkeyPatch.context() as patch:
        for function in (module.abstract_params, module.abstract_state):
            patch.setattr(module, function.__name__, cache(function))
        patch.setattr(Server, "reach", lambda server: None)
        yield


@pytest.mark.parametrize("spec", SPECS)
def test_a_dry_run(spec, folder, tmp_path):
    config = load_config(str(CONFIGS / spec))
    if config.model.shape is None:
        config = given(config, folder)
    text = dry_run(replace(config, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    for line in ("parameters", f"folder {tmp_path / 'run'}"):
        assert line in text
    assert ("optimiser" in text) == any(True for _ in config.optimizers())
    assert ("update batch" in text) == (config.recipe is not None)
    assert ("held-out" in text) == (config.evaluation.scorer is not None)
