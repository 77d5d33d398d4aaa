"""The same samples on one device and on a mesh, with the cache cut over it."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxloop.mesh import shardings_of
from jaxloop.models.decoder import init_boxed
from jaxloop.sampling.engine import Engine
from jaxloop.sampling.settings import Sampling
from tests.sampling.tiny import MODEL, Letters, prompts, random_params

SAMPLING = Sampling(n=2, max_new_tokens=6, rows=4, prefill_rows=2, chunk=3, top_p=0.9)


def sample(mesh):
    engine = Engine(MODEL, Letters(), mesh)
    abstract = jax.eval_shape(lambda: init_boxed(MODEL, jax.random.key(0)))
    params = jax.device_put(random_params(), shardings_of(abstract, mesh))
    state = engine.empty_state(SAMPLING, bucket=16)
    return state, engine.sample(params, prompts(5), SAMPLING, key=jax.random.key(3))


def test_a_mesh_agrees_with_one_device(mesh_of):
    _, want = sample(mesh_of())
    state, got = sample(mesh_of(data=2, fsdp=2, tensor=2))
    for ours, theirs in zip(sum(want, ()), sum(got, ()), strict=True):
        assert ours.token_ids == theirs.token_ids
        np.testing.assert_allclose(ours.logps, theirs.logps, atol=1e-5)
    for cache in jax.tree.leaves(state.caches):
        B, K, *rest = cache.shape
        assert cache.sharding.shard_shape(cache.shape) == (B // 4, K // 2, *rest)


def test_rows_that_the_mesh_does_not_divide(mesh_of):
    engine = Engine(MODEL, Letters(), mesh_of(data=4))
    with pytest.raises(ValueError, match=r"rows = 6 .* 4 batch parts.* 4 or 8"):
        engine.sample({}, prompts(1), Sampling(rows=6), key=jax.random.key(0))


def test_a_shared_head_on_a_mesh(mesh_of):
    head = tuple(range(3, 36))
    asked = [replace(p, token_ids=head + p.token_ids) for p in prompts(5)]
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    engine = Engine(MODEL, Letters(), mesh)
    abstract = jax.eval_shape(lambda: init_boxed(MODEL, jax.random.key(0)))
    params = jax.device_put(random_params(), shardings_of(abstract, mesh))
    plain, shared = (
        engine.sample(params, asked, SAMPLING, key=jax.random.key(3), shared=size)
        for size in (0, 32)
    )
    for ours, theirs in zip(sum(shared, ()), sum(plain, ()), strict=True):
        assert ours.token_ids == theirs.token_ids
        np.testing.assert_allclose(ours.logps, theirs.logps, atol=1e-5)
