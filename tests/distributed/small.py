"""The tiny runs of tests/loop, in sizes that eight devices can cut.

TEST_ENDS="0,1 15 3": processes 0 and 1 send themselves signal 15 at their 3rd update
(0 is none) and wait a little.
"""

import os
import time
from dataclasses import replace

from jaxloop.loop import updates
from jaxloop.loop.recipe import Online, Rounds
from jaxloop.mesh import MeshShape
from tests.loop import tiny_config

PAUSE = float(os.environ.get("TEST_PAUSE", "2.5"))  # jax looks once a second


def get_config(variant: str):
    """`variant`: dpo or grpo, of tests/loop/tiny_config.py."""
    config = tiny_config.config(variant, "", mesh=MeshShape(data=4, fsdp=2))
    assert config.sft is not None
    assert config.recipe is not None
    schedule = Rounds(1, prompts=16, epochs=2, batch_size=8)
    if variant == "grpo":
        schedule = Online(3, prompts=4)
    drawn = replace(config.recipe.sampling, n=2)  # compiled once for both
    return replace(
        config,
        sft=replace(config.sft, batch_size=8, steps=3),
        recipe=replace(config.recipe, schedule=schedule),
        evaluation=replace(config.evaluation, sampling=drawn, every=0),
    )


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
