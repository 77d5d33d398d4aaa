"""What a run left, read so that a crash, a torn line or a missing file stops nothing.

Whatever cannot be read is left out and said in `notes`, which the report shows.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxloop.config.secrets import redact, redact_argv
from jaxloop.records import Group, Labelled, Pair, Scored, from_json


@dataclass(frozen=True)
class RecordFile:
    """A JSONL file of records. `order` sorts files of a kind by time."""

    path: Path
    name: str
    label: str
    order: tuple


@dataclass(frozen=True)
class RunRecords:
    """A run folder. Config and command have their secrets blanked already."""

    path: Path
    config: dict[str, Any]
    run: dict[str, Any]
    summary: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    rollouts: list[RecordFile]
    evaluations: list[RecordFile]
    canaries: list[RecordFile]
    pairs: list[RecordFile]
    labelled: list[RecordFile]
    dropped: list[tuple[str, dict[str, int]]]
    notes: list[str]

    @property
    def online(self) -> bool:
        """Whether the run was trained step by step, without rounds."""
        return any(line.get("phase") == "online" for line in self.metrics)

    @property
    def judges(self) -> list[str]:
        """The names of the judges that something was measured of."""
        names = (
            name.removeprefix("eval/").removesuffix("/invalid_frac")
            for line in self.metrics
            for name in line
            if name.endswith("/invalid_frac")
        )
        return list(dict.fromkeys(names))

    @property
    def loop_evaluations(self) -> list[dict[str, Any]]:
        """Lines of held-out evaluations, from the one before the loop on."""
        lines = [
            x for x in self.metrics if isinstance(x.get("eval/accuracy"), int | float)
        ]
        first = next((i for i, x in enumerate(lines) if x.get("round") == 0), 0)
        return lines[first:]

    @property
    def first_round(self) -> int:
        """Folders and metric lines count rounds from here; people count from 1."""
        rounds = [
            line["round"]
            for line in self.metrics
            if line.get("phase") != "eval" and isinstance(line.get("round"), int)
        ]
        return min(rounds, default=0)


def read_run(out: Path) -> RunRecords:
    """The run in `out`; FileNotFoundError if the folder holds none."""
    out = Path(out)
    if not any((out / name).exists() for name in ("config.json", "metrics.jsonl")):
        raise FileNotFoundError(
            f"{out} holds no run: neither config.json nor metrics.jsonl is there"
        )
    notes: list[str] = []
    config = _read_object(out / "config.json", notes) or {}
    run = _read_object(out / "run.json", notes) or {}
    command = run.get("command")
    if isinstance(command, list):
        run["command"] = redact_argv([str(word) for word in command])
    rounds = sorted((out / "records").glob("round_*/"))
    base = min((_number(path.name) for path in rounds), default=0)
    labels = {path: f"Round {_number(path.name) - base + 1}" for path in rounds}
    steps = sorted((out / "records" / "online").glob("step_*.jsonl"))
    return RunRecords(
        path=out,
        config={key: redact(key, value) for key, value in config.items()},
        run={key: redact(key, value) for key, value in run.items()},
        summary=_read_object(out / "summary.json", notes, required=False),
        metrics=list(_objects(out / "metrics.jsonl", notes)),
        rollouts=[_file(p / "rollouts.jsonl", p.name, labels[p]) for p in rounds]
        + [_file(p, p.stem, f"Step {_number(p.stem):,}") for p in steps],
        evaluations=_evaluations(out, "eval", online=bool(steps)),
        canaries=_evaluations(out, "canaries", online=bool(steps)),
        pairs=[_file(p / "pairs.jsonl", p.name, labels[p]) for p in rounds],
        labelled=[_file(p / "labelled.jsonl", p.name, labels[p]) for p in rounds],
        dropped=[(labels[p], _dropped(p / "dropped.json", notes)) for p in rounds],
        notes=notes,
    )


def _evaluations(out: Path, kind: str, online: bool) -> list[RecordFile]:
    """Held-out evaluations (or canaries) in the order of time. Online runs have one
    "round"."""
    files = []
    for path in (out / "records" / kind).glob("*.jsonl"):
        label, name = evaluation_label(path.stem), path.stem
        order = (0, _number(name), name)
        if online and name == "round_001":
            label, order = "At the end", (1, 0, name)
        elif online and name == "round_000":
            order = (-1, 0, name)
        files.append(RecordFile(path, name, label, order))
    return sorted(files, key=lambda file: file.order)


def evaluation_label(name: str) -> str:
    """round_000 is before the first round; other names are said as they are."""
    if name.startswith("round_"):
        return "Before" if _number(name) == 0 else f"After round {_number(name)}"
    word = name.rpartition("_")[0] or name
    digits = f" {_number(name):,}" if re.search(r"\d", name) else ""
    return word.replace("_", " ").capitalize() + digits


def count_lines(path: Path) -> int:
    """Whole lines of a file; 0 where there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(
            chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b"")
        )


