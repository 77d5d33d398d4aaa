"""Text to values by declared type, and back to text.

Pure functions over a type (as `typing.get_type_hints` gives it) and a string. Nothing
is evaluated: brackets are read by `ast.literal_eval`, which knows literals only.
"""

import ast
import collections.abc
import dataclasses
import decimal
import difflib
import enum
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

SCALARS = (bool, int, float, str)
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_SEQUENCES = (tuple, list, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)


def plain(kind: Any) -> Any:
    """The type without `Annotated`, `NewType` and aliases."""
    while True:
        if typing.get_origin(kind) is typing.Annotated:
            kind = typing.get_args(kind)[0]
        elif isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        elif hasattr(kind, "__value__"):  # `type X = ...` of Python 3.12
            kind = kind.__value__
        else:
            return kind


def members(kind: Any) -> tuple[Any, ...]:
    """What a union may be, or the type alone."""
    kind = plain(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(m for arg in typing.get_args(kind) for m in members(arg))
    return (kind,)


def allows_none(kind: Any) -> bool:
    return any(member in (None, types.NoneType) for member in members(kind))


def is_sequence(kind: Any) -> bool:
    """Whether the type is a tuple (or a list, which is read as a tuple)."""
    kind = plain(kind)
    return kind in (tuple, list) or typing.get_origin(kind) in _SEQUENCES


def element_type(kind: Any, index: int) -> Any:
    """The declared type of element `index` of a tuple type; Any where unknown."""
    for member in members(kind):
        args = typing.get_args(member)
        if not is_sequence(member) or not args:
            continue
        if typing.get_origin(member) is not tuple or args[-1] is Ellipsis:
            return args[0]
        if index < len(args):
            return args[index]
    return Any


def is_settable(kind: Any) -> bool:
    """Whether text can become a value of this type (some member of the union)."""
    return any(_member_is_settable(member) for member in members(kind))


def _member_is_settable(kind: Any) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind in SCALARS or kind is Path or origin is Literal:
        return True
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return True
    if is_sequence(kind):
        inner = [arg for arg in args if arg is not Ellipsis]
        return bool(inner) and all(is_settable(arg) for arg in inner)
    if origin in _MAPPINGS:
        return len(args) == 2 and args[0] is str and is_settable(args[1])
    return False


def type_name(kind: Any) -> str:
    """How the type is written in help and in messages: `float | None`, `"a" | "b"`."""
    kind = plain(kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Ellipsis:
        return "..."
    if kind is types.NoneType or kind is None:
        return "None"
    if origin is Literal:
        return " | ".join(json_like(choice) for choice in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(arg) for arg in args)
    functions = (types.FunctionType, types.BuiltinFunctionType)
    if collections.abc.Callable in (kind, origin) or kind in functions:
        return "function"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return " | ".join(kind.__members__)
    name = getattr(origin or kind, "__name__", str(kind))
    return f"{name}[{', '.join(map(type_name, args))}]" if args else name


def json_like(value: Any) -> str:
    """A value as one short line: strings quoted, tuples in brackets, parts by class."""
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return '"' + repr(value)[1:-1].replace('"', '\\"') + '"'
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return f"({', '.join(map(json_like, value))})"
    if isinstance(value, Mapping):
        pairs = (f"{json_like(k)}: {json_like(v)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    if dataclasses.is_dataclass(value):
        return getattr(value, "__name__", type(value).__name__)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    if callable(value):
        return f"{type(value).__module__}:{type(value).__qualname__}"
    return repr(value)


def parse(text: str, kind: Any) -> Any:
    """The value of type `kind` that `text` stands for; ValueError says what fits.

    Of a union the first member that can read the text wins, `str` last and `None` (text
    `none` or `null`) first.
    """
    options = members(kind)
    if allows_none(kind) and text.lower() in ("none", "null"):
        return None
    order = [m for m in options if m is not str] + [m for m in options if m is str]
    problems = []
    for member in filter(_member_is_settable, order):
        try:
            return _parse_member(text, member)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError("; ".join(problems) or "cannot be written on the command line")


def _parse_member(text: str, kind: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return _parse_choice(text, typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _parse_choice(text, tuple(kind))
    if is_sequence(kind):
        return _parse_tuple(text, kind)
    if origin in _MAPPINGS:
        return _parse_mapping(text, kind)
    return _PARSERS[kind](text)


def _parse_bool(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError("write true or false")
    return text.lower() in _TRUE


def _parse_int(text: str) -> int:
    """Decimal, so that `1e30` is exact; `0x10` and `1_000` as in Python."""
    try:
        return int(text, 0)
    except ValueError:
        pass
    try:
        number = decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise ValueError("not a whole number") from None
    if not number.is_finite() or number != number.to_integral_value():
        raise ValueError("not a whole number")
    if number.adjusted() > 30:  # 1e999999999 would fill the memory with digits
        raise ValueError("too large for a whole number")
    return int(number)


def _parse_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError("not a number") from None
    if math.isnan(number):
        raise ValueError("nan is not a setting")
    return number


_PARSERS: dict[Any, Callable[[str], Any]] = {
    bool: _parse_bool,
    int: _parse_int,
    float: _parse_float,
    str: str,
    Path: lambda text: Path(text).expanduser(),
}


def _parse_choice(text: str, choices: tuple[Any, ...]) -> Any:
    names = {c.name if isinstance(c, enum.Enum) else str(c): c for c in choices}
    names |= {str(c).lower(): c for c in choices if c is None or isinstance(c, bool)}
    if text in names:
        return names[text]
    close = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"choose from {', '.join(names)}{hint}")


def _parse_tuple(text: str, kind: Any) -> tuple:
    """`1,2,3`, `(1, 2)`, `[a, b]`, `["a,b", "c"]`; nothing or `()` is empty."""
    if text.strip()[:1] in ("(", "["):
        try:
            literal = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):  # words without quotes
            literal = split_commas(text.strip()[1:-1])
        items = literal if isinstance(literal, tuple | list) else [literal]
    else:
        items = text.split(",")
        if not text.strip() or (len(items) > 1 and not items[-1].strip()):
            items.pop()
        if element_type(kind, 0) is not str:
            items = [item.strip() for item in items]
    return _from_literal(items, kind)


def _parse_mapping(text: str, kind: Any) -> dict[str, Any]:
    try:
        literal = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        literal = None
    if not isinstance(literal, dict):
        raise ValueError('write {"name": value, ...}')
    inner = typing.get_args(kind)[1]
    return {str(key): _from_literal(value, inner) for key, value in literal.items()}


def _from_literal(value: Any, kind: Any) -> Any:
    """A Python literal checked against the type; scalars go through `parse`."""
    sequences = [member for member in members(kind) if is_sequence(member)]
    if not isinstance(value, tuple | list) or not sequences:
        return parse(value if isinstance(value, str) else repr(value), kind)
    args = typing.get_args(sequences[0])
    fixed = typing.get_origin(sequences[0]) is tuple and args[-1] is not Ellipsis
    if fixed and len(value) != len(args):
        raise ValueError(f"has {len(args)} elements, not {len(value)}")
    return tuple(
        _from_literal(item, element_type(sequences[0], index))
        for index, item in enumerate(value)
    )


def split_commas(text: str) -> list[str]:
    """The parts between the commas that stand outside brackets and quotes, stripped."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        depth += 0 if quote else (char in "([{") - (char in ")]}")
        if char == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def matches(value: Any, kind: Any) -> bool:
    """Whether a value can be what its field declares.

    Only scalars, choices and None are judged; an int is a float, a bool is not an int.
    """
    if isinstance(value, tuple | list) and any(map(is_sequence, members(kind))):
        return all(
            matches(item, element_type(kind, index)) for index, item in enumerate(value)
        )
    if value is not None and type(value) not in SCALARS:
        return True
    for member in members(kind):
        origin = typing.get_origin(member)
        if origin is Literal:
            choices = typing.get_args(member)
            if any(value == c and type(value) is type(c) for c in choices):
                return True
        elif member in (None, types.NoneType):
            if value is None:
                return True
        elif member in SCALARS:
            if type(value) is member or (member is float and type(value) is int):
                return True
        elif not _member_is_settable(member) and not dataclasses.is_dataclass(member):
            return True
    return False
