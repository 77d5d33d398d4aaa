import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.scoring.verdicts import (
    Marked,
    Points,
    Tagged,
    Verdict,
    YesNo,
    after_thought,
)

TOY = Marked(r"\.(Y|N)$", {"Y": 1.0, "N": 0.0})
HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("text", "marker", "rest"),
    [
        ("a</think>b", "</think>", "b"),
        ("a</think>b</think>c", "</think>", "c"),
        ("a</think>", "</think>", ""),
        ("a", "</think>", None),
        ("a", "", "a"),
        ("", "", ""),
    ],
)
def test_after_thought(text, marker, rest):
    assert after_thought(text, marker) == rest


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("Good.\n\nScore: 4", 4),
        ("Score: 0", 0),
        ("Score: 5\n \n", 5),
        ("so\n**Score: 4**", 4),
        ("so\n**Score:** 4/5", 4),
        ("so\n### Final score: 4 / 5.", 4),
        ("so\n- total SCORE : 4 out of 5 points", 4),
        ("so\n> __Score: 4__", 4),
        ("Score:\n4", 4),
        ("**Score**:\n\n**4**\n", 4),
        ("Score: 4.0", 4),
        ("Relevance score: 1\nClarity: 1 point\nScore: 2", 2),
        ("It says 'Score: 5'.\nScore: 2", 2),
        ("Score: 3\nI stand by it.\nScore: 3", 3),
        # None, or not at the end:
        ("", None),
        ("4", None),
        ("I like it", None),
        ("Score: high", None),
        ("Score:", None),
        ("Score: 4\nHope this helps!", None),
        ("Score: 4, since it is good", None),
        ("I give it a Score: 4", None),
        ("Scores: 4", None),
        # More than one, or not one of the scale:
        ("Score: 2\nBut no.\nScore: 4", None),
        ("Score: 4\nor\nScore: five", None),
        ("Score: 4 Score: 5", None),
        ("Score: 4-5", None),
        ("Score: 2*2", None),
        ("Score: 6", None),
        ("Score: -1", None),
        ("Score: 3.5", None),
        ("Score: 4/10", None),
        ("Score: 4/", None),
        ("Score: 4/5/5", None),
        # Not a plain number:
        ("Score: nan", None),
        ("Score: inf", None),
        ("Score: 4e0", None),
        ("Score: ٤", None),
        ("Score: ４", None),
        ("Score: ④", None),
        ("ſcore: 4", None),
        (f"Score: {HUGE}", None),
        (f"Score: 0.{HUGE}", None),
        (f"Score: {HUGE}\nScore: 4", None),
    ],
)
def test_points(text, points):
    assert Points()(text, 1) == (None if points is None else (points,))


def test_points_of_another_scale():
    parse = Points(low=-1, high=1, label="Grade (a+b)", step=0.5)
    assert parse("grade (A+B): -0.5", 1) == (-0.5,)
    assert parse("Grade (a+b):\n-0.5", 1) == (-0.5,)
    assert parse("Grade (a+b): 0.50/1", 1) == (0.5,)
    assert parse("Grade (a+b): 0.25", 1) is None
    assert parse("Grade (aab): 0.5", 1) is None
    assert parse("Score: 0.5", 1) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("They agree.\nVerdict: yes", 1),
        ("They differ.\n**Verdict:** No.", 0),
        ("so\nYES", 1),
        ("so\nno!", 0),
        ("so\nFinal verdict:\nyes", 1),
        ("1: yes\n2: no\nVerdict: no", 0),
        ("Yes, I think so\nVerdict: no", 0),
        ("", None),
        ("so it is", None),
        ("Verdict: maybe", None),
        ("Verdict: yes and no", None),
        ("yes or no", None),
        ("I cannot say yes", None),
        ("Verdict: yes\nGlad to help.", None),
        ("Verdict: yes\nVerdict: no", None),
        ("Verdict: maybe\nVerdict: no", None),
        ("Yes\nVerdict: no", None),
        ("verdict: ｙｅｓ", None),
        ("Answer: yes", None),
    ],
)
def test_yes_or_no(text, value):
    assert YesNo()(text, 1) == (None if value is None else (value,))


