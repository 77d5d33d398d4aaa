import pytest

from jaxloop.prompts.jsonl import DataError, Row
from jaxloop.prompts.template import fill, get_field, required, template_fields

ROW = Row(
    "f.jsonl:3",
    3,
    {
        "question": "1+1?",
        "n": 2,
        "turns": ["a", {"b": "c"}],
        "a.b": "dot",
        "none": None,
    },
)


def test_paths_go_into_lists_and_objects():
    assert get_field(ROW, "turns.1.b") == "c"
    assert get_field(ROW, "a.b") == "dot"


@pytest.mark.parametrize("path", ["turns.2", "turns.x", "turns.-1", "question.x"])
def test_paths_that_lead_nowhere_are_named(path):
    with pytest.raises(DataError, match=rf"f\.jsonl:3: no field '{path}'"):
        get_field(ROW, path)


def test_a_missing_field_names_the_nearest_and_those_there_are():
    with pytest.raises(DataError, match="the nearest is 'question'; there are quest"):
        get_field(ROW, "questions")
    with pytest.raises(DataError, match="'xyz'; there are question, n, turns"):
        get_field(ROW, "xyz")


def test_null_and_wrong_types_are_named():
    with pytest.raises(DataError, match="'none' is null; it must be a string"):
        required(ROW, "none", str, "a string")
    with pytest.raises(DataError, match="'n' must be a string, it is int 2"):
        required(ROW, "n", str, "a string")


def test_templates_fill_in_plain_paths_only():
    assert fill("{{Q}}: {question} {n} {turns.1.b}", ROW) == "{Q}: 1+1? 2 c"
    assert template_fields("{question}{turns.1.b}") == ["question", "turns.1.b"]
    with pytest.raises(DataError, match="no field 'nope'"):
        fill("{nope}", ROW)


@pytest.mark.parametrize(
    "template", ["{}", "{a!r}", "{a:>8}", "{a[0]}", "{a", "a}", "{a b}"]
)
def test_other_templates_are_refused_before_any_row(template):
    with pytest.raises(ValueError, match=r"data\.template"):
        template_fields(template)


def test_a_row_cannot_inject_fields():
    row = Row("f:1", 1, {"question": "{n} {question.__class__}", "n": 1})
    assert fill("{question}", row) == "{n} {question.__class__}"
    with pytest.raises(DataError, match="no field"):
        fill("{question.__class__}", row)
