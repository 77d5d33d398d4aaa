"""Out of memory: it is recognised, and the advice can be followed."""

import jax
import jax.numpy as jnp
import pytest

from configs import quickstart
from jaxloop.config import ConfigError, apply_overrides
from jaxloop.loop.attempts import read_attempts
from jaxloop.loop.memory import advice, is_out_of_memory, report
from jaxloop.loop.run import run


@pytest.fixture(scope="module")
def error() -> Exception:
    """A real one: more bytes than any machine has."""
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jax.jit(lambda: jnp.ones((1 << 26, 1 << 24), jnp.int8))().block_until_ready()
    return raised.value


def test_it_is_recognised(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))
    assert not is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: other"))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    ("phase", "first"),
    [
        ("sampling", "recipe.sampling.rows=128"),
        ("training", "recipe.schedule.accumulation=2"),
        ("supervised training", "sft.accumulation=2"),
        ("evaluating", "recipe.sampling.rows=128"),
    ],
)
def test_three_settings_that_the_config_takes(phase, first, devices):
    config = apply_overrides(quickstart.get_config(), ["recipe.sampling.rows=256"])
    shape = config.model.shape
    found = [text.partition(" (")[0] for text in advice(config, shape, phase, devices)]
    assert len(found) == len(set(found)) == 3
    assert found[0] == first
    for setting in found:
        changed = apply_overrides(config, [setting])
        assert changed != config
        assert changed.problems(shape, devices) == []


def test_the_message_names_phase_bytes_and_settings(error):
    config = quickstart.get_config()
    text = report(config, config.model.shape, "sampling", error)
    assert "out of memory while sampling: " in text
    assert "1125899906842624" in text
    assert text.count("recipe.sampling") == 3


def test_a_run_that_has_no_room_ends_with_advice(error, tmp_path, monkeypatch):
    def stages(bench):
        bench.progress.phase("sampling")
        raise error

    monkeypatch.setattr("jaxloop.loop.run.run_stages", stages)
    config = apply_overrides(quickstart.get_config(), [f"out={tmp_path / 'run'}"])
    with pytest.raises(ConfigError, match="out of memory while sampling") as raised:
        run(config)
    assert raised.value.__cause__ is error
    (attempt,) = read_attempts(tmp_path / "run")
    assert attempt["end"] == "JaxRuntimeError"
