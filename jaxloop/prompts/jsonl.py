"""A strict reader of JSONL files: what is wrong is said with file, line and column.

Lines end at `\\n` only, for text fields may hold other Unicode line separators. A byte
order mark, CRLF and blank lines are accepted; nothing else is mended.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

OnBadRow = Literal["error", "skip"]
Result = TypeVar("Result")

MAX_LINE_BYTES = 16 * 2**20
MAX_DEPTH = 64
_BOM = b"\xef\xbb\xbf"
_STRING_OR_CONSTANT = re.compile(r'"(?:\\.|[^"\\])*"|NaN|-?Infinity')


class DataError(ValueError):
    """A row that cannot be used; the message names its place."""


@dataclass(frozen=True)
class Row:
    """A data row: `place` is for people ("train.jsonl:12"), `number` counts from 1."""

    place: str
    number: int
    values: Mapping[str, Any]


def read_jsonl(
    path: str | Path,
    *,
    on_bad_row: OnBadRow = "error",
    max_bad_fraction: float = 0.0,
) -> tuple[list[Row], list[DataError]]:
    """(the rows of the file, what was skipped). DataError for the first bad row, or
    with `on_bad_row="skip"` where more than `max_bad_fraction` of them are bad."""
    return keep_good(
        parse_jsonl(path),
        lambda row: row,
        on_bad_row=on_bad_row,
        max_bad_fraction=max_bad_fraction,
        source=str(path),
    )


def parse_jsonl(
    path: str | Path,
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
    max_depth: int = MAX_DEPTH,
) -> Iterator[Row | DataError]:
    """Every row of the file in order, and a DataError in place of each bad one.

    `max_line_bytes` and `max_depth` (of nested lists and objects) keep a hostile file
    from taking all memory.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"data: there is no file {str(path)!r}")
    with path.open("rb") as file:
        offset = number = 0
        while line := file.readline(max_line_bytes + 1):
            number += 1
            place, start = f"{path}:{number}", offset
            offset += len(line)
            if len(line) > max_line_bytes and not line.endswith(b"\n"):
                # What follows cannot be split into rows without reading it.
                raise DataError(f"{place}: a line longer than {max_line_bytes} bytes")
            if number == 1 and line.startswith(_BOM):
                line, start = line[len(_BOM) :], start + len(_BOM)
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if not line.strip():
                continue
            try:
                values = _parse_line(line, place, start, max_depth)
            except DataError as error:
                yield error
            else:
                yield Row(place, number, values)


def parse_json(path: str | Path, key: str = "") -> Iterator[Row | DataError]:
    """The rows of a file that is one JSON document: a list of objects, or with `key` an
    object that holds such a list there."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"data: there is no file {str(path)!r}")
    content = path.read_bytes().removeprefix(_BOM)
    document = _parse(_decode(content, str(path), 0), str(path), MAX_DEPTH)
    if isinstance(document, dict) and not key:
        raise DataError(
            f"{path}: one JSON object with the keys {sorted(document)}; say which of "
            f"them holds the rows: {path}#KEY"
        )
    rows = document.get(key) if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise DataError(f"{path}: no list of rows under {key!r}")
    for number, values in enumerate(rows, start=1):
        place = f"{path}#{key}[{number - 1}]"
        if isinstance(values, dict):
            yield Row(place, number, values)
        else:
            yield DataError(f"{place}: {_not_an_object(values)}")


def keep_good(
    items: Iterable[Row | DataError],
    convert: Callable[[Row], Result],
    *,
    on_bad_row: OnBadRow,
    max_bad_fraction: float,
    source: str,
) -> tuple[list[Result], list[DataError]]:
    """(`convert` of each row, the errors of the rows that were skipped).

    An error is one that the reader found or one that `convert` raised. DataError where
    there are too many (any at all with `on_bad_row="error"`) or no rows at all.
    """
    good, bad = [], []
    for item in items:
        try:
            if isinstance(item, DataError):
                raise item
            good.append(convert(item))
        except DataError as error:
            if on_bad_row == "error":
                raise
            bad.append(error)
    total = len(good) + len(bad)
    if total == 0:
        raise DataError(f"{source}: empty, there is no row in it")
    if len(bad) > max_bad_fraction * total:
        raise DataError(
            f"{source}: {len(bad)} of {total} rows are bad, a fraction of "
            f"{len(bad) / total:.3g}; data.max_bad_fraction={max_bad_fraction:g} "
            f"allows less. The first: {bad[0]}"
        )
    if not good:
        raise DataError(f"{source}: all {total} rows are bad. The first: {bad[0]}")
    return good, bad


def _parse_line(line: bytes, place: str, offset: int, max_depth: int) -> dict:
    values = _parse(_decode(line, place, offset), place, max_depth)
    if not isinstance(values, dict):
        raise DataError(f"{place}: {_not_an_object(values)}")
    return values


def _not_an_object(value) -> str:
    shown = json.dumps(value)[:80]
    return f"a row must be a JSON object {{...}}, this is {shown}"


def _decode(content: bytes, place: str, offset: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 at byte {offset + error.start} of the file "
            f"(0x{content[error.start]:02x}); convert the file to UTF-8"
        ) from error


def _parse(text: str, place: str, max_depth: int) -> Any:
    """json.loads, without what JSON does not have or what we cannot use."""

    def unique(items):
        found = dict(items)
        if len(found) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{place}: the key {twice!r} occurs twice in an object")
        return found

    def constant(name):
        matches = _STRING_OR_CONSTANT.finditer(text)
        column = next(m.start() for m in matches if m.group() == name) + 1
        raise DataError(f"{place}:{column}: {name} is not JSON: {text[:80]}")

    def finite(digits):
        value = float(digits)
        if math.isinf(value):
            raise DataError(f"{place}: the number {digits[:40]} is too large")
        return value

    try:
        value = json.loads(
            text, object_pairs_hook=unique, parse_constant=constant, parse_float=finite
        )
    except json.JSONDecodeError as error:
        line = f"{place}:" if error.lineno == 1 else f"{place}: line {error.lineno}, "
        raise DataError(
            f"{line}{error.colno}: not JSON ({error.msg}): {text[:80]}"
        ) from error
    except RecursionError as error:
        raise DataError(f"{place}: nested deeper than {max_depth}") from error
    except DataError:
        raise
    except ValueError as error:  # an integer with thousands of digits
        raise DataError(f"{place}: {error}: {text[:80]}") from error
    if text.count("[") + text.count("{") > max_depth and _depth(value) > max_depth:
        raise DataError(f"{place}: nested deeper than {max_depth}")
    if "\\ud" in text.lower():
        _refuse_lone_surrogates(value, place)
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _refuse_lone_surrogates(value: Any, place: str) -> None:
    """JSON can spell half of a surrogate pair; no tokenizer can take it."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = json.dumps(error.object[error.start])
        raise DataError(f"{place}: {half} is half of a surrogate pair") from error
