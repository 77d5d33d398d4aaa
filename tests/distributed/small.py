"""The tiny runs of tests/loop, in sizes that eight devices can cut.

TEST_ENDS="0,1 15 3": processes 0 and 1 send themselves signal 15 at their 3rd update
(0 is none) and wait a little.
"""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import jax

from jaxloop.experiment import Model, ModelTokenizer
from jaxloop.loop import updates
from jaxloop.loop.recipe import Evaluation, Online, PromptStage, Rounds
from jaxloop.loop.workbench import new_params
from jaxloop.mesh import MeshShape, make_mesh
from jaxloop.models import export
from jaxloop.models.decoder import Decoder
from jaxloop.prompts.dataset import JsonlData
from jaxloop.prompts.maker import Maker, Screen
from tests.loop import tiny_config

MESH = MeshShape(data=4, fsdp=2)
PAUSE = float(os.environ.get("TEST_PAUSE", "2.5"))  # jax looks once a second


def get_config(variant: str):
    """`variant`: dpo or grpo, of tests/loop/tiny_config.py; judged, by a judge; files,
    which asks a model for prompts like those of a file."""
    if variant == "files":
        return _files()
    config = tiny_config.config(variant, "", mesh=MESH)
    assert config.sft is not None
    assert config.recipe is not None
    schedule = Rounds(1, prompts=16, epochs=2, batch_size=8)
    if variant == "grpo":
        schedule = Online(3, prompts=4)
    drawn = replace(config.recipe.sampling, n=2)  # compiled once for both
    judge = config.recipe.scorer if variant == "judged" else config.evaluation.scorer
    return replace(
        config,
        sft=replace(config.sft, batch_size=8, steps=3),
        recipe=replace(config.recipe, schedule=schedule),
        evaluation=replace(config.evaluation, scorer=judge, sampling=drawn, every=0),
    )


def any_text(text: str):
    """Whatever the model writes is a prompt."""
    return (text + "+", {}) if text else None


def _files():
    drawn = replace(tiny_config.SAMPLING, n=2)
    loose = Screen(fewest_words=0, keywords=(), alike=1.0)
    maker = Maker(count=10, batch=8, sampling=drawn, parse=any_text, screen=loose)
    return replace(
        tiny_config.config("dpo", "", mesh=MESH, sft=None, recipe=None),
        model=Model(dtype="float32", remat="none"),
        tokenizer=ModelTokenizer(),
        data=JsonlData(),
        evaluation=Evaluation(),
        prompts=PromptStage(maker, drawn, tiny_config.CountNines()),
    )


def save_model(directory: Path) -> None:
    """A random one for `files`. Needs the eight devices."""
    base = tiny_config.config("dpo", "")
    assert base.model.shape is not None
    params = new_params(Decoder(base.model.shape), make_mesh(MESH), 0, "float32")
    tokenizer = base.tokenizer.load("")
    export.save_model(directory, base.model.shape, jax.device_get(params), tokenizer)


def write_rows(path: Path, count: int) -> None:
    rows = [{"prompt": f"{i % 10}{i // 10}+"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _ends() -> None:
    who, number, count = os.environ["TEST_ENDS"].split()
    if (process := os.environ.get("JAX_PROCESS_ID")) not in who.split(","):
        return
    original, seen = updates.look_and_save, 0

    def ends(*arguments):
        nonlocal seen
        seen += 1
        if seen == int(count):
            now = time.time()
            print(f"update {count} in process {process} at {now}", flush=True)
            os.kill(os.getpid(), int(number))
            time.sleep(PAUSE)
        return original(*arguments)

    updates.look_and_save = ends


if os.environ.get("TEST_ENDS"):
    _ends()
