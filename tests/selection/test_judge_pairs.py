"""Pairs of judgements, streams of pairs, and equal labels."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.records import Judgement, Prompt, Rollout
from jaxloop.selection import (
    AllCorrect,
    BestWorst,
    CorrectIncorrect,
    JudgePairs,
    LabelBalanced,
    Labels,
    Streams,
)
from tests.selection.samples import row, with_columns

few = settings(max_examples=30)


def rng(seed=0):
    return np.random.default_rng(seed)


def judgement(name, *answers, of=(0,)):
    """Answers are (text, values, meta score); without scores: (text, values)."""
    rollouts = [
        Rollout(name, i, tuple(map(ord, each[0])), each[0], (), (), "eos")
        for i, each in enumerate(answers)
    ]
    values = tuple(each[1] for each in answers)
    scores = tuple(each[2] for each in answers if len(each) > 2)
    return Judgement(Prompt(name, name, (1,)), of, tuple(rollouts), values, scores)


def judged(*judgements):
    return replace(row("a", ("x", 1.0), ("y", 0.0)), judgements=judgements)


def told(pairs):
    return [(p.prompt.id, p.chosen.text, p.rejected.text) for p in pairs]


SURE = judgement("sure", ("s1", (4.0,), 1.0), ("s2", (4.0,), 2.0))
SPLIT = judgement(
    "split",
    ("first", (1.0,), 0.5),
    ("unparsed, best", None, 9.0),
    ("not compared", (3.0,), None),
    ("longest of all", (5.0,), 2.5),
    ("late", (2.0,), 2.5),
    ("worst", (4.0,), -1.0),
    ("unparsed, worst", None, -9.0),
)


def test_highest_against_lowest_of_the_most_disputed_request():
    other = judgement("not compared", ("a", (0.0,)), ("b", (5.0,)))
    (pair,) = JudgePairs()([judged(SURE, other, SPLIT)], rng())
    assert told([pair]) == [("split", "longest of all", "worst")]
    assert (pair.chosen_score, pair.rejected_score) == (2.5, -1.0)
    assert pair.reason == "best judgement of 4 (2.5) against worst (-1)"
    assert pair.prompt == SPLIT.prompt
    both = JudgePairs(pairs=2)([judged(SURE, other, SPLIT)], rng())
    assert told(both) == [("split", "longest of all", "worst"), ("sure", "s2", "s1")]


def test_disagreement_is_the_variance_of_valid_values():
    assert SURE.disagreement == 0
    assert SPLIT.disagreement == pytest.approx(np.var([1, 3, 5, 2, 4]))
    shown_two = judgement("t", ("a", (1.0, 0.0)), ("b", (0.0, 1.0)), ("c", None))
    assert shown_two.disagreement == pytest.approx(0.5)
    assert judgement("one", ("a", (1.0,)), ("b", None)).disagreement == 0


def test_gap_and_length():
    rows = [judged(SPLIT)]
    assert JudgePairs(gap=3.5)(rows, rng())
    assert not JudgePairs(gap=3.6)(rows, rng())
    length = len("longest of all")
    assert JudgePairs(longest=length)(rows, rng())
    # Dropped, not replaced by the next best.
    assert not JudgePairs(longest=length - 1)(rows, rng())
    short = judgement("short", ("ok", (1.0,), 2.0), ("a long one", (2.0,), 1.0))
    assert JudgePairs(longest=2)([judged(short)], rng())
    for arguments in ({"pairs": 0}, {"gap": -1.0}, {"gap": float("nan")}):
        with pytest.raises(ValueError, match="JudgePairs"):
            JudgePairs(**arguments)


def test_nothing_to_compare_gives_no_pair():
    equal = judgement("equal", ("a", (1.0,), 2.0), ("b", (2.0,), 2.0))
    invalid = judgement("invalid", ("a", None, 2.0), ("b", None, 1.0))
    unscored = judgement("unscored", ("a", (1.0,), None), ("b", (2.0,), None))
    for only in (equal, invalid, unscored):
        assert JudgePairs()([judged(only)], rng()) == []
    assert JudgePairs()([judged(), row("b")], rng()) == []


def test_streams():
    rows = [judged(SPLIT), row("b", ("u", 1.0), ("v", 0.0))]
    both = Streams((BestWorst(), JudgePairs()), names=("actor", "judge"))
    pairs = both(rows, rng())
    assert told(pairs) == [
        ("a", "x", "y"),
        ("b", "u", "v"),
        ("split", "longest of all", "worst"),
    ]
    assert both.counts(pairs) == {"actor": 2, "judge": 1}
    assert both.counts(pairs[:2]) == {"actor": 2, "judge": 0}
    assert pairs[0].reason == "actor: best of 2 (1) against worst (0)"
    plain = BestWorst()(rows, rng()) + JudgePairs()(rows, rng())
    assert [replace(p, reason="") for p in pairs] == [
        replace(p, reason="") for p in plain
    ]
    assert both.produces == "pairs"
    assert Streams((CorrectIncorrect(3), JudgePairs(pairs=2))).pairs == 5
    unnamed = Streams((BestWorst(), JudgePairs()))
    assert unnamed.counts(unnamed(rows, rng())) == {"BestWorst": 2, "JudgePairs": 1}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (((),), "0 selectors"),
        (((BestWorst(), BestWorst()),), "each one its own"),
        (((BestWorst(), JudgePairs()), ("a",)), "each one its own"),
        (((BestWorst(), AllCorrect()),), "AllCorrect makes demonstrations"),
    ],
)
def test_streams_that_cannot_be_told_apart_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Streams(*arguments)


def labelled(labels):
    """A prompt a label, each with a right and two wrong samples."""
    return [
        with_columns(row(f"p{i}", ("x", 1.0), ("y", 0.0), ("z", 0.0)), label=label)
        for i, label in enumerate(labels)
    ]


@few
@given(st.text("AB", max_size=12), st.integers(0, 9))
def test_labels_come_out_equally_often(labels, seed):
    rows = labelled(labels)
    each = min((labels.count(label) for label in set(labels)), default=0)
    selectors = [BestWorst(), CorrectIncorrect(2), AllCorrect(), Labels()]
    for selector, made in zip(selectors, (1, 2, 1, 3), strict=True):
        balanced = LabelBalanced(selector)
        kept = balanced(rows, rng(seed))
        of = [k[0] if isinstance(k, tuple) else k.prompt for k in kept]
        counts = {x: sum(p.columns["label"] == x for p in of) for x in set(labels)}
        assert counts == dict.fromkeys(set(labels), each * made)
        assert balanced.produces == selector.produces
        # In the order of the prompts, and all different.
        places = [int(p.id[1:]) for p in of]
        assert places == sorted(places)
        everything = selector(rows, rng(seed))
        if len(set(labels)) < 2:
            assert kept == everything
    assert LabelBalanced(CorrectIncorrect(2)).pairs == 2


def test_a_label_without_a_pair_leaves_none():
    rows = labelled("AAB")
    rows[2] = with_columns(row("p2", ("x", 0.0), ("y", 0.0)), label="B")
    assert LabelBalanced(BestWorst())(rows, rng()) == []
    assert LabelBalanced(BestWorst())([], rng()) == []
    with pytest.raises(ValueError, match="no column 'gold'"):
        LabelBalanced(BestWorst(), "gold")(rows, rng())


def test_what_is_kept_is_drawn():
    rows = labelled("AAAAAAB")
    drawn = {
        LabelBalanced(BestWorst())(rows, rng(seed))[0].prompt.id for seed in range(60)
    }
    assert drawn == {f"p{i}" for i in range(6)}
