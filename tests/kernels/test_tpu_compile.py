"""Every kernel compiles for every chip: layouts, vector memory, what Mosaic can do.

By libtpu, ahead of time, on any machine. Ordinarily one shape a kernel; all under full.
"""

import os
import subprocess
import sys

import pytest
import tpu_entries

from jaxloop_kernels.schedule import TOPOLOGIES, compile_for

EVERY = [
    (op, shape)
    for op in (*tpu_entries.COMPILED, *tpu_entries.SLOW)
    for shape in tpu_entries.OPS[op].shapes
]


@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize("op", tpu_entries.COMPILED)
def test_compiles(libtpu, op, chip):
    check(op, tpu_entries.COMPILED[op], chip)


@pytest.mark.full
@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize(("op", "shape"), EVERY)
def test_compiles_at_every_shape(libtpu, op, shape, chip):
    check(op, tpu_entries.OPS[op].shapes[shape], chip)


def check(op, shape, chip):
    fn, args = tpu_entries.OPS[op].build(shape, {}, chip)
    assert "tpu_custom_call" in compile_for(chip, fn, *args).as_text()


def test_libtpu_is_not_loaded_unless_asked(libtpu):
    """With it installed, jax on a CPU starts without a word and without it."""
    code = (
        "import jax; jax.devices(); import jaxloop_kernels.schedule; "
        "print('libtpu.so' in open('/proc/self/maps').read())"
    )
    python = [sys.executable, "-W", "error", "-c", code]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    done = subprocess.run(python, capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("False\n", "")
