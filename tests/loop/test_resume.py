"""Killed at any instant and started again, a run ends with the same bits."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from jaxloop.checkpoint import Checkpointer
from jaxloop.metrics import comparable, read_metrics

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """launch(kind, *points): the folder of a run that was killed at those points."""
    cache = tmp_path_factory.mktemp("compiled")

    def start(kind: str, *points: str) -> Path:
        out = tmp_path_factory.mktemp(kind) / "run"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        done = subprocess.run(
            [sys.executable, str(HERE / "crash.py"), kind, str(out), *points],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return out

    return start


def contents(out: Path) -> dict:
    """Everything of a run that must not depend on when it was killed."""
    lines = read_metrics(out / "metrics.jsonl")
    records = sorted(p for p in (out / "records").rglob("*") if p.is_file())
    reader = Checkpointer(out / "checkpoints", read_only=True)
    step = reader.latest_good()
    assert step is not None
    return {
        "metrics": [comparable(line) for line in lines],
        "records": {str(p.relative_to(out)): p.read_bytes() for p in records},
        "arrays": arrays(reader, step),
        "accuracy": json.loads((out / "summary.json").read_text())["accuracy"],
    }


def arrays(reader: Checkpointer, step: int) -> dict:
    import jax
    import numpy as np

    tree: dict = {}
    for path, (shape, dtype) in reader.leaves(step).items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = jax.ShapeDtypeStruct(shape, dtype)
    restored, _ = reader.restore(step, tree)
    flat, _ = jax.tree_util.tree_flatten_with_path(restored)
    return {jax.tree_util.keystr(p): np.asarray(x).tobytes() for p, x in flat}


def assert_same(a: dict, b: dict) -> None:
    assert a["metrics"] == b["metrics"]
    assert a["records"].keys() == b["records"].keys()
    for name, data in a["records"].items():
        assert data == b["records"][name], name
    assert a["arrays"] == b["arrays"]
    assert a["accuracy"] == b["accuracy"]


# Points in the order in which one run meets them: each is a kill and a new start.
KILLS = {
    "dpo": [
        *("update:3", "place:1", "evaluate:1", "sample:1", "score:1", "sampled:1"),
        *("reference:2", "update:2", "seal:1", "evaluate:2", "term:1"),
    ],
    "rft": ["update:3", "sample:1", "score:2", "update:2", "seal:1", "term:1"],
    "grpo": ["evaluate:1", "score:3", "update:3", "place:1", "term:2"],
    "semi_online": ["update:6", "score:2", "reference:3", "seal:1"],
}


@pytest.mark.parametrize("kind", KILLS)
def test_killed_runs_end_with_the_same_bits(launch, kind):
    whole = contents(launch(kind))
    killed = contents(launch(kind, *KILLS[kind]))
    assert len(whole["metrics"]) > 8
    assert_same(whole, killed)


@pytest.mark.full
@pytest.mark.parametrize("kind", KILLS)
def test_killed_at_random_instants(launch, kind):
    whole = contents(launch(kind))
    draw = random.Random(kind)
    for _ in range(3):
        points = [f"time:{draw.uniform(1.5, 9):.2f}" for _ in range(4)]
        assert_same(whole, contents(launch(kind, *points)))
