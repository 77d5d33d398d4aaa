"""Masked sums, and metrics that add up over micro-batches, steps and devices.

A masked entry may hold anything, NaN included: values are selected before they are
used, never multiplied by a zero.
"""

from collections.abc import Mapping
from typing import Protocol, Self

import jax
import jax.numpy as jnp
from flax import struct


def select(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x where mask > 0, else 0; where it is 0, no gradient reaches x either."""
    return jnp.where(mask > 0, x, jnp.zeros((), x.dtype))


def masked_sum(x: jax.Array, mask: jax.Array, axis=None) -> jax.Array:
    """Sum of x where mask > 0 (mask broadcasts to x), over `axis` or all."""
    return select(x, mask).sum(axis)


def count(mask: jax.Array, axis=None) -> jax.Array:
    """How many entries of mask are > 0, as float32."""
    return (mask > 0).astype(jnp.float32).sum(axis)


def ratio(total: jax.Array, count: jax.Array) -> jax.Array:
    """total / count; 0 where nothing was counted (the total is 0 there too)."""
    return total / jnp.maximum(count, 1.0)


def masked_mean(x: jax.Array, mask: jax.Array, axis=None) -> jax.Array:
    """Mean of x where mask > 0, 0 for an empty mask."""
    mask = jnp.broadcast_to(mask, x.shape)
    return ratio(masked_sum(x, mask, axis), count(mask, axis))


class Metric(Protocol):
    """A number in a form that merges: however data is split, the value is the same."""

    def merge(self, other: Self) -> Self: ...

    def collapse(self) -> Self: ...

    def value(self) -> jax.Array: ...


@struct.dataclass
class Mean:
    """total / count, each summed over what is merged."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, x: jax.Array, mask: jax.Array) -> "Mean":
        """The mean of x where mask > 0. No gradient."""
        mask = jnp.broadcast_to(mask, x.shape)
        x = jax.lax.stop_gradient(x).astype(jnp.float32)
        return cls(masked_sum(x, mask), count(mask))

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def collapse(self) -> "Mean":
        """Merges along the first axis, as `lax.scan` stacks its outputs."""
        return Mean(self.total.sum(0), self.count.sum(0))

    def value(self) -> jax.Array:
        """NaN where nothing was counted: unknown is not zero."""
        safe = jnp.maximum(self.count, 1e-30)
        return jnp.where(self.count > 0, self.total / safe, jnp.nan)


@struct.dataclass
class Sum:
    """A total over what is merged, such as the shares of a step's loss."""

    total: jax.Array

    def merge(self, other: "Sum") -> "Sum":
        return Sum(self.total + other.total)

    def collapse(self) -> "Sum":
        """Merges along the first axis."""
        return Sum(self.total.sum(0))

    def value(self) -> jax.Array:
        return self.total


@struct.dataclass
class Max:
    """The largest of what is merged; -inf stands for nothing."""

    largest: jax.Array

    @classmethod
    def of(cls, x: jax.Array, mask: jax.Array) -> "Max":
        """The largest x where mask > 0. No gradient."""
        x = jax.lax.stop_gradient(x).astype(jnp.float32)
        return cls(jnp.where(mask > 0, x, -jnp.inf).max())

    def merge(self, other: "Max") -> "Max":
        return Max(jnp.maximum(self.largest, other.largest))

    def collapse(self) -> "Max":
        """Merges along the first axis."""
        return Max(self.largest.max(0))

    def value(self) -> jax.Array:
        """NaN where nothing was seen."""
        return jnp.where(jnp.isneginf(self.largest), jnp.nan, self.largest)


@struct.dataclass
class Min:
    """The smallest of what is merged; +inf stands for nothing."""

    smallest: jax.Array

    @classmethod
    def of(cls, x: jax.Array, mask: jax.Array) -> "Min":
        """The smallest x where mask > 0. No gradient."""
        x = jax.lax.stop_gradient(x).astype(jnp.float32)
        return cls(jnp.where(mask > 0, x, jnp.inf).min())

    def merge(self, other: "Min") -> "Min":
        return Min(jnp.minimum(self.smallest, other.smallest))

    def collapse(self) -> "Min":
        """Merges along the first axis."""
        return Min(self.smallest.min(0))

    def value(self) -> jax.Array:
        """NaN where nothing was seen."""
        return jnp.where(jnp.isposinf(self.smallest), jnp.nan, self.smallest)


Metrics = dict[str, Metric]


def merge(a: Mapping[str, Metric], b: Mapping[str, Metric]) -> Metrics:
    """Name by name; a name that only one side has is kept as it is."""
    both = {name: a[name].merge(b[name]) for name in a.keys() & b.keys()}
    return dict(sorted((dict(a) | dict(b) | both).items()))


def collapse(stacked: Mapping[str, Metric]) -> Metrics:
    """Merges metrics that `lax.scan` stacked along a new first axis."""
    return {name: metric.collapse() for name, metric in stacked.items()}


def values(metrics: Mapping[str, Metric]) -> dict[str, jax.Array]:
    """Name to scalar; NaN for a metric that counted nothing."""
    return {name: metric.value() for name, metric in metrics.items()}
