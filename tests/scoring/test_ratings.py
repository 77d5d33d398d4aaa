"""Win tables, strengths, debiasing, means and both orders."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxloop.scoring.ratings import (
    ELO,
    BradleyTerry,
    bradley_terry,
    debiased_wins,
    order_wins,
    pivot_scores,
    position_bias,
    position_weights,
    round_robin_mean,
    swap_agreement,
    win_matrix,
    win_rates,
)

few = settings(max_examples=30)


def test_win_matrix():
    verdicts = [
        ((0, 1), (7.0, 3.0)),
        ((1, 0), (2.0, 2.0)),
        ((1, 2), None),
        ((2, 0, 1), (0.5, 0.1, 0.5)),
    ]
    expected_NN = [[0, 1.5, 0], [1.5, 0, 0.5], [1, 0.5, 0]]
    np.testing.assert_array_equal(win_matrix(verdicts, 3), expected_NN)
    np.testing.assert_array_equal(win_matrix([], 2), np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("verdict", "match"),
    [
        (((0, 2), (1.0, 0.0)), "not different ones of 2"),
        (((0, -1), (1.0, 0.0)), "not different ones of 2"),
        (((1, 1), (1.0, 0.0)), "not different ones of 2"),
        (((0, 1), (1.0,)), "with the values"),
        (((0, 1), (1.0, np.nan)), "with the values"),
        (((0, 1), (1.0, np.inf)), "with the values"),
    ],
)
def test_verdicts_on_nobody_are_refused(verdict, match):
    for rate in (win_matrix, round_robin_mean, win_rates, pivot_scores):
        with pytest.raises(ValueError, match=match):
            rate([verdict], 2)


def gradient(strength_N, wins_NN, prior):
    """Of the penalised likelihood, one term at a time."""
    gradient_N = -prior * strength_N
    for a, b in itertools.product(range(len(wins_NN)), repeat=2):
        lost = 1 / (1 + np.exp(strength_N[a] - strength_N[b]))
        gradient_N[a] += wins_NN[a, b] * lost
        gradient_N[b] -= wins_NN[a, b] * lost
    return gradient_N


wins = st.integers(1, 6).flatmap(
    lambda n: hnp.arrays(
        np.float64,
        (n, n),
        elements=st.sampled_from([0.0, 0.0, 0.3, 1.0, 2.5, 40.0, 1000.0]),
    )
)
priors = st.sampled_from([0.001, 0.1, 1.0, 30.0])


@few
@given(wins, priors)
def test_bradley_terry_is_the_maximum(wins_NN, prior):
    """Of any table: sparse, one-sided, in parts that never met."""
    strength_N = bradley_terry(wins_NN, prior=prior)
    assert np.isfinite(strength_N).all()
    assert abs(strength_N.sum()) < 1e-9
    left_N = gradient(strength_N, wins_NN, prior)
    np.testing.assert_allclose(left_N, 0, atol=1e-7 * max(1, wins_NN.sum()))
    np.testing.assert_array_equal(bradley_terry(wins_NN, prior=prior), strength_N)


@few
@given(wins, priors, st.randoms())
def test_roles_and_names_of_candidates(wins_NN, prior, random):
    strength_N = bradley_terry(wins_NN, prior=prior)
    swapped_N = bradley_terry(wins_NN.T, prior=prior)
    np.testing.assert_allclose(swapped_N, -strength_N, atol=1e-7)
    order = list(range(len(wins_NN)))
    random.shuffle(order)
    moved_N = bradley_terry(wins_NN[np.ix_(order, order)], prior=prior)
    np.testing.assert_allclose(moved_N, strength_N[order], atol=1e-7)


def test_transitive_wins_order():
    n = 8
    above_NN = np.triu(np.ones((n, n)), 1)
    for wins_NN in (above_NN, 100 * above_NN, above_NN * np.arange(1, n + 1)):
        assert (np.diff(bradley_terry(wins_NN)) < 0).all()
    chain_NN = np.diag(np.ones(n - 1), 1)  # only neighbours met
    assert (np.diff(bradley_terry(chain_NN)) < 0).all()


def test_strengths_are_known_where_the_prior_is_weak():
    strength_N = np.array([1.0, 0.25, -1.25])
    wins_NN = 1 / (1 + np.exp(strength_N - strength_N[:, None])) * 100
    np.fill_diagonal(wins_NN, 0)
    found_N = bradley_terry(wins_NN, prior=1e-6)
    np.testing.assert_allclose(found_N, strength_N, atol=1e-6)
    # 10 : 1 is one nat x log 10, that is 400 Elo points.
    gap = np.subtract(*bradley_terry(np.array([[0.0, 10], [1, 0]]), prior=1e-9))
    np.testing.assert_allclose(gap * ELO, 400, atol=1e-5)


def test_undefeated_and_unmet_candidates_stay_finite():
    sure_NN = np.array([[0, 1e6], [0, 0]])
    assert 0 < bradley_terry(sure_NN)[0] < 20
    assert (bradley_terry(np.zeros((3, 3))) == 0).all()
    apart_NN = np.zeros((4, 4))
    apart_NN[0, 1] = apart_NN[2, 3] = 5
    strength_N = bradley_terry(apart_NN)
    np.testing.assert_allclose(strength_N[:2], strength_N[2:], atol=1e-12)
    assert bradley_terry(np.zeros((0, 0))).shape == (0,)
    assert bradley_terry(np.zeros((1, 1))) == [0]


def test_signed_results_and_other_tables_are_refused():
    for table in ([[0, 1], [-1, 0]], [[0, np.nan], [0, 0]], [[0, np.inf], [0, 0]]):
        with pytest.raises(ValueError, match="not negative"):
            bradley_terry(np.array(table))
    with pytest.raises(ValueError, match="square"):
        bradley_terry(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="prior = 0"):
        bradley_terry(np.zeros((2, 2)), prior=0)
    with pytest.raises(ValueError, match="beside so many wins"):
        bradley_terry(np.full((2, 2), 1e9), prior=1e-9)


def test_bradley_terry_as_a_judge_s_combine():
    verdicts = [((0, 1), (1.0, 0.0)), ((1, 0), (0.0, 1.0)), ((2, 3), None)]
    found_N = BradleyTerry(prior=0.5)(verdicts, 4)
    wins_NN = np.zeros((4, 4))
    wins_NN[0, 1] = 2
    np.testing.assert_array_equal(found_N[:2], bradley_terry(wins_NN, prior=0.5)[:2])
    assert np.isnan(found_N[2:]).all()


def test_position_weights():
    assert position_weights(30, 10) == (0.25, 0.75)
    assert position_weights(7, 7) == (0.5, 0.5)
    assert position_weights(0, 0) == (0.5, 0.5)
    assert position_weights(3, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="negative"):
        position_weights(-1, 1)


def test_debiased_wins():
    verdicts = [
        ((0, 1), (1.0, 0.0)),  # 0 wins in the first place
        ((1, 0), (0.0, 1.0)),  # and in the second
        ((2, 1), (1.0, 0.0)),  # 2 wins first
        ((1, 2), (1.0, 0.0)),  # 1 wins first: the place won
        ((0, 2), (0.5, 0.5)),
        ((2, 0), None),
    ]
    assert order_wins(verdicts) == (3, 1)
    weights = position_weights(*order_wins(verdicts))
    wins_NN = debiased_wins(verdicts, 3, weights)
    expected_NN = np.array([[0, 1, 0], [0, 0, 0.25], [0, 0.25, 0]])
    np.testing.assert_allclose(wins_NN, expected_NN)
    with pytest.raises(ValueError, match="where two are compared"):
        debiased_wins([((0, 1, 2), (1.0, 2.0, 3.0))], 3, weights)


values = st.sampled_from([0.0, 0.5, 1.0])
pairs = st.lists(
    st.tuples(
        st.permutations(range(4)).map(lambda p: tuple(p[:2])),
        st.none() | st.tuples(values, values),
    ),
    max_size=20,
)


@few
@given(pairs)
def test_without_a_bias_debiasing_halves_wins(verdicts):
    """Every verdict also with the places changed: no place is favoured."""
    turned = [(p[::-1], v and v[::-1]) for p, v in verdicts]
    weights = position_weights(*order_wins(verdicts + turned))
    assert weights == (0.5, 0.5)
    decided = [(p, v) for p, v in verdicts if v and v[0] != v[1]]
    np.testing.assert_allclose(
        debiased_wins(verdicts, 4, weights), win_matrix(decided, 4) / 2
    )


@few
@given(pairs)
def test_a_judge_that_names_a_place_gives_no_debiased_wins(verdicts):
    always_first = [(p, (1.0, 0.0)) for p, _ in verdicts]
    weights = position_weights(*order_wins(always_first))
    assert (debiased_wins(always_first, 4, weights) == 0).all()


def test_means_are_over_valid_verdicts():
    verdicts = [
        ((0, 1), (8.0, 2.0)),
        ((1, 0), (4.0, 4.0)),
        ((0, 2), None),
        ((1, 0), (9.0, 1.0)),
    ]
    np.testing.assert_allclose(
        round_robin_mean(verdicts, 3), [13 / 3, 5, np.nan], rtol=1e-12
    )
    np.testing.assert_allclose(win_rates(verdicts, 3), [0.5, 0.5, np.nan])


@few
@given(pairs)
def test_means_of_wins_are_rates(verdicts):
    won = [
        (p, v and tuple((np.sign(v[i] - v[1 - i]) + 1) / 2 for i in (0, 1)))
        for p, v in verdicts
    ]
    np.testing.assert_allclose(round_robin_mean(won, 4), win_rates(verdicts, 4))


def test_pivot_scores():
    verdicts = [
        ((1, 0), (7.0, 5.0)),
        ((0, 1), (5.0, 6.0)),
        ((2, 1), (1.0, 9.0)),
        ((1, 3), None),
    ]
    found_N = pivot_scores(verdicts, 4, pivot=1)
    np.testing.assert_allclose(found_N, [-1.5, 0, -8, np.nan])
    # A verdict that gives both more says nothing else.
    raised = [(p, v and tuple(x + 3 for x in v)) for p, v in verdicts]
    np.testing.assert_allclose(pivot_scores(raised, 4, pivot=1), found_N)
    np.testing.assert_array_equal(pivot_scores([], 2), [0, np.nan])
    with pytest.raises(ValueError, match="without 0"):
        pivot_scores(verdicts, 4)
    with pytest.raises(ValueError, match="none of 4"):
        pivot_scores(verdicts, 4, pivot=4)


def test_both_orders():
    orders = [
        ((1, 0), (0, 1)),  # a both times
        ((3, 9), (9, 3)),  # b both times
        ((1, 0), (1, 0)),  # whoever is first
        ((5, 5), (2, 2)),  # a tie both times
        ((5, 5), (2, 1)),  # a tie, then b
        ((1, 0), None),
        (None, (1, 0)),
    ]
    assert swap_agreement(orders) == 3 / 5
    # First places won: one of each of the first two, two of the third, one of the
    # fifth; second places: one of each of the first two.
    assert position_bias(orders) == (5 - 2) / 7
    assert np.isnan(swap_agreement([]))
    assert np.isnan(swap_agreement([(None, (1, 0))]))
    assert np.isnan(position_bias([((1, 1), (0, 0))]))


verdict = st.none() | st.tuples(values, values)


@few
@given(st.lists(st.tuples(verdict, verdict), max_size=12))
def test_agreement_and_bias_of_special_judges(orders):
    constant = [(v and (1, 0), w and (1, 0)) for v, w in orders]
    fair = [(v, v and v[::-1]) for v, _ in orders]
    if any(v and w for v, w in constant):
        assert swap_agreement(constant) == 0
        assert position_bias(constant) == 1
    if any(v for v, _ in fair):
        assert swap_agreement(fair) == 1
    if any(v and v[0] != v[1] for v, _ in fair):
        assert position_bias(fair) == 0
    if any(v and w for v, w in orders):
        turned = [(w, v) for v, w in orders]
        assert swap_agreement(turned) == swap_agreement(orders)
