from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxloop.records import Pair, from_json, to_json
from jaxloop.selection import (
    AllCorrect,
    BestWorst,
    CorrectIncorrect,
    TopOne,
    VoteClusters,
)
from tests.selection.samples import row, voted


def rng(seed=0):
    return np.random.default_rng(seed)


def texts(pairs):
    return [(pair.chosen.text, pair.rejected.text) for pair in pairs]


def test_best_worst():
    rows = [
        row("a", ("u", None), ("x", 0.3), ("y", 0.9), ("z", 0.1), ("w", 0.9)),
        row("equal", ("x", 0.5), ("y", 0.5)),
        row("one", ("x", 0.5), ("y", None)),
        row("none", ("x", None)),
        row("b", ("x", -1.0), ("y", -2.0)),
    ]
    pairs = BestWorst()(rows, rng())
    assert [pair.prompt.id for pair in pairs] == ["a", "b"]
    assert texts(pairs) == [("y", "z"), ("x", "y")]
    assert (pairs[0].chosen_score, pairs[0].rejected_score) == (0.9, 0.1)
    assert pairs[0].reason == "best of 4 (0.9) against worst (0.1)"


scores = st.lists(
    st.tuples(
        st.sampled_from("abcdef"), st.none() | st.sampled_from([0.0, 0.5, 0.7, 1.0])
    ),
    max_size=8,
)


@given(scores, st.randoms())
def test_best_worst_scores_do_not_depend_on_the_order(samples, random):
    moved = list(samples)
    random.shuffle(moved)
    first, second = (BestWorst()([row("a", *s)], rng()) for s in (samples, moved))
    gaps = [
        [(p.chosen_score, p.rejected_score) for p in pairs] for pairs in (first, second)
    ]
    assert gaps[0] == gaps[1]
    known = {value for _, value in samples if value is not None}
    assert len(first) == (len(known) > 1)


@given(scores, st.integers(1, 6))
def test_correct_incorrect_pairs_are_distinct_and_right(samples, wanted):
    # One score a text, as a verifier gives.
    samples = [(text, value) for text, value in dict(samples).items()] * 2
    pairs = CorrectIncorrect(wanted)([row("a", *samples)], rng())
    right = {t for t, v in samples if v is not None and v > 0.5}
    wrong = {t for t, v in samples if v is not None and v <= 0.5}
    assert len(pairs) == min(wanted, len(right) * len(wrong))
    assert len(set(texts(pairs))) == len(pairs)
    assert all(c in right and r in wrong for c, r in texts(pairs))
    assert all(p.chosen_score > 0.5 >= p.rejected_score for p in pairs)


def test_correct_incorrect_draws_every_combination_alike():
    scored = [
        row("a", ("x", 1), ("y", 1), ("u", 0), ("v", 0), ("w", 0), ("u", 0))
    ] * 3000
    drawn = Counter(texts(CorrectIncorrect(2)(scored, rng())))
    assert len(drawn) == 6
    assert all(abs(count - 1000) < 130 for count in drawn.values())


def test_correct_incorrect_says_why():
    scored = [row("a", ("x", 1.0, "5", None), ("y", 0.0, "6", None))]
    (pair,) = CorrectIncorrect(4)(scored, rng())
    assert pair.reason == "'5' is correct, '6' is not"
    assert from_json(Pair, to_json(pair)) == pair


def test_vote_clusters():
    rows = [voted("a", "557.8858"), voted("b", "1112"), voted("tie", "1122")]
    rows += [voted("all", "111"), voted("mute", "..."), voted("apart", "123")]
    pairs = VoteClusters()(rows, rng())
    assert [pair.prompt.id for pair in pairs] == ["a", "b"]
    assert (pairs[0].chosen.text[0], pairs[0].rejected.text[0]) in {
        ("5", "7"),
        ("8", "7"),
    }
    assert (pairs[0].chosen_score, pairs[0].rejected_score) == (3 / 8, 1 / 8)
    assert pairs[1].chosen.text[0] == "1"
    assert pairs[1].reason == "'1' has 3 of 4 votes, '2' has 1"


def test_vote_clusters_draws_clusters_and_members_alike():
    pairs = VoteClusters()([voted("a", "112234")] * 4000, rng())
    chosen = Counter(pair.chosen.text for pair in pairs)
    rejected = Counter(pair.rejected.text for pair in pairs)
    assert set(chosen) == {"10", "11", "22", "23"}
    assert set(rejected) == {"34", "45"}
    assert all(abs(count - 1000) < 130 for count in chosen.values())
    assert all(abs(count - 2000) < 160 for count in rejected.values())


def test_vote_clusters_needs_votes():
    with pytest.raises(ValueError, match=r"prompt 'a'.*MajorityVote"):
        VoteClusters()([row("a", ("x", 1.0))], rng())


def kept(selector, *rows, seed=0):
    return [(p.id, r.text) for p, r in selector(rows, rng(seed))]


def test_top_one():
    rows = [
        row("a", ("x", 0.1), ("y", 0.9), ("z", 0.9), ("u", None)),
        row("b", ("x", 0.0), ("y", 0.0)),
        row("none", ("x", None)),
    ]
    assert kept(TopOne(), *rows) == [("a", "y"), ("b", "x")]
    assert kept(TopOne(minimum=0.5), *rows) == [("a", "y")]


def test_all_correct():
    rows = [
        row("a", ("x", 1), ("y", 0), ("x", 1), ("z", 1), ("u", None)),
        row("b", ("y", 0)),
    ]
    assert kept(AllCorrect(), *rows) == [("a", "x"), ("a", "z")]
    many = row("m", *((text, 1) for text in "abcdefgh"))
    drawn = [kept(AllCorrect(3), many, seed=seed) for seed in range(200)]
    assert all(len(set(some)) == 3 and some == sorted(some) for some in drawn)
    assert {text for some in drawn for _, text in some} == set("abcdefgh")


SELECTORS = [BestWorst(), CorrectIncorrect(3), VoteClusters(), TopOne(), AllCorrect(2)]


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda s: type(s).__name__)
def test_every_choice_comes_from_the_generator(selector):
    rows = [
        replace(
            voted(f"p{i}", "1112223345."),
            scores=tuple(
                replace(s, value=None if s.value is None else float(j % 3 > 0))
                for j, s in enumerate(voted(f"p{i}", "1112223345.").scores)
            ),
        )
        for i in range(30)
    ]
    first = selector(rows, rng(7))
    assert first == selector(rows, rng(7))
    assert first
    if not isinstance(selector, BestWorst | TopOne):
        assert first != selector(rows, rng(8))
    assert selector([], rng()) == []
    kinds = {type(item).__name__ for item in first}
    assert kinds == {"Pair" if selector.produces == "pairs" else "tuple"}


@pytest.mark.parametrize("make", [lambda: CorrectIncorrect(0), lambda: AllCorrect(0)])
def test_senseless_settings_are_refused(make):
    with pytest.raises(ValueError, match="at least 1"):
        make()
