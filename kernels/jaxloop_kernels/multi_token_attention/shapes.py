"""Sizes of real models, for tests and benchmarks."""

from typing import NamedTuple


class Shape(NamedTuple):
    batch: int
    time: int
    heads: int
    kv_heads: int
    head_dim: int


MTA_300M = Shape(batch=4, time=2048, heads=16, kv_heads=16, head_dim=64)
MTA_550M = Shape(batch=4, time=2048, heads=10, kv_heads=10, head_dim=128)
MTA_880M = Shape(batch=4, time=2048, heads=16, kv_heads=16, head_dim=96)
MTA_1B = Shape(batch=4, time=2048, heads=16, kv_heads=16, head_dim=128)
"""The models of the paper."""
LLAMA_3_8B = Shape(batch=1, time=8192, heads=32, kv_heads=8, head_dim=128)
"""A pretrained model that is to learn the kernels from the identity on."""
SPLASH = Shape(batch=1, time=8192, heads=8, kv_heads=8, head_dim=128)
"""What costs are compared at with plain attention."""
