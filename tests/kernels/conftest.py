"""libtpu reads its environment when it is loaded: set before the first test."""

import sys
from pathlib import Path

import pytest

from jaxloop_kernels.schedule import has_libtpu, prepare

prepare()
sys.path.append(str(Path(__file__).parents[2] / "kernels" / "benchmarks"))


@pytest.fixture(scope="session")
def libtpu():
    """Compiles for TPUs, on any Linux; needs no TPU."""
    if not has_libtpu():
        pytest.skip("libtpu is not installed: pip install '.[test]' on Python 3.11")
