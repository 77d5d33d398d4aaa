"""Which updates a profile holds."""

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


def test_a_profile_is_written(tmp_path):
    profiler = Profiler(tmp_path, Steps(1, 1))
    profiler.before(0)
    assert profiler.after(1, jnp.ones(3) * 2)
    assert list(tmp_path.rglob("*.xplane.pb"))
