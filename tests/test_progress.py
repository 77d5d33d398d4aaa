import contextlib
import io
import os
import time

import pytest

from jaxloop.progress import Progress, duration, number, printable


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stream():
    return io.StringIO()


def plain(stream, clock, **settings):
    return Progress(stream=stream, clock=clock, **settings)


def lines(stream):
    return stream.getvalue().splitlines()


def run_phase(progress, clock, name, seconds, parts=4, **where):
    progress.phase(name, total=100, **where)
    for part in range(parts):
        clock.now += seconds / parts
        done = 100 * (part + 1) // parts
        progress.update(done, tokens=10 * done, reward=0.25)


def test_plain_lines_come_every_so_many_seconds(stream, clock):
    progress = plain(stream, clock, every=10.0)
    progress.phase("sampling", total=1000)
    for second in range(1, 36):
        clock.now = float(second)
        progress.update(20 * second)
    # the announcement, then at 10, 20 and 30 s
    assert len(lines(stream)) == 4
    assert "600/1,000 (60%)" in lines(stream)[-1]
    assert "20 samples/s" in lines(stream)[-1]
    assert "0:20 left" in lines(stream)[-1]


def test_plain_lines_come_every_so_many_updates(stream, clock):
    progress = plain(stream, clock, updates=5)
    progress.phase("training", total=12, unit="steps")
    for step in range(12):
        progress.update(step + 1, loss=1.5)
    assert [line.split()[1] for line in lines(stream)[1:]] == ["5/12", "10/12"]
    assert "loss 1.5" in stream.getvalue()


def test_no_escape_codes_reach_what_is_not_a_terminal(stream, clock):
    with plain(stream, clock, updates=1) as progress:
        progress.line("\x1b[31mred\x1b[0m\r\x9b2J")
        run_phase(progress, clock, "sampling", 5)
    text = stream.getvalue()
    assert not any(ord(c) < 32 and c != "\n" for c in text)
    assert "\x9b" not in text
    assert "␛[31mred" in text


def test_rates_leave_out_the_wait_before_the_first_update(stream, clock):
    progress = plain(stream, clock, updates=3, every=1e9)
    progress.phase("sampling", total=100)
    clock.now = 60.0  # compilation
    progress.update(10, tokens=100)
    for done in (20, 30):
        clock.now += 1.0
        progress.update(done, tokens=10 * done)
    assert "10 samples/s" in lines(stream)[-1]
    assert "100 tokens/s" in lines(stream)[-1]
    assert "0:07 left" in lines(stream)[-1]


def test_a_resumed_phase_counts_only_what_it_did_itself(stream, clock):
    progress = plain(stream, clock, updates=1)
    progress.phase("sampling", total=100, done=50)
    clock.now = 1.0
    progress.update(60)
    assert "10 samples/s" in lines(stream)[-1]


def test_the_round_can_be_told_apart_from_the_phase(stream, clock):
    progress = plain(stream, clock, updates=1)
    progress.round(2, 3)
    for name in ("sampling", "training"):
        run_phase(progress, clock, name, 1)
    assert lines(stream)[-1].startswith("round 2/3 training")


def test_time_left_of_the_run_leaves_out_the_first_round(stream, clock):
    progress = plain(stream, clock, updates=1)
    for round, seconds in ((1, 100), (2, 20)):
        run_phase(progress, clock, "sampling", seconds, round=round, rounds=4)
    run_phase(progress, clock, "sampling", 5, round=3, rounds=4)
    assert "round 3/4 sampling" in lines(stream)[-1]
    assert "run 0:35 left" in lines(stream)[-1]


def test_short_phases_do_not_flood(stream, clock):
    with plain(stream, clock) as progress:
        for _ in range(200):
            for name in ("sampling", "training"):
                run_phase(progress, clock, name, 0.02)
    assert len(lines(stream)) == 2


def test_a_long_phase_says_what_it_took(stream, clock):
    with plain(stream, clock) as progress:
        run_phase(progress, clock, "scoring", 8, round=1, rounds=2)
    assert "round 1/2 scoring 100/100 (100%)" in lines(stream)[-1]
    assert "took 0:08" in lines(stream)[-1]


