"""Scalars that an objective keeps from step to step: seen, updated, guarded, saved."""

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from jaxloop.checkpoint import Checkpointer, CheckpointError
from jaxloop.loop.workbench import new_params
from jaxloop.losses.objective import active_tokens, memory_of
from jaxloop.losses.objectives import Mixture, Supervised
from jaxloop.losses.reduce import Max, Mean
from jaxloop.models.decoder import Decoder, ModelShape
from jaxloop.training.batches import micro_batches
from jaxloop.training.optimizer import Optimizer
from jaxloop.training.step import (
    abstract_state,
    fresh_state,
    make_train_step,
    state_shardings,
)

SHAPE = ModelShape(vocab=32, width=16, ffn=32, layers=1, heads=2, kv_heads=2)
MODEL, OPTIMIZER = Decoder(SHAPE), Optimizer()
START, COLUMNS, ROWS = 3, 5, 8


@dataclass(frozen=True)
class Averaging(Supervised):
    """Keeps a running mean of the loss, and shows what it found in the batch."""

    def memory(self):
        return {"running_loss": jnp.float32(2.0), "worst": jnp.float32(0.0)}

    def remember(self, memory, figures):
        mean = 0.9 * memory["running_loss"] + 0.1 * figures["loss"]
        return {"running_loss": mean, "worst": figures["unknown"]}

    def counts(self, batch):
        return super().counts(batch) | {"running": batch["running_loss"]}

    def __call__(self, stats, batch, counts):
        loss, metrics = super().__call__(stats, batch, counts)
        active_BC = active_tokens(batch)
        found_BC = jnp.broadcast_to(batch["running_loss"], active_BC.shape)
        return loss, metrics | {
            "found": Max.of(found_BC, active_BC),
            "unknown": Mean.of(found_BC, jnp.zeros_like(active_BC)),
        }


def make_batch(seed: int, weight: float = 1.0) -> dict:
    rng = np.random.default_rng(seed)
    size = (ROWS, START + COLUMNS)
    return {
        "tokens_BT": rng.integers(0, SHAPE.vocab, size).astype(np.int32),
        "positions_BT": np.broadcast_to(np.arange(size[1], dtype=np.int32), size),
        "segments_BT": np.ones(size, np.int32),
        "mask_BC": (rng.random((ROWS, COLUMNS)) < 0.7).astype(np.float32),
        "weight_B": np.full(ROWS, weight, np.float32),
    }


@cache
def compiled(mesh, objective):
    memory = memory_of(objective)
    shardings = state_shardings(MODEL, OPTIMIZER, mesh, memory)
    return (
        memory,
        shardings,
        make_train_step(MODEL, objective, OPTIMIZER, mesh, start=START),
    )


def run(mesh, batches, accumulation=1, objective=None):
    """(state after the batches, metrics of each step)."""
    memory, shardings, step = compiled(mesh, objective or Averaging())
    with jax.set_mesh(mesh):
        params = new_params(MODEL, mesh, 0, "float32")
        state = fresh_state(params, OPTIMIZER, shardings, memory)
        lines = []
        for batch in batches:
            batch = micro_batches(batch, accumulation)
            state, metrics = step(state, batch, np.float32(1e-2))
            lines.append(jax.device_get(metrics))
    return state, lines


@pytest.mark.parametrize("accumulation", [1, 4])
def test_it_is_found_in_the_batch_and_follows_the_metrics(accumulation, mesh_of):
    state, lines = run(mesh_of(), map(make_batch, range(4)), accumulation)
    expected = 2.0
    for line in lines:
        np.testing.assert_allclose(line["found"], expected, rtol=1e-6)
        expected = 0.9 * expected + 0.1 * line["loss"]
    np.testing.assert_allclose(state.memory["running_loss"], expected, rtol=1e-6)
    assert state.memory["running_loss"].dtype == jnp.float32


def test_a_skipped_step_and_a_figure_of_nothing_leave_it(mesh_of):
    bad = make_batch(1, weight=np.nan)
    state, lines = run(mesh_of(), [make_batch(0), bad, make_batch(2)])
    assert lines[1]["skipped_in_row"] == 1
    assert np.isnan(lines[1]["loss"])
    assert lines[2]["found"] == lines[1]["found"] != lines[0]["found"]
    assert np.isnan(lines[0]["unknown"])
    assert state.memory["worst"] == 0


def test_eight_devices_hold_the_same_scalar(mesh_of):
    alone, _ = run(mesh_of(), map(make_batch, range(2)))
    together, _ = run(mesh_of(data=2, fsdp=2, tensor=2), map(make_batch, range(2)))
    scalar = together.memory["running_loss"]
    assert scalar.sharding.is_fully_replicated
    assert len(scalar.devices()) == 8
    np.testing.assert_allclose(scalar, alone.memory["running_loss"], rtol=1e-5)


def test_parts_of_a_mixture_keep_their_own(mesh_of):
    mixture = Mixture((Supervised(), Averaging()), (0.5, 0.5))
    state, lines = run(mesh_of(), map(make_batch, range(2)), objective=mixture)
    assert set(state.memory) == {"running_loss", "worst"}
    assert lines[1]["found"] != lines[0]["found"] == 2


def test_a_checkpoint_brings_it_back(mesh_of, tmp_path):
    mesh, memory = mesh_of(), memory_of(Averaging())
    state, _ = run(mesh, map(make_batch, range(2)))
    checkpoints = Checkpointer(tmp_path, keep=1, best_metric=None)
    tree = {"state": serialization.to_state_dict(state)}
    checkpoints.save(1, tree, {}, block=True)
    abstract = abstract_state(MODEL, OPTIMIZER, mesh, "float32", memory)
    wanted = {"state": serialization.to_state_dict(abstract)}
    found, _ = checkpoints.restore(1, wanted)
    again = serialization.from_state_dict(abstract, found["state"])
    jax.tree.map(np.testing.assert_array_equal, again, state)
    without = abstract_state(MODEL, OPTIMIZER, mesh, "float32")
    with pytest.raises(CheckpointError, match="unexpected: state/memory/running_loss"):
        checkpoints.restore(1, {"state": serialization.to_state_dict(without)})
    checkpoints.close()


def test_most_objectives_keep_nothing(mesh_of):
    state, _ = run(mesh_of(), [], objective=Supervised())
    assert state.memory == {}
