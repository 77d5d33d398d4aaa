"""Filters over the pool: RIP's three quantiles, lowest scores, consistent answers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.scoring import canonical
from jaxloop.selection import (
    RIP,
    AnswerConsistency,
    BestWorst,
    MinimumScore,
    RIPBounds,
    token_count,
)
from tests.selection.samples import row, voted, with_columns

few = settings(max_examples=30)


def prompt_with(name, worst, length, gap):
    """Its rejected completion has that score and length, the chosen one is so much
    better; a third is in between."""
    samples = [
        ("b" * 9, worst + gap),
        ("w" * length, worst),
        ("m", worst + gap / 2),
        ("u" * 99, None),
    ]
    return row(name, *samples)


# Medians: score 3, length 30, gap 2.
POOL = [
    prompt_with("all at the medians", 3, 30, 2),
    prompt_with("better in all", 5, 50, 1),
    prompt_with("too low", 2, 40, 1),
    prompt_with("too short", 4, 20, 1.5),
    prompt_with("too far apart", 3.5, 35, 3),
    prompt_with("bad in all", 1, 10, 4),
    prompt_with("lowest and shortest", 0, 5, 2.5),
]


def ids(rows):
    return [row.prompt.id for row in rows]


def test_kept_is_the_intersection_of_the_three_medians():
    kept, dropped = RIP()(POOL)
    assert ids(kept) == ["all at the medians", "better in all"]
    assert dropped == 5
    scores = {"all at the medians", "better in all", "too short", "too far apart"}
    lengths = {"all at the medians", "better in all", "too low", "too far apart"}
    gaps = {"all at the medians", "better in all", "too low", "too short"}
    assert set(ids(RIP(rejected_length=0, gap=1)(POOL)[0])) == scores
    assert set(ids(RIP(score=0, gap=1)(POOL)[0])) == lengths
    assert set(ids(RIP(score=0, rejected_length=0)(POOL)[0])) == gaps
    assert scores & lengths & gaps == set(ids(kept))


def test_bounds_of_one_pool_measure_another():
    bounds = RIP().bounds(POOL)
    assert bounds == RIPBounds(3.0, 30.0, 2.0)
    later = [prompt_with("x", 3, 31, 2), prompt_with("y", 2.9, 90, 0.1)]
    assert ids(bounds(later)[0]) == ["x"]
    kept, _ = RIP(0.25, 0.75, 0.9)(POOL)
    worst, length, gap = np.array(
        [
            *([3, 30, 2], [5, 50, 1], [2, 40, 1], [4, 20, 1.5]),
            *([3.5, 35, 3], [1, 10, 4], [0, 5, 2.5]),
        ]
    ).T
    by_hand = (
        (worst >= np.quantile(worst, 0.25))
        & (length >= np.quantile(length, 0.75))
        & (gap <= np.quantile(gap, 0.9))
    )
    assert [r in kept for r in POOL] == by_hand.tolist()


samples = st.lists(
    st.tuples(st.sampled_from(["", "x", "yy", "zzz"]), st.none() | st.integers(0, 3)),
    max_size=5,
)


@few
@given(st.lists(samples, max_size=8), st.randoms())
def test_order_and_hopeless_prompts_change_nothing(groups, random):
    rows = [row(f"p{i}", *each) for i, each in enumerate(groups)]
    kept, dropped = RIP()(rows)
    assert len(kept) + dropped == len(rows)
    assert all(sum(s.value is not None for s in r.scores) > 1 for r in kept)
    more = [*rows, row("one", ("x", 1.0), ("y", None)), row("none"), row("two")]
    random.shuffle(more)
    assert sorted(ids(RIP()(more)[0])) == sorted(ids(kept))
    # y- and y+ are those of BestWorst.
    for r in kept:
        for pair in BestWorst()([r], np.random.default_rng(0)):
            gap = pair.chosen_score - pair.rejected_score
            bounds = RIP().bounds(rows)
            assert pair.rejected_score >= bounds.least_score
            assert len(pair.rejected.text) >= bounds.least_length
            assert gap <= bounds.most_gap


def test_a_pool_of_equals_keeps_all():
    rows = [prompt_with(f"p{i}", 3, 30, 2) for i in range(4)]
    assert RIP()(rows) == (rows, 0)
    assert RIP()([]) == ([], 0)
    assert RIP()([row("none")]) == ([], 1)


def test_length_is_what_you_say():
    assert RIP(length=token_count).bounds(POOL).least_length == 30
    negative = RIP(length=lambda rollout: -len(rollout.text))
    assert negative.bounds(POOL).least_length == -30


@few
@given(st.lists(samples, max_size=8), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
def test_minimum_score(groups, quantile):
    rows = [row(f"p{i}", *each) for i, each in enumerate(groups)]
    kept, dropped = MinimumScore(quantile)(rows)
    assert len(kept) + dropped == len(rows)
    several = [r for r in rows if sum(s.value is not None for s in r.scores) > 1]
    # It is RIP's first bound alone.
    assert (
        MinimumScore(quantile)(several)[0]
        == RIP(quantile, rejected_length=0, gap=1)(several)[0]
    )


def test_minimum_score_of_a_pool():
    rows = [
        row("a", ("x", 1.0), ("y", 5.0)),
        row("b", ("x", 2.0)),
        row("c", ("x", 9.0), ("y", 0.5), ("z", None)),
        row("d", ("x", None)),
    ]
    kept, dropped = MinimumScore()(rows)
    assert (ids(kept), dropped) == (["a", "b"], 2)


@pytest.mark.parametrize(
    "make",
    [lambda: RIP(score=1.1), lambda: RIP(gap=-0.1), lambda: MinimumScore(50)],
)
def test_quantiles_are_within_0_and_1(make):
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        make()


@pytest.mark.parametrize(
    ("answers", "declared", "minimum", "keeps"),
    [
        ("555677", "5", 0.0, True),
        ("555677", "5", 0.5, True),
        ("555677", "5", 0.6, False),
        ("555677", "6", 0.0, False),
        ("555677", "9", 0.0, False),
        ("555666", "5", 0.0, False),
        ("5.....", "5.0", 0.0, True),
        ("......", "5", 0.0, False),
        ("555677", "5.00", 0.5, True),
        ("5" * 55 + "6" * 45, "5", 0.55, True),
    ],
)
def test_answer_consistency(answers, declared, minimum, keeps):
    rows = [with_columns(voted("a", answers), answer=declared)]
    consistent = AnswerConsistency(canonical, minimum)
    assert consistent(rows) == (rows * keeps, 1 - keeps)


def test_answer_consistency_reads_what_it_is_told_to():
    rows = [with_columns(voted("a", "5556"), worked="so it is #### 5")]
    last = AnswerConsistency(lambda text: text.split("#### ")[1], column="worked")
    assert last(rows) == (rows, 0)
    with pytest.raises(ValueError, match="no column 'answer'"):
        AnswerConsistency(canonical)(rows)
    with pytest.raises(ValueError, match="MajorityVote"):
        AnswerConsistency(canonical)([with_columns(row("a", ("x", 1.0)), answer="5")])
    with pytest.raises(ValueError, match="minimum=2"):
        AnswerConsistency(canonical, 2)


def test_filters_leave_rows_as_they_are():
    rows = [replace(r, prompt=replace(r.prompt, columns={"a": 1})) for r in POOL]
    assert all(r in rows for r in RIP()(rows)[0])