def test_yes_or_no_by_label():
    assert YesNo(label="answer")("Answer: yes", 1) == (1,)
    assert YesNo(label="")("so\nno", 1) == (0,)
    assert YesNo(label="")("Verdict: no", 1) is None


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("fine <score>7.5</score>", (7.5,)),
        ("<score> 10 </score>.\n", (10,)),
        ("**<SCORE>0</SCORE>**", (0,)),
        ("<score_1>3</score_1>", (3,)),
        ("<score>2</score> no, <score>3</score>", (3,)),
        ("<score_A>7</score_A><score_B>3.1</score_B>", (7, 3.1)),
        ("A: <score_A>7</score_A>\nB: <score_B>3</score_B>", (7, 3)),
        ("<score_1>7</score_1> <score_2>3</score_2>", (7, 3)),
        (
            "<score_A>1</score_A><score_B>2</score_B> or rather "
            "<score_A>7</score_A><score_B>3</score_B>",
            (7, 3),
        ),
        ("<score_1>1</score_1><score_2>2</score_2><score_3>.</score_3>", 3),
        ("<score_1>1</score_1><score_2>2</score_2><score_3>3</score_3>", (1, 2, 3)),
        # Not each, or not each at the end:
        ("", 1),
        ("7.5", 1),
        ("<score>7", 1),
        ("<score>7</scores>", 1),
        ("<score>7</score> I hope this helps", 1),
        ("<score>7</score> <score>8", 1),
        ("<score>7</score> <score>eight</score>", 1),
        ("<score></score>", 1),
        ("<score_A>7</score_A>", 1),
        ("<score>7</score>", 2),
        ("<score_A>7</score_A>", 2),
        ("<score_A>7</score_A><score_2>7</score_2>", 2),
        ("<score_B>7</score_B><score_A>7</score_A>", 2),
        ("<score_A>1</score_A><score_B>2</score_B> or rather <score_A>7</score_A>", 2),
        ("<score_A>1</score_A><score_B>2</score_B>", 3),
        ("<score_1>1</score_1><score_2>2</score_2><score_3>3</score_3>", 2),
        ("<score_1>1</score_1><score_3>2</score_3><score_2>3</score_2>", 3),
        ("<score_0>1</score_0><score_1>2</score_1><score_2>3</score_2>", 3),
        # Not a number of the scale:
        ("<score>10.1</score>", 1),
        ("<score>-0.1</score>", 1),
        ("<score>7.55</score>", 1),
        ("<score>7/10</score>", 1),
        ("<score>nan</score>", 1),
        ("<score>Infinity</score>", 1),
        ("<score>1e1</score>", 1),
        ("<score>٧</score>", 1),
        (f"<score>{HUGE}</score>", 1),
    ],
)
def test_tags(text, values):
    """`values` is a number of rollouts where the text is invalid for so many."""
    if isinstance(values, int):
        assert Tagged()(text, values) is None
    else:
        assert Tagged()(text, len(values)) == values


def test_tags_of_another_name_and_scale():
    binary = Tagged("is_right", low=0, high=1, step=1)
    assert binary("<is_right>1</is_right>", 1) == (1,)
    assert binary("<is_right_A>1</is_right_A><is_right_B>0</is_right_B>", 2) == (1, 0)
    assert binary("<is_right>0.5</is_right>", 1) is None
    assert binary("<score>1</score>", 1) is None
    assert Tagged(low=1, high=2, step=0.25)("<score>1.75</score>", 1) == (1.75,)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A is better.\n[[A]]", (1, 0)),
        ("So my verdict is: **[[B]]**.", (0, 1)),
        ("[[C]]", (0.5, 0.5)),
        ("[[ b ]]\n", (0, 1)),
        ("First [[A]], and still [[A]]", (1, 0)),
        ("The matrix [[1, 2], [3, 4]] is right: [[A]]", (1, 0)),
        ("", None),
        ("A", None),
        ("[A]", None),
        ("[ [A] ]", None),
        ("[[D]]", None),
        ("[[AB]]", None),
        ("[[Α]]", None),  # a Greek letter
        ("[[A]] or [[B]]", None),
        ("[[A]] at first, then [[B]]", None),
        ("[[C]] at first, then [[B]]", None),
        ("[[B]] at first, then [[b]], then [[A]]", None),
        ("[[A]] I hope this helps", None),
        ("[[A]][", None),
    ],
)
def test_verdict_in_brackets(text, values):
    assert Verdict()(text, 2) == values


def test_verdict_with_other_letters():
    best = Verdict("XYZ", tie="")
    assert best("[[Y]]", 3) == (0, 1, 0)
    assert best("[[C]]", 3) is None
    assert Verdict("XYZ", tie="0")("[[0]]", 3) == pytest.approx((1 / 3,) * 3)
    assert Verdict(tie="")("[[C]]", 2) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7+5=12;3+8+1=12#122|11.21x22.N", 0),
        ("7+5=12;3+8+1=12#122|112222.Y", 1),
        ("#122|11.Y22.N\n", 0),
        ("7+5=12;3+8+1=12#122|11.21x22.", None),
        ("7+5=12;3+8+1=12#122|11.21x22.NN", None),
        ("7+5=12;3+8+1=12#122|11.21x22N", None),
        (".Y.", None),
        ("", None),
    ],
)
def test_a_pattern_of_the_users_own(text, value):
    assert TOY(text, 1) == (None if value is None else (value,))


def test_every_match_of_a_pattern_without_an_end_must_agree():
    parse = Marked(r"\.(Y|N)", {"Y": 1.0, "N": 0.0})
    assert parse("a.Y b.Y", 1) == (1,)
    assert parse("a.Y b.N", 1) is None
    assert parse("a.Y b.", 1) is None


def test_a_pattern_with_a_group_for_each_rollout():
    assert Marked(r"(\S+)\|(\S+)$")("so 3|4.5", 2) == (3, 4.5)
    named = Marked(r"b=(?P<b>\S+) a=(?P<a>\S+)$")
    assert named("b=1 a=-2", 2) == (-2, 1)
    for bad in ("nan", "inf", "1e9", "٣", HUGE, "x"):
        assert named(f"b=1 a={bad}", 2) is None
    optional = Marked(r"(Y)?(N)?$", {"Y": 1, "N": 0})
    assert optional("Y", 2) is None


