"""How often each conditional part of a Pallas kernel runs, from the kernel itself.

A kernel leaves out the blocks that a causal mask hides in two ways: its grid is
shorter, or the body stands under a condition on the step and on prefetched block tables
(`pl.when`). The compiler's dump shows the first in its trip counts. For the second this
module runs the scalar part of the kernel's own jaxpr over all steps of the grid and
counts. Tables must be constants of the traced function; what depends on its arguments
has no share.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

Share = float | None
"""Part of the grid's steps in which something runs; None: depends on the arguments."""


class Call(NamedTuple):
    """One `pallas_call`."""

    name: str
    grid: tuple[Any, ...]
    shares: tuple[Share, ...]
    """Of each conditional part with array operations in it, in program order, of all
    steps; those of a part come before those inside it."""


def pallas_calls(fn: Callable, *args) -> list[Call]:
    """The calls that `fn` makes, in order; args are arrays or ShapeDtypeStructs."""
    closed = jax.make_jaxpr(fn)(*args)
    calls: list[Call] = []
    known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    _trace(closed.jaxpr, known, calls, getattr(fn, "__name__", ""))
    return calls


def _trace(jaxpr, known: dict, calls: list[Call], within: str):
    """Evaluates what is constant in `jaxpr`, notes each pallas_call.

    within: the function that is traced, whose name a call without one gets.
    """
    for eqn in jaxpr.eqns:
        values = [_value(x, known) for x in eqn.invars]
        if eqn.primitive.name == "pallas_call":
            calls.append(_call(eqn, values, within))
            continue
        inner = _inner(eqn)
        if inner is not None:
            name = eqn.params.get("name", within)
            known.update(_descend(eqn, *inner, values, calls, name))
        elif all(value is not None for value in values):
            out = eqn.primitive.bind(*values, **eqn.params)
            out = out if eqn.primitive.multiple_results else [out]
            known.update(zip(eqn.outvars, out, strict=True))


def _descend(eqn, jaxpr, consts, values, calls, within) -> dict:
    """Known outputs of an equation that holds another jaxpr."""
    inside = dict(zip(jaxpr.constvars, consts, strict=True))
    if len(jaxpr.invars) == len(values):
        same = eqn.primitive.name != "scan"
        known = [x if same or i < eqn.params["num_consts"] else None
                 for i, x in enumerate(values)]  # fmt: skip
        inside |= {v: x for v, x in zip(jaxpr.invars, known, strict=True)
                   if x is not None}  # fmt: skip
    before = len(calls)
    _trace(jaxpr, inside, calls, within)
    if eqn.primitive.name == "scan":
        calls[before:] = calls[before:] * eqn.params["length"]
        return {}
    out = [_value(x, inside) for x in jaxpr.outvars]
    pairs = zip(eqn.outvars, out, strict=False)
    return {var: value for var, value in pairs if value is not None}


