"""Command-line overrides: `a.b=3`, `--a.b 3`, `--a.b=3`, typed and checked.

Our own rather than tyro: names come from the instance with tuples numbered, and every
mistake goes into one message; wrapping tyro for that took more code than parsing does.

The configuration is opened into a tree of nodes, the items are written into it in order
(the last one wins), and the tree is closed again, each dataclass built once from all
its new fields, so that a check in `__post_init__` never sees half of a change.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxloop.config.errors import ConfigError
from jaxloop.config.fields import (
    Field,
    children,
    describe,
    has_parts,
    help_suffix,
    is_part,
    sections,
)
from jaxloop.config.secrets import redact
from jaxloop.config.values import (
    allows_none,
    element_type,
    is_settable,
    json_like,
    members,
    parse,
    type_name,
)


@dataclass
class _Node:
    """A value under edit; `below` holds the nodes of an opened part or tuple."""

    value: Any
    kind: Any
    below: "dict[str, _Node] | None" = None
    changed: bool = False


def apply_overrides(
    config: Any, items: Sequence[str], *, flags: Sequence[str] = ()
) -> Any:
    """The configuration with `items` written into it; the original is left alone.

    `flags` are further words that the caller understands: only for "did you mean".
    ConfigError holds all problems of all items at once.
    """
    pairs, problems = split_items(items)
    root = _open(config, type(config))
    for name, text in pairs:
        problem = _write(root, name, text, config, flags)
        if problem:
            problems.append(problem)
    result = _close("", root, problems)
    if problems:
        raise ConfigError(problems)
    return result


def split_items(
    items: Sequence[str],
) -> tuple[list[tuple[str, str | None]], list[str]]:
    """((name, text) of each override, problems with the form of the others).

    The text is None for a `--name` that no value follows.
    """
    pairs, problems = [], []
    queue = list(items)
    while queue:
        item = queue.pop(0)
        dashed = item.startswith("--")
        name, equals, text = item.removeprefix("--").partition("=")
        if not equals and dashed and queue and not queue[0].startswith("--"):
            text, equals = queue.pop(0), "="
        if name and (equals or dashed):
            pairs.append((name, text if equals else None))
        else:
            problems.append(f"{item!r} is not an override: write name=value")
    return pairs, problems


def _open(value: Any, kind: Any) -> _Node:
    if not has_parts(value):
        return _Node(value, kind)
    below = {name: _open(child, inner) for name, child, inner in children(value, kind)}
    return _Node(value, kind, below)


def _close(path: str, node: _Node, problems: list[str]) -> Any:
    """The value of the node with its changes; what a class refuses joins `problems`."""
    if node.below is None or not _any_changed(node):
        return node.value
    built = {}
    for name, child in node.below.items():
        built[name] = _close(f"{path}.{name}" if path else name, child, problems)
    if not is_part(node.value):
        return type(node.value)(built.values())
    try:
        return dataclasses.replace(node.value, **built)
    except (ValueError, TypeError) as error:
        problems.append(f"{path or type(node.value).__name__}: {error}")
        return node.value


def _any_changed(node: _Node) -> bool:
    return node.changed or any(map(_any_changed, (node.below or {}).values()))


def _write(
    root: _Node, name: str, text: str | None, config: Any, flags: Sequence[str]
) -> str | None:
    """Writes one override into the tree; the problem in words if it cannot be."""
    node, rest = root, name.split(".")
    while rest and node.below is not None and rest[0] in node.below:
        node = node.below[rest.pop(0)]
    indexed = len(rest) == 1 and rest[0].isdecimal() and type(node.value) is tuple
    if rest and not indexed:
        return _unknown(name, rest, node, config, flags)
    if text is None:
        return f"--{name} needs a value: --{name} VALUE or {name}=VALUE"
    if indexed:
        return _write_element(node, name, int(rest[0]), text, config)
    if text.lower() in ("none", "null") and allows_none(node.kind):
        node.value, node.below, node.changed = None, None, True
        return None
    if text in ("()", "[]") and type(node.value) is tuple:
        node.value, node.below, node.changed = (), None, True
        return None
    if node.below is not None:
        inner = ", ".join(f"{name}.{key}" for key in node.below)
        what = type(node.value).__name__
        return f"{name} is a part ({what}), not a value; set one of its fields: {inner}"
    if not is_settable(node.kind):
        return _not_settable(name, node, config)
    try:
        node.value, node.changed = parse(text, node.kind), True
    except ValueError as error:
        return _bad_value(name, text, node.kind, str(error), config)
    return None


def _write_element(
    node: _Node, name: str, index: int, text: str, config: Any
) -> str | None:
    """One element of a tuple of scalars."""
    if index >= len(node.value):
        have = f"it has {len(node.value)} elements: {json_like(node.value)}"
        return f"{name}: there is no element {index}, {have}"
    kind = element_type(node.kind, index)
    if not is_settable(kind):
        return _not_settable(name, node, config)
    try:
        item = parse(text, kind)
    except ValueError as error:
        return _bad_value(name, text, kind, str(error), config)
    node.value = (*node.value[:index], item, *node.value[index + 1 :])
    node.changed = True
    return None


def _bad_value(name: str, text: str, kind: Any, error: str, config: Any) -> str:
    shown = f"{name}={redact(name, text)}"
    return f"{shown}: {error} (type {type_name(kind)}){_meaning(name, config)}"


def _not_settable(name: str, node: _Node, config: Any) -> str:
    if node.value is None:
        kinds = [m for m in members(node.kind) if m is not type(None)]
        what = f"is None; a {type_name(kinds[0])}" if kinds else "is None; a value"
    else:
        what = f"holds {json_like(node.value)}, which"
    return (
        f"{name} {what} cannot be written on the command line: set it in the config "
        f"file{_meaning(name, config)}"
    )


def _meaning(name: str, config: Any) -> str:
    fields = {item.path: item for item in describe(config)}
    item: Field | None = fields.get(name) or fields.get(name.rpartition(".")[0])
    return help_suffix(item) if item else ""


def _unknown(
    name: str, rest: list[str], node: _Node, config: Any, flags: Sequence[str]
) -> str:
    names = [f.path for section in sections(config) for f in section.fields]
    names += [section.path for section in sections(config) if section.path]
    nearest = nearest_names(name, names + [flag.removeprefix("--") for flag in flags])
    nearest = [f"--{n}" if f"--{n}" in flags else n for n in nearest]
    known = name.split(".")[: -len(rest)]
    where = ".".join(known)
    if where and node.value is None:
        return f"unknown field {name}: {where} is None; set it in the config file"
    if nearest:
        return f"unknown field {name}; did you mean {' or '.join(nearest)}?"
    if node.below is None:
        return f"unknown field {name}: {where} is a {type_name(node.kind)}"
    owner = where or type(node.value).__name__
    return f"unknown field {name}; {owner} has {', '.join(node.below)}"


def nearest_names(name: str, names: Sequence[str], count: int = 3) -> list[str]:
    """The dotted `names` most like `name`, as a whole or by the last component.

    So `temperature` finds `recipe.sampling.temperature`, and so does
    `recipe.smapling.temperatur`.
    """
    last = name.rpartition(".")[2]

    def likeness(candidate: str) -> float:
        tail = candidate.rpartition(".")[2]
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        end = difflib.SequenceMatcher(None, last, tail).ratio()
        if end < 0.75:  # a like path to another field helps less than the field itself
            return whole if whole >= 0.8 else 0.0
        return end + whole / 2

    scored = [(likeness(candidate), candidate) for candidate in dict.fromkeys(names)]
    found = sorted((s for s in scored if s[0]), key=lambda s: (-s[0], s[1]))
    return [candidate for score, candidate in found if score > found[0][0] - 0.4][
        :count
    ]
