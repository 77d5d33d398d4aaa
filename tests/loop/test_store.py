"""What a run that is started again finds in its folder."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from jaxloop.checkpoint import Checkpointer
from jaxloop.config import ConfigError
from jaxloop.loop import store


def test_a_run_whose_checkpoints_are_all_damaged_is_not_written_over(tmp_path):
    metrics, said = [b"what was measured"], []
    saver = Checkpointer(tmp_path)
    bench = SimpleNamespace(
        checkpoints=saver,
        metrics=SimpleNamespace(truncate_to=lambda size: metrics.clear()),
        progress=SimpleNamespace(line=said.append),
    )
    assert store.find(bench) is None  # a fresh folder begins at zero
    assert metrics == []
    metrics.append(b"what was measured")
    saver.save(1, {"x": jnp.zeros(4)}, {"round": 0})
    saver.wait()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    array = next(path for path in files if path.name != "manifest.json")
    array.write_bytes(b"x" + array.read_bytes())
    for _ in range(2):  # the second start meets what the first one set aside
        with pytest.raises(ConfigError, match="corrupt-step_00000001-1 are damaged"):
            store.find(bench)
        assert metrics == [b"what was measured"]
    assert any("damaged" in line for line in said)
    saver.close()
