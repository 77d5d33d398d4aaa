"""What a configuration is made of: its fields by dotted name.

A configuration is a tree of dataclass instances. Names come from the *instance*, so the
parts that a user wrote have theirs too; the elements of a tuple of parts are numbered
(`recipe.filters.0.minimum`). A tuple of scalars is one field.
"""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxloop.config.docstrings import field_help
from jaxloop.config.secrets import redact
from jaxloop.config.values import (
    element_type,
    is_settable,
    json_like,
    matches,
    type_name,
)


class Section(NamedTuple):
    """A part of the configuration (or a tuple of parts) with the fields of its own."""

    path: str
    part: Any
    help: str
    """The docstring under the field that holds it."""
    fields: list["Field"]


@dataclass(frozen=True)
class Field:
    """One field of a configuration instance."""

    path: str
    """Dotted name from the root."""
    type: Any
    """As declared in the class; the type of the value where that says nothing."""
    value: Any
    """What the configuration holds now."""
    default: Any
    """What the class itself would put there; `dataclasses.MISSING` if nothing."""
    help: str
    """The docstring under the field."""

    @property
    def settable(self) -> bool:
        """Whether the command line can write it: functions and parts cannot be."""
        return is_settable(self.type)

    @property
    def shown(self) -> str:
        """The value as one line, secrets blanked."""
        return json_like(redact(self.path, self.value))


def is_part(value: Any) -> bool:
    """Whether the value has fields of its own: a dataclass instance, not a class."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def has_parts(value: Any) -> bool:
    """Whether the value is opened further: a part, or a tuple of things not scalar."""
    if type(value) in (tuple, list):
        return any(is_part(item) or has_parts(item) for item in value)
    return is_part(value)


def field_types(cls: type) -> dict[str, Any]:
    """Declared type by field name; a name that cannot be resolved counts as Any."""
    fields = dataclasses.fields(cls)
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError, AttributeError):  # imported for type checkers only
        hints = {f.name: f.type for f in fields if not isinstance(f.type, str)}
    return {f.name: hints.get(f.name, Any) for f in fields}


def declared_default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def children(value: Any, kind: Any = Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, type) of the fields of a part, or of the elements of a tuple."""
    if is_part(value):
        kinds = field_types(type(value))
        for field in dataclasses.fields(value):
            if field.init:
                child = getattr(value, field.name)
                yield field.name, child, actual_type(kinds[field.name], child)
    else:
        for index, item in enumerate(value):
            yield str(index), item, actual_type(element_type(kind, index), item)


def actual_type(kind: Any, value: Any) -> Any:
    """The declared type, or the value's own where the declaration leaves it open."""
    return type(value) if kind in (Any, object) and value is not None else kind


def describe(config: Any) -> list[Field]:
    """Every field of the configuration in order, parts opened."""
    return [item for section in sections(config) for item in section.fields]


def sections(config: Any) -> list[Section]:
    """The root (its path is empty) and all parts below it, parents before children."""
    assert is_part(config), f"{config!r} is not a dataclass instance"
    return list(_sections("", config, type(config), ""))


def _sections(path: str, value: Any, kind: Any, text: str) -> Iterator[Section]:
    own, nested = [], []
    defaults, helps = {}, {}
    if is_part(value):
        fields = dataclasses.fields(value)
        defaults = {f.name: declared_default(f) for f in fields}
        helps = field_help(type(value))
    for name, child, child_kind in children(value, kind):
        where = f"{path}.{name}" if path else name
        meaning = helps.get(name, "")
        if has_parts(child):
            nested.append((where, child, child_kind, meaning))
        else:
            default = defaults.get(name, dataclasses.MISSING)
            own.append(Field(where, child_kind, child, default, meaning))
    yield Section(path, value, text, own)
    for below in nested:
        yield from _sections(*below)


def type_problems(config: Any) -> list[str]:
    """Fields of a config file whose value is not of the declared type: scalars, choices
    and None only. One sentence each; an empty list if there are none."""
    return [
        f"{item.path} is {item.shown} ({type(item.value).__name__}), but must be "
        f"{type_name(item.type)}{help_suffix(item)}"
        for item in describe(config)
        if not matches(item.value, item.type)
    ]


def help_suffix(item: Field) -> str:
    """`. Meaning: ...` where the field is documented."""
    return f". Meaning: {item.help}" if item.help else ""
