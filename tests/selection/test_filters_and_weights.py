import pytest

from jaxloop.records import Pair
from jaxloop.scoring import MajorityVote
from jaxloop.selection import (
    BestWorst,
    MinVote,
    PassRate,
    Uniform,
    VoteClusters,
    VoteMargin,
    drop_identical,
    pair_metrics,
)
from tests.selection.samples import row, voted


@pytest.mark.parametrize(
    ("answers", "minimum", "keeps"),
    [
        ("11112345", 0.5, True),
        ("11122345", 0.5, False),
        ("1111....", 0.5, True),
        ("111.....", 0.5, False),
        ("........", 0.0, False),
        ("12345678", 0.0, True),
        ("11111", 1.0, True),
        ("11112", 1.0, False),
        ("1" * 55 + "2" * 45, 0.55, True),
        ("1" * 54 + "2" * 46, 0.55, False),
        ("1112", 0.7, True),
        ("11122", 0.7, False),
    ],
)
def test_min_vote(answers, minimum, keeps):
    rows = [voted("a", answers)]
    assert MinVote(minimum)(rows) == (rows * keeps, 1 - keeps)


def test_min_vote_needs_votes_and_a_fraction():
    with pytest.raises(ValueError, match="MajorityVote"):
        MinVote()([row("a", ("x", 1.0))])
    with pytest.raises(ValueError, match="minimum=4"):
        MinVote(4)


@pytest.mark.parametrize(
    ("values", "keeps"),
    [
        ([1, 0], True),
        ([1, 1], False),
        ([0, 0], False),
        ([1, None], False),
        ([1, None, 0], True),
        ([None], False),
        ([], False),
    ],
)
def test_pass_rate(values, keeps):
    rows = [row("a", *(("x", value) for value in values))]
    assert PassRate()(rows) == (rows * keeps, 1 - keeps)


def test_pass_rate_bounds_are_exclusive():
    rows = [row(str(n), *(("x", float(i < n)) for i in range(4))) for n in range(5)]
    kept, dropped = PassRate(0.25, 0.75)(rows)
    assert [r.prompt.id for r in kept] == ["2"]
    assert dropped == 4
    with pytest.raises(ValueError, match="not below"):
        PassRate(0.5, 0.5)


def pairs_of(rows):
    return BestWorst()(rows, None)  # pyright: ignore


def test_identical_pairs_are_dropped_and_counted():
    rows = [row("a", ("x", 1), ("x", 0)), row("b", ("x", 1), ("y", 0))]
    pairs, dropped = drop_identical(pairs_of(rows))
    assert [pair.prompt.id for pair in pairs] == ["b"]
    assert dropped == 1
    sampled = [*rows, row("c", ("x", 1)), row("d", ("x", 1))]
    assert pair_metrics(pairs, scored=sampled, identical=dropped) == {
        "pairs/count": 1,
        "pairs/identical": 1,
        "pairs/kept_frac": 0.25,
        "pairs/score_gap": 1,
    }
    assert pair_metrics([], scored=[], identical=0)["pairs/kept_frac"] == 0


def test_uniform():
    pairs = pairs_of([row("a", ("x", 1), ("y", 0))])
    assert [pair.weight for pair in Uniform()(pairs, [])] == [1.0]


def test_vote_margin(numpy_rng):
    rows = [voted("a", "11122..3"), voted("b", "1112")]
    pairs = VoteClusters()(rows, numpy_rng)
    weighed = VoteMargin()(pairs, rows[::-1])
    assert [pair.weight for pair in weighed] == [(3 - 1) / 8, (3 - 1) / 4]
    for before, after in zip(pairs, weighed, strict=True):
        assert (before.chosen, before.rejected) == (after.chosen, after.rejected)


def test_vote_margin_needs_votes():
    rows = [row("a", ("x", 1), ("y", 0))]
    with pytest.raises(ValueError, match="MajorityVote"):
        VoteMargin()(pairs_of(rows), rows)


def test_votes_as_the_scorer_gives_them_go_through_the_whole_line(numpy_rng):
    blank = row("a", *((text, None) for text in ("=5", "5.0", "6", "no", "=05", "7 6")))
    scored = MajorityVote()([blank.prompt], [blank.rollouts])
    kept, _ = MinVote(0.5)(scored)
    (pair,) = VoteMargin()(VoteClusters()(kept, numpy_rng), kept)
    assert isinstance(pair, Pair)
    assert pair.chosen.text in ("=5", "5.0", "=05")
    assert pair.rejected.text in ("6", "7 6")
    assert pair.weight == pytest.approx(1 / 6)
