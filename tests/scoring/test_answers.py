from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxloop.scoring import (
    After,
    Hashes,
    LastNumber,
    Letter,
    Regex,
    WholeText,
    canonical,
    number,
)

SAME = [
    [
        "18",
        "18.",
        "18.0",
        "18.00",
        "+18",
        "$18",
        "$18.00",
        "018",
        "18%",
        " 18 ",
        "36/2",
    ],
    ["1234567", "1,234,567", "$1,234,567.00"],
    ["-5", "−5", "-5.0", "-$5", "$-5", "-10/2"],
    ["0.5", ".5", "1/2", "50/100", "0.50", "0.5."],
    ["1/3", "2/6"],
    ["-7/3", "−14/6"],
    ["0", "-0", "0.00", "0/7"],
    ["Paris", "paris", " PARIS. "],
    ["a  b", "A b"],
    ["50%", "50 %", "50\\%"],
]


@pytest.mark.parametrize("spellings", SAME, ids=lambda s: s[0])
def test_spellings_of_one_answer_are_one_string(spellings):
    assert {canonical(text) for text in spellings} == {canonical(spellings[0])}


def test_different_answers_differ():
    assert len({canonical(group[0]) for group in SAME}) == len(SAME)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("18.0", "18"),
        ("1/3", "1/3"),
        ("1/8", "0.125"),
        ("-.25", "-0.25"),
        ("2.50", "2.5"),
        ("3/12", "0.25"),
        ("100", "100"),
    ],
)
def test_canonical_spelling(text, spelled):
    assert canonical(text) == spelled


@pytest.mark.parametrize(
    "text", ["", ".", "-", "1/0", "1.5/2", "1,23", "1e5", "x", "1 2", "٣", "9" * 5000]
)
def test_not_a_number(text):
    assert number(text) is None
    assert isinstance(canonical(text), str)


@given(st.fractions(max_denominator=5000))
def test_canonical_keeps_the_value(value):
    assert number(canonical(f"{value.numerator}/{value.denominator}")) == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_decimals_keep_their_value(value):
    spelled = canonical(f"{value:,f}")
    assert number(spelled) == Fraction(value)
    assert not spelled.endswith(".0")


@given(st.text())
def test_canonical_is_idempotent(text):
    assert canonical(canonical(text)) == canonical(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so the answer is 18.", "18"),
        ("It costs $1,234.50!", "$1,234.50"),
        ("16-3", "3"),
        ("(2)-3", "3"),
        ("it is -3", "-3"),
        ("x=-3", "-3"),
        ("loses -$5", "-$5"),
        ("half, 1/2", "1/2"),
        ("grows by .5", ".5"),
        ("7+5=12;3+8+1=12#122", "122"),
        ("in 3,4 or 1,2345", "2345"),
        ("10% off, 20%", "20"),
        ("no number", None),
        ("", None),
    ],
)
def test_last_number(text, found):
    assert LastNumber()(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#### 18", "18"),
        ("so\n#### 70,000", "70000"),
        ("#### -3.50.", "-3.50"),
        ("#### 1\n#### 2", "1"),
        ("####18", None),
        ("#### $18", None),
        ("#### .", None),
        ("18", None),
    ],
)
def test_gsm8k_strict_form(text, found):
    assert Hashes()(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7+5=12;3+8+1=12#122", "122"),
        ("#1#2", "2"),
        ("# 5 \nmore", "5"),
        ("122", None),
        ("#", None),
    ],
)
def test_after_a_marker(text, found):
    assert After("#")(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is (B).", "B"),
        ("the answer is B", "B"),
        ("Answer: C", "C"),
        ("**Answer:** D", "D"),
        ("Answer: A\nno, the answer is B.", "B"),
        ("(A) is wrong, so (C)", "C"),
        ("B", "B"),
        ("B. because it is so", "B"),
        ("I think\nD)", "D"),
        ("A dog barks", None),
        ("The answer is Bananas", None),
        ("The answer is (Z)", None),
        ("", None),
    ],
)
def test_letters(text, found):
    assert Letter("ABCD")(text) == found


def test_letters_that_mean_something_in_a_pattern():
    assert Letter("]^-A")("answer: ]") == "]"


def test_regex_takes_the_last_match_and_its_group():
    assert Regex(r"<a>(.*?)</a>")("<a>1</a> <a>2\n3</a>") == "2\n3"
    assert Regex(r"\d+")("1 22 333") == "333"
    assert Regex(r"\d+")("none") is None
    assert Regex(r"a(b)?")("a") is None


def test_whole_text():
    assert WholeText()("  yes \n") == "yes"
    assert WholeText()("  \n") is None


@pytest.mark.parametrize(
    "make", [lambda: After(""), lambda: Letter(""), lambda: Regex("(")]
)
def test_senseless_settings_are_refused(make):
    with pytest.raises(ValueError, match=r"empty|regular expression"):
        make()


@pytest.mark.parametrize(
    "text",
    ["9" * 200_000, "1," * 100_000, "-" * 200_000, "(A" * 100_000, "answer " * 30_000],
    ids=lambda text: text[:3],
)
def test_extraction_is_linear(text):
    for extract in (After(), Hashes(), LastNumber(), Letter(), WholeText()):
        canonical(extract(text) or "")
