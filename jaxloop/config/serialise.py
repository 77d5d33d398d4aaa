"""A configuration as plain JSON, for people and for comparing; never read back as code.

Two configurations have the same JSON iff their runs would do the same: types are named,
and functions carry a hash of their source (its comments count: they are text as well)
and what they close over. What a function calls in turn is not looked at.
"""

import dataclasses
import enum
import functools
import hashlib
import inspect
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxloop.config.errors import ConfigError
from jaxloop.config.fields import field_types, is_part
from jaxloop.config.secrets import redact
from jaxloop.config.values import element_type, members


def to_json(config: Any) -> Any:
    """What `json.dumps` can write, deterministic and with secrets blanked.

    Dataclasses become `{"_type": "module:Class", fields...}`, functions
    `{"_function": "module:name", "source_sha256": ...}`, tuples lists, paths strings. A
    value of any other kind is a ConfigError that names its field.
    """
    return _convert("", config, type(config))


def _convert(path: str, value: Any, kind: Any) -> Any:
    if is_part(value):
        return _part(path, value)
    if isinstance(value, enum.Enum):
        return {"_enum": f"{_name(type(value))}.{value.name}"}
    if value is None or isinstance(value, bool | str):
        return redact(path, value)
    if isinstance(value, int | float):
        return _number(value, kind)
    if isinstance(value, Path):
        return redact(path, str(value))
    if type(value) in (tuple, list):
        return [
            _convert(_join(path, index), item, element_type(kind, index))
            for index, item in enumerate(value)
        ]
    if isinstance(value, set | frozenset):
        items = [_convert(path, item, Any) for item in value]
        return {"_set": sorted(items, key=repr)}
    if isinstance(value, Mapping):
        return _mapping(path, value)
    if isinstance(value, bytes):
        return {"_bytes": value.hex()}
    if callable(value):
        return _callable(path, value)
    raise ConfigError(
        f"{path}: a {_name(type(value))} cannot be written to JSON; make it a frozen "
        "dataclass, a function, or a tuple of those"
    )


def _part(path: str, value: Any) -> dict[str, Any]:
    kinds = field_types(type(value))
    fields = {
        field.name: _convert(
            _join(path, field.name), getattr(value, field.name), kinds[field.name]
        )
        for field in dataclasses.fields(value)
        if field.init
    }
    return {"_type": _name(type(value))} | fields


def _number(value: float, kind: Any) -> Any:
    """A whole number in a float field is a float: `lr=1` and `lr=1.0` run the same."""
    if type(value) is int and float in members(kind) and int not in members(kind):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {"_float": str(value)}  # strict JSON has no infinity
    return value


def _mapping(path: str, value: Mapping) -> dict[str, Any]:
    """Keys that are not strings are kept as a list of pairs."""
    if all(isinstance(key, str) for key in value):
        return {
            key: _convert(_join(path, key), item, Any) for key, item in value.items()
        }
    items = [
        [_convert(path, key, Any), _convert(_join(path, key), item, Any)]
        for key, item in value.items()
    ]
    return {"_items": items}


def _callable(path: str, value: Any, *, closure: bool = True) -> dict[str, Any]:
    if isinstance(value, functools.partial):
        keywords = {
            k: _convert(_join(path, k), v, Any) for k, v in value.keywords.items()
        }
        arguments = [_convert(path, item, Any) for item in value.args]
        function = _callable(path, value.func)
        return {"_partial": function, "args": arguments, "keywords": keywords}
    if inspect.ismethod(value):
        function = _callable(path, value.__func__)
        return {"_method": function, "of": _convert(path, value.__self__, Any)}
    if not hasattr(value, "__qualname__"):
        raise ConfigError(
            f"{path}: a {_name(type(value))} object cannot be written to JSON; make "
            "its class a frozen dataclass, or give a function"
        )
    result = {"_function": _name(value), "source_sha256": source_sha256(value)}
    held = _closed_over(value) if closure else {}
    if held:
        result["closure"] = {
            name: _callable(path, item, closure=False)  # functions may hold each other
            if inspect.isfunction(item)
            else _convert(_join(path, name), item, Any)
            for name, item in held.items()
        }
    return result


def _closed_over(function: Any) -> dict[str, Any]:
    """The variables of outer functions that a function uses, by name."""
    inner = inspect.unwrap(function)
    cells = getattr(inner, "__closure__", None) or ()
    names = inner.__code__.co_freevars if cells else ()
    held = {}
    for name, cell in zip(names, cells, strict=True):
        try:
            held[name] = cell.cell_contents
        except ValueError:  # not bound yet
            continue
    return {name: item for name, item in held.items() if item is not inner}


def source_sha256(function: Any) -> str | None:
    """The hash of a function's (or class's) source without its indentation; None for
    what has no Python source, such as built-in functions."""
    try:
        source = inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return None
    return hashlib.sha256(textwrap.dedent(source).encode()).hexdigest()


def _name(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)
