"""No step holds the logits of its batch: read from what the compiler plans."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.losses.objectives import Pairwise, Policy, Supervised
from jaxloop.models.decoder import Decoder, ModelShape
from jaxloop.training.optimizer import Optimizer
from jaxloop.training.step import abstract_state, make_train_step

# A real vocabulary on a small body: the logits outweigh everything else.
SHAPE = ModelShape(
    vocab=151_936, width=8, ffn=16, layers=1, heads=1, kv_heads=1, head_dim=8
)
ROWS, PROMPT, COLUMNS = 4, 64, 1024


def abstract_batch() -> dict:
    array = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, ROWS, PROMPT + COLUMNS), jnp.int32)
    names = ("mask_BC", "reference_logp_BC", "old_logp_BC")
    batch = {name: array((1, ROWS, COLUMNS)) for name in names}
    batch |= dict.fromkeys(("tokens_BT", "positions_BT", "segments_BT"), tokens)
    return batch | {"valid_B": array((1, ROWS)), "advantage_B": array((1, ROWS))}


@pytest.mark.parametrize(
    "objective", [Supervised(), Pairwise(nll=1.0), Policy(kl=0.1)], ids=["s", "p", "g"]
)
def test_a_step_never_holds_the_logits(objective, mesh_of):
    model, optimizer, mesh = Decoder(SHAPE), Optimizer(), mesh_of()
    state = abstract_state(model, optimizer, mesh, "float32")
    step = make_train_step(model, objective, optimizer, mesh, start=PROMPT)
    with jax.set_mesh(mesh):
        compiled = step.lower(state, abstract_batch(), np.float32(0)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    logits = ROWS * COLUMNS * SHAPE.vocab * 4
    assert memory.temp_size_in_bytes < logits / 4
