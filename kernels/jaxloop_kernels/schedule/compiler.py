"""Compiles for TPUs ahead of time on a machine without one.

libtpu reads its flags once, when it is loaded: `prepare` comes before the first
compilation of a process. It needs no TPU and leaves jax's own platform alone.
"""

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
"""The smallest of each chip."""

VMEM = {"v4": 16, "v5e": 128, "v5p": 64, "v6e": 128, "tpu7x": 64}
"""MiB of vector memory of one core."""

_ENVIRONMENT = {
    # There is no machine to ask for its kind and neighbours.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    # Several processes may compile at once.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "2",
    "TPU_MIN_LOG_LEVEL": "2",
}
_DUMP = (
    "--xla_jf_dump_to={folder}",
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_dump_llo_pass_label_regex=final_.*|post-delay-converter",
)


@functools.cache
def prepare() -> Path:
    """Sets what libtpu reads when it is loaded; returns where it will dump schedules.

    The folder is temporary and goes with the process.
    """
    folder = Path(tempfile.mkdtemp(prefix="tpu-schedule-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    mine = os.environ.get("LIBTPU_INIT_ARGS", "").split()
    mine = [flag for flag in mine if not flag.startswith("--xla_jf_dump_")]
    dump = [flag.format(folder=folder) for flag in _DUMP]
    os.environ.update(_ENVIRONMENT, LIBTPU_INIT_ARGS=" ".join(mine + dump))
    return folder


def has_libtpu() -> bool:
    """Whether libtpu can be loaded here."""
    prepare()
    try:
        topology(next(iter(TOPOLOGIES)))
    except Exception as error:  # jax has no narrower one for a missing library
        if "libtpu" not in str(error):
            raise
        return False
    return True


@functools.cache
def topology(chip: str):
    prepare()
    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])


def _mesh(chip: str) -> Mesh:
    return Mesh(np.array(topology(chip).devices[:1]), ("one",))


def tracing_for(chip: str) -> contextlib.AbstractContextManager:
    """Kernels that ask for the device they are traced for find one of that chip."""
    return jax.sharding.use_abstract_mesh(_mesh(chip).abstract_mesh)


def lower(chip: str, fn: Callable, *args) -> jax.stages.Lowered:
    """Traces `fn` for one device of that chip; args are ShapeDtypeStructs, or trees
    of them."""
    sharding = NamedSharding(_mesh(chip), PartitionSpec())

    def place(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    args = jax.tree.map(place, args)
    with tracing_for(chip):
        traced = jax.jit(fn).trace(*args)
    return traced.lower(lowering_platforms=("tpu",))


@contextlib.contextmanager
def _without_cache():
    """jax's persistent cache takes programs for absent devices and cannot read them
    back; and one that was read would leave no dump. jax looks at its setting only once:
    hence the resets."""
    name = "jax_enable_compilation_cache"
    used = jax.config.values[name]
    jax.config.update(name, False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update(name, used)
        compilation_cache.reset_cache()


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles what `lower` returned, never from jax's persistent cache."""
    with _without_cache():
        return lowered.compile()


def compile_for(chip: str, fn: Callable, *args) -> jax.stages.Compiled:
    """What `fn` is on that chip. Raises what the compiler says does not work, such as
    too much vector memory."""
    return compile_lowered(lower(chip, fn, *args))
