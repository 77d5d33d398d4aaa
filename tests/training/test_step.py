"""One optimiser step: accumulation, sharding, skipping and the dtypes it stores."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.loop.workbench import new_params
from jaxloop.losses.distillation import jensen_shannon
from jaxloop.losses.objectives import Distill, Pairwise, Policy, Supervised
from jaxloop.mesh import MeshShape, make_mesh
from jaxloop.models.decoder import Decoder, ModelShape
from jaxloop.training.batches import micro_batches
from jaxloop.training.optimizer import Optimizer
from jaxloop.training.step import fresh_state, make_train_step, state_shardings

SHAPE = ModelShape(
    vocab=32, width=16, ffn=32, layers=2, heads=4, kv_heads=2, head_dim=8, tied=False
)
MODEL = Decoder(SHAPE)
START, COLUMNS, ROWS = 5, 6, 8
# With a small eps the first updates are the signs of gradients, and rounding flips
# those.
OPTIMIZER = Optimizer(learning_rate=1e-2, weight_decay=0.1, eps=1e-2)


def random_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of different lengths, one of them not valid."""
    rng = np.random.default_rng(seed)
    width = START + COLUMNS
    first = rng.integers(0, START - 1, ROWS)
    last = rng.integers(START + 1, width + 1, ROWS)
    column = np.arange(width)
    inside = (column >= first[:, None]) & (column < last[:, None])
    valid = np.ones(ROWS, np.float32)
    valid[-2:] = 0
    logp = -rng.random((ROWS, COLUMNS)).astype(np.float32)
    return {
        "tokens_BT": rng.integers(0, SHAPE.vocab, (ROWS, width)).astype(np.int32),
        "positions_BT": np.maximum(column - first[:, None], 0).astype(np.int32),
        "segments_BT": inside.astype(np.int32),
        "mask_BC": inside[:, START:].astype(np.float32),
        "valid_B": valid,
        "weight_B": np.repeat(rng.random(ROWS // 2), 2).astype(np.float32),
        "advantage_B": rng.standard_normal(ROWS).astype(np.float32),
        "reference_logp_BC": logp,
        "old_logp_BC": logp - 0.1,
    }


def taught_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """With the choices of a teacher who is not sure of much."""
    rng = np.random.default_rng(seed)
    size = (ROWS, COLUMNS, 4)
    ids = rng.permuted(np.broadcast_to(np.arange(SHAPE.vocab), (*size[:2], 32)), axis=2)
    logp = np.sort(-rng.random(size) - 2)[..., ::-1]
    return random_batch(seed) | {
        "teacher_ids_BCK": ids[..., :4].astype(np.int32),
        "teacher_logp_BCK": logp.astype(np.float32),
    }


def one_step(objective, mesh, accumulation=1, optimizer=OPTIMIZER, batch=None, steps=1):
    if batch is None:
        batch = taught_batch() if "teacher" in objective.needs else random_batch()
    shardings = state_shardings(MODEL, optimizer, mesh)
    with jax.set_mesh(mesh):
        params = new_params(MODEL, mesh, 0, "float32")
        state = fresh_state(params, optimizer, shardings)
        step = make_train_step(MODEL, objective, optimizer, mesh, start=START)
        batch = micro_batches(batch, accumulation)
        for _ in range(steps):
            state, metrics = step(state, batch, np.float32(1e-2))
        return jax.device_get(state), jax.device_get(metrics)


def apart(a, b) -> float:
    gaps = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)
    return max(jax.tree.leaves(gaps))


OBJECTIVES = {
    "sft": Supervised(),
    "dpo_nll": Pairwise(beta=0.1, nll=1.0),
    "grpo_kl": Policy(kl=0.1),
    "grpo_sequence": Policy(aggregation="sequence"),
    "grpo_constant": Policy(aggregation="constant", max_completion_length=COLUMNS),
    "distill": Distill(jensen_shannon, nll=0.1),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_accumulation_changes_nothing(name, mesh_of):
    objective = OBJECTIVES[name]
    whole, metrics = one_step(objective, mesh_of())
    parts, metrics_of_parts = one_step(objective, mesh_of(), accumulation=4)
    # Sums in another order: float32, gradients of size about 1.
    assert apart(whole.params, parts.params) < 1e-5
    for name, value in metrics.items():
        np.testing.assert_allclose(metrics_of_parts[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sft", "dpo_nll", "grpo_kl", "distill"])
def test_eight_devices_equal_one(name, mesh_of):
    objective = OBJECTIVES[name]
    alone, metrics = one_step(objective, mesh_of(), steps=2)
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    together, metrics_together = one_step(objective, mesh, steps=2)
    assert apart(alone.params, together.params) < 1e-5
    np.testing.assert_allclose(metrics_together["loss"], metrics["loss"], rtol=1e-5)
    norms = metrics_together["grad_norm"], metrics["grad_norm"]
    np.testing.assert_allclose(*norms, rtol=1e-4)


def test_an_update_that_is_not_finite_is_skipped(mesh_of):
    optimizer = OPTIMIZER
    shardings = state_shardings(MODEL, optimizer, mesh_of())
    bad = random_batch() | {"weight_B": np.full(ROWS, np.nan, np.float32)}
    with jax.set_mesh(mesh_of()):
        params = new_params(MODEL, mesh_of(), 0, "float32")
        state = fresh_state(params, optimizer, shardings)
        step = make_train_step(MODEL, Supervised(), optimizer, mesh_of(), start=START)
        rate = np.float32(1e-2)
        state, _ = step(state, micro_batches(random_batch(), 1), rate)
        before = jax.device_get(state)
        for count in (1, 2):
            state, metrics = step(state, micro_batches(bad, 1), rate)
            after = jax.device_get(state)
            assert metrics["skipped_in_row"] == metrics["skipped_updates"] == count
        assert apart(before.params, after.params) == 0
        assert apart(before.opt_state, after.opt_state) == 0
        state, metrics = step(state, micro_batches(random_batch(), 1), rate)
        assert metrics["skipped_in_row"] == 0
        assert metrics["skipped_updates"] == 2
        assert apart(before.params, jax.device_get(state).params) > 0


def test_weight_decay_leaves_norms_and_biases_alone(mesh_of):
    nothing = random_batch() | {"valid_B": np.zeros(ROWS, np.float32)}
    optimizer = replace(OPTIMIZER, weight_decay=0.5)
    before = jax.device_get(new_params(MODEL, mesh_of(), 0, "float32"))
    state, metrics = one_step(
        Supervised(), mesh_of(), optimizer=optimizer, batch=nothing
    )
    assert metrics["grad_norm"] == 0
    after = state.params
    factor = 1 - 0.5 * 1e-2
    np.testing.assert_allclose(
        after["embed_VD"], before["embed_VD"] * factor, rtol=1e-5
    )
    assert (after["final_norm_D"] == before["final_norm_D"]).all()
    biases = [tree["layers"]["attn"]["q_bias_NH"] for tree in (before, after)]
    assert (biases[0] == biases[1]).all()


def test_remat_changes_nothing(mesh_of):
    grads = []
    for remat in ("none", "dots", "full"):
        model = Decoder(SHAPE, remat=remat)
        params = new_params(model, mesh_of(), 0, "float32")
        tokens = jnp.arange(12).reshape(2, 6)
        positions = jnp.broadcast_to(jnp.arange(6), (2, 6))

        def loss(params, model=model, tokens=tokens, positions=positions):
            hidden, _ = model.apply({"params": params}, tokens, positions)
            return (hidden**2).sum()

        grads.append(jax.jit(jax.grad(loss))(params))
    # The compiler may fuse differently: rounding, no more.
    assert apart(grads[0], grads[1]) < 1e-4
    assert apart(grads[0], grads[2]) < 1e-4


def learns(optimizer: Optimizer, param_dtype: str) -> tuple[float, dict]:
    mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    shardings = state_shardings(MODEL, optimizer, mesh)
    batch = micro_batches(random_batch(), 1)
    losses = []
    with jax.set_mesh(mesh):
        params = new_params(MODEL, mesh, 0, param_dtype)
        state = fresh_state(params, optimizer, shardings)
        step = make_train_step(MODEL, Supervised(), optimizer, mesh, start=START)
        for _ in range(30):
            state, metrics = step(state, batch, np.float32(2e-3))
            losses.append(float(metrics["loss"]))
    return losses[-1], jax.tree.map(lambda x: str(x.dtype), state.params)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="rounded"),
        pytest.param({"master_weights": True}, id="master weights"),
        pytest.param(
            {"state_dtype": "bfloat16"}, id="bfloat16 moments", marks=pytest.mark.full
        ),
    ],
)
def test_bfloat16_parameters_learn_as_float32_ones(changes):
    wanted, _ = learns(OPTIMIZER, "float32")
    got, dtypes = learns(replace(OPTIMIZER, **changes), "bfloat16")
    assert set(jax.tree.leaves(dtypes)) == {"bfloat16"}
    assert wanted < 2.6, "the float32 run did not learn: the test shows nothing"
    # bfloat16 has 8 bits: the path differs, its end must not.
    assert abs(got - wanted) < 0.15


def test_the_step_is_compiled_once(mesh_of):
    mesh = mesh_of()
    shardings = state_shardings(MODEL, OPTIMIZER, mesh)
    with jax.set_mesh(mesh):
        params = new_params(MODEL, mesh, 0, "float32")
        state = fresh_state(params, OPTIMIZER, shardings)
        step = make_train_step(MODEL, Supervised(), OPTIMIZER, mesh, start=START)
        for seed in range(3):
            batch = micro_batches(random_batch(seed), 1)
            state, _ = step(state, batch, np.float32(1e-3 * seed))
    assert step._cache_size() == 1
