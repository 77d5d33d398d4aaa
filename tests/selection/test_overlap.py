"""Duplicates among prompts, and prompts that leak held-out texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.selection import Decontaminate, Dedupe
from jaxloop.text import rouge_l
from tests.selection.samples import row, with_columns

few = settings(max_examples=30)


def asked(*texts):
    return [row(text) for text in texts]


def kept(filtered):
    return [row.prompt.text for row in filtered[0]]


def test_dedupe():
    texts = [
        "Name three rivers of Asia.",
        "name three  rivers of asia .",
        "Name three rivers of Africa.",
        "Name four rivers of Asia.",
        "What is 2+3?",
        "What is 2*3?",
    ]
    exact = Dedupe(1.0)(asked(*texts))
    assert kept(exact) == [texts[0], *texts[2:]]
    assert exact[1] == 1
    # Of 6 tokens 5 are shared; of the sums as well.
    assert kept(Dedupe(0.8)(asked(*texts))) == [texts[0], texts[4]]
    assert kept(Dedupe(0.84)(asked(*texts))) == [texts[0], *texts[2:]]


texts = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=6).map(" ".join)


@few
@given(st.lists(texts, max_size=10), st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_no_two_that_stay_are_alike_and_all_that_go_are(pool, threshold):
    rows = asked(*pool)
    filtered = Dedupe(threshold)(rows)
    stay = kept(filtered)
    for i, text in enumerate(stay):
        assert all(rouge_l(text, other) < threshold for other in stay[:i])
    for text in pool:
        assert max(rouge_l(text, other) for other in stay) >= threshold - 1e-9
    assert filtered[1] == len(pool) - len(stay)
    assert Dedupe(threshold)(filtered[0]) == (filtered[0], 0)


def test_a_template_is_not_the_question():
    rows = [
        with_columns(row(f"system text of many words | {q}"), q=q) for q in ("hi", "no")
    ]
    assert len(Dedupe(0.7)(rows)[0]) == 1
    assert len(Dedupe(0.7, column="q")(rows)[0]) == 2
    with pytest.raises(ValueError, match="no column 'r'"):
        Dedupe(0.7, column="r")(rows)
    for threshold in (0.0, 1.1):
        with pytest.raises(ValueError, match="within"):
            Dedupe(threshold)


TEST = "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, end."


def test_decontaminate():
    words = TEST.replace(",", "").rstrip(".").split()
    assert len(words) == 13
    texts = [
        TEST,
        "BEFORE " + " ".join(words).upper() + "\nand after",
        " ".join([*words[:6], "new", *words[6:]]),
        " ".join(words[1:]),
        "something else",
    ]
    drop = Decontaminate((TEST, "a short one"))
    assert kept(drop(asked(*texts))) == texts[2:]
    assert kept(Decontaminate((TEST,), n=6)(asked(*texts))) == texts[4:]
    assert drop(asked(*texts))[1] == 2
    assert kept(Decontaminate(())(asked(*texts))) == texts


def test_short_texts_leak_only_as_a_whole():
    drop = Decontaminate(("What is 2+3?", "yes"))
    texts = ["what is 2 + 3 ?", "What is 2*3?", "What is 2+3? And why?", "yes", "Yes!"]
    assert kept(drop(asked(*texts))) == [
        "What is 2*3?",
        "What is 2+3? And why?",
        "Yes!",
    ]


def test_decontaminate_reads_a_column():
    rows = [with_columns(row("p"), question=TEST), with_columns(row("q"), question="x")]
    found = Decontaminate((TEST,), column="question")(rows)
    assert [r.prompt.id for r in found[0]] == ["q"]
    with pytest.raises(ValueError, match="n = 0"):
        Decontaminate((TEST,), n=0)


@few
@given(st.lists(texts, max_size=6), st.lists(texts, max_size=6), st.integers(1, 4))
def test_decontaminated_prompts_share_no_run(pool, against, n):
    def runs(text):
        parts = text.split()
        return {tuple(parts[i : i + n]) for i in range(len(parts) - n + 1)}

    held = set().union(*map(runs, against))
    short = {t for t in against if len(t.split()) < n}
    expected = [t for t in pool if not runs(t) & held and t not in short]
    assert kept(Decontaminate(tuple(against), n)(asked(*pool))) == expected
