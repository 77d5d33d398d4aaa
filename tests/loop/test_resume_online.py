"""Online runs, killed at any instant and started again, end with the same bits."""

import random

import pytest

from tests.loop import killed

KILLS = {
    "grpo": ["evaluate:1", "score:3", "update:3", "place:1", "term:2"],
    "semi_online": ["update:6", "score:2", "reference:3", "seal:1"],
    "ppo": ["update:7", "score:2", "place:1"],
    "meta": ["score:2", "update:6", "place:1"],
}


LONG = dict.fromkeys(("semi_online", "ppo", "meta"), pytest.mark.full)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=LONG.get(kind, ())) for kind in KILLS]
)
def test_killed_online_runs_end_with_the_same_bits(tmp_path, kind):
    killed.check(tmp_path, kind, KILLS[kind])


@pytest.mark.full
@pytest.mark.parametrize("kind", ["dpo", "rft", "grpo", "semi_online"])
def test_killed_at_random_instants(tmp_path, kind):
    draw = random.Random(kind)
    for _ in range(3):
        points = [f"time:{draw.uniform(1.5, 9):.2f}" for _ in range(4)]
        killed.check(tmp_path, kind, points)
