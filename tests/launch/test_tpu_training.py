"""launch/tpu.py with a real training: four processes of jax on a fake slice."""

import json

import pytest

from jaxloop.metrics import comparable, read_metrics
from tests.launch.test_tpu_run import log

CONFIG = "tests/distributed/small.py:dpo"


@pytest.fixture
def real(cloud, tmp_path):
    """With a tree of the library, hosts of two CPU devices, and a shared folder whose
    path is the same on all hosts, as paths are on real ones."""
    cloud.plant(
        *("jaxloop", "kernels/jaxloop_kernels", "pyproject.toml"),
        *("tests/distributed/small.py", "tests/loop/tiny_config.py"),
    )
    host_env = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    cloud.order(hosts=4, host_env=host_env)
    (cloud.folder / "buckets" / "b").mkdir(parents=True)
    return cloud


def train(cloud, name):
    # Eight chips: v4-16 in two hosts, here in four.
    slice_ = ("--zone", "z", "--accelerator", "v4-16", "--yes")
    shared = ("--shared", str(cloud.folder / "buckets" / "b"))
    hurry = ("--poll=1", "--first=0.1", "--connect=60", "--grace=60", "--quiet=120")
    return cloud.tpu("run", name, *slice_, *shared, CONFIG, hurry=hurry, limit=900)


@pytest.mark.full
def test_a_preempted_slice_ends_with_the_metrics_of_an_undisturbed_one(real):
    """Four processes with two devices each, which train together."""
    done = train(real, "calm")
    assert done.returncode == 0, done.stderr + log(real, "calm")
    for host in range(4):
        assert "devices: 2 here, 8 in all" in log(real, "calm", host=host)

    run = json.loads((real.outputs("calm") / "run.json").read_text())
    assert run["commit"] == real.git("rev-parse", "HEAD")

    real.order(preempt=["buckets/b/stormy/checkpoints/step_*"])
    done = train(real, "stormy")
    assert done.returncode == 0, done.stderr + log(real, "stormy", attempt=2)
    assert real.remembered("stormy")["attempt"] == 2
    assert len(real.calls("queued-resources create stormy")) == 2
    assert "continuing at" in log(real, "stormy", attempt=2)
    calm, stormy = (
        [comparable(line) for line in read_metrics(real.outputs(name))]
        for name in ("calm", "stormy")
    )
    assert calm == stormy
    assert any("loss" in line for line in calm)
    assert real.is_empty()
