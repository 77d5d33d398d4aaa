import json
import pathlib

import pytest

from jaxloop.scoring import (
    GSM8K,
    After,
    Exact,
    Format,
    MultipleChoice,
    Numeric,
    check,
)
from tests.scoring.samples import prompt, rollouts, run

ROOT = pathlib.Path(__file__).parents[2]
GSM8K_TEST = ROOT.parent / "shared" / "data" / "gsm8k" / "test.jsonl"


def values(scores):
    assert all(score.status == "scored" for score in scores)
    return [score.value for score in scores]


def test_exact():
    scores = run(Exact(), "yes", " yes\n", "Yes", "no", "", answer="yes")
    assert values(scores) == [1, 1, 0, 0, 0]
    assert [score.answer for score in scores] == ["yes", "yes", "yes", "no", None]


def test_exact_takes_a_gold_column_of_any_name_and_kind():
    scores = run(Exact("sum", extract=After("#")), "3+4=7#7", "#8", "7", sum=7)
    assert values(scores) == [1, 0, 0]
    assert [score.answer for score in scores] == ["7", "8", None]


def test_numeric():
    texts = ("it is 1200.50", "$1,200.5", "1200.51", "none", "2401/2")
    scores = run(Numeric(), *texts, answer="1,200.50")
    assert values(scores) == [1, 1, 0, 0, 1]
    assert [s.answer for s in scores] == ["1200.5", "1200.5", "1200.51", None, "1200.5"]
    near = run(Numeric(tolerance=0.02), *texts, answer=1200.5)
    assert values(near) == [1, 1, 1, 0, 1]


def test_gsm8k_reports_both_readings_apart():
    texts = ("#### 5", "so 5", "#### 5 or 6", "#### 6, or 5", "5.00 #### 5.00", "")
    strict = run(GSM8K(), *texts, answer="2+3=5\n#### 5")
    flexible = run(GSM8K(score="flexible"), *texts, answer="2+3=5\n#### 5")
    assert values(strict) == [1, 0, 1, 0, 1, 0]
    assert values(flexible) == [1, 1, 0, 1, 1, 0]
    for scores in (strict, flexible):
        assert [s.components["strict"] for s in scores] == values(strict)
        assert [s.components["flexible"] for s in scores] == values(flexible)
    assert [s.answer for s in strict] == ["5", None, "5", "6", "5", None]


def test_gsm8k_gold_may_be_the_bare_number():
    assert values(run(GSM8K(), "#### 1000", answer="1,000")) == [1]


@pytest.mark.skipif(not GSM8K_TEST.exists(), reason="GSM8K's own files are not here")
def test_gsm8k_gold_answers_are_right():
    lines = GSM8K_TEST.read_text(encoding="utf-8").splitlines()
    prompts = [
        prompt(str(i), row["question"], answer=row["answer"])
        for i, row in enumerate(map(json.loads, lines))
    ]
    completions = [rollouts(p, p.columns["answer"]) for p in prompts]
    scored = GSM8K()(prompts, completions)
    assert len(scored) == len(lines) > 600
    for row in scored:
        assert row.scores[0].components == {"strict": 1.0, "flexible": 1.0}, row.prompt


def test_gsm8k_refuses_an_unknown_reading():
    with pytest.raises(ValueError, match="'loose'"):
        GSM8K(score="loose")  # pyright: ignore


@pytest.mark.parametrize("gold", ["B", "(B)", " B. ", 1])
def test_multiple_choice(gold):
    scores = run(MultipleChoice(), "The answer is (B)", "A", "neither", answer=gold)
    assert values(scores) == [1, 0, 0]
    assert [score.answer for score in scores] == ["B", "A", None]


@pytest.mark.parametrize("gold", ["F", "", "AB", 7, -1])
def test_a_gold_letter_that_is_none_is_refused(gold):
    with pytest.raises(ValueError, match=r"row 'p': column 'answer' holds"):
        run(MultipleChoice(), "A", answer=gold)


def test_format():
    form = Format(r"^<think>.*</think>\n\S")
    scores = run(form, "<think>a\nb</think>\nc", "<think>a</think>", "c")
    assert values(scores) == [1, 0, 0]
    with pytest.raises(ValueError, match="regular expression"):
        Format("(")


VERIFIERS = [Exact(), Numeric(), GSM8K(), MultipleChoice()]


@pytest.mark.parametrize("verifier", VERIFIERS, ids=lambda v: type(v).__name__)
def test_a_missing_gold_column_names_the_row_and_the_nearest_column(verifier):
    rows = [prompt("train:0", answer="1"), prompt("train:1", answers="1", level=3)]
    if isinstance(verifier, MultipleChoice):
        rows[0] = prompt("train:0", answer="A")
    with pytest.raises(
        ValueError, match=r"train:1.*'answers', 'level'.*mean 'answers'"
    ):
        check(verifier, rows)
    with pytest.raises(ValueError, match="train:1"):
        verifier(rows, [rollouts(row, "x") for row in rows])


def test_a_null_gold_column_is_told_from_a_missing_one():
    with pytest.raises(ValueError, match="column 'answer' is null"):
        run(Exact(), "x", answer=None)


@pytest.mark.parametrize("verifier", [Numeric(), GSM8K()])
def test_gold_without_a_number_is_refused(verifier):
    with pytest.raises(ValueError, match="no final number"):
        run(verifier, "1", answer="a few")


def test_the_order_of_prompts_and_rollouts_is_kept():
    rows = [prompt(str(i), answer=str(i)) for i in range(3)]
    groups = [rollouts(row, "0", "1", "2") for row in rows]
    scored = Exact()(rows, groups)
    assert [row.prompt.id for row in scored] == ["0", "1", "2"]
    assert [values(row.scores) for row in scored] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match="zip"):
        Exact()(rows, groups[:2])
