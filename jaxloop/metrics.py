"""metrics.jsonl: what a run measured, one event a line, cut back exactly on resume.

The file is the truth. TensorBoard is a view of it, written after it, so it never holds
an event that the file lacks.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"
FIXED = ("step", "phase", "round")
TIMING_GROUPS = ("timing_s/", "perf/")
TIMINGS = ("time", "step_time")


class MetricsWriter:
    """Appends events to OUT/metrics.jsonl and, if wanted, to OUT/tensorboard.

    A line is `{"step", "phase", "round", <metric>: float..., "time"}`, flushed at
    once. NaN and infinities are written as null and named in the list `nonfinite`. An
    incomplete last line (the process was killed while writing it) is removed on
    opening. In a job of several processes only the first may open one.
    """

    def __init__(self, out: Path, tensorboard: bool = True):
        self._out = Path(out)
        self._out.mkdir(parents=True, exist_ok=True)
        self._path = self._out / FILE
        self._file = self._path.open("ab")
        self._cut(_whole_lines(self._path))
        self._tensorboard = tensorboard
        self._board: Any = None
        self._purge_step: int | None = None

    def write(
        self,
        step: int,
        metrics: Mapping[str, Any],
        *,
        phase: str,
        round: int | None = None,
    ) -> None:
        """Append one event. `time` (seconds since 1970) is added unless it is given.

        Values are Python or numpy numbers: fetching from the device is the caller's
        business, once for all metrics. TypeError names a value that is neither,
        ValueError a metric whose name is taken.
        """
        line: dict[str, Any] = {"step": int(step), "phase": phase, "round": round}
        nonfinite = []
        for name, value in {**metrics, "time": metrics.get("time", _now())}.items():
            if name in FIXED or name == "nonfinite":
                raise ValueError(f"metric {name!r}: the event itself has that name")
            number = _number(name, value)
            if isinstance(number, float) and not math.isfinite(number):
                nonfinite.append(name)
                number = None
            line[name] = number
        if nonfinite:
            line["nonfinite"] = nonfinite
        text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        self._file.write(text.encode() + b"\n")
        self._file.flush()
        self._show(line)

    def offset(self) -> int:
        """The length of the file in bytes, for a checkpoint: safe on disk on return."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()
        return self._file.tell()

    def truncate_to(self, offset: int) -> None:
        """Forget every event after the first `offset` bytes, in TensorBoard too.

        TensorBoard cannot delete; it drops events from a given step on when a new file
        says so. That step is the smallest one cut; kept events from there on (steps may
        start again with each phase) are written again, so nothing is lost or doubled.
        ValueError if `offset` is not the end of a line of the file.
        """
        data = self._path.read_bytes()
        if not 0 <= offset <= len(data) or (offset and data[offset - 1] != ord("\n")):
            raise ValueError(
                f"{self._path} cannot be cut back to {offset} bytes: it has "
                f"{len(data)}, and a line must end there. It was changed since the "
                "checkpoint was saved; use another checkpoint or a new out folder"
            )
        gone = list(_lines(data[offset:]))
        self._cut(offset)
        if not gone or not self._tensorboard:
            return
        self._close_board()
        purge_step = min(line["step"] for line in gone)
        self._purge_step = purge_step  # until the next file is opened
        for line in _lines(data[:offset]):
            if line["step"] >= purge_step:
                self._show(line)

    def close(self) -> None:
        self._close_board()
        self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _cut(self, offset: int) -> None:
        self._file.truncate(offset)
        self._file.seek(offset)

    def _show(self, line: Mapping[str, Any]) -> None:
        if not self._tensorboard:
            return
        if self._board is None:
            # Slow to import, and not wanted by runs that turned it off.
            from tensorboardX import SummaryWriter

            folder = self._out / "tensorboard"
            # Two files opened within a second would otherwise share a name.
            files = len(list(folder.iterdir())) if folder.exists() else 0
            self._board = SummaryWriter(
                str(folder), purge_step=self._purge_step, filename_suffix=f".{files:04}"
            )
            self._purge_step = None
        for name, value in line.items():
            if name not in FIXED and name != "time" and isinstance(value, Real):
                tag = f"{line['phase']}/{name}"
                self._board.add_scalar(tag, value, line["step"], line.get("time"))

    def _close_board(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None


class Unwritten:
    """In the place of a MetricsWriter where another process of the job writes."""

    def write(self, step: int, metrics: Mapping[str, Any], **_) -> None: ...

    def offset(self) -> int:
        return 0

    def truncate_to(self, offset: int) -> None: ...

    def close(self) -> None: ...


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The events of a metrics.jsonl, or of the run folder that holds one.

    Null stays None. An incomplete last line is left out; any other line that is not a
    JSON object is a ValueError with its number.
    """
    path = Path(path)
    return list(_lines((path / FILE if path.is_dir() else path).read_bytes(), path))


def comparable(line: Mapping[str, Any]) -> dict[str, Any]:
    """`line` without timings: what two runs of the same command have in common."""
    return {name: value for name, value in line.items() if not is_timing(name)}


def is_timing(name: str) -> bool:
    """Whether a metric tells how long something took rather than what came out."""
    return name in TIMINGS or name.startswith(TIMING_GROUPS)


def _lines(data: bytes, path: Path | str = FILE) -> Iterator[dict[str, Any]]:
    whole, _, _torn = data.rpartition(b"\n")
    for number, text in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            shown = text[:80].decode(errors="replace")
            raise ValueError(f"{path}, line {number}: not a JSON object: {shown!r}")
        yield line


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last complete line, reading only the file's tail."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def _number(name: str, value: Any) -> int | float:
    if isinstance(value, int):  # bool too
        return int(value)
    if isinstance(value, Real):  # numpy's scalars register themselves as numbers
        return float(value)
    raise TypeError(
        f"metric {name!r} is a {type(value).__name__}, not a number: fetch device "
        "arrays first (jax.device_get) and take .item()"
    )


def _now() -> float:
    return round(time.time(), 3)
