"""Sizes of real models, for tests and benchmarks."""

from typing import NamedTuple


class Shape(NamedTuple):
    batch: int
    time: int
    width: int
    vocab: int


DESK = Shape(batch=8, time=128, width=512, vocab=32_000)
"""A DPO step of the 39M-parameter model that the benchmarks train on a CPU."""
QWEN2_5_0_5B = Shape(batch=8, time=1024, width=896, vocab=151_936)
QWEN3_8B = Shape(batch=8, time=1024, width=4096, vocab=151_936)
LLAMA_3_8B = Shape(batch=8, time=1024, width=4096, vocab=128_256)
