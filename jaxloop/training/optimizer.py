"""AdamW by optax, with the choices that decide whether a model fits.

Parameters may be stored in float32 or bfloat16. With bfloat16 a plain update is lost to
rounding (an update of 1e-6 of a weight is far below half a unit in the last place), so
either float32 master weights are kept beside them, or the sum is rounded
stochastically, which is right on average and costs no memory.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) and its learning-rate schedule."""

    learning_rate: float = 1e-6
    """The peak of the schedule."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up."""
    warmup: int = 0
    """Updates over which the rate rises linearly from 0."""
    final_fraction: float = 0.0
    """Where linear and cosine end, as a fraction of the peak."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled; norms and biases are left out."""
    clip_norm: float = 1.0
    """Global norm that gradients are scaled down to; 0 turns clipping off."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the two moments are stored in; bfloat16 is rounded stochastically."""
    master_weights: bool = False
    """Float32 weights beside bfloat16 parameters, instead of stochastic rounding."""


def learning_rate(optimizer: Optimizer, step: int, total: int) -> float:
    """The rate of update `step` (from 0) of `total`: warm-up, then the schedule."""
    peak, warmup = optimizer.learning_rate, optimizer.warmup
    if step < warmup:
        return peak * (step + 1) / warmup
    if optimizer.schedule == "constant":
        return peak
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    linear = optimizer.schedule == "linear"
    left = 1 - done if linear else 0.5 * (1 + np.cos(np.pi * done))
    floor = optimizer.final_fraction
    return float(peak * (floor + (1 - floor) * left))


def is_decayed(params) -> Any:
    """True for matrices, False for norms and biases, told by the parameters' names."""

    def decayed(path, _):
        # The last name: a leaf may still sit in linen's box of axis names.
        name = [entry.key for entry in path if hasattr(entry, "key")][-1]
        return "norm" not in name and "bias" not in name

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(optimizer: Optimizer) -> optax.GradientTransformation:
    """Gradients to updates at rate 1: the train step multiplies by the current rate.

    The rate is an argument of the step because the number of updates of a round is
    known only when its pairs are, and a new number must not compile anything.
    """
    parts = [
        optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps),
        optax.add_decayed_weights(optimizer.weight_decay, mask=is_decayed),
        optax.scale(-1.0),
    ]
    if optimizer.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(optimizer.clip_norm))
    tx = stored_as(optax.chain(*parts), jnp.dtype(optimizer.state_dtype))
    return with_master_weights(tx) if optimizer.master_weights else tx


def stochastic_round(x: jax.Array, dtype, key: jax.Array) -> jax.Array:
    """float32 to bfloat16, up or down with probabilities that keep the mean.

    Adds 16 random low bits to the float32 pattern and cuts them off: the upper half is
    a bfloat16. Non-finite values are passed through.
    """
    assert x.dtype == jnp.float32, x.dtype
    assert dtype == jnp.bfloat16, dtype
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = (bits + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(kept, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(dtype)


def round_tree(tree, like, key: jax.Array):
    """Each float32 leaf stored in the dtype of its partner in `like`."""
    leaves, treedef = jax.tree.flatten(tree)
    targets = jax.tree.leaves(like)
    rounded = [
        stochastic_round(leaf, target.dtype, jax.random.fold_in(key, index))
        if target.dtype == jnp.bfloat16
        else leaf.astype(target.dtype)
        for index, (leaf, target) in enumerate(zip(leaves, targets, strict=True))
    ]
    return jax.tree.unflatten(treedef, rounded)


def _as_float32(tree):
    def cast(x):
        return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


class StoredState(NamedTuple):
    count: jax.Array
    inner: Any


def stored_as(tx: optax.GradientTransformation, dtype) -> optax.GradientTransformation:
    """`tx` whose floating-point state rests in `dtype` and works in float32."""

    def lower(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def init(params):
        inner = jax.tree.map(lower, tx.init(_as_float32(params)))
        return StoredState(jnp.zeros((), jnp.int32), inner)

    def update(updates, state, params=None):
        assert params is not None, "weight decay needs the parameters"
        updates, inner = tx.update(
            _as_float32(updates), _as_float32(state.inner), _as_float32(params)
        )
        key = jax.random.fold_in(jax.random.key(0x5EED), state.count)
        inner = round_tree(inner, state.inner, key)
        return updates, StoredState(state.count + 1, inner)

    return optax.GradientTransformation(init, update)


class MasterState(NamedTuple):
    master: Any
    inner: Any


def with_master_weights(tx) -> optax.GradientTransformation:
    """`tx` on float32 copies of the parameters, which live in the state."""

    def init(params):
        master = _as_float32(params)
        return MasterState(master, tx.init(master))

    def update(updates, state, params=None):
        updates, inner = tx.update(_as_float32(updates), state.inner, state.master)
        return updates, MasterState(state.master, inner)

    return optax.GradientTransformation(init, update)


def apply_updates(params, opt_state, updates, rate: jax.Array, step: jax.Array):
    """(params, opt_state) after `updates` scaled by `rate`, each in its own dtype."""
    scaled = jax.tree.map(lambda u: u.astype(jnp.float32) * rate, updates)
    if isinstance(opt_state, MasterState):
        master = jax.tree.map(jnp.add, opt_state.master, scaled)
        params = jax.tree.map(lambda m, p: m.astype(p.dtype), master, params)
        return params, opt_state._replace(master=master)
    summed = jax.tree.map(lambda p, u: p.astype(jnp.float32) + u, params, scaled)
    key = jax.random.fold_in(jax.random.key(0x90D), step)
    return round_tree(summed, params, key), opt_state
