"""The folder of a run: who wrote it, with which config, and the records in it.

Files are written whole (beside, then renamed) or appended a line at a time. A torn last
line of an appended file is cut off when the run goes on. Of many processes the first
alone writes, and tells the others what they need of a file that grows.
"""

import json
import os
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jaxloop.config import ConfigError, diff, format_diff, redact_argv, to_json
from jaxloop.distributed import barrier, is_first, many, same_everywhere, told
from jaxloop.records import from_json
from jaxloop.records import to_json as record_to_json

PARTIAL = ".partial"
# What may differ when a run is continued: where things are shown or kept, and in which
# pieces the same is computed, as after running out of memory or on other machines. All
# else would make the folder tell of two different runs.
_SHOWN = re.compile(r"out|tensorboard|hang_minutes|checkpoint(\..*)?")
_PIECES = re.compile(
    r"mesh(\..*)?|model\.remat|.*\.accumulation|.*\.sampling\.(rows|prefill_rows|chunk)"
)


def may_change(name: str) -> bool:
    """Whether a run may be continued with another value of that setting."""
    return bool(_SHOWN.fullmatch(name) or _PIECES.fullmatch(name))


def write_bytes(path: Path, data: bytes) -> None:
    """The whole file or nothing, also when killed half-way."""
    if not is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + PARTIAL)
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_records(path: Path, records: Iterable) -> None:
    write_text(path, "".join(record_to_json(record) + "\n" for record in records))


def remove(path: Path) -> None:
    """Deletes a file, if it is there."""
    if is_first():
        path.unlink(missing_ok=True)


def read_records(path: Path, kind) -> list:
    """Of a file that nothing is written to any more."""
    return _parsed(path.read_text(encoding="utf-8"), kind)


def shared_records(path: Path, kind) -> list:
    """The same, for all processes: what one has just written others may not see yet."""
    return _parsed(told(lambda: path.read_text(encoding="utf-8")), kind)


def _parsed(text: str, kind) -> list:
    return [from_json(kind, line) for line in text.split("\n")[:-1]]


def append_records(path: Path, records: Sequence) -> None:
    """Adds lines and waits until they are on the disk."""
    if not is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(record_to_json(record) + "\n" for record in records))
        file.flush()
        os.fsync(file.fileno())


def whole_records(path: Path, kind) -> list:
    """What an interrupted `append_records` left, its torn last line cut off. For all
    processes."""

    def text() -> str:
        if not path.exists():
            return ""
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            os.truncate(path, len(whole))
        return whole.decode("utf-8")

    return _parsed(told(text), kind)


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run; making the value touches nothing."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def round(self, index: int) -> Path:
        return self.path / "records" / f"round_{index:03d}"

    def online(self, step: int) -> Path:
        return self.path / "records" / "online" / f"step_{step:06d}.jsonl"

    def evaluation(self, name: str) -> Path:
        return self.path / "records" / "eval" / f"{name}.jsonl"

    def canaries(self, name: str) -> Path:
        return self.path / "records" / "canaries" / f"{name}.jsonl"

    def check(self, config) -> list[str]:
        """Notes on going on in a folder that may hold a run already.

        ConfigError if it is another configuration's, or not a run's at all.
        """
        written = self.path / "config.json"
        if not written.exists():
            if self.path.exists() and any(
                not path.name.endswith(PARTIAL) for path in self.path.iterdir()
            ):
                raise ConfigError(
                    f"{self.path} is not empty and holds no run of ours (no "
                    "config.json): choose another folder with out=DIR"
                )
            return []
        changes = diff(json.loads(written.read_text()), to_json(config))
        if not all(may_change(name) for name, _, _ in changes):
            raise ConfigError(
                f"{self.path} holds a run of another configuration:\n"
                f"{format_diff(changes)}\n"
                "Continue with the old values, or choose a new folder with out=DIR."
            )
        if not changes:
            return []
        notes = ["continuing with changes:\n" + format_diff(changes)]
        if any(_PIECES.fullmatch(name) for name, _, _ in changes):
            notes.append("in other pieces sums are rounded differently: last bits vary")
        return notes

    def check_shared(self) -> None:
        """ConfigError, in all processes, where one does not see what the first writes:
        a file with a new name, for what was there before each may have of its own."""
        if not many():
            return
        mark = self.path / (told(lambda: uuid.uuid4().hex) + PARTIAL)
        write_text(mark, "")
        barrier()
        try:
            same_everywhere(
                f"the folder {self.path}",
                lambda: str(mark.exists()),
                "each host has its own; give one that all hosts see with out=DIR",
            )
        finally:
            remove(mark)

    def claim(self, config, argv: Sequence[str]) -> None:
        """Writes down the resolved configuration and how the run was started. In a
        folder that all processes see: `check_shared`."""
        self.check_shared()
        write_text(
            self.path / "config.json", json.dumps(to_json(config), indent=2) + "\n"
        )
        write_text(self.path / "run.json", json.dumps(_circumstances(argv), indent=2))


def _circumstances(argv: Sequence[str]) -> dict:
    """What a reader needs to run it again: versions, commit, devices, command."""
    import jax

    packages = ("jaxloop", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {
        "command": redact_argv(list(argv)),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        **_source(),
        "devices": [str(d.device_kind) for d in jax.devices()],
        "platform": sys.platform,
    }


def _source() -> dict:
    """Which code runs: what a launcher shipped ($JAXLOOP_SOURCE), or as git says."""
    shipped = os.environ.get("JAXLOOP_SOURCE")
    if shipped:
        return json.loads(shipped)
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says of the source's own checkout; None outside of one."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
