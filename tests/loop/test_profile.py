"""Which updates a profile holds."""

import os
import subprocess
import sys

import jax.numpy as jnp
import pytest

from jaxloop.config.errors import ConfigError
from jaxloop.loop.profile import Profiler, Steps


def test_steps_are_read():
    assert Steps.read("12") == (12, 12)
    assert Steps.read("1-3") == (1, 3)


@pytest.mark.parametrize("text", ["", "0", "3-1", "a", "1-", "-2", "1,2"])
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError, match="--profile 12 or --profile 12-15"):
        Steps.read(text)


@pytest.mark.parametrize(
    ("steps", "begun", "traced"),
    [((2, 3), 0, [2, 3]), ((1, 1), 0, [1]), ((2, 4), 2, [3, 4]), ((1, 2), 2, [])],
)
def test_the_updates_that_are_traced(monkeypatch, tmp_path, steps, begun, traced):
    """Also of a run that goes on in the middle of them, or behind them."""
    running, seen = [], []
    monkeypatch.setattr("jax.profiler.start_trace", running.append)
    monkeypatch.setattr("jax.profiler.stop_trace", running.clear)
    profiler = Profiler(tmp_path, Steps(*steps))
    for done in range(begun, 5):
        profiler.before(done)
        seen += [done + 1] if running else []
        profiler.after(done + 1, jnp.zeros(1))
    profiler.close()
    assert seen == traced
    assert not running


PROFILED = """
import sys
from pathlib import Path
import jax.numpy as jnp
from jaxloop.loop.profile import Profiler, Steps
profiler = Profiler(Path(sys.argv[1]), Steps(1, 1))
profiler.before(0)
assert profiler.after(1, jnp.ones(3) * 2)
"""


def test_a_profile_is_written(tmp_path):
    """In a process of its own: jax's profiler does not bear a libtpu without a TPU,
    which other tests load."""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    python = [sys.executable, "-c", PROFILED, str(tmp_path)]
    subprocess.run(python, env=environment, check=True)
    assert list(tmp_path.rglob("*.xplane.pb"))
