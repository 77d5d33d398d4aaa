"""What an op is to `tpu_schedule.py`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Blocks = dict[str, int]


class Op(NamedTuple):
    build: Callable[[Any, Blocks, str], tuple[Callable, tuple]]
    """(shape, blocks, chip) -> (function, its abstract arguments)."""
    shapes: dict[str, Any]
    blocks: tuple[Blocks, ...] = ({},)
    """The first is the default; `--sweep` tries all."""
    baseline: str = ""
    """The op that ratios are to, at the shape of the same name."""
    only: str = ""
    """Pattern of the kernels that count; a backward pass brings the forward with it."""
    counts: Callable[[Any, Blocks], dict] = lambda shape, blocks: {}
    """(shape, blocks) -> `trips` and `shares` of `measure`, where arguments decide."""


def bf16(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)
