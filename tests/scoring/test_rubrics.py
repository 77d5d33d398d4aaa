import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.scoring.rubric import (
    filled,
    load_template,
    template_names,
    template_problems,
)
from jaxloop.scoring.verdicts import Points, Tagged, Verdict, YesNo

PAIR = ("question", "answer_A", "answer_B")
LETTERS = {"[[A]]": (1, 0), "[[B]]": (0, 1), "[[C]]": (0.5, 0.5)}
TWO = dict(list(LETTERS.items())[:2])
YES = {"Verdict: yes": (1,), "Verdict: no": (0,)}
LIST = "<score_1>N</score_1>\n<score_2>N</score_2>"
SCORES = "<score_A>N</score_A>\n<score_B>N</score_B>"

# name: its fields, its parser, and what it tells the judge to end with
PACKAGED = {
    "additive": (("question", "answer"), Points(), {"Score: N": (3,)}),
    "binary": (("question", "answer"), YesNo(), YES),
    "checklist": (("question", "answer", "rubric"), YesNo(), YES),
    "equivalence": (("question", "answer", "reference"), YesNo(), YES),
    "listwise": (("question", "answers"), Tagged(), {LIST: (3, 3)}),
    "meta": (
        ("question", "answer", "rubric", "judgement_A", "judgement_B"),
        Verdict(tie=""),
        TWO,
    ),
    "p_true": (("question", "answer"), YesNo(label=""), {"yes": (1,), "no": (0,)}),
    "pairwise": (PAIR, Verdict(), LETTERS),
    "pairwise_reference": ((*PAIR, "reference"), Verdict(), LETTERS),
    "pairwise_scores": (PAIR, Tagged(), {SCORES: (3, 3)}),
    "pointwise": (("question", "answer"), Tagged(), {"<score>N</score>": (3,)}),
}


def test_every_packaged_template_is_in_the_table():
    assert template_names() == sorted(PACKAGED)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_template_has_its_fields_and_says_what_material_is(name):
    template = load_template(name)
    fields = PACKAGED[name][0]
    assert template_problems(template, fields) == []
    assert "never an instruction" in template
    assert len(template) < 1500
    assert max(map(len, template.splitlines())) <= 92
    given = {field: f"<{field}>" for field in fields}
    assert all(f"<{field}>" in filled(template, given) for field in fields)


@pytest.mark.parametrize("name", PACKAGED)
def test_what_a_packaged_template_asks_for_can_be_parsed(name):
    template = load_template(name)
    _, parse, endings = PACKAGED[name]
    for ending, values in endings.items():
        assert ending in template
        said = re.sub(r"\bN\b", "3", ending)
        assert parse(f"It is so, for a reason.\n{said}\n", len(values)) == values


@pytest.mark.parametrize("name", PACKAGED)
def test_a_judge_that_repeats_its_instructions_gives_no_verdict(name):
    template = load_template(name)
    _, parse, endings = PACKAGED[name]
    for ending, values in endings.items():
        shown = len(values)
        assert parse(template, shown) is None
        before = template.partition(ending)[0]
        if len(endings) == 1:
            assert parse(before + ending, shown) is None


def test_a_file_of_the_users_own(tmp_path):
    file = tmp_path / "pairwise"
    file.write_text("\n{question}: ü\n", encoding="utf-8")
    assert load_template(str(file)) == "{question}: ü"
    assert load_template("pairwise") != "{question}: ü"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pairwize", r"No such file.*the nearest is 'pairwise'.*additive, binary"),
        ("pairwise.txt", "'pairwise'"),
        ("nothing/like/it.txt", "give the path of a file or one of additive"),
        ("", "Is a directory"),
    ],
)
def test_a_template_that_is_not_there(name, message):
    with pytest.raises(ValueError, match=message):
        load_template(name)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff", "UTF-8"), (b" \n", "empty")]
)
def test_a_file_that_is_no_template(tmp_path, content, message):
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_template(str(file))


@pytest.mark.parametrize(
    ("template", "problems"),
    [
        ("{question} {answer} {{braces}}", []),
        ("{question} {question} {answer}", []),
        ("{question}", ["{answer} is missing"]),
        ("", ["{answer} is missing", "{question} is missing"]),
        ("{question} {answer} {anwser}", ["{anwser} is unknown; here there are {answ"]),
        ("{question} {answer} {}", ["{} is not the plain name"]),
        ("{question} {answer} {0}", ["{0} is not the plain name"]),
        ("{question} {answer.text}", ["{answer.text} is not", "{answer} is missing"]),
        ("{question} {answer!r}", ["{answer} is not the plain name"]),
        ("{question} {answer:>9}", ["{answer} is not the plain name"]),
        ("{question} {answer} }", ["'}'"]),
        ("{question} {answer", ["'}'"]),
    ],
)
def test_problems_of_a_template(template, problems):
    found = template_problems(template, ("question", "answer"))
    assert len(found) == len(problems)
    for problem, part in zip(found, problems, strict=True):
        assert part in problem


def test_a_field_that_is_not_given():
    with pytest.raises(ValueError, match=r"nothing is given for \{b\}"):
        filled("{a} {b}", {"a": "1", "c": "2"})


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.text("{}ab!:0", max_size=12), st.text("{}ab!:0", max_size=12))
def test_braces_inside_values_stay(a, b):
    assert filled("{{x}} {a}|{b}|{a}", {"a": a, "b": b}) == f"{{x}} {a}|{b}|{a}"
