"""Abstract parameters are what initialising would make, and cost nothing."""

import jax
import pytest
from flax import linen as nn

from jaxloop.models.decoder import Decoder, ModelShape, count_parameters, init_boxed
from jaxloop.models.parameters import abstract_params, bytes_per_device, tree_bytes

SHAPE = ModelShape(family="qwen3", qkv_bias=False, qk_norm=True, kv_heads=2, tied=False)


def test_they_describe_what_init_makes(mesh_of):
    abstract = abstract_params(SHAPE, mesh_of(fsdp=2, tensor=2), "bfloat16")

    @jax.jit
    def init(key):
        return nn.unbox(init_boxed(Decoder(SHAPE), key, "bfloat16"))

    params = init(jax.random.key(0))
    assert jax.tree.structure(abstract) == jax.tree.structure(params)
    pairs = zip(jax.tree.leaves(abstract), jax.tree.leaves(params), strict=True)
    for wanted, leaf in pairs:
        assert (wanted.shape, wanted.dtype) == (leaf.shape, leaf.dtype)
    placed = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, abstract))
    on_first = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(placed)]
    assert bytes_per_device(abstract) == sum(shard.nbytes for shard in on_first)
    assert tree_bytes(abstract) == tree_bytes(params) == 2 * count_parameters(SHAPE)
    wide = abstract_params(SHAPE, mesh_of(), "float32")
    assert bytes_per_device(wide) == tree_bytes(wide) == 4 * count_parameters(SHAPE)


def test_they_are_the_same_while_a_mesh_is_set(mesh_of):
    mesh = mesh_of(fsdp=2, tensor=2)
    outside = abstract_params(SHAPE, mesh), count_parameters(SHAPE)
    with jax.set_mesh(mesh):
        assert (abstract_params(SHAPE, mesh), count_parameters(SHAPE)) == outside


def test_eight_billion_parameters_cost_nothing(mesh_of):
    shape = ModelShape(
        family="llama",
        vocab=128256,
        width=4096,
        ffn=14336,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        qkv_bias=False,
        tied=False,
    )
    abstract = abstract_params(shape, mesh_of(fsdp=4, tensor=2), "bfloat16")
    assert tree_bytes(abstract) == 2 * 8_030_261_248
    # Norms and the like are on every device; the rest is cut in eight.
    assert bytes_per_device(abstract) == pytest.approx(
        tree_bytes(abstract) / 8, rel=1e-3
    )


def test_indivisible_sizes_are_named_before_anything_is_made(mesh_of):
    with pytest.raises(ValueError, match="kv_heads = 2 cannot be cut into 4"):
        abstract_params(SHAPE, mesh_of(fsdp=2, tensor=4))
