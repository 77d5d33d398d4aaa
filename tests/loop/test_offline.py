"""The offline stage: a file of preferences to a model that shares them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from configs import offline
from jaxloop.config import ConfigError
from jaxloop.experiment import Characters, Model
from jaxloop.loop.run import run
from jaxloop.loop.workbench import prepare
from jaxloop.metrics import read_metrics
from jaxloop.models.decoder import ModelShape
from jaxloop.prompts.dataset import JsonlData
from jaxloop.training.optimizer import Optimizer

SHAPE = ModelShape(vocab=16, width=16, ffn=32, layers=2, heads=2, kv_heads=2)


def rows(kind: str, count: int = 32):
    """Answers of nines are better than answers of ones."""
    rng = np.random.default_rng(0)
    for i in range(count):
        prompt = f"{i}+{i}="
        good, bad = ("".join(d * rng.integers(1, 5)) for d in "91")
        if kind == "pairs":
            yield {"prompt": prompt, "chosen": good, "rejected": bad}
        elif kind == "steps":
            steps, labels = [good + ";", bad], [True, False]
            yield {"prompt": prompt, "completions": steps, "labels": labels}
        else:
            completion = good if i % 2 else bad
            yield {"prompt": prompt, "completion": completion, "label": bool(i % 2)}


def config(tmp_path, variant, kind="pairs"):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
    base = offline.get_config(variant)
    stage = replace(
        base.offline,
        epochs=6,
        batch_size=16,
        accumulation=2,
        optimizer=Optimizer(learning_rate=1e-2),
    )
    source = "pairs" if kind == "pairs" else "labelled"
    return replace(
        base,
        model=Model(shape=SHAPE, outputs=base.model.outputs, dtype="float32"),
        tokenizer=Characters("0123456789+=;#"),
        data=JsonlData(**{source: str(path)}),
        offline=stage,
        tensorboard=False,
        out=str(tmp_path / "out"),
    )


@pytest.mark.parametrize(
    ("variant", "kind", "name"),
    [
        (None, "pairs", "rewards/margins"),
        ("kto", "labelled", "rewards/margins"),
        ("reward", "pairs", "accuracy"),
    ],
)
def test_it_learns_what_the_file_prefers(tmp_path, variant, kind, name):
    assert run(config(tmp_path, variant, kind)) == 0
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    values = [line[name] for line in lines if name in line]
    assert len(values) == 12
    assert values[-1] > values[0]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_labelled_steps_are_kept_with_their_ends(tmp_path):
    data = prepare(config(tmp_path, "kto", "steps")).data
    for example, row in zip(data.labelled, rows("steps"), strict=True):
        (first, right), (second, wrong) = example.steps
        assert (right, wrong) == (1.0, 0.0)
        assert first == len(row["completions"][0])
        assert second == len("".join(row["completions"]))
        assert example.label == 0
        assert len(example.rollout.token_ids) == second + 1  # with its end


def test_long_completions_are_named_or_left_out(tmp_path):
    base = config(tmp_path, None)
    short = replace(base.offline, max_completion_tokens=3)
    assert run(replace(base, offline=short)) == 0
    strict = replace(base, offline=replace(short, on_long="error"))
    with pytest.raises(ConfigError, match="max_completion_tokens = 3"):
        prepare(strict)


def test_missing_data_is_named(tmp_path):
    base = config(tmp_path, "kto", "labelled")
    found = replace(base, data=JsonlData()).validate()
    assert any("data.labelled=FILE" in problem for problem in found)
