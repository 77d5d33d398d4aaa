"""Distillation online: teachers in directories, alone and together."""

from dataclasses import replace

import numpy as np
import pytest

from jaxloop.config import ConfigError
from jaxloop.experiment import Characters
from jaxloop.loop.recipe import Online, Teacher
from jaxloop.loop.run import dry_run, run
from jaxloop.loop.serve import convert_checkpoint
from jaxloop.losses.objectives import Distill
from jaxloop.mesh import MeshShape
from jaxloop.metrics import read_metrics
from tests.loop import tiny_config


def tiny(out, **changes):
    base = tiny_config.config("grpo", out, mesh=MeshShape(8, 1, 1))
    recipe = replace(
        base.recipe,
        objective=Distill(),
        advantage=None,
        schedule=Online(10, prompts=24, accumulation=3),
        **changes,
    )
    return replace(base, sft=replace(base.sft, batch_size=8), recipe=recipe)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A directory with a model that says other things than the student."""
    folder = tmp_path_factory.mktemp("teacher")
    base = tiny_config.config("dpo", folder / "out", mesh=MeshShape(8, 1, 1))
    stage = replace(base.sft, batch_size=8, steps=20)
    assert run(replace(base, sft=stage, recipe=None)) == 0
    convert_checkpoint(folder / "out" / "checkpoints" / "latest", folder / "hf")
    return str(folder / "hf")


@pytest.mark.parametrize(
    "together", [False, pytest.param(True, marks=pytest.mark.full)]
)
def test_the_student_comes_nearer(tmp_path, teacher, together):
    paths = (teacher, "") if together else (teacher,)
    config = tiny(tmp_path / "out", teacher=Teacher(paths=paths, k=16))
    assert run(config) == 0
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    apart = [x["distillation/loss"] for x in lines if "distillation/loss" in x]
    assert len(apart) == 10
    assert np.mean(apart[-3:]) < 0.9 * np.mean(apart[:3])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (Teacher(context="{gold}"), "no field 'gold'"),
        (Teacher(paths=("nowhere",)), "no such directory"),
        (Teacher(context="{"), "recipe.teacher.context"),
    ],
)
def test_what_is_wrong_with_a_teacher_shows_before_anything_runs(tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says):
        dry_run(tiny(tmp_path / "out", teacher=wrong))


def test_a_teacher_of_fewer_tokens_is_refused_and_one_that_fits_is_counted(
    tmp_path, teacher
):
    config = tiny(tmp_path / "out", teacher=Teacher(paths=(teacher,)))
    assert f"teacher {teacher}" in dry_run(config)
    more = Characters("0123456789+=;#abcdefghijklmnopqrstuvwxyz")
    shape = replace(config.model.shape, vocab=64)
    model = replace(config.model, shape=shape)
    with pytest.raises(ConfigError, match="must share it"):
        dry_run(replace(config, tokenizer=more, model=model))


def test_a_teacher_without_a_student_is_a_contradiction(tmp_path):
    config = tiny(tmp_path / "out")
    assert any("recipe.teacher" in problem for problem in config.validate())
