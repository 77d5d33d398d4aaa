"""No step and no teacher holds the logits: read from what the compiler plans."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.losses.objectives import Distill, Pairwise, Policy, Supervised
from jaxloop.models.decoder import Decoder, ModelShape
from jaxloop.training.optimizer import Optimizer
from jaxloop.training.step import abstract_state, make_train_step
from jaxloop.training.teachers import make_mixed_teacher

# A real vocabulary on a small body: the logits outweigh everything else.
SHAPE = ModelShape(
    vocab=151_936, width=8, ffn=16, layers=1, heads=1, kv_heads=1, head_dim=8
)
ROWS, PROMPT, COLUMNS, CHOICES = 4, 64, 1024, 64
LOGITS = ROWS * COLUMNS * SHAPE.vocab * 4


def abstract_batch() -> dict:
    array = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, ROWS, PROMPT + COLUMNS), jnp.int32)
    names = ("mask_BC", "reference_logp_BC", "old_logp_BC")
    batch = {name: array((1, ROWS, COLUMNS)) for name in names}
    batch |= dict.fromkeys(("tokens_BT", "positions_BT", "segments_BT"), tokens)
    ids = jax.ShapeDtypeStruct((1, ROWS, COLUMNS, CHOICES), jnp.int32)
    taught = {"teacher_ids_BCK": ids, "teacher_logp_BCK": array(ids.shape)}
    rows = {"valid_B": array((1, ROWS)), "advantage_B": array((1, ROWS))}
    return batch | taught | rows


@pytest.mark.parametrize(
    "objective",
    [Supervised(), Pairwise(nll=1.0), Policy(kl=0.1), Distill()],
    ids=["s", "p", "g", "d"],
)
def test_a_step_never_holds_the_logits(objective, mesh_of):
    model, optimizer, mesh = Decoder(SHAPE), Optimizer(), mesh_of()
    state = abstract_state(model, optimizer, mesh, "float32")
    step = make_train_step(model, objective, optimizer, mesh, start=PROMPT)
    with jax.set_mesh(mesh):
        compiled = step.lower(state, abstract_batch(), np.float32(0)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < LOGITS / 4


def test_teachers_never_hold_the_logits(mesh_of):
    model, mesh = Decoder(SHAPE), mesh_of()
    teach = make_mixed_teacher([model] * 2, mesh, start=PROMPT, k=CHOICES)
    params = abstract_state(model, Optimizer(), mesh, "float32").params
    tokens = jax.ShapeDtypeStruct((ROWS, PROMPT + COLUMNS), jnp.int32)
    names = ("tokens_BT", "positions_BT", "segments_BT")
    with jax.set_mesh(mesh):
        lowered = teach.lower(params, params, dict.fromkeys(names, tokens))
        memory = lowered.compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < LOGITS / 4
