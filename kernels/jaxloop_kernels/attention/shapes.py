"""Sizes of real models, for tests and benchmarks."""

from typing import NamedTuple


class Shape(NamedTuple):
    batch: int
    time: int
    heads: int
    kv_heads: int
    head: int
    """Size of queries' and keys' heads."""
    value: int
    """Size of values' heads."""
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False


QWEN2_5_0_5B = Shape(8, 1024, 14, 2, 64, 64)
QWEN3_8B = Shape(2, 4096, 32, 8, 128, 128)
LLAMA_3_8B = Shape(1, 8192, 32, 8, 128, 128)
MTA_880M = Shape(8, 2048, 16, 16, 96, 96)
"""The plain Transformer beside the paper's headline model."""
GEMMA_2_9B = Shape(1, 8192, 16, 8, 256, 256, window=4096, soft_cap=50.0)
GPT_OSS_20B = Shape(1, 4096, 64, 8, 64, 64, window=128, sinks=True)
DEEPSEEK_V2_LITE = Shape(1, 4096, 16, 16, 192, 128)
"""Queries and keys wider than values."""

ALL = {
    "qwen2.5-0.5b": QWEN2_5_0_5B,
    "qwen3-8b": QWEN3_8B,
    "llama-3-8b": LLAMA_3_8B,
    "mta-880m": MTA_880M,
    "gemma-2-9b": GEMMA_2_9B,
    "gpt-oss-20b": GPT_OSS_20B,
    "deepseek-v2-lite": DEEPSEEK_V2_LITE,
}
