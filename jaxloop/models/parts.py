"""Parameters with logical axes, and the norm: what the decoder's modules share."""

from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn


def param(module: nn.Module, name: str, size, axes, init) -> jax.Array:
    boxed = nn.with_logical_partitioning(init, axes)
    return cast(jax.Array, module.param(name, boxed, size))  # flax unboxes it


def weight(module: nn.Module, name: str, size, axes, fan_in: int) -> jax.Array:
    """A matrix, stored in the parameter dtype and used in the compute dtype."""
    init = nn.initializers.normal(stddev=fan_in**-0.5)
    return param(module, name, size, axes, init).astype(module.dtype)


def bias(module: nn.Module, name: str, size, axes) -> jax.Array:
    zeros = nn.initializers.zeros
    return param(module, name, size, axes, zeros).astype(module.dtype)


def scale(module: nn.Module, name: str, width: int) -> jax.Array:
    return param(module, name, (width,), (None,), nn.initializers.ones)


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """Over the last axis, in float32 (Zhang and Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + eps)
    return (x32 * inverse * scale_D).astype(x.dtype)
