"""Tests run on 8 simulated CPU devices; `mesh_of` picks how many of them are used."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
# TRL warns of its experimental part on the first import only, whichever test that is.
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import jax
import pytest

from jaxloop.mesh import MeshShape, make_mesh


@pytest.fixture
def mesh_of():
    """mesh_of(data=2, fsdp=2, tensor=2): a mesh over as many devices as that takes."""

    def build(data=1, fsdp=1, tensor=1):
        devices = jax.devices()[: data * fsdp * tensor]
        return make_mesh(MeshShape(data, fsdp, tensor), devices)

    return build
