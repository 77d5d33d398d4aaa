"""Every kernel compiles for every chip: layouts, vector memory, what Mosaic can do.

By libtpu, ahead of time, on any machine. Ordinarily one shape a kernel; all under full.
"""

import os
import subprocess
import sys
from itertools import product

import pytest
import tpu_entries

from jaxloop_kernels.schedule import TOPOLOGIES
from jaxloop_kernels.schedule.compiler import compile_lowered, lower

EVERY = [
    (op, shape)
    for op in (*tpu_entries.COMPILED, *tpu_entries.FURTHER)
    for shape in tpu_entries.OPS[op].shapes
]


def ordinary():
    """Each kernel on an older and a newer chip; the output layer's, which takes 20
    seconds on most, on the oldest."""
    for op, chip in product(tpu_entries.COMPILED, TOPOLOGIES):
        slow = chip not in (("v4",) if op == "lm_head_backward" else ("v5e", "tpu7x"))
        yield pytest.param(op, chip, marks=[pytest.mark.full] if slow else [])


@pytest.mark.parametrize(("op", "chip"), list(ordinary()))
def test_compiles(libtpu, op, chip):
    check(op, tpu_entries.COMPILED[op], chip)


@pytest.mark.full
@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize(("op", "shape"), EVERY)
def test_compiles_at_every_shape(libtpu, op, shape, chip):
    refused = ""
    if chip == "v4":  # which has a quarter of the others' vector memory, or an eighth
        refused = V4_LACKS_MEMORY.get(op, {}).get(shape, "")
    shape = tpu_entries.OPS[op].shapes[shape]
    if refused:
        with pytest.raises(NotImplementedError, match=refused):
            check(op, shape, chip)
    else:
        check(op, shape, chip)


V4_LACKS_MEMORY = {
    "mta_pre_backward": dict.fromkeys(("8k", "llama"), "of 16 MiB fast memory"),
    "mta_full": dict.fromkeys(tpu_entries.SIXTEEN, "16 mixed heads do not fit"),
    "mta_full_backward": dict.fromkeys(
        tpu_entries.SIXTEEN, "16 mixed heads do not fit"
    ),
}


def check(op, shape, chip):
    fn, args = tpu_entries.OPS[op].build(shape, {}, chip)
    lowered = lower(chip, fn, *args)
    assert "tpu_custom_call" in lowered.as_text()
    compile_lowered(lowered)


def test_libtpu_is_not_loaded_unless_asked(libtpu):
    """With it installed, jax on a CPU starts without a word and without it."""
    code = (
        "import jax, pathlib; jax.devices(); import jaxloop_kernels.schedule; "
        "print('libtpu.so' in pathlib.Path('/proc/self/maps').read_text())"
    )
    python = [sys.executable, "-W", "error", "-c", code]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    done = subprocess.run(python, capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("False\n", "")
