import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.prompts.jsonl import DataError, parse_json, parse_jsonl, read_jsonl


def write(tmp_path, content: bytes):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return path


def problem(tmp_path, content: bytes) -> str:
    with pytest.raises(DataError) as error:
        read_jsonl(write(tmp_path, content))
    return str(error.value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, width=64, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(
    rows=st.lists(st.dictionaries(st.text(), VALUES), min_size=1, max_size=4),
    ascii_only=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=30, deadline=None)
def test_what_json_writes_is_read_back(tmp_path_factory, rows, ascii_only, newline):
    text = newline.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    read, bad = read_jsonl(path)
    assert [row.values for row in read] == rows
    assert not bad


def test_mark_crlf_blank_lines_and_unicode_separators_are_accepted(tmp_path):
    separators = '{"a": "x\u2028y\u0085z"}'.encode()
    content = b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n' + separators + b'\n{"a": 3}'
    rows, _ = read_jsonl(write(tmp_path, content))
    assert [row.values["a"] for row in rows] == [1, "x\u2028y\u0085z", 3]
    assert [row.number for row in rows] == [1, 4, 5]
    assert rows[2].place.endswith("rows.jsonl:5")


def test_malformed_rows_are_shown_with_line_column_and_80_characters(tmp_path):
    text = problem(tmp_path, b'{"a": 1}\n{"a": 1 "b"' + b" " * 200 + b"}\n")
    assert "rows.jsonl:2:9: not JSON" in text
    assert text.endswith('{"a": 1 "b"' + " " * 69)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"[1]", r"rows.jsonl:1: a row must be a JSON object {...}, this is [1]"),
        (b'"text"', "must be a JSON object"),
        (b'{"a": "NaN", "b": NaN}', "rows.jsonl:1:19: NaN is not JSON"),
        (b'{"a": -Infinity}', ":1:7: -Infinity is not JSON"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"b": {"a": 1, "a": 1}}', "the key 'a' occurs twice"),
        (b'{"a": "\\ud800"}', '"\\ud800" is half of a surrogate pair'),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested deeper than 64"),
        (b'{"a": ' + b"[" * 9999 + b"]" * 9999 + b"}", "nested deeper than 64"),
        (b'{"a": ' + b"1" * 5000 + b"}", "integer"),
        (b'{"a": "x\ty"}', "rows.jsonl:1:9: not JSON"),
        (b"", "empty"),
        (b"\n\n", "empty"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_what_is_not_a_row_is_named(tmp_path, line, expected):
    assert expected in problem(tmp_path, line)


def test_brackets_inside_strings_are_not_depth(tmp_path):
    rows, _ = read_jsonl(write(tmp_path, b'{"a": "' + b"[" * 500 + b'"}'))
    assert rows[0].values["a"] == "[" * 500


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "mark"])
def test_bytes_that_are_not_utf8_are_placed_in_the_file(tmp_path, mark):
    content = mark + b'{"a": 1}\n{"a": "\xff"}\n'
    place = content.index(b"\xff")
    assert f"not UTF-8 at byte {place} of the file (0xff)" in problem(tmp_path, content)
    first = mark + b'{"\xff": 1}\n'
    assert f"at byte {first.index(0xFF)} of" in problem(tmp_path, first)


def test_an_endless_line_stops_before_memory_does(tmp_path):
    path = write(tmp_path, b'{"a": 1}\n{"a": "' + b"x" * 500)
    with pytest.raises(DataError, match=r":2: a line longer than 100 bytes"):
        list(parse_jsonl(path, max_line_bytes=100))
    exact = b'{"a": "' + b"x" * 91 + b'"}'
    assert len(list(parse_jsonl(write(tmp_path, exact + b"\n"), max_line_bytes=100)))


def test_bad_rows_are_skipped_up_to_a_fraction(tmp_path):
    path = write(tmp_path, b'{"a": 1}\nnope\n{"a": 2}\n{"a": 3}\n')
    rows, bad = read_jsonl(path, on_bad_row="skip", max_bad_fraction=0.25)
    assert [row.values["a"] for row in rows] == [1, 2, 3]
    assert len(bad) == 1
    assert "rows.jsonl:2:1" in str(bad[0])
    with pytest.raises(DataError, match=r"1 of 4 rows are bad, a fraction of 0\.25"):
        read_jsonl(path, on_bad_row="skip")
    with pytest.raises(DataError, match="all 1 rows are bad"):
        read_jsonl(write(tmp_path, b"x"), on_bad_row="skip", max_bad_fraction=1.0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file .*gone\.jsonl"):
        read_jsonl(tmp_path / "gone.jsonl")


def test_a_json_document_holds_rows_under_a_key(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"canary": "x", "examples": [{"a": 1}, 2]}')
    first, second = parse_json(path, "examples")
    assert first.values == {"a": 1}
    assert "examples[1]: a row must be" in str(second)
    with pytest.raises(DataError, match=r"\['canary', 'examples'\]; say which"):
        list(parse_json(path))
    with pytest.raises(DataError, match="no list of rows under 'canary'"):
        list(parse_json(path, "canary"))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gsm8k/train.jsonl", 7473),
        ("gsm8k/test.jsonl", 659),
        ("self_instruct/seed_tasks.jsonl", 175),
        ("mt_bench/question.jsonl", 80),
        ("humaneval/HumanEval.jsonl", 164),
        ("ifeval/input_data.jsonl", 541),
        ("hh_rlhf/harmless_base_test.jsonl", 2000),
    ],
)
def test_real_files_are_read_whole(data_file, name, count):
    rows, bad = read_jsonl(data_file(name))
    assert (len(rows), len(bad)) == (count, 0)
