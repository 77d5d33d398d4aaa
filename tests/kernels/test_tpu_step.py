"""A whole train step, compiled ahead of time for four TPU chips: with the kernels."""

import re
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.losses.objectives import Pairwise
from jaxloop.mesh import MeshShape, make_mesh
from jaxloop.models.decoder import Decoder, ModelShape
from jaxloop.training.optimizer import Optimizer
from jaxloop.training.step import abstract_state, make_train_step
from jaxloop_kernels.schedule import compiler

SHAPE = ModelShape(
    vocab=32_768, width=256, ffn=512, layers=2, heads=4, kv_heads=2, head_dim=128
)
ROWS, PROMPT, COLUMNS = 8, 256, 384


@pytest.mark.parametrize(
    "axes", [(1, 4, 1), pytest.param((2, 1, 2), marks=pytest.mark.full)]
)
def test_a_step_on_four_chips(libtpu, axes, monkeypatch):
    # What picks an implementation looks at the platform that the process runs on.
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    mesh = make_mesh(MeshShape(*axes), compiler.topology("v5e").devices)
    model = Decoder(SHAPE, jnp.dtype("bfloat16"), "full")
    state = abstract_state(model, Optimizer(), mesh, "float32")
    objective, size = Pairwise(nll=1.0), (1, ROWS, PROMPT + COLUMNS)
    batch = {
        name: jax.ShapeDtypeStruct(size, jnp.int32)
        for name in ("tokens_BT", "positions_BT", "segments_BT")
    }
    for name in ("mask_BC", "reference_logp_BC"):
        batch[name] = jax.ShapeDtypeStruct((1, ROWS, COLUMNS), jnp.float32)
    batch["valid_B"] = jax.ShapeDtypeStruct((1, ROWS), jnp.float32)
    step = make_train_step(model, objective, Optimizer(), mesh, start=PROMPT)
    with jax.set_mesh(mesh):
        traced = step.trace(state, batch, np.float32(0))
        compiled = compiler.compile_lowered(traced.lower(lowering_platforms=("tpu",)))
    text = compiled.as_text()
    for kernel in ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv", "lm_head"):
        assert kernel in text
    shapes = set(re.findall(r"[fb]\w+\[([\d,]+)\]", text))
    sizes = [tuple(map(int, shape.split(","))) for shape in shapes]
    # No scores, and nothing along the vocabulary that is larger than the matrix.
    assert not any(size.count(PROMPT + COLUMNS) > 1 for size in sizes)
    matrix = SHAPE.vocab * SHAPE.width
    assert all(prod(size) <= matrix for size in sizes if SHAPE.vocab in size)
