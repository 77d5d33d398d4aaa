"""What of an online step is training."""

from types import SimpleNamespace

import pytest

from jaxloop.report.timing import timing_table


def test_training_is_what_the_parts_of_online_steps_leave():
    parts = [(11.0, 4.0), (2.0, 0.5), (3.0, 0.5)]
    metrics = [
        {"phase": "online", "round": 0, "timing_s/step": step, "timing_s/gen": gen}
        for step, gen in parts
    ]
    run = SimpleNamespace(metrics=metrics, first_round=0)
    (row,) = timing_table(run).values()
    assert row == pytest.approx({"sampling": 5.0, "training": 11.0})
