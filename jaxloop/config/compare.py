"""What differs between two configurations: on resume, and from the config file."""

import itertools
from collections.abc import Sequence
from typing import Any

from jaxloop.config.serialise import to_json

ABSENT = "<absent>"
LONG = 32  # characters of a value
Change = tuple[str, Any, Any]


def diff(old: Any, new: Any) -> list[Change]:
    """(dotted name, old, new) of each difference between two `to_json` forms.

    A part whose class changed is one difference, a function as well; `ABSENT` stands
    for what one side does not have. The order is that of the new configuration.
    """
    return list(_differences("", old, new))


def changed_from(default: Any, config: Any) -> str:
    """The table "changed from default" of two configuration instances; "" if equal."""
    return format_diff(diff(to_json(default), to_json(config)))


def format_diff(changes: Sequence[Change]) -> str:
    """One aligned line for each change: `name  old -> new`. "" for none.

    An old value that is long does not push the others' arrows to the right.
    """
    rows = [(path, *_pair(old, new)) for path, old, new in changes]
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    widths[1] = min(widths[1], LONG)
    return "\n".join(
        f"{path:<{widths[0]}}  {old:<{widths[1]}} -> {new}" for path, old, new in rows
    )


def _differences(path: str, old: Any, new: Any):
    if isinstance(old, dict) and isinstance(new, dict) and _is_opened(old, new):
        keys = [*new, *(key for key in old if key not in new)]
        pairs = [(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys]
    elif isinstance(old, list) and isinstance(new, list) and _has_parts(old + new):
        aligned = itertools.zip_longest(old, new, fillvalue=ABSENT)
        pairs = [(str(index), *pair) for index, pair in enumerate(aligned)]
    else:
        if not _equal(old, new):
            yield path, old, new
        return
    for key, one, other in pairs:
        yield from _differences(f"{path}.{key}" if path else key, one, other)


def _is_opened(old: dict, new: dict) -> bool:
    """Parts of one class, and plain mappings, are compared field by field."""
    if "_type" in old or "_type" in new:
        return old.get("_type") == new.get("_type")
    return not any(key.startswith("_") for key in (*old, *new))


def _has_parts(items: list) -> bool:
    return any(isinstance(item, dict) for item in items)


def _equal(old: Any, new: Any) -> bool:
    """As JSON: true is not 1, but 1 is 1.0."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_equal, old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_equal(old[k], new[k]) for k in old)
    return isinstance(old, bool) == isinstance(new, bool) and old == new


def _pair(old: Any, new: Any) -> tuple[str, str]:
    """Both sides in words; where they read the same, their source hashes follow."""
    one, other = _words(old), _words(new)
    if one == other and isinstance(old, dict) and isinstance(new, dict):
        hashes = [str(side.get("source_sha256"))[:8] for side in (old, new)]
        if hashes[0] != hashes[1]:
            return f"{one} (source {hashes[0]})", f"{other} (source {hashes[1]})"
        return str(old), str(new)
    return one, other


def _words(value: Any) -> str:
    """A JSON value as one short line: parts by class with their fields."""
    if isinstance(value, dict):
        if "_function" in value:
            return value["_function"]
        if "_enum" in value:
            return value["_enum"].rpartition(".")[2]
        kind = value.get("_type", "").rpartition(":")[2].rpartition(".")[2]
        inner = (f"{k}={_words(v)}" for k, v in value.items() if k != "_type")
        return f"{kind}({', '.join(inner)})"
    if isinstance(value, list):
        return f"({', '.join(map(_words, value))})"
    if isinstance(value, str):
        return value if value == ABSENT else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
