"""What the laptop remembers of a run: what was asked for and how far it came.

    runs/tpu/NAME/state.json     the slice, the job, attempts, time spent
                  ship/          what is copied to the hosts
                  lock           one launcher a run

The cloud and the outputs are the truth; this only saves typing and bounds the cost.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.cloud.slices import ConfigurationError, Slice


@dataclasses.dataclass(frozen=True)
class Job:
    """What runs on the slice."""

    command: tuple[str, ...]
    """Words after `jaxloop`; values may begin with `~/`, the home on the hosts."""
    out: str
    """The folder of the outputs on the hosts, likewise."""
    bucket: str = ""
    """Mounted on every host; empty is none."""
    mount: str = ""
    extra: str = "tpu"
    """The extra of setup.py that the environment has."""
    env_file: str = ""
    """On this machine: NAME=VALUE lines for the run, never printed."""


@dataclasses.dataclass(frozen=True)
class State:
    slice: Slice
    job: Job | None = None
    attempt: int = 0
    asked: bool = False
    """Whether the slice of this name in the cloud is ours to use and to delete."""
    spent: float = 0.0
    """Seconds for which earlier slices were held."""
    since: float = 0.0
    """When the slice that is held was made, seconds since 1970; 0: none is."""
    code: str = ""
    """Hash of the code of the last attempt."""
    ended: int | None = None
    """Exit code of a run that is over."""


class Store:
    def __init__(self, root: Path, name: str):
        self.folder = root / name
        self.ship = self.folder / "ship"
        self._file = self.folder / "state.json"

    def load(self) -> State | None:
        try:
            found = json.loads(self._file.read_text())
            job = found.pop("job")
            if job is not None:
                job = Job(**(job | {"command": tuple(job["command"])}))
            return State(**(found | {"slice": Slice(**found["slice"]), "job": job}))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(f"{self._file} cannot be read: {error}") from None

    def save(self, state: State) -> State:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(dataclasses.asdict(state), indent=1) + "\n")
        os.replace(part, self._file)
        return state

    def change(self, **changes: Any) -> State:
        state = self.load()
        assert state is not None
        return self.save(dataclasses.replace(state, **changes))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """ConfigurationError if another launcher looks after this run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"another launcher looks after {self.folder.name}"
                ) from None
            yield


def place_outputs(
    spec: Slice, out: str, bucket: str, shared: str, *, keep: bool
) -> tuple[str, str, str]:
    """(folder on the hosts, name of the bucket to mount, where it is mounted).

    jaxloop writes ordinary files (it appends, renames and truncates), so a bucket is
    mounted as a folder. ConfigurationError for a place that not all hosts share, or
    that would be deleted with the slice.
    """
    name, mount, base = "", "", shared
    if bucket and shared:
        raise ConfigurationError("give --bucket or --shared, not both")
    if bucket:
        name, _, prefix = bucket.removeprefix("gs://").strip("/").partition("/")
        mount = f"~/.jaxloop/bucket/{name}"
        base = f"{mount}/{prefix}".rstrip("/")
    elif shared and not shared.startswith("/"):
        raise ConfigurationError(f"--shared {shared}: name the path from / on")
    if out.startswith("gs://"):
        if not name or not out.startswith((f"gs://{name}/",)):
            raise ConfigurationError(
                f"out={out} needs its bucket mounted: --bucket gs://"
                f"{out.removeprefix('gs://').partition('/')[0]}"
            )
        return mount + out.removeprefix(f"gs://{name}"), name, mount
    if base:
        if ".." in Path(out).parts:
            raise ConfigurationError(f"out={out} must not climb with ..")
        if out.startswith(("/", "~")) and not f"{out}/".startswith(f"{base}/"):
            raise ConfigurationError(f"out={out} is not under {base}, which is shared")
        return str(Path(base) / (out or spec.name)), name, mount
    if spec.hosts > 1:
        raise ConfigurationError(
            f"{spec.hosts} hosts write one run: name a folder that all of them share, "
            "--bucket gs://NAME or --shared /MOUNTED/PATH"
        )
    if not keep:
        raise ConfigurationError(
            "the disk of a TPU host is deleted with it: name --bucket gs://NAME or "
            "--shared /MOUNTED/PATH, or keep the slice with --keep"
        )
    return out or f"~/jaxloop-runs/{spec.name}", "", ""
