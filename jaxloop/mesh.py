"""The only file that knows the mesh: logical axis names become mesh axes here.

Modules name what an axis *is* ("heads", "embed"); `RULES` says where it lives. A name
without a rule, or two names that want the same mesh axis, are errors: an array is never
replicated by accident.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp", "tensor")
RULES = {
    "batch": ("data", "fsdp"),
    "layers": None,
    "embed": "fsdp",
    "ffn": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "vocab": "tensor",
}


@dataclass(frozen=True)
class MeshShape:
    """How many devices each mesh axis takes; at most one may be -1 ("the rest")."""

    data: int = -1
    """Copies of the model, each with its own part of the batch."""
    fsdp: int = 1
    """Parts that parameters and optimiser state are cut into; also splits the batch."""
    tensor: int = 1
    """Parts that heads, feed-forward and vocabulary are cut into."""

    def resolve(self, devices: int) -> "MeshShape":
        """The shape with -1 filled in; ValueError names product and shapes that fit."""
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        free = [axis for axis, size in sizes.items() if size == -1]
        if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
            raise ValueError(f"mesh {sizes}: sizes are positive, and one may be -1")
        known = int(np.prod([size for size in sizes.values() if size != -1]))
        if free and devices % known == 0:
            sizes[free[0]] = devices // known
        if int(np.prod(list(sizes.values()))) != devices:
            raise ValueError(
                f"mesh {sizes} takes {known} devices (or a multiple, with -1), but "
                f"there are {devices}. Shapes that fit: "
                f"{_nearest_shapes(sizes, devices)}"
            )
        return MeshShape(**sizes)


def _nearest_shapes(sizes: dict[str, int], devices: int) -> str:
    """The three factorisations of `devices` that change the wanted sizes least."""
    divisors = [d for d in range(1, devices + 1) if devices % d == 0]
    shapes = [
        (devices // (fsdp * tensor), fsdp, tensor)
        for fsdp in divisors
        for tensor in divisors
        if devices % (fsdp * tensor) == 0
    ]

    def distance(shape):
        wanted = [sizes[axis] if sizes[axis] > 0 else 1 for axis in MESH_AXES]
        pairs = zip(shape, wanted, strict=True)
        return sum(abs(np.log2(have / want)) for have, want in pairs)

    names = [
        ", ".join(f"{a}={n}" for a, n in zip(MESH_AXES, shape, strict=True))
        for shape in sorted(shapes, key=distance)[:3]
    ]
    return "; ".join(f"({name})" for name in names)


def make_mesh(shape: MeshShape | None = None, devices=None) -> Mesh:
    """A mesh over all devices (or those given). Axes are Auto: linen needs it."""
    devices = jax.devices() if devices is None else devices
    shape = (shape or MeshShape()).resolve(len(devices))
    sizes = tuple(getattr(shape, axis) for axis in MESH_AXES)
    auto = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(sizes, MESH_AXES, axis_types=auto, devices=devices)


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the batch axis is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def current_batch_parts() -> int:
    """`batch_parts` of the mesh that is set; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def mesh_axes(logical: Sequence[str | None]) -> P:
    """The PartitionSpec of logical axes. KeyError for a name that has no rule."""
    physical = [RULES[name] if name is not None else None for name in logical]
    used = [axis for name in logical if name is not None for axis in axes_of(name)]
    if len(used) != len(set(used)):
        raise ValueError(f"{tuple(logical)} uses a mesh axis twice: {used}")
    return P(*physical)


def axes_of(logical: str) -> tuple[str, ...]:
    """The mesh axes over which a logical axis is cut."""
    axes = RULES[logical] or ()
    return (axes,) if isinstance(axes, str) else axes


def is_cut() -> bool:
    """Whether the mesh that is set has more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """`sharding(mesh)` replicates; `sharding(mesh, "batch")` cuts the first axis."""
    return NamedSharding(mesh, mesh_axes(logical))


def shardings_of(abstract_boxed_tree, mesh: Mesh):
    """NamedShardings of a tree whose leaves carry linen's logical axis names."""
    return jax.tree.map(
        lambda logical: NamedSharding(mesh, mesh_axes(logical)),
        nn.get_partition_spec(abstract_boxed_tree),
        is_leaf=lambda leaf: isinstance(leaf, P),
    )


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pins an intermediate array to the mesh; nothing to do where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, mesh_axes(logical))


def divisibility_problems(mesh_shape: MeshShape, sizes: dict[str, int]) -> list[str]:
    """What does not divide: `sizes` maps a logical axis name to its length.

    Returns one sentence a problem, each with the nearest lengths that would fit.
    """
    problems = []
    for name, length in sizes.items():
        axes = axes_of(name)
        parts = int(np.prod([getattr(mesh_shape, axis) for axis in axes] or [1]))
        if length % parts:
            below = length // parts * parts
            fit = f"{below} or {below + parts}" if below else f"{parts}"
            problems.append(
                f"{name} = {length} cannot be cut into {parts} parts "
                f"(mesh axes {'+'.join(axes)}); nearest that fit: {fit}, "
                f"or a mesh whose {'+'.join(axes)} divides {length}"
            )
    return problems
