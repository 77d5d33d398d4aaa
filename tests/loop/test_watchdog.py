"""The watchdog barks at silence, and only then."""

import threading
import time

from jaxloop.exit_codes import INFRASTRUCTURE
from jaxloop.loop.watchdog import Watchdog


def test_a_silent_run_is_told_where_it_stands_and_then_ended(tmp_path):
    said, left, gone = [], [], threading.Event()

    def leave(code):
        left.append(code)
        gone.set()

    def stuck_in_here():
        assert gone.wait(30)

    path = tmp_path / "stacks" / "0.txt"
    with Watchdog(path, 0.2, say=said.append, leave=leave):
        stuck_in_here()
    assert left == [INFRASTRUCTURE]
    text = path.read_text()
    assert "stuck_in_here" in text
    assert text.count("no sign of life") == 1
    assert str(path) in said[0]


def test_a_run_that_beats_is_left_alone(tmp_path):
    left = []
    with Watchdog(tmp_path / "stacks.txt", 5.0, leave=left.append) as watchdog:
        watchdog._limit = 0.4  # the loop has begun with short waits
        for _ in range(20):
            watchdog.beat()
            time.sleep(0.05)
    assert not left
    assert not (tmp_path / "stacks.txt").exists()


def test_a_limit_of_0_is_off(tmp_path):
    left = []
    with Watchdog(tmp_path / "stacks.txt", 0.0, leave=left.append) as watchdog:
        assert not watchdog._thread.is_alive()
