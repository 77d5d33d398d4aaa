"""A tiny model and a letter tokenizer for the sampler's tests."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxloop.models.decoder import Decoder, ModelShape, init_boxed
from jaxloop.records import Prompt

SHAPE = ModelShape(
    vocab=40, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8
)
MODEL = Decoder(SHAPE)


@dataclass(frozen=True)
class Letters:
    """Token i is the i-th character of a small alphabet; EOS ids have no text."""

    eos_ids: tuple[int, ...] = (1, 2)
    pad_id: int = 0
    size: int = 40
    alphabet: str = "_.$abcdefghijklmnopqrstuvwxyz0123456789#"

    def decode(self, ids):
        return "".join(self.alphabet[i] for i in ids if i not in self.eos_ids)


def random_params(model: Decoder = MODEL, seed: int = 0) -> dict:
    """Every leaf random, biases and norms too."""
    abstract = jax.eval_shape(lambda: init_boxed(model, jax.random.key(0)))
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        noise = rng.normal(size=x.shape)
        value = 1 + 0.2 * noise if "norm" in str(path[-1]) else 0.25 * noise
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, nn.unbox(abstract))


def prompts(count: int, seed: int = 0, longest: int = 12) -> list[Prompt]:
    """The first `count` of an endless list."""
    found = []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        ids = rng.integers(3, SHAPE.vocab, rng.integers(1, longest + 1))
        found.append(Prompt(f"p{i}", "", tuple(ids.tolist())))
    return found
