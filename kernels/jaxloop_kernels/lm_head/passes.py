"""One rule of differentiation for every implementation, on one device or on a mesh.

An implementation is a pair of functions of the rows that a device has,

    forward(plan, arrays) -> LmHead
    backward(plan, arrays, lse_BT, entropy_BT, bar) -> hidden_bar_BTD, vocab_bar_VD

The rule is written around the mesh, not within: what devices must sum, they sum here.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxloop_kernels.lm_head.reference import LmHead


class Shards(NamedTuple):
    """How a mesh cuts the arrays; every axis of it is Auto."""

    batch: tuple[str, ...] = ()
    """Mesh axes along which the batch is cut."""
    vocab: str | None = None
    """Mesh axis along which the rows of the vocabulary are cut."""
    mesh: Mesh | None = None
    """None: the one that is set (`jax.set_mesh`)."""

    def sizes(self) -> tuple[int, int]:
        """Into how many parts batch and vocabulary are cut."""
        mesh = self.mesh or jax.sharding.get_abstract_mesh()
        parts = prod(mesh.shape[axis] for axis in self.batch)
        return parts, mesh.shape[self.vocab] if self.vocab else 1


class Arrays(NamedTuple):
    """What goes in; also the layouts of these arrays, and their gradients."""

    hidden_BTD: jax.Array
    vocab_VD: jax.Array
    target_BT: jax.Array
    choices_BTK: jax.Array | None
    inverse: jax.Array
    """1 / temperature, float32."""


class Passes(NamedTuple):
    forward: Callable[[Any, Arrays], LmHead]
    backward: Callable[..., tuple[jax.Array, jax.Array]]
    plan: Any
    """What is fixed at trace time; hashable."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(passes: Passes, shards: Shards | None, arrays: Arrays) -> LmHead:
    """The forward pass; differentiable in hidden and vocab."""
    return _forward(passes, shards, arrays)[0]


def _forward(passes: Passes, shards: Shards | None, arrays: Arrays):
    forward = partial(passes.forward, passes.plan)
    if shards is not None:
        rows = P(shards.batch)
        forward = _mapped(shards, forward, (_specs(shards),), rows)
    out = forward(arrays)
    return out, (arrays, out.lse_BT, out.entropy_BT)


def _backward(passes: Passes, shards: Shards | None, saved, bar: LmHead):
    def backward(*args):
        hidden_bar_BTD, vocab_bar_VD = passes.backward(passes.plan, *args)
        if shards is not None and shards.batch:
            vocab_bar_VD = jax.lax.psum(vocab_bar_VD, shards.batch)
        return hidden_bar_BTD, vocab_bar_VD

    if shards is not None:
        rows, specs = P(shards.batch), _specs(shards)
        out = (rows, specs.vocab_VD)
        backward = _mapped(shards, backward, (specs, rows, rows, rows), out)
    arrays = saved[0]
    hidden_bar_BTD, vocab_bar_VD = backward(*saved, bar)
    hidden_bar_BTD = hidden_bar_BTD.astype(arrays.hidden_BTD.dtype)
    vocab_bar_VD = vocab_bar_VD.astype(arrays.vocab_VD.dtype)
    nothing: Any = None
    return (Arrays(hidden_bar_BTD, vocab_bar_VD, nothing, None, nothing),)


run.defvjp(_forward, _backward)


def _specs(shards: Shards) -> Arrays:
    rows: Any = P(shards.batch)
    vocab: Any = P(shards.vocab)
    whole: Any = P()
    return Arrays(rows, vocab, rows, rows, whole)


def _mapped(shards: Shards, fn, in_specs, out_specs):
    return jax.shard_map(
        fn, mesh=shards.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