def test_a_group_that_speaks_of_all_rollouts():
    parse = Marked(r"=(.)$", {"<": (0, 1), ">": (1, 0), "=": (0.5, 0.5)})
    assert parse("12=<", 2) == (0, 1)
    assert parse("12==", 2) == (0.5, 0.5)
    assert parse("12=!", 2) is None


VALID = [
    (Points(thought="|"), "Score: 2", 1, (2,)),
    (YesNo(thought="|"), "yes", 1, (1,)),
    (Tagged(thought="|"), "<score_A>1</score_A><score_B>2</score_B>", 2, (1, 2)),
    (Verdict(thought="|"), "[[A]]", 2, (1, 0)),
    (Marked(r"(Y|N)", {"Y": 1, "N": 0}, thought="|"), "N", 1, (0,)),
]


@pytest.mark.parametrize(
    ("parse", "verdict", "shown", "values"), VALID, ids=lambda v: type(v).__name__
)
def test_verdicts_inside_a_thought_do_not_count(parse, verdict, shown, values):
    other = "Score: 4\nno\n<score>9</score>\n[[B]]\nY"
    assert parse(f"{other}|{verdict}", shown) == values
    assert parse(f"{other}|{other}|\n{verdict}\n", shown) == values
    for unfinished in (verdict, f"{verdict}|", f"{verdict}|so", "|", ""):
        assert parse(unfinished, shown) is None


@pytest.mark.parametrize("parse", [parse for parse, *_ in VALID])
@pytest.mark.parametrize("shown", [0, 3])
def test_a_number_of_rollouts_that_no_verdict_speaks_of(parse, shown):
    if isinstance(parse, Tagged) and shown == 3:
        assert parse("", shown) is None
        return
    with pytest.raises(ValueError, match=rf"shown {shown}"):
        parse("", shown)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Points(low=5, high=5), "low must be below high"),
        (lambda: Points(step=0), "step"),
        (lambda: Points(high=math.inf), "high=inf"),
        (lambda: Tagged(low=math.nan), "low=nan"),
        (lambda: Points(label=""), "label is empty"),
        (lambda: Points(label="**score**"), "label="),
        (lambda: YesNo(label="verdict:"), "label="),
        (lambda: Tagged("a b"), "tag='a b'"),
        (lambda: Tagged(""), "tag=''"),
        (lambda: Verdict("A"), "two or more"),
        (lambda: Verdict("AA"), "different"),
        (lambda: Verdict("AB", tie="a"), "different"),
        (lambda: Verdict("A]"), "not all letters"),
        (lambda: Marked("("), "regular expression"),
        (lambda: Marked("Y|N"), "has no group"),
        (lambda: Marked("(?P<a>Y)(N)"), "name all of them or none"),
        (lambda: Marked("(Y)", {"Y": math.nan}), "finite"),
        (lambda: Marked("(Y|N)", {"Y": 1, "N": (0, 1)}), "length"),
        (lambda: Marked("(Y)(N)", {"Y": (0, 1)}), "2 groups"),
    ],
)
def test_senseless_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(0, 100), st.integers(0, 100), st.text("ab .:\n<[", max_size=30))
def test_numbers_survive_being_written(first, second, reasoning):
    a, b = first / 10, second / 10
    tags = f"<score_A>{a}</score_A>\n<score_B>{b}</score_B>"
    assert Tagged()(f"{reasoning}\n{tags}", 2) == (a, b)
    total = Points(high=10, step=0.1)
    assert total(f"{reasoning}\nScore: {a}", 1) == (a,)
    both = total(f"{reasoning}\nScore: {b}\n{reasoning}\nScore: {a}", 1)
    assert both == ((a,) if a == b else None)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    st.lists(
        st.sampled_from(
            ["[[A]]", "[[B]]", "[[C]]", "Score: ", "4", "\n", "yes", "<score>", "</"]
        )
        | st.text(max_size=3)
    ).map("".join)
)
def test_any_text_is_read_or_invalid(text):
    for parse, _, shown, _ in VALID:
        values = parse(f"|{text}", shown)
        assert values is None or len(values) == shown
        assert values is None or all(0 <= value <= 10 for value in values)
    if sum(f"[[{kind}]]" in text for kind in "ABC") > 1:
        assert Verdict()(text, 2) is None


@pytest.mark.parametrize(
    "text",
    [
        "9" * 100_000,
        "Score: " * 15_000,
        "Score:\n" * 15_000,
        "Score: " + "4/" * 50_000,
        "*" * 100_000 + "x",
        "Score:" + "*" * 100_000 + "x y",
        "final " * 20_000,
        "<score>" * 15_000,
        "<score_" * 15_000,
        "[[" * 50_000,
        "[[A" + " " * 100_000,
        "yes\n" * 25_000,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_parsing_is_linear(text):
    for parse, _, shown, _ in VALID:
        parse(f"|{text}", shown)
