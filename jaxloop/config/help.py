"""The text of `jaxloop run CONFIG --help`: every field, explained."""

import dataclasses
import textwrap
from typing import Any

from jaxloop.config.fields import Field, Section, is_part, sections
from jaxloop.config.secrets import redact
from jaxloop.config.values import json_like, type_name

_INDENT = " " * 8
_WRAP = textwrap.TextWrapper(88, initial_indent=_INDENT, subsequent_indent=_INDENT)


def format_help(config: Any) -> str:
    """Every field with type, value in this configuration and meaning, part by part.

    The value is what a run uses if nothing overrides it; where the class has another
    default of its own, that follows in brackets.
    """
    lines: list[str] = []
    for section in sections(config):
        lines += ["", *_heading(section)] if section.path else _heading(section)
        for item in section.fields:
            lines += _field_lines(item)
    return "\n".join(lines) + "\n"


def _heading(section: Section) -> list[str]:
    """Name and class of a part; below, what it is for, or else what its class is."""
    kind = type(section.part)
    title = f"{section.path}: {kind.__name__}" if section.path else kind.__name__
    summary = (kind.__dict__.get("__doc__") or "").strip().split("\n\n")[0]
    if not is_part(section.part) or summary.startswith(f"{kind.__name__}("):
        summary = ""  # a tuple; the signature that `dataclass` writes by itself
    text = section.help or " ".join(summary.split())
    return [title, _WRAP.fill(text)] if text else [title]


def _field_lines(item: Field) -> list[str]:
    line = f"  {item.path}: {type_name(item.type)} = {item.shown}"
    missing = item.default is dataclasses.MISSING
    if not missing and not _same(item.default, item.value):
        line += f"  (class default {json_like(redact(item.path, item.default))})"
    if not item.settable:
        line += "  [set it in the config file]"
    if not item.help:
        return [line]
    return [line, _WRAP.fill(item.help)]


def _same(one: Any, other: Any) -> bool:
    return one is other or json_like(one) == json_like(other)