def test_odd_calls_are_harmless(stream, clock):
    progress = plain(stream, clock, updates=1)
    progress.update(3)  # no phase yet
    progress.phase("scoring", total=0)
    progress.update(0, reward=float("nan"))
    progress.phase("scoring")
    progress.update(7)
    progress.close()
    progress.close()
    progress.update(8)
    progress.line("too late")
    assert "reward nan" in stream.getvalue()
    assert "too late" not in stream.getvalue()


def test_a_broken_stream_does_not_end_the_run(clock):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    progress = plain(Broken(), clock)
    progress.line("lost")
    progress.phase("sampling", total=3)
    progress.update(1)
    progress.close()


def test_a_stream_that_lacks_letters_gets_replacements(clock):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    plain(stream, clock).line("π ≈ 3 🙂")
    assert raw.getvalue() == b"? ? 3 ?\n"


def test_exceptions_pass_and_the_terminal_is_restored():
    stream = Terminal()

    def fail():
        with Progress("live", stream=stream) as progress:
            progress.phase("sampling", total=3)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_live_display_keeps_to_the_width(monkeypatch, width):
    from rich.console import Console

    from jaxloop.progress import _Display

    monkeypatch.setenv("TERM", "xterm-256color")
    progress = Progress("off", stream=io.StringIO())
    progress.phase("evaluating", total=1234, round=2, rounds=3)
    progress._mode = "plain"
    progress.update(617, tokens=1e6, reward=0.5, loss=0.1, accuracy=1 / 3)
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    shown = console.render_lines(_Display(progress, ascii_only=False), pad=False)
    texts = ["".join(segment.text for segment in line) for line in shown]
    assert len(texts) == 2
    assert all(len(text) <= width for text in texts)
    assert texts[0].startswith("round 2/3 evaluatin")
    assert ("━" in texts[0]) == (width >= 80)
    assert ("617/1,234 (50%)" in texts[0]) == (width >= 40)


def test_live_shows_lines_and_figures():
    stream = Terminal()
    with Progress("auto", stream=stream) as progress:
        assert progress._live is not None
        progress.phase("sampling", total=10)
        progress.update(5, reward=0.75)
        progress.line("hello [bold]world[/bold] \x1b[2J")
        progress._live.refresh()
    assert "hello [bold]world[/bold] ␛[2J" in stream.getvalue()
    assert "reward 0.75" in stream.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert Progress(stream=Terminal())._live is None


def test_a_real_terminal_is_left_clean():
    pty = pytest.importorskip("pty", reason="a terminal needs POSIX")
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream, Progress(stream=stream) as progress:
        progress.phase("training", total=4, unit="steps")
        progress.update(2, loss=0.5)
        time.sleep(0.3)
    shown = b""
    with os.fdopen(leader, "rb", buffering=0) as screen, contextlib.suppress(OSError):
        while part := screen.read(10_000):
            shown += part
    assert b"training" in shown
    assert b"2/4 (50%)" in shown
    assert shown.endswith((b"\x1b[?25h", b"\x1b[2K"))


@pytest.mark.parametrize("mode", ["plain", "live"])
def test_updates_are_cheap(mode):
    with Progress(mode, stream=Terminal()) as progress:
        progress.phase("training", total=2000)
        best = float("inf")
        for _ in range(10):
            start = time.perf_counter()
            for step in range(200):
                progress.update(step, tokens=step, loss=0.5, reward=0.25)
            best = min(best, (time.perf_counter() - start) / 200)
    assert best < 50e-6


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match="'loud'"):
        Progress("loud")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3671, "1:01:11")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (1234.5, "1234"),
        (12345, "12.3k"),
        (2.5e6, "2.5M"),
        (1e-6, "1e-06"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_printable_keeps_lines_and_tabs():
    assert printable("a\n\tb\x00\x7f") == "a\n\tb␀␡"
