"""Tokens, common subsequences, ROUGE-L, and a pool of texts."""

import random as python_random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop import text as module
from jaxloop.text import TextPool, lcs_length, ngrams, rouge_l, tokens, words

few = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def lcs_by_table(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        above = list(row)
        for j, y in enumerate(b):
            row[j + 1] = above[j] + 1 if x == y else max(row[j], above[j + 1])
    return row[-1]


sequences = st.lists(st.sampled_from("abcd"), max_size=90)


@few
@given(sequences, sequences)
def test_lcs_is_that_of_the_table(a, b):
    length = lcs_length(a, b)
    assert length == lcs_by_table(a, b) == lcs_length(b, a)
    assert lcs_length(a, a) == len(a)
    assert lcs_length(a + b, b) == len(b)


def test_lcs_of_long_sequences():
    random = python_random.Random(0)
    a, b = (random.choices("abcdefgh", k=200) for _ in range(2))
    assert lcs_length(a, b) == lcs_by_table(a, b)


def test_tokens():
    assert tokens(" Don't  ADD 2+3!\n") == ["don", "'", "t", "add", "2", "+", "3", "!"]
    assert words("Don't  ADD 2+3!") == ["don", "t", "add", "2", "3"]
    assert tokens("ﬁne Straße") == tokens("FINE STRASSE")
    assert tokens("2+3") != tokens("2*3")
    assert ngrams(list("abcab"), 2) == {("a", "b"), ("b", "c"), ("c", "a")}
    assert ngrams(["a"], 2) == set()


def test_rouge_l():
    # 4 of 5 and 6 tokens in common order.
    assert rouge_l("the cat sat on mats", "the black cat on some mats") == 8 / 11
    assert rouge_l("a b", "b a") == 0.5
    assert rouge_l("A  b.", "a B .") == 1
    assert rouge_l("a", "b") == rouge_l("", "a") == 0
    assert rouge_l("", " ") == 1


texts = st.lists(st.sampled_from(["a", "b", "c", "dd", "+"]), max_size=9).map(" ".join)
thresholds = st.sampled_from([0.2, 0.5, 0.6, 0.7, 0.75, 0.8, 1.0])


@few
@given(st.lists(texts, max_size=12), texts, thresholds)
def test_a_pool_finds_what_a_search_through_all_finds(pool, text, threshold):
    near = [i for i, t in enumerate(pool) if rouge_l(t, text) >= threshold - 1e-9]
    assert TextPool(pool).find(text, threshold) == (near[0] if near else None)


def test_a_pool_compares_few(monkeypatch):
    random = python_random.Random(0)
    pool = TextPool(
        [" ".join(random.choices("abcdefghijklmnopqrst", k=30)) for _ in range(500)]
    )
    assert len(pool) == 500
    compared = []
    measure = module._rouge
    monkeypatch.setattr(
        module, "_rouge", lambda a, b: compared.append(1) or measure(a, b)
    )
    new = " ".join(random.choices("abcdefghijklmnopqrst", k=30))
    assert pool.find(new, 0.9) is None
    assert len(compared) < 50
    pool.add(new)
    assert pool.find(new.upper(), 1.0) == 500


def test_a_pool_wants_a_threshold():
    with pytest.raises(ValueError, match="threshold = 0"):
        TextPool().find("a", 0)
