"""Fields of a row by their path, and texts with such fields filled in.

A path is a name, or names and list indices with dots between: `instances.0.input`.
"""

import difflib
from collections.abc import Mapping
from string import Formatter
from typing import Any

from jaxloop.prompts.jsonl import DataError, Row


def has_field(row: Row, path: str) -> bool:
    """Whether the row has a value other than null at `path`."""
    try:
        return get_field(row, path) is not None
    except DataError:
        return False


def get_field(row: Row, path: str) -> Any:
    """The value at `path`. DataError naming the nearest fields there are."""
    if path in row.values:  # a name may hold dots itself
        return row.values[path]
    value: Any = row.values
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise DataError(f"{row.place}: no field {path!r}; {_near(part, value)}")
    return value


def required(row: Row, path: str, kinds: type | tuple[type, ...], kind: str) -> Any:
    """The value at `path`, which must be of one of `kinds` (`kind` says it in words).
    DataError where it is missing, null or of another type."""
    value = get_field(row, path)
    if value is None:
        raise DataError(f"{row.place}: the field {path!r} is null; it must be {kind}")
    if not isinstance(value, kinds):
        raise DataError(
            f"{row.place}: the field {path!r} must be {kind}, it is "
            f"{type(value).__name__} {value!r:.80}"
        )
    return value


def _near(name: str, value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"{name!r} is sought in {value!r:.80}"
    present = [str(key) for key in value]
    near = difflib.get_close_matches(name, present, n=1, cutoff=0.5)
    hint = f"the nearest is {near[0]!r}; " if near else ""
    return f"{hint}there are {', '.join(present[:20]) or 'no fields'}"


def template_fields(template: str) -> list[str]:
    """The paths that `template` names. ValueError for what is not a plain `{path}`."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"data.template {template!r}: {error}; a brace itself is written {{{{ or "
            "}}"
        ) from error
    paths = []
    for _, path, spec, conversion in parts:
        if path is None:
            continue
        if not path or spec or conversion or not path.replace(".", "_").isidentifier():
            raise ValueError(
                f"data.template {template!r}: {{{path}}} must be the plain path of a "
                "field, like {question}; a brace itself is written {{ or }}"
            )
        paths.append(path)
    return paths


def fill(template: str, row: Row) -> str:
    """`template` with `{path}` replaced by the row's field. Only plain paths: a row
    cannot reach anything but its own values. DataError for a missing or null field."""
    out = []
    for literal, path, _, _ in Formatter().parse(template):
        out.append(literal)
        if path is not None:
            value = required(row, path, (str, int, float), "a string or a number")
            out.append(value if isinstance(value, str) else str(value))
    return "".join(out)
