"""Mesh shapes, logical axes, and the messages when something does not divide."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxloop.mesh import (
    MeshShape,
    batch_parts,
    constrain,
    divisibility_problems,
    make_mesh,
    mesh_axes,
)


def test_one_axis_takes_the_rest():
    assert MeshShape(-1, 2, 2).resolve(8) == MeshShape(2, 2, 2)
    assert MeshShape(2, -1, 1).resolve(8) == MeshShape(2, 4, 1)
    assert MeshShape().resolve(1) == MeshShape(1, 1, 1)


@pytest.mark.parametrize(
    ("shape", "devices"),
    [(MeshShape(3, 1, 1), 8), (MeshShape(-1, 3, 1), 8), (MeshShape(2, 2, 4), 8)],
    ids=str,
)
def test_a_wrong_product_names_the_nearest_shapes(shape, devices):
    with pytest.raises(ValueError, match="Shapes that fit") as error:
        shape.resolve(devices)
    text = str(error.value)
    assert str(devices) in text
    named = text.split("Shapes that fit: ")[1].split("; ")
    for each in named:
        sizes = [int(part.split("=")[1]) for part in each.strip("()").split(", ")]
        assert sizes[0] * sizes[1] * sizes[2] == devices


def test_two_free_axes_are_refused():
    with pytest.raises(ValueError, match="one may be -1"):
        MeshShape(-1, -1, 1).resolve(8)


def test_logical_axes_become_mesh_axes():
    assert mesh_axes(("batch", None, "heads")) == P(("data", "fsdp"), None, "tensor")
    with pytest.raises(KeyError):
        mesh_axes(("embedding",))
    with pytest.raises(ValueError, match="twice"):
        mesh_axes(("ffn", "heads"))


def test_what_does_not_divide_is_named_with_what_would():
    shape = MeshShape(1, 2, 4)
    assert divisibility_problems(shape, {"heads": 8, "embed": 64}) == []
    (problem,) = divisibility_problems(shape, {"heads": 6, "embed": 64})
    assert "heads = 6" in problem
    assert "4 or 8" in problem


def test_constrain_pins_only_where_a_mesh_is_set(mesh_of):
    x = jnp.arange(8.0)
    assert constrain(x, "batch") is x
    with jax.set_mesh(mesh_of(data=2, fsdp=2)):
        pinned = jax.jit(lambda x: constrain(x, "batch"))(x)
    assert pinned.sharding.spec == P(("data", "fsdp"))


def test_a_mesh_over_all_devices():
    mesh = make_mesh(MeshShape(tensor=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert batch_parts(mesh) == 4
