"""What of an online step is training, and what the hours of a run went into."""

import json
from types import SimpleNamespace

import pytest

from jaxloop.report.timing import timing_section, timing_table


def test_training_is_what_the_parts_of_online_steps_leave():
    parts = [(11.0, 4.0), (2.0, 0.5), (3.0, 0.5)]
    metrics = [
        {"phase": "online", "round": 0, "timing_s/step": step, "timing_s/gen": gen}
        for step, gen in parts
    ]
    run = SimpleNamespace(metrics=metrics, first_round=0)
    (row,) = timing_table(run).values()
    assert row == pytest.approx({"sampling": 5.0, "training": 11.0})


def test_hours_of_two_attempts(tmp_path):
    (tmp_path / "attempts").mkdir()
    for number, (started, seconds, kept) in enumerate(
        [(0, {"productive": 60}, {"productive": 20}), (100, {"productive": 100}, {})]
    ):
        last = started + sum(seconds.values())
        account = {"started": started, "last": last, "end": ""}
        account |= {"seconds": seconds, "kept": kept}
        path = tmp_path / "attempts" / f"{number:04}.json"
        path.write_text(json.dumps(account))
    run = SimpleNamespace(metrics=[], first_round=0, path=tmp_path)
    text = str(timing_section(run))
    assert "3 min 20 s in 2 attempts: productive 60%, " in text
    assert "done again after a stop 20%" in text
    assert "down between attempts 20%" in text
    assert timing_section(SimpleNamespace(metrics=[], path=tmp_path / "none")) is None
