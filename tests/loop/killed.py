"""What the tests of killed runs share: start them, and compare what they left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from jaxloop.checkpoint import Checkpointer
from jaxloop.loop.attempts import add_up, read_attempts
from jaxloop.metrics import comparable, read_metrics

HERE = Path(__file__).parent


def launch(folder: Path, kind: str, *points: str) -> Path:
    """The folder of a run of the tiny config `kind` that was killed at those points."""
    out = folder / f"{kind}-{len(list(folder.iterdir()))}"
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": compiled,
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


def contents(out: Path) -> dict:
    """Everything of a run that must not depend on when it was killed."""
    lines = read_metrics(out / "metrics.jsonl")
    records = sorted(p for p in (out / "records").rglob("*") if p.is_file())
    reader = Checkpointer(out / "checkpoints", read_only=True)
    step = reader.latest_good()
    assert step is not None
    summary = json.loads((out / "summary.json").read_text())
    return {
        "metrics": [comparable(line) for line in lines],
        "records": {str(p.relative_to(out)): p.read_bytes() for p in records},
        "arrays": arrays(reader, step),
        "accuracy": summary["accuracy"],
        "best": summary.get("best"),
    }


def arrays(reader: Checkpointer, step: int) -> dict:
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
    assert a["best"] == b["best"]


def check(folder: Path, kind: str, points: list[str]) -> None:
    """A run that is killed at `points` ends as one that is not."""
    undisturbed, disturbed = launch(folder, kind), launch(folder, kind, *points)
    whole, killed = contents(undisturbed), contents(disturbed)
    assert len(whole["metrics"]) > 8
    assert_same(whole, killed)
    if any(point.startswith("time:") for point in points):
        return  # killed while it imports or at a safe point: nothing lost, or written
    assert len(read_attempts(undisturbed)) == 1
    attempts = read_attempts(disturbed)
    assert len(attempts) == len(points) + 1
    assert attempts[-1]["end"] == "finished"
    seconds = add_up(attempts).seconds
    assert seconds["productive"] > 0
    assert seconds["repeated"] > 0
