"""The configs whose models write their own prompts."""

import json
from pathlib import Path

import pytest

from configs import cot_self_instruct, self_instruct
from jaxloop.config import apply_overrides, load_config
from jaxloop.loop.run import run
from jaxloop.mesh import MeshShape
from jaxloop.metrics import read_metrics
from jaxloop.prompts.dataset import JsonlData

CONFIGS = Path(self_instruct.__file__).parent


def load(name: str, variant: str | None):
    return load_config(f"{CONFIGS / name}.py" + (f":{variant}" if variant else ""))


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
