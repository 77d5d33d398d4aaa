"""Which prompts gave a round nothing, and why."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from jaxloop.loop.online import emptied
from jaxloop.loop.run import run
from jaxloop.loop.selecting import IDENTICAL, reasons, select
from jaxloop.mesh import MeshShape
from jaxloop.records import Score, Scored
from jaxloop.selection import BestWorst, PassRate
from tests.loop import tiny_config
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


def nothing(scored):
    """A filter that keeps no prompt."""
    return [], len(scored)


def test_where_all_were_left_out_the_reasons_are_told():
    recipe = SimpleNamespace(filters=(nothing,), selector=BestWorst(), weighting=None)
    dropped = select(recipe, ROWS, np.random.default_rng(0)).dropped
    assert reasons(dropped) == "filter 0 nothing: 4"
    line = {"loss": 1.0} | {f"dropped/{name}": n for name, n in dropped.items()}
    (said,) = emptied(line, 4)
    assert "nothing was selected (filter 0 nothing: 4)" in said
    (said,) = emptied({"dropped/filter 0 PassRate": 3.0, "dropped/no pair": 1.0}, 4)
    assert "(filter 0 PassRate: 3, no pair: 1)" in said
    assert emptied({"dropped/no pair": 3.0, f"dropped/{IDENTICAL}": 1.0}, 4) == []


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("dpo", "round 2: nothing was selected (filter 0 nothing: 16), so it has no"),
        ("grpo", "step 1: nothing was selected (filter 0 nothing: 4), so it has no"),
    ],
)
def test_a_filter_that_keeps_nothing_is_said_and_ends_nothing(
    kind, said, tmp_path, capfd
):
    config = tiny_config.config(kind, tmp_path / "out", mesh=MeshShape(8, 1, 1))
    recipe = replace(config.recipe, filters=(nothing,))
    sft = replace(config.sft, batch_size=8)
    assert run(replace(config, recipe=recipe, sft=sft)) == 0
    shown = capfd.readouterr()
    assert said in shown.out + shown.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    first, *_, last = summary["accuracy"].values()
    assert first == last  # nothing was learnt
