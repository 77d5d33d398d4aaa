"""Prompts that a step must not part."""

from types import SimpleNamespace

import pytest

from jaxloop.loop.online import step_prompts
from jaxloop.loop.together import drawn_together
from jaxloop.records import Prompt


def prompts(count: int, each: int = 2) -> list[Prompt]:
    return [
        Prompt(f"{i}:{j}", "", (), {"pair": f"p{i}"})
        for j in range(each)
        for i in range(count)
    ]


def bench(pool) -> SimpleNamespace:
    return SimpleNamespace(
        data=SimpleNamespace(train=pool), config=SimpleNamespace(seed=3)
    )


def test_both_of_a_pair_are_in_every_step_and_every_pair_once_a_pass():
    world, seen = bench(prompts(12)), []
    for step in range(3):
        drawn = [p.columns["pair"] for p in step_prompts(world, 8, step, "pair")]
        assert drawn[::2] == drawn[1::2]
        assert len(set(drawn)) == 4
        seen += drawn[::2]
    assert sorted(seen) == sorted(f"p{i}" for i in range(12))
    again = [p.columns["pair"] for p in step_prompts(world, 8, 3, "pair")]
    assert again != seen[:8]  # another pass, another order


def test_without_a_field_pairs_are_parted():
    world = bench(prompts(12))
    drawn = [p.columns["pair"] for p in step_prompts(world, 8, 0)]
    assert len(set(drawn)) > 4
    steps = [step_prompts(world, 8, step) for step in range(3)]
    assert sorted(p.id for step in steps for p in step) == sorted(
        p.id for p in world.data.train
    )


def test_a_row_without_the_field_and_a_lone_one_are_named():
    with pytest.raises(ValueError, match=r"row 'x'.*'pair' is missing"):
        drawn_together([Prompt("x", "", ())], "pair")
    with pytest.raises(ValueError, match=r"'p1' there are 1 and of others up to 2"):
        drawn_together(prompts(2)[:3], "pair")
