"""Text to values: a truth table for each type, and what is refused in which words."""

import enum
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxloop.config.values import (
    is_settable,
    matches,
    parse,
    split_commas,
    type_name,
)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


GOOD = [
    ("3", int, 3),
    ("-7", int, -7),
    ("1e3", int, 1000),
    ("2.0", int, 2),
    ("1_000", int, 1000),
    ("0x10", int, 16),
    ("9007199254740993", int, 9007199254740993),
    ("1e30", int, 10**30),
    ("3", float, 3.0),
    ("1e-6", float, 1e-6),
    ("inf", float, math.inf),
    ("true", bool, True),
    ("True", bool, True),
    ("FALSE", bool, False),
    ("no", bool, False),
    ("1", bool, True),
    ("1e3", str, "1e3"),
    ("none", str, "none"),
    ("", str, ""),
    ("none", int | None, None),
    ("None", str | None, None),
    ("5", int | None, 5),
    ("x", int | str, "x"),
    ("5", str | int, 5),
    ("adam", Literal["adam", "sgd"], "adam"),
    ("2", Literal[1, 2], 2),
    ("auto", float | Literal["auto"], "auto"),
    ("RED", Colour, Colour.RED),
    ("runs/a", Path, Path("runs/a")),
    ("1,2,3", tuple[int, ...], (1, 2, 3)),
    ("1e3, 2", tuple[int, ...], (1000, 2)),
    ("(1, 2)", tuple[int, int], (1, 2)),
    ("4,", tuple[int, ...], (4,)),
    ("(4)", tuple[int, ...], (4,)),
    ("", tuple[int, ...], ()),
    ("()", tuple[str, ...], ()),
    ("a,b", tuple[str, ...], ("a", "b")),
    ("[a, b]", tuple[str, ...], ("a", "b")),
    ('["a,b", "\\n"]', tuple[str, ...], ("a,b", "\n")),
    (" a,b", tuple[str, ...], (" a", "b")),
    ("1,none", tuple[int | None, ...], (1, None)),
    ("1.5,2", list[float], (1.5, 2.0)),
    ('(("a", 1), ("b", 2.5))', tuple[tuple[str, float], ...], (("a", 1.0), ("b", 2.5))),
    ('{"q": "question"}', Mapping[str, str], {"q": "question"}),
    ("3", Annotated[int, "unit"], 3),
]

BAD = [
    ("1.5", int, "whole number"),
    ("ten", int, "whole number"),
    ("1e999999999", int, "too large"),
    ("inf", int, "whole number"),
    ("", int, "whole number"),
    ("nan", float, "nan"),
    ("1,5", float, "not a number"),
    ("maybe", bool, "true or false"),
    ("2", bool, "true or false"),
    ("none", int, "whole number"),
    ("adm", Literal["adam", "sgd"], "choose from adam, sgd; did you mean adam"),
    ("GREEN", Colour, "choose from RED, BLUE"),
    ("1,x", tuple[int, ...], "whole number"),
    ("1,2,3", tuple[int, int], "2 elements, not 3"),
    ("a=b", Mapping[str, str], "name"),
    ("print", Callable[[int], int], "command line"),
]


@pytest.mark.parametrize(("text", "kind", "value"), GOOD, ids=str)
def test_text_becomes_the_value(text, kind, value):
    found = parse(text, kind)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("text", "kind", "message"), BAD, ids=str)
def test_what_does_not_fit_is_refused(text, kind, message):
    with pytest.raises(ValueError, match=message):
        parse(text, kind)


@given(st.one_of(st.integers(-(10**30), 10**30), st.floats(allow_nan=False)))
def test_numbers_survive_their_own_text(number):
    assert parse(repr(number), type(number)) == number


@given(st.lists(st.text()))
def test_any_texts_survive_in_brackets(texts):
    assert parse(repr(texts), tuple[str, ...]) == tuple(texts)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (int, "int"),
        (float | None, "float | None"),
        (Literal["a", 1], '"a" | 1'),
        (tuple[str, ...], "tuple[str, ...]"),
        (Callable[[int], int], "function"),
        (Colour, "RED | BLUE"),
        (Path, "Path"),
    ],
    ids=str,
)
def test_type_names(kind, name):
    assert type_name(kind) == name


def test_which_types_can_be_set():
    for kind in (int | None, tuple[float, ...], Colour, dict[str, int], Path):
        assert is_settable(kind), kind
    for kind in (Callable, Any, object, tuple, dict, tuple[Any, ...], type(len)):
        assert not is_settable(kind), kind


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (1, float, True),
        (1.0, int, False),
        (True, int, False),
        (True, float, False),
        ("1e-3", float, False),
        (None, int, False),
        (None, int | None, True),
        (None, Callable, True),
        ("b", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (1, Literal[True], False),
        ("runs", Path, False),
        (Path("runs"), Path, True),
        ((1, "2"), tuple[int, ...], False),
        ((1, 2), tuple[int, ...], True),
        (3, object, True),
    ],
    ids=str,
)
def test_values_of_config_files_are_judged(value, kind, fits):
    assert matches(value, kind) == fits


def test_commas_inside_brackets_and_quotes_do_not_split():
    assert split_commas('(1,2),[3, 4], "a,b" ,x,') == ["(1,2)", "[3, 4]", '"a,b"', "x"]
