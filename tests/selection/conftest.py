import numpy as np
import pytest
from hypothesis import settings

# Examples are the same in every run, and a busy machine is no failure.
settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")


@pytest.fixture
def numpy_rng():
    return np.random.default_rng(0)
