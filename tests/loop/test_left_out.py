"""Which prompts gave a round nothing, and why."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxloop.loop.selecting import select
from jaxloop.records import Score, Scored
from jaxloop.selection import BestWorst, PassRate
from tests.scoring.samples import prompt, rollouts


def scored(name, *values):
    asked = prompt(name)
    texts = ["x" * i for i in range(len(values))]  # no two of the same tokens
    return Scored(asked, rollouts(asked, *texts), tuple(map(Score, values)))


def every_answer(rows, rng):
    """A selector of demonstrations: all right ones."""
    return [
        (row.prompt, rollout)
        for row in rows
        for rollout, score in zip(row.rollouts, row.scores, strict=True)
        if score.value == 1.0
    ]


every_answer.produces = "demonstrations"
ROWS = [
    scored("all", 1.0, 1.0),
    scored("none", 0.0, 0.0),
    scored("one", 1.0, 0.0),
    scored("tied", 0.5, 0.5),
]


@pytest.mark.parametrize(
    ("filters", "selector", "left_out"),
    [
        ((), BestWorst(), {"all": "no pair", "none": "no pair", "tied": "no pair"}),
        (
            (PassRate(low=0.4, high=1.1, threshold=0.4),),
            BestWorst(),
            {"none": "filter 0 PassRate", "all": "no pair", "tied": "no pair"},
        ),
        (
            (PassRate(low=0.4, high=1.1, threshold=0.4), PassRate(threshold=0.4)),
            BestWorst(),
            {
                "none": "filter 0 PassRate",
                "all": "filter 1 PassRate",
                "tied": "filter 1 PassRate",
            },
        ),
        (
            (),
            every_answer,
            {"none": "nothing to imitate", "tied": "nothing to imitate"},
        ),
    ],
)
def test_each_prompt_that_gave_nothing_has_its_reason(filters, selector, left_out):
    recipe = SimpleNamespace(filters=filters, selector=selector, weighting=None)
    selected = select(recipe, ROWS, np.random.default_rng(0))
    assert selected.left_out == left_out
    counted = {reason: n for reason, n in selected.dropped.items() if n}
    reasons = list(left_out.values())
    assert counted == {reason: reasons.count(reason) for reason in set(reasons)}
