"""The configs whose models write their own prompts."""

import ast
import json
import re
from pathlib import Path

import pytest

from configs import cot_self_instruct, self_instruct
from jaxloop.config import ConfigError, apply_overrides, load_config
from jaxloop.loop.run import run
from jaxloop.mesh import MeshShape
from jaxloop.metrics import read_metrics
from jaxloop.models.decoder import ModelShape
from jaxloop.prompts.dataset import JsonlData

CONFIGS = Path(self_instruct.__file__).parent
VARIANTS = {
    "cot_self_instruct": ["unfiltered", "chat", "tiny", "tiny-unfiltered"],
    "self_instruct": [],
}
NAMED = [(name, v) for name, variants in VARIANTS.items() for v in [None, *variants]]
SHAPE = ModelShape(vocab=128, heads=4, kv_heads=2)
FILES = ["model.path=DIR", "data.train=seeds.jsonl", "data.test=test.jsonl"]


def load(name: str, variant: str | None):
    return load_config(f"{CONFIGS / name}.py" + (f":{variant}" if variant else ""))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("name", "variant"), NAMED)
def test_a_variant_asks_for_its_files_and_starts_with_them(name, variant, devices):
    config = load(name, variant)
    assert config.name == "-".join(filter(None, [name, variant]))
    if variant and variant.startswith("tiny"):
        assert config.problems(config.model.shape, devices) == []
        return
    wanted = ["model.path=DIR", "data.train=FILE", "data.test=FILE"]
    if config.evaluation.scorer is None:
        wanted.pop()
    found = config.problems(None, devices)
    assert len(found) == len(wanted)
    assert all(any(want in problem for problem in found) for want in wanted)
    assert apply_overrides(config, FILES).problems(SHAPE, devices) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_is_short_and_explains_itself(name):
    text = (CONFIGS / f"{name}.py").read_text()
    tree = ast.parse(text)
    docstring = ast.get_docstring(tree)
    assert docstring is not None
    assert len(text.splitlines()) - (tree.body[0].end_lineno or 0) <= 60
    assert re.search(r"arXiv\s\d{4}\.\d{5}", docstring)
    assert f"configs/{name}.py model.path=DIR" in docstring
    assert "Expected" in docstring
    assert all(variant in docstring for variant in VARIANTS[name])
    with pytest.raises(ConfigError, match="variant"):
        load(name, "tinny")


def test_what_is_written_has_the_form_of_the_seeds():
    """So that `data.train=prompts.jsonl` is all that a later run needs."""
    config = cot_self_instruct.get_config()
    assert config.prompts is not None
    assert isinstance(config.data, JsonlData)
    assert f"{{{config.prompts.maker.column}}}" in config.data.template


def right(row: dict) -> bool:
    """Whether a sum was written with its answer."""
    numbers = row["prompt"].removesuffix("=").split("+")
    return all(numbers) and sum(map(int, numbers)) == int(row["answer"])


def last_accuracy(out: Path) -> list[float]:
    lines = read_metrics(out / "metrics.jsonl")
    return [line["eval/accuracy"] for line in lines if line["phase"] == "eval"]


@pytest.mark.full
def test_consistent_problems_are_right_and_teach_more(tmp_path):
    rows, accuracy = {}, {}
    for variant in ("tiny", "tiny-unfiltered"):
        out = tmp_path / variant
        words = [f"out={out}", "tensorboard=false", "mesh.data=8"]
        config = apply_overrides(load("cot_self_instruct", variant), words)
        assert config.mesh == MeshShape(8, 1, 1)
        assert run(config) == 0
        lines = (out / "prompts.jsonl").read_text().splitlines()
        rows[variant] = [json.loads(line) for line in lines]
        accuracy[variant] = last_accuracy(out)
    shares = {name: sum(map(right, each)) / len(each) for name, each in rows.items()}
    assert shares["tiny"] > 0.9 > 0.6 > shares["tiny-unfiltered"]
    assert accuracy["tiny"][0] == accuracy["tiny-unfiltered"][0]  # the same model
    assert accuracy["tiny"][-1] > accuracy["tiny"][0] + 0.3
    assert accuracy["tiny"][-1] > accuracy["tiny-unfiltered"][-1]