def _inner(eqn):
    """(jaxpr, constants) of the one jaxpr that a call-like equation runs."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = eqn.params.get(name)
        if found is not None:
            return getattr(found, "jaxpr", found), getattr(found, "consts", ())
    return None


def _value(atom, known: dict):
    return atom.val if isinstance(atom, core.Literal) else known.get(atom)


def _call(eqn, values, within: str) -> Call:
    mapping = eqn.params["grid_mapping"]
    name, grid = _name(eqn.params) or within, tuple(mapping.grid)
    kernel = eqn.params["jaxpr"]
    if mapping.num_dynamic_grid_bounds:
        return Call(name, grid, (None,) * len(_conditions(kernel)))
    at = np.indices(grid).reshape(len(grid), -1)
    own = [row for axis, row in enumerate(at) if axis not in mapping.vmapped_dims]
    # Tables come first, or among the inputs, whole.
    scalars = {
        ref: np.asarray(x)
        for ref, x in zip(kernel.invars, values, strict=False)
        if x is not None and np.shape(x) == ref.aval.shape
    }
    shares: list[Share] = []
    _run(kernel, scalars, own, np.ones(at.shape[1]), shares)
    return Call(name, grid, tuple(shares))


def _name(params) -> str | None:
    """Since jax 0.10 `name`, before it a part of `name_and_src_info`."""
    older = params.get("name_and_src_info")
    return older.name if older else params["name"]


def _run(jaxpr, known: dict, at, runs, shares: list[Share]):
    """Runs the scalars of a kernel for all steps at once.

    known: values of the scalars, (steps,) each or () where the same in all, and of the
    tables. runs: (steps,) 1 where this jaxpr runs, None if unknown.
    """
    for eqn in jaxpr.eqns:
        values = [_value(x, known) for x in eqn.invars]
        kind = eqn.primitive.name
        if kind == "program_id":
            known[eqn.outvars[0]] = at[eqn.params["axis"]]
        elif kind == "cond":
            _branches(eqn, values, at, runs, shares)
        elif kind in ("scan", "while"):
            _loop(eqn, shares)
        elif (inner := _inner(eqn)) is not None:
            body, consts = inner
            inside = dict(zip(body.constvars, consts, strict=True))
            pairs = zip(body.invars, values, strict=True)
            inside |= {var: value for var, value in pairs if value is not None}
            _run(body, inside, at, runs, shares)
            _keep(known, eqn.outvars, [_value(x, inside) for x in body.outvars])
        elif all(value is not None for value in values):
            _keep(known, eqn.outvars, _evaluate(eqn, values))


def _keep(known: dict, names, values):
    pairs = zip(names, values, strict=True)
    known.update({name: value for name, value in pairs if value is not None})


def _evaluate(eqn, values):
    if eqn.primitive.name == "get":
        table, *flat = values
        (indexer,) = jax.tree.unflatten(eqn.params["tree"], flat)
        return [table[tuple(indexer.indices)]]
    if eqn.primitive.name == "multiple_of":  # a hint to the compiler
        return values[:1]
    if any(var.aval.shape for var in eqn.outvars) or eqn.effects:
        return [None] * len(eqn.outvars)  # an array: no predicate is made of it
    steps = max((np.size(value) for value in values), default=1)
    columns = [np.broadcast_to(value, (steps,)) for value in values]
    out = jax.vmap(lambda *x: eqn.primitive.bind(*x, **eqn.params))(*columns)
    return out if eqn.primitive.multiple_results else [out]


def _branches(eqn, values, at, runs, shares: list[Share]):
    which = values[0]
    for index in reversed(range(len(eqn.params["branches"]))):
        branch = eqn.params["branches"][index].jaxpr
        taken = None
        if runs is not None and which is not None:
            taken = runs * (np.asarray(which) == index)
        if _has_arrays(branch):
            shares.append(None if taken is None else float(taken.mean()))
            pairs = zip(branch.invars, values[1:], strict=True)
            inside = {var: value for var, value in pairs if value is not None}
            _run(branch, inside, at, taken, shares)


def _loop(eqn, shares: list[Share]):
    """A condition in a loop may depend on its counter: no share."""
    for name in ("jaxpr", "body_jaxpr"):
        if name in eqn.params:
            shares += [None] * len(_conditions(eqn.params[name].jaxpr))


def _conditions(jaxpr) -> list:
    """The branches with array operations in a jaxpr, however deep."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "cond":
            for closed in reversed(eqn.params["branches"]):
                if _has_arrays(closed.jaxpr):
                    found += [closed.jaxpr, *_conditions(closed.jaxpr)]
        elif (inner := _inner(eqn)) is not None:
            found += _conditions(inner[0])
        elif eqn.primitive.name == "while":
            found += _conditions(eqn.params["body_jaxpr"].jaxpr)
    return found


def _has_arrays(jaxpr) -> bool:
    """Whether it computes with arrays; copies that it starts do not count."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "swap" or any(
            getattr(var.aval, "shape", ()) for var in eqn.outvars
        ):
            return True
        inner = [inside[0]] if (inside := _inner(eqn)) is not None else []
        inner += [closed.jaxpr for closed in eqn.params.get("branches", ())]
        if "body_jaxpr" in eqn.params:
            inner.append(eqn.params["body_jaxpr"].jaxpr)
        if any(map(_has_arrays, inner)):
            return True
    return False
