"""From a tree to arrays on disk by path, and back onto any mesh, by orbax.

What is stored is a flat dict, path -> array, so that a checkpoint can be listed,
compared and read in part without the classes that the tree was made of.
"""

import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


def by_path(tree) -> dict[str, Any]:
    """'params/layers/w' -> leaf, in the order of the tree's leaves."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    keystr = jax.tree_util.keystr
    named = {keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    assert len(named) == len(pairs), "two leaves of the tree have the same path"
    return named


def describe(leaf) -> dict:
    """What is kept in JSON of an array; a PRNG key also names its generator."""
    found = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    return found | ({"key": str(jax.random.key_impl(leaf))} if _is_key(leaf) else {})


def storable(arrays: dict[str, Any]) -> dict[str, Any]:
    """What orbax is given: keys as their data, no empty arrays (it refuses them)."""
    return {path: _plain(leaf) for path, leaf in arrays.items() if leaf.size}


def differences(stored: dict[str, dict], wanted: dict, *, partial: bool) -> list[str]:
    """A line for each leaf that differs in path, shape or dtype.

    `stored` has what `describe` said, `wanted` abstract arrays; `partial` allows leaves
    that are stored and not wanted.
    """

    def words(entry: dict) -> str:
        return f"{entry['dtype']}{entry['shape']}"

    lines = []
    for path in sorted(stored.keys() | wanted.keys()):
        if path not in wanted:
            if not partial:
                lines.append(f"unexpected: {path} {words(stored[path])}")
            continue
        leaf = wanted[path]
        want = words({"shape": list(leaf.shape), "dtype": str(leaf.dtype)})
        if path not in stored:
            lines.append(f"missing: {path} {want}")
        elif words(stored[path]) != want:
            lines.append(f"{path}: saved {words(stored[path])}, wanted {want}")
    return lines


def read(folder: Path, abstract_tree, stored: dict[str, dict]):
    """The tree of `abstract_tree`, each array on the sharding of its leaf."""
    wanted = by_path(abstract_tree)
    full = {path: leaf for path, leaf in wanted.items() if math.prod(leaf.shape)}
    values = {
        path: jnp.zeros(leaf.shape, leaf.dtype, device=_sharding(leaf))
        for path, leaf in wanted.items()
        if path not in full
    }
    arguments = {
        path: ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=_sharding(leaf))
        for path, leaf in full.items()
    }
    if full:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            request = ocp.args.PyTreeRestore(
                dict.fromkeys(full, 0), restore_args=arguments, partial_restore=True
            )
            values |= reader.restore(folder, args=request)
    for path, leaf in full.items():
        if _is_key(leaf):
            generator = stored[path]["key"]
            values[path] = jax.random.wrap_key_data(values[path], impl=generator)
    structure = jax.tree.structure(abstract_tree)
    return jax.tree.unflatten(structure, [values[path] for path in wanted])


def reason(error: Exception) -> str:
    """The point of an error in one line; tensorstore hides it in pages of detail."""
    text = str(error).strip() or type(error).__name__
    of_system = re.search(r"([^:]+) \[os_error_code=", text)
    return of_system[1].strip() if of_system else text.splitlines()[0][:300]


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf):
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return np.array(leaf)  # a copy: the caller may write on


def _sharding(leaf) -> jax.sharding.Sharding:
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return getattr(leaf, "sharding", None) or default
