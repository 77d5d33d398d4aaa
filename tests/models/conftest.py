"""The stored checkpoints (`tests/golden/README.md`) and what tests do with them."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.models.decoder import Decoder, ModelShape, unembedding
from jaxloop.models.huggingface import load_params, read_shape

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ("llama_biases", "llama_tied", "qwen2_tied", "qwen2_untied", "qwen3")


@dataclass(frozen=True)
class Checkpoint:
    directory: Path
    shape: ModelShape
    expected: dict[str, np.ndarray]


@pytest.fixture(params=NAMES)
def checkpoint(request) -> Checkpoint:
    """Each of the stored models in turn."""
    return open_checkpoint(request.param)


@pytest.fixture
def checkpoint_named():
    return open_checkpoint


def open_checkpoint(name: str) -> Checkpoint:
    directory = GOLDEN / name
    with np.load(directory / "expected.npz") as arrays:
        return Checkpoint(directory, read_shape(directory), dict(arrays))


@pytest.fixture
def one_device(mesh_of):
    return mesh_of()


@pytest.fixture
def load(one_device):
    """load(checkpoint or directory, dtype): parameters on one device."""

    def of(source, dtype="float32") -> dict:
        directory = getattr(source, "directory", source)
        return load_params(directory, read_shape(directory), one_device, dtype)

    return of


@pytest.fixture
def logits_of():
    """logits_of(shape, params, tokens_BT, mesh=None): (B, T, V) float32 in numpy."""

    def compute(shape, params, tokens_BT, mesh=None) -> np.ndarray:
        tokens_BT = jnp.asarray(tokens_BT)
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)

        @jax.jit
        def forward(params):
            hidden_BTD, _ = Decoder(shape).apply(
                {"params": params}, tokens_BT, positions_BT
            )
            return hidden_BTD @ unembedding(params).T

        if mesh is None:
            return np.asarray(forward(params))
        with jax.set_mesh(mesh):
            return np.asarray(forward(params))

    return compute


@dataclass(frozen=True)
class StandInTokenizer:
    """What saving a model needs of a tokenizer."""

    eos_ids: tuple[int, ...] = (62, 63)
    bos_ids: tuple[int, ...] = (1,)
    pad_id: int = 0

    def save(self, directory: Path) -> None:
        (Path(directory) / "tokenizer.json").write_text("{}")


@pytest.fixture
def tokenizer():
    return StandInTokenizer()


@pytest.fixture
def make_tokenizer():
    return StandInTokenizer
