"""Agreement of ranks, and pairs made as certain as it is."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.records import Pair, from_json, to_json
from jaxloop.selection import (
    BestWorst,
    RankConsistency,
    kendall,
    spearman,
    top_order,
)
from jaxloop.selection.consistency import log_odds
from jaxloop.training.batches import Layout, example_batch, example_rows
from tests.selection.samples import row

few = settings(max_examples=30)


def array(*values):
    return np.array(values, float)


def test_agreements_by_hand():
    now, then = array(1, 2, 3, 4), array(1, 3, 2, 4)
    # 5 of 6 pairs in the same order: tau 2/3; squared differences of ranks 2: rho 0.8.
    assert kendall(now, then) == pytest.approx(5 / 6)
    assert spearman(now, then) == pytest.approx(0.9)
    assert top_order(now, then) == 1
    assert top_order(now, array(2, 1, 3, 4)) == 0
    assert top_order(now, array(1, 2, 4, 3)) == 0
    # Ties: neither for nor against. (1, 1, 2) and (1, 2, 3): tau 2/3, rho 0.866.
    assert kendall(array(1, 1, 2), array(1, 2, 3)) == pytest.approx((2 / 3 + 1) / 2)
    assert spearman(array(1, 1, 2), array(1, 2, 3)) == pytest.approx(
        (np.sqrt(3) / 2 + 1) / 2
    )
    for agreement in (kendall, spearman):
        assert agreement(array(5, 5, 5), now[:3]) == 0.5


ranked = st.integers(2, 7).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-3, 3), min_size=n, max_size=n)] * 2)
)


@few
@given(ranked, st.randoms())
def test_agreements_look_at_ranks_alone(lists, random):
    a, b = (np.array(x, float) for x in lists)
    order = list(range(len(a)))
    random.shuffle(order)
    for agreement in (kendall, spearman):
        c = agreement(a, b)
        assert 0 <= c <= 1 + 1e-12
        assert agreement(b, a) == pytest.approx(c)
        assert agreement(np.exp(a), b * 3 - 1) == pytest.approx(c)
        assert agreement(-a, b) == pytest.approx(1 - c)
        assert agreement(a[order], b[order]) == pytest.approx(c)
    assert top_order(a, np.exp(a)) == 1
    distinct = np.arange(len(a)) + 0.0
    for agreement in (kendall, spearman, top_order):
        assert agreement(distinct, distinct) == pytest.approx(1)
        assert agreement(distinct, -distinct) == pytest.approx(0)


def scored_by_two(name, *values):
    """Values are (now, previous); None: unscored, or without a component."""
    made = row(name, *((f"{name}{i}", now) for i, (now, _) in enumerate(values)))
    scores = [
        replace(score, components={} if then is None else {"previous": then})
        for score, (_, then) in zip(made.scores, values, strict=True)
    ]
    return replace(made, scores=tuple(scores))


SCORED = [
    scored_by_two("same", (1.0, 10.0), (2.0, 20.0), (3.0, 30.0)),
    scored_by_two("turned", (1.0, 3.0), (2.0, 2.0), (3.0, 1.0)),
    scored_by_two("half", (1.0, 1.0), (3.0, 2.0), (2.0, None), (None, 9.0)),
    scored_by_two("one", (1.0, 1.0), (2.0, None)),
]


def label(pair):
    """The soft label that a batch makes of a pair's scores."""
    rows, layout = example_rows([pair]), Layout(8, 8)
    return example_batch([pair], rows, layout, 0, 1, {}, kind="pairs")["target_B"][0]


def pairs():
    return BestWorst()(SCORED, np.random.default_rng(0))


def test_the_round_s_agreement_is_every_pair_s_label():
    made = RankConsistency()(pairs(), SCORED)
    assert [label(p) for p in made] == pytest.approx([2 / 3] * 4)
    assert RankConsistency().of_prompts(SCORED) == {"same": 1, "turned": 0, "half": 1}
    assert [(p.chosen, p.rejected) for p in made] == [
        (p.chosen, p.rejected) for p in pairs()
    ]
    assert made[0].reason == "best of 3 (3) against worst (1); agreement 0.667"
    assert all(from_json(Pair, to_json(p)) == p for p in made)


def test_each_prompt_s_own():
    made = RankConsistency(per_prompt=True)(pairs(), SCORED)
    assert [label(p) for p in made] == pytest.approx([1, 0, 1, 0.5], abs=2e-6)
    assert all(np.isfinite(p.chosen_score) for p in made)
    turned = RankConsistency(agreement=top_order, per_prompt=True)
    assert label(turned(pairs(), SCORED)[1]) == pytest.approx(0, abs=2e-6)


def test_where_nothing_is_known_of_agreement():
    lonely = [SCORED[3]]
    made = RankConsistency()(BestWorst()(lonely, np.random.default_rng(0)), lonely)
    assert [label(p) for p in made] == [0.5]
    assert RankConsistency()([], SCORED) == []
    rows = [row("a", ("x", 1.0), ("y", 2.0))]
    made = BestWorst()(rows, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no score has a component 'previous'"):
        RankConsistency()(made, rows)


def test_log_odds():
    for p in (0.1, 0.5, 2 / 3):
        assert 1 / (1 + np.exp(-log_odds(p))) == pytest.approx(p)
    assert log_odds(1.0) == pytest.approx(13.8155, rel=1e-4)
    assert log_odds(0.0) == pytest.approx(-13.8155, rel=1e-4)
