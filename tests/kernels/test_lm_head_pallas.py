"""The TPU kernels of lm_head, interpreted, against the reference; and both sharded.

Vector memory is said to be small, so that small arrays take several blocks, of which
none is full: rows, tokens of the vocabulary and devices all have a remainder.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloop_kernels.lm_head import Shards, lm_head, pallas_tpu, reference, xla

B, T, D, V = 4, 40, 128, 300
SMALL = 1_500_000
"""Bytes in which no block holds all of the vocabulary."""


def make_inputs(seed=0, dtype="float32", vocab=V, tokens=V - 60):
    """Targets are below `tokens`; every other one is the likeliest of those."""
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden_BTD = jax.random.normal(keys[0], (B, T, D)) / 2
    vocab_VD = jax.random.normal(keys[1], (vocab, D))
    target_BT = jax.random.randint(keys[2], (B, T), 0, tokens)
    greedy_BT = jnp.argmax(hidden_BTD @ vocab_VD[:tokens].T, axis=-1)
    target_BT = jnp.where(jnp.arange(T) % 2 > 0, target_BT, greedy_BT)
    bars_3BT = jax.random.normal(keys[3], (3, B, T))
    return hidden_BTD.astype(dtype), vocab_VD.astype(dtype), target_BT, bars_3BT


def value_and_grads(head, inputs, **settings):
    """(all statistics, gradients of a random mix of the differentiable three)."""
    hidden_BTD, vocab_VD, target_BT, bars_3BT = inputs

    def loss(hidden_BTD, vocab_VD):
        out = head(hidden_BTD, vocab_VD, target_BT, **settings)
        mix = zip(bars_3BT, (out.logp_BT, out.entropy_BT, out.lse_BT), strict=True)
        return sum((bar_BT * x_BT).sum() for bar_BT, x_BT in mix), out

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, out), grads = step(hidden_BTD, vocab_VD)
    return out, grads


def worst(actual, expected) -> float:
    """The largest error, relative to the largest value of its array."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    errors = []
    for a, b in pairs:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all()
        errors.append(np.abs(a - b).max() / np.abs(b).max())
    return max(errors)


HARD = {"temperature": 0.7, "soft_cap": 3.0, "valid": V - 50}
RACES = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ({}, {}),
        (HARD, {"looped": True, "chunk": 32}),
        (HARD, {"interpret": RACES}),
        pytest.param(HARD, {"cores": 2}, marks=pytest.mark.full),
        pytest.param({}, {"interpret": RACES, "cores": 2}, marks=pytest.mark.full),
        pytest.param({"valid": V - 50}, {"vmem": 2**25}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_kernels_match_reference(what, how):
    inputs = make_inputs()
    expected = value_and_grads(reference.lm_head, inputs, **what)
    actual = value_and_grads(
        pallas_tpu.lm_head, inputs, **what, **{"vmem": SMALL} | how
    )
    assert worst(actual, expected) < 2e-5
    assert 0 < actual[0].hit_BT.mean() < 1
    if "valid" in what:
        assert not np.asarray(actual[1][1][what["valid"] :]).any()


@pytest.mark.full
def test_bfloat16_rounds_only_the_gradient_of_the_logits():
    inputs = make_inputs(dtype="bfloat16")
    exact = [x.astype("float32") for x in inputs[:2]] + list(inputs[2:])
    expected, expected_grads = value_and_grads(reference.lm_head, exact)
    actual, grads = value_and_grads(pallas_tpu.lm_head, inputs, vmem=SMALL)
    assert worst(actual, expected) < 2e-5  # the products are exact
    assert all(grad.dtype == jnp.bfloat16 for grad in grads)
    assert worst(grads, expected_grads) < 1e-2  # 8 bits, twice


@pytest.mark.parametrize("form", [xla, pallas_tpu])
@pytest.mark.parametrize("valid", [None, pytest.param(310, marks=pytest.mark.full)])
def test_devices_that_share_the_vocabulary_equal_one(mesh_of, form, valid):
    vocab, tensor = 512, 4  # of 310 tokens the third device has some, the last none
    inputs = make_inputs(vocab=vocab, tokens=300)
    mesh = mesh_of(data=2, tensor=tensor)
    shards = Shards(("data", "fsdp"), "tensor", mesh)
    rows, cut = (NamedSharding(mesh, P(axis)) for axis in ("data", "tensor"))
    placed = jax.device_put(inputs[:3], (rows, cut, rows))
    what = {"temperature": 0.7, "valid": valid}
    expected = value_and_grads(reference.lm_head, inputs, **what)
    actual = value_and_grads(form.lm_head, (*placed, inputs[3]), shards=shards, **what)
    assert worst(actual, expected) < 2e-5
    assert actual[1][1].sharding.is_equivalent_to(cut, 2)


def test_choices_of_other_devices_are_found(mesh_of):
    hidden_BTD, vocab_VD, target_BT, _ = make_inputs(vocab=320)
    choices_BTK = jax.random.randint(jax.random.key(9), (B, T, 3), 0, 320)
    shards = Shards(("data",), "tensor", mesh_of(data=2, tensor=2))
    arrays = (target_BT, choices_BTK)

    def total(head, **settings):
        def chosen(*matrices):
            return head(*matrices, *arrays, **settings).choice_logp_BTK.sum()

        return jax.jit(jax.value_and_grad(chosen, (0, 1)))(hidden_BTD, vocab_VD)

    expected = total(reference.lm_head)
    assert worst(total(xla.lm_head, shards=shards, chunk=7), expected) < 2e-5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"choices_BTK": jnp.zeros((B, T, 2), int)}, NotImplementedError, "choices"),
        ({"hidden_BTD": jnp.zeros((B, T, 64))}, NotImplementedError, "width 64"),
        ({"hidden_BTD": jnp.zeros((B, T, D), "float16")}, NotImplementedError, "float"),
    ],
    ids=["choices", "width", "dtype"],
)
def test_what_the_kernel_cannot_do_is_named(change, error, message):
    width = change.get("hidden_BTD", jnp.zeros((1, 1, D))).shape[-1]
    arguments = {
        "hidden_BTD": jnp.zeros((B, T, D)),
        "vocab_VD": jnp.zeros((V, width)),
        "target_BT": jnp.zeros((B, T), int),
        "implementation": "pallas_tpu",
    }
    with pytest.raises(error, match=message):
        lm_head(**(arguments | change))


def test_a_batch_that_the_mesh_does_not_divide_is_named(mesh_of):
    shards = Shards(("data",), "tensor", mesh_of(data=8))
    hidden_BTD, vocab_VD, target_BT, _ = make_inputs()
    with pytest.raises(ValueError, match="cuts the batch into 8"):
        lm_head(hidden_BTD, vocab_VD, target_BT, shards=shards)