def evenly(count: int, most: int) -> list[int]:
    """At most `most` indices below `count`, evenly apart, first and last included."""
    if count <= most:
        return list(range(count))
    if most <= 1:
        return [0][:most]
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def read_records(
    file: RecordFile, kind: str, most: int, notes: list[str]
) -> tuple[int, list[Any]]:
    """How many records `file` holds, and at most `most` of them, evenly chosen.

    `kind` "scored" gives Scored or Group records, "pair" Pairs, "labelled" Labelled.
    """
    total = count_lines(file.path)
    wanted = set(evenly(total, most))
    records, bad = [], 0
    for index, line in enumerate(_whole_lines(file.path)):
        if index not in wanted:
            continue
        try:
            records.append(from_json(_type_of(kind, line), line))
        except (ValueError, KeyError, TypeError, AssertionError):
            bad += 1
    if bad:
        notes.append(f"{file.path.name} of {file.label}: {bad} records cannot be read")
    return total, records


def _type_of(kind: str, line: str) -> type:
    if kind != "scored":
        return {"pair": Pair, "labelled": Labelled}[kind]
    return (
        Group if '"advantages"' in line and "advantages" in json.loads(line) else Scored
    )


def _file(path: Path, name: str, label: str) -> RecordFile:
    return RecordFile(path, name, label, (_number(name),))


def _number(name: str) -> int:
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else 0


def _whole_lines(path: Path) -> Iterable[str]:
    """Lines that end; a torn last one is left out. Bytes that are no UTF-8 become
    replacement characters."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line.decode("utf-8", "replace")


def _objects(path: Path, notes: list[str]) -> Iterable[dict[str, Any]]:
    bad = 0
    for line in _whole_lines(path):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            yield value
        else:
            bad += 1
    if bad:
        notes.append(f"{path.name}: {bad} lines cannot be read")


def _read_object(path: Path, notes: list[str], required=True) -> dict | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        if required:
            notes.append(f"{path.name} is missing")
        return None
    except ValueError:
        notes.append(f"{path.name} is not valid JSON")
        return None
    return value if isinstance(value, dict) else None


def left_out(file: RecordFile, notes: list[str]) -> dict[str, str]:
    """Of the prompts of a round's rollouts, by id: why one gave nothing to train on."""
    path = file.path.with_name("left_out.json")
    if file.path.name != "rollouts.jsonl":
        return {}
    reasons = _read_object(path, notes, required=False) or {}
    return {str(id): str(reason) for id, reason in reasons.items()}


def holds_judgements(file: RecordFile) -> bool:
    """Whether any of the file's records has some."""
    # Inside a text the quotes would be escaped.
    return any('"judgements": [{' in line for line in _whole_lines(file.path))


def _dropped(path: Path, notes: list[str]) -> dict[str, int]:
    counts = _read_object(path, notes, required=False) or {}
    return {str(k): int(v) for k, v in counts.items() if isinstance(v, int | float)}


def choose_files(files: Sequence[RecordFile], most: int) -> list[RecordFile]:
    """At most `most` of the files that exist, evenly chosen."""
    there = [file for file in files if file.path.exists()]
    return [there[i] for i in evenly(len(there), most)]
