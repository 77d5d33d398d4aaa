"""Sizes of real models, for tests and benchmarks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Shape(NamedTuple):
    batch: int
    time: int
    width: int
    vocab: int

    def arguments(self, dtype="bfloat16") -> tuple[jax.ShapeDtypeStruct, ...]:
        """hidden, vocab, target; for compiling ahead of time."""
        return (
            jax.ShapeDtypeStruct((self.batch, self.time, self.width), dtype),
            jax.ShapeDtypeStruct((self.vocab, self.width), dtype),
            jax.ShapeDtypeStruct((self.batch, self.time), jnp.int32),
        )


DESK = Shape(batch=8, time=128, width=512, vocab=32_000)
"""A DPO step of the 39M-parameter model that the benchmarks train on a CPU."""
QWEN2_5_0_5B = Shape(batch=8, time=1024, width=896, vocab=151_936)
QWEN3_8B = Shape(batch=8, time=1024, width=4096, vocab=151_936)
LLAMA_3_8B = Shape(batch=8, time=1024, width=4096, vocab=128_256)
SHAPES = {
    "desk": DESK,
    "qwen2.5-0.5b": QWEN2_5_0_5B,
    "qwen3-8b": QWEN3_8B,
    "llama-3-8b": LLAMA_3_8B,
}
