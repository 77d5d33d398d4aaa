"""Functions whose plain form loses its digits or its gradient."""

import math

import jax
import jax.numpy as jnp


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0, accurate near 0 and far from it."""
    near = x > -math.log(2)
    # Each branch sees only what it can take, or its gradient would poison the other's.
    x_near = jnp.where(near, x, -1.0)
    x_far = jnp.where(near, -1.0, x)
    return jnp.where(near, jnp.log(-jnp.expm1(x_near)), jnp.log1p(-jnp.exp(x_far)))
