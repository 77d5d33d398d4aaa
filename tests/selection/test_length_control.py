"""Tier and z length control against best-worst and against the rules spelt out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.selection import BestWorst, TierLength, ZLength, characters, token_count
from tests.selection.samples import row

few = settings(max_examples=30)


def rng():
    return np.random.default_rng(0)


def texts(pairs):
    return [(pair.chosen.text, pair.rejected.text) for pair in pairs]


scores = st.lists(
    st.tuples(
        st.integers(1, 6).map("x".__mul__),
        st.none() | st.integers(0, 5) | st.floats(-3, 5),
    ),
    max_size=8,
)


@few
@given(st.lists(scores, max_size=3))
def test_rho_0_is_best_worst(groups):
    rows = [row(f"p{i}", *samples) for i, samples in enumerate(groups)]
    expected = BestWorst()(rows, rng())
    assert TierLength(0.0)(rows, rng()) == expected
    # The reason tells the charged scores as well.
    actual = ZLength(0.0)(rows, rng())
    assert [(p.chosen, p.rejected) for p in actual] == [
        (p.chosen, p.rejected) for p in expected
    ]
    assert [(p.chosen_score, p.rejected_score) for p in actual] == [
        (p.chosen_score, p.rejected_score) for p in expected
    ]


def test_tiers():
    samples = [
        ("long and the best" * 2, 5.0),
        ("long, good", 4.0),
        ("good", 4.0),
        ("fair", 3.4),
        ("no", 1.6),
        ("not so short", 1.5),
        ("bad", 1.0),
        ("unscored, short or long, is neither", None),
    ]
    rows = [row("a", *samples), row("same", ("x", 2.0), ("yy", 2.0)), row("none")]
    # Good: at least 5 - rho x 4; bad: at most 1 + rho x 4.
    expected = {
        0.0: ("long and the best" * 2, "bad"),
        0.1: ("long and the best" * 2, "bad"),
        0.125: ("long and the best" * 2, "not so short"),
        0.25: ("good", "not so short"),
        0.4: ("good", "not so short"),  # "fair" as short as "good", and worse
    }
    for rho, pair in expected.items():
        assert texts(TierLength(rho)(rows, rng())) == [pair], rho
    (pair,) = TierLength(0.4)(rows, rng())
    assert (pair.chosen_score, pair.rejected_score) == (4.0, 1.5)
    assert (
        pair.reason == "shortest of the 4 best (4) against longest of the 3 worst (1.5)"
    )


def test_the_border_of_a_tier_belongs_to_it():
    # 0.8 x 0.8 + 0.2 x 0.3 = 0.7, 0.8 x 0.3 + 0.2 x 0.8 = 0.4: beyond it in floats.
    rows = [row("a", ("long", 0.8), ("s", 0.7), ("longest", 0.4), ("x", 0.3))]
    assert texts(TierLength(0.2)(rows, rng())) == [("s", "longest")]


@few
@given(scores, st.floats(0, 0.5, exclude_max=True))
def test_the_chosen_never_scores_below_the_rejected(samples, rho):
    for pair in TierLength(rho)([row("a", *samples)], rng()):
        assert pair.chosen_score > pair.rejected_score


@few
@given(scores, st.floats(0.01, 0.49))
def test_tiers_are_those_of_the_rule(samples, rho):
    pairs = TierLength(rho)([row("a", *samples)], rng())
    known = [(len(text), value) for text, value in samples if value is not None]
    values = [value for _, value in known]
    assert bool(pairs) == (len(set(values)) > 1)
    for pair in pairs:
        high, low, slack = max(values), min(values), 1e-7
        good = [n for n, v in known if v >= (1 - rho) * high + rho * low + slack]
        bad = [n for n, v in known if v <= (1 - rho) * low + rho * high - slack]
        assert len(pair.chosen.text) <= min(good, default=99)
        assert len(pair.rejected.text) >= max(bad, default=0)
        assert pair.chosen_score >= (1 - rho) * high + rho * low - slack
        assert pair.rejected_score <= (1 - rho) * low + rho * high + slack


@pytest.mark.parametrize("rho", [-0.1, 0.5, 1.0, float("nan")])
def test_overlapping_tiers_are_refused(rho):
    with pytest.raises(ValueError, match=r"\[0, 0\.5\)"):
        TierLength(rho)


def test_z_length():
    values, lengths = np.array([3.0, 4.0, 4.5, 1.0]), np.array([4, 8, 30, 6])
    samples = [("x" * n, v) for n, v in zip(lengths.tolist(), values, strict=True)]
    samples.insert(1, ("", None))

    def z(x):
        return (x - x.mean()) / x.std()

    chosen_at = {}
    for rho in (0.0, 0.1, 0.3, 0.5, 1.0, 3.0):
        charged = z(values) - rho * z(lengths)
        (pair,) = ZLength(rho)([row("a", *samples)], rng())
        assert len(pair.chosen.text) == lengths[charged.argmax()]
        assert len(pair.rejected.text) == lengths[charged.argmin()]
        chosen_at[rho] = (pair.chosen_score, pair.rejected_score)
    assert chosen_at[0.0] == (4.5, 1.0)
    assert chosen_at[0.5] == (4.0, 1.0)
    assert chosen_at[3.0] == (3.0, 4.5)  # the trade: length above all


@few
@given(scores, st.floats(0, 1), st.floats(0.1, 9), st.floats(-9, 9))
def test_z_length_knows_no_scale(samples, rho, factor, shift):
    samples = [(t, v if v is None else round(v, 3)) for t, v in samples]
    moved = [(t, None if v is None else factor * v + shift) for t, v in samples]
    first, second = (ZLength(rho)([row("a", *s)], rng()) for s in (samples, moved))
    assert len(first) == len(second)
    # Of nearly equal ones rounding may name either: compare what they are charged.
    for one, other in zip(first, second, strict=True):
        known = [(len(t), v) for t, v in samples if v is not None]
        n, v = np.array(known, float).T
        std = n.std() or 1.0
        charged = (v - v.mean()) / v.std() - rho * (n - n.mean()) / std
        indices = [i for i, s in enumerate(samples) if s[1] is not None]
        by_index = dict(zip(indices, charged, strict=True))
        for a, b in ((one.chosen, other.chosen), (one.rejected, other.rejected)):
            assert abs(by_index[a.index] - by_index[b.index]) < 1e-6


def test_equal_scores_give_no_pair_and_equal_lengths_charge_nothing():
    assert ZLength(0.3)([row("a", ("x", 1.0), ("yyy", 1.0))], rng()) == []
    rows = [row("a", ("xx", 1.0), ("yy", 2.0))]
    assert texts(ZLength(5.0)(rows, rng())) == [("yy", "xx")]
    with pytest.raises(ValueError, match="negative"):
        ZLength(-0.1)


def test_a_length_of_your_own():
    def answer(rollout):
        return len(rollout.text.partition("|")[2])

    samples = [("t" * 9 + "|a", 2.0), ("|aaa", 2.0), ("|bb", 0.0), ("bbbbb|b", 0.0)]
    rows = [row("a", *samples)]
    assert texts(TierLength(0.1)(rows, rng())) == [("|aaa", "bbbbb|b")]
    assert texts(TierLength(0.1, answer)(rows, rng())) == [("t" * 9 + "|a", "|bb")]
    assert texts(ZLength(0.1, answer)(rows, rng())) == [("t" * 9 + "|a", "|bb")]
    rollout = rows[0].rollouts[2]
    assert (characters(rollout), token_count(rollout)) == (3, 3)
