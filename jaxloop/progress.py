"""What a run is doing right now: a live display on a terminal, plain lines elsewhere.

Updates are cheap (they store numbers); a thread of `rich` draws them, or a plain line
is written when one is due.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, Literal

Mode = Literal["auto", "live", "plain", "off"]

# Model output may hold escape sequences that would repaint the user's terminal.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)


@dataclass
class _Phase:
    name: str
    total: int | None
    unit: str
    where: str
    started: float
    done: int
    begun_with: int
    tokens: float = 0.0
    first: tuple[float, int, float] | None = None  # time, done, tokens at first update
    last: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    def rates(self) -> tuple[float, float]:
        """Units and tokens a second, without the wait (compilation) before the first
        update where there were more."""
        at, done, tokens = self.started, self.begun_with, 0.0
        if self.first is not None and self.last > self.first[0] and self.done:
            at, done, tokens = self.first
        seconds = self.last - at
        if seconds < 1e-3:  # nothing a rate could be told from
            return 0.0, 0.0
        return max(self.done - done, 0) / seconds, max(
            self.tokens - tokens, 0
        ) / seconds

    def seconds_left(self, now: float) -> float | None:
        rate = self.rates()[0]
        if self.total is None or not rate or not self.last:
            return None
        return max((self.total - self.done) / rate - (now - self.last), 0.0)


class Progress:
    """Shows the phase a run is in.

        with Progress() as progress:
            progress.round(1, 3)
            progress.phase("sampling", total=256)
            progress.update(64, tokens=8192, reward=0.4)
            progress.line("a line of text, above the live display")

    `mode` "auto" is "live" if `stream` (standard output) is a terminal, else "plain":
    one line every `every` seconds, or every `updates` updates where that is given, one
    where a phase is met for the first time and one when a phase of a second or more
    ends. A stream that breaks ends the display, never the run. `on_phase` is told each
    phase that begins.
    """

    def __init__(
        self,
        mode: Mode = "auto",
        *,
        stream: IO[str] | None = None,
        every: float = 10.0,
        updates: int | None = None,
        on_phase: Callable[[str], None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stream = sys.stdout if stream is None else stream
        self._mode = _resolve(mode, self._stream)
        self._every, self._updates, self._clock = every, updates, clock
        self._started = self._printed = clock()
        self._since, self._on_phase = 0, on_phase
        self._seen: set[str] = set()
        self._phase: _Phase | None = None
        self._kept: dict[str, float] = {}
        self._rounds = _Rounds()
        self._live: Any = None
        if self._mode == "live":
            self._live = _start_live(self, self._stream)

    def phase(
        self,
        name: str,
        total: int | None = None,
        *,
        round: int | None = None,
        rounds: int | None = None,
        unit: str = "samples",
        done: int = 0,
    ) -> None:
        """A new phase begins (the one before it ends), in the round begun last unless
        `round` says another. `unit` is what `total` counts; `done` is not 0 where a
        resumed run goes on."""
        self._end_phase()
        self._on_phase(name)
        if round is not None:
            self.round(round, rounds)
        where, now = self._rounds.name(), self._clock()
        self._phase = _Phase(name, total, unit, where, now, done, done)
        if self._mode == "plain" and name not in self._seen:
            of = f" {total:,} {unit}" if total is not None else ""
            self._write(f"{where + ' ' if where else ''}{name}{of} ...")
        self._seen.add(name)

    @property
    def now(self) -> str:
        """The phase that a run is in; empty before the first."""
        return "" if self._phase is None else self._phase.name

    def tokens(self) -> float:
        """Those of the phase so far."""
        return 0.0 if self._phase is None else self._phase.tokens

    def round(self, round: int, rounds: int | None = None) -> None:
        """Round `round` (counted from 1) of `rounds` begins, and with it new phases."""
        if not self._rounds.same(round):
            self._end_phase()
        self._rounds.enter(round, rounds, self._clock())

    def update(self, done: int, tokens: float | None = None, **figures: float) -> None:
        """`done` of `total`, and `tokens` so far, both counted within the phase;
        further figures (reward, loss, ...) are shown as they are."""
        phase = self._phase
        if phase is None or self._mode == "off":
            return
        phase.done = done
        phase.last = self._clock()
        if tokens is not None:
            phase.tokens = tokens
        if phase.first is None:
            phase.first = (phase.last, done, phase.tokens)
        if figures:
            phase.figures = {**phase.figures, **figures}
            self._kept = {**self._kept, **figures}
        self._since += 1
        if self._mode == "plain" and (
            phase.last - self._printed >= self._every
            or (self._updates is not None and self._since >= self._updates)
        ):
            self._write(self._describe(phase))

    def line(self, text: str) -> None:
        """Print `text` (made safe for a terminal) above the display."""
        if self._mode == "off":
            return
        if self._live is None:
            self._write(text)
            return
        from rich.text import Text

        self._try(lambda: self._live.console.print(Text(printable(text))))

    def close(self) -> None:
        """End the display; the terminal is left as it was. May be called twice."""
        self._end_phase()
        live, self._live = self._live, None
        if live is not None:
            self._try(live.stop)
        self._mode = "off"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _end_phase(self) -> None:
        phase, self._phase = self._phase, None
        if phase is None or self._mode == "off" or not phase.last:
            return
        now = self._clock()
        if now - phase.started >= 1.0:
            text = self._describe(phase, ended=now)
            if self._live is None:
                self._write(text)
            else:
                self.line(text)

    def _describe(self, phase: _Phase, ended: float | None = None) -> str:
        now = self._clock()
        head = f"{phase.where} {phase.name}".strip()
        parts = [_fraction(phase), *_rate_texts(phase)]
        parts += [f"{name} {number(value)}" for name, value in phase.figures.items()]
        if ended is not None:
            parts.append(f"took {duration(ended - phase.started)}")
        elif (left := phase.seconds_left(now)) is not None:
            parts.append(f"{duration(left)} left")
        if (run := self._rounds.seconds_left(now)) is not None:
            parts.append(f"run {duration(run)} left")
        return f"{head} " + " · ".join(parts)

    def _write(self, text: str) -> None:
        if self._mode != "plain":
            return
        self._printed, self._since = self._clock(), 0
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        safe = printable(text).encode(encoding, "replace").decode(encoding)
        self._try(lambda: (self._stream.write(safe + "\n"), self._stream.flush()))

    def _try(self, show: Callable[[], Any]) -> None:
        try:
            show()
        except (OSError, ValueError):  # closed pipe, closed file: nobody is looking
            self._mode, self._live = "off", None


class _Rounds:
    """How long rounds take, for the time left of the run."""

    def __init__(self):
        self._round: int | None = None
        self._rounds: int | None = None
        self._entered = 0.0
        self._seconds: list[float] = []

    def name(self) -> str:
        if self._round is None:
            return ""
        of = f"/{self._rounds}" if self._rounds is not None else ""
        return f"round {self._round}{of}"

    def same(self, round: int) -> bool:
        return round == self._round

    def enter(self, round: int, rounds: int | None, now: float) -> None:
        if round == self._round:
            return
        if self._round is not None:
            self._seconds.append(now - self._entered)
        self._round, self._rounds, self._entered = round, rounds, now

    def seconds_left(self, now: float) -> float | None:
        """From the mean of past rounds; the first (it compiles) only if it is alone."""
        if self._round is None or self._rounds is None or not self._seconds:
            return None
        known = self._seconds[1:] or self._seconds
        mean = sum(known) / len(known)
        here = max(mean - (now - self._entered), 0.0)
        return here + mean * max(self._rounds - self._round, 0)


class _Display:
    """Two lines for rich: where the run is, and the latest figures."""

    def __init__(self, progress: Progress, ascii_only: bool):
        self._progress = progress
        self._marks = "#-" if ascii_only else "━─"
        self._dot = "|" if ascii_only else "·"

    def __rich_console__(self, console, options):
        from rich.text import Text

        progress, width = self._progress, options.max_width
        phase, now = progress._phase, progress._clock()
        run = [f"{duration(now - progress._started)} so far"]
        if (left := progress._rounds.seconds_left(now)) is not None:
            run.append(f"about {duration(left)} left")
        figures = [f"{name} {number(v)}" for name, v in progress._kept.items()]
        if phase is not None:
            yield self._bar_line(Text, phase, now, width)
            figures = _rate_texts(phase) + figures
        second = Text("  " + f" {self._dot} ".join(figures + run), style="dim")
        second.truncate(width, overflow="ellipsis")
        yield second

    def _bar_line(self, Text, phase: _Phase, now: float, width: int):
        head = Text.assemble((phase.where, "bold"), " " if phase.where else "")
        head.append(phase.name, style="cyan")
        parts = [_fraction(phase)]
        if (left := phase.seconds_left(now)) is not None:
            parts.append(f"{duration(left)} left")
        tail = Text("  ".join(parts))
        room = min(width - head.cell_len - tail.cell_len - 4, 40)
        line = head
        if room >= 8 and phase.total:
            full = round(room * min(phase.done / phase.total, 1.0))
            line.append("  ").append(self._marks[0] * full, style="green")
            line.append(self._marks[1] * (room - full), style="dim")
        line = line.append("  ").append(tail)
        line.truncate(width, overflow="ellipsis")
        return line


def _start_live(progress: Progress, stream: IO[str]):
    from rich.console import Console
    from rich.live import Live

    encoding = (getattr(stream, "encoding", None) or "utf-8").lower()
    console = Console(
        file=stream, force_terminal=True, markup=False, highlight=False, emoji=False
    )
    display = _Display(progress, ascii_only=not encoding.startswith("utf"))
    live = Live(display, console=console, refresh_per_second=8, transient=True)
    live.start()
    return live


def _resolve(mode: Mode, stream: IO[str]) -> Mode:
    if mode not in ("auto", "live", "plain", "off"):
        raise ValueError(f"progress mode {mode!r} is none of auto, live, plain, off")
    if mode != "auto":
        return mode
    terminal = getattr(stream, "isatty", lambda: False)()
    return "live" if terminal and os.environ.get("TERM") != "dumb" else "plain"


def _fraction(phase: _Phase) -> str:
    if phase.total is None:
        return f"{phase.done:,}"
    share = f" ({100 * phase.done // phase.total}%)" if phase.total else ""
    return f"{phase.done:,}/{phase.total:,}{share}"


def _rate_texts(phase: _Phase) -> list[str]:
    units, tokens = phase.rates()
    texts = [f"{number(units)} {phase.unit}/s"] if units else []
    return texts + ([f"{number(tokens)} tokens/s"] if tokens else [])


def printable(text: str) -> str:
    """`text` with control characters (escape sequences among them) made visible."""
    return text.translate(_VISIBLE)


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}"


def number(value: float) -> str:
    """Three significant digits; thousands and millions as k and M."""
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
