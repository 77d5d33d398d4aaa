"""The benchmark of judging runs, and prints what it promises."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_the_smoke_size_prints_every_figure():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "judging.py"), "--smoke"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["round_s"]) == {"sampling", "judging", "training"}
    assert len(told["judging_s"]) == 4
    assert all(seconds > 0 for part in told.values() for seconds in part.values())
    at_once, _, apart, _ = told["judging_s"].values()
    assert at_once < 0.8 * apart
