"""How a loss function gets its numbers: by the names of its keyword arguments.

`Pairwise(preference.robust, beta=0.1, smoothing=0.1)` calls `robust(pairs, beta=0.1,
smoothing=0.1)`, for `robust` names both; a function of your own is called in the same
way. Nothing has to be registered.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any


def unwrapped(function: Callable) -> Callable:
    """The function inside `functools.partial`s."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def title(function: Callable) -> str:
    """`preference.robust`: how messages call a function."""
    function = unwrapped(function)
    module = getattr(function, "__module__", "").rpartition(".")[2]
    return f"{module}.{getattr(function, '__name__', repr(function))}"


def first_argument(function: Callable) -> str:
    """The name of the first argument."""
    return next(iter(inspect.signature(function).parameters), "")


def asked(function: Callable) -> frozenset[str]:
    """The names of the keyword arguments (those after `*`)."""
    return frozenset(_keywords(function))


def numbers(
    owner: Any,
    function: Callable,
    fields: Collection[str],
    given: Collection[str] = (),
    used: Collection[str] = (),
) -> dict[str, Any]:
    """What the owner's fields say for the keyword arguments of `function`.

    fields: the fields that are meant for the function; None in one leaves the default
    that the function has. given: arguments that come from elsewhere, from a batch.
    used: fields that the owner uses itself as well. ValueError for a field that is set
    and of no use, and for an argument that nothing fills.
    """
    taken, name = _keywords(function), f"{type(owner).__name__}: {title(function)}"
    defaults = {f.name: f.default for f in dataclasses.fields(owner)}
    values = {field: getattr(owner, field) for field in fields}
    for field, value in values.items():
        if field not in {*taken, *used} and value != defaults[field]:
            takes = ", ".join(sorted(set(taken) & set(fields))) or "nothing"
            shown = title(value) if callable(value) else value
            raise ValueError(
                f"{name} has no use for {field} = {shown}; it takes {takes}"
            )
    filled = {k: v for k, v in values.items() if k in taken and v is not None}
    for argument, parameter in taken.items():
        if parameter.default is not parameter.empty or argument in filled:
            continue
        if argument in fields:
            raise ValueError(f"{name} needs {argument}; set it")
        if argument not in given:
            known = ", ".join(sorted({*fields, *given}))
            raise ValueError(
                f"{name} asks for {argument!r}, of which nothing is known; give it a "
                f"default, or ask for one of {known}"
            )
    return filled


def optional(function: Callable, argument: str) -> bool:
    """Whether the function does without that argument."""
    parameter = _keywords(function).get(argument)
    return parameter is None or parameter.default is not parameter.empty


def _keywords(function: Callable) -> Mapping[str, inspect.Parameter]:
    """The keyword-only parameters, but those that a functools.partial has bound."""
    parameters = inspect.signature(function).parameters.values()
    bound = getattr(function, "keywords", {})
    named = (p for p in parameters if p.kind is p.KEYWORD_ONLY)
    return {p.name: p for p in named if p.name not in bound}
