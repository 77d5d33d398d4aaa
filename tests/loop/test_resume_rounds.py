"""Rounds, killed at any instant and started again, end with the same bits."""

import pytest

from tests.loop import killed

# Points in the order in which one run meets them: each is a kill and a new start.
KILLS = {
    "dpo": [
        *("update:3", "place:1", "evaluate:1", "sample:1", "score:1", "sampled:1"),
        *("reference:2", "update:2", "seal:1", "evaluate:2", "term:1"),
    ],
    "judged": ["judge:2", "judged:1", "term:1"],
    "changing": ["sample:1", "update:3", "evaluate:2", "judge:1", "update:2", "seal:1"],
    "offline": ["update:5", "reference:1", "update:3", "evaluate:2", "term:1"],
    "rft": ["update:3", "sample:1", "score:2", "update:2", "seal:1", "term:1"],
}


# Imitation, a file's pairs, changed settings: the others cover most of what they do.
LONG = dict.fromkeys(("rft", "offline", "changing"), pytest.mark.full)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=LONG.get(kind, ())) for kind in KILLS]
)
def test_killed_rounds_end_with_the_same_bits(tmp_path, kind):
    killed.check(tmp_path, kind, KILLS[kind])
