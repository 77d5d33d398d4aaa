"""Parameters before they exist: shapes, placements and bytes; nothing is allocated."""

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from jaxloop.mesh import MeshShape, divisibility_problems, shardings_of
from jaxloop.models.decoder import Decoder, ModelShape, cut_sizes, init_boxed


def abstract_params(shape: ModelShape, mesh: Mesh, dtype="float32") -> dict:
    """The parameter tree with a sharded `jax.ShapeDtypeStruct` in place of each leaf.

    For dry runs, for loading and for restoring checkpoints. ValueError where a size is
    not divisible by the mesh axes that cut it.
    """
    if problems := divisibility_problems(MeshShape(**mesh.shape), cut_sizes(shape)):
        raise ValueError("; ".join(problems))
    boxed = jax.eval_shape(lambda: init_boxed(Decoder(shape), jax.random.key(0), dtype))
    return jax.tree.map(
        lambda box, sharding: jax.ShapeDtypeStruct(
            box.value.shape, box.value.dtype, sharding=sharding
        ),
        boxed,
        shardings_of(boxed, mesh),
        is_leaf=lambda box: isinstance(box, nn.LogicallyPartitioned),
    )


def tree_bytes(tree) -> int:
    """Bytes of all leaves, counted once however many devices hold copies."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def bytes_per_device(tree) -> int:
    """Bytes that each device holds of arrays, or abstract arrays, with shardings."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
        * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )
