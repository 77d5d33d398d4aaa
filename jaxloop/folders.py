"""Folders that are either whole or not there.

A file system may lose or flip bits that the array store above does not notice, and a
killed process leaves half of a folder. So a folder is built under `unfinished-NAME`,
gets a `manifest.json` with the size and SHA-256 of every file, and only then its name.
Later `problems` tells whether every byte is still what was written.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MANIFEST = "manifest.json"
UNFINISHED, REPLACED, DELETING = "unfinished-", "replaced-", "deleting-"
CORRUPT = "corrupt-"
HASHING_THREADS = 4  # hashlib releases the interpreter lock


def write_json(path: Path, value) -> None:
    """Writes `value` so that `path` is the old file or the whole new one, never a part.

    ValueError for NaN and infinities, which JSON does not have.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, indent=1)
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable, as fsync does for the bytes of a file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(folder: Path) -> None:
    """Flushes every file under `folder` to disk, then lists them in its manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    entries = dict(zip(names, _in_threads(_flushed_entry, files), strict=True))
    for path in sorted({path.parent for path in files}):
        sync_folder(path)
    write_json(folder / MANIFEST, {"format": 1, "files": entries})


def put_in_place(folder: Path) -> None:
    """Gives a sealed `unfinished-NAME` its name, taking the place of an older NAME."""
    name = folder.name.removeprefix(UNFINISHED)
    final, old = folder.with_name(name), folder.with_name(REPLACED + name)
    if final.exists():  # one of the two is always whole; `clear_leftovers` finds it
        final.rename(old)
    folder.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def delete(folder: Path) -> None:
    """Deletes a folder whose name is gone from the first instant on."""
    doomed = folder.with_name(DELETING + folder.name)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def move_aside(folder: Path) -> Path:
    """Renames a damaged folder to the first free `corrupt-NAME-1`, `-2`, ..."""
    count = 1
    while (target := folder.with_name(f"{CORRUPT}{folder.name}-{count}")).exists():
        count += 1
    folder.rename(target)
    return target


def clear_leftovers(directory: Path) -> None:
    """After a kill: half-written folders go, a half-replaced one comes back."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith(REPLACED):
            final = path.with_name(path.name.removeprefix(REPLACED))
            if not final.exists():
                path.rename(final)
        if path.name.startswith((UNFINISHED, REPLACED, DELETING)):
            shutil.rmtree(path, ignore_errors=True)


def probe(directory: Path) -> None:
    """Creates `directory` and writes a file in it; OSError if that cannot be done."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f".probe-{os.getpid()}"
    try:
        file.write_bytes(b"x" * 4096)
    finally:
        file.unlink(missing_ok=True)


def problems(folder: Path) -> list[str]:
    """What is wrong with a sealed folder, a sentence each; [] if nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = manifest["files"].items()
        wanted = {name: (entry["bytes"], entry["sha256"]) for name, entry in entries}
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"]
    found = []
    for name, (size, _) in wanted.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != size:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
    if found:  # reading all the bytes would tell nothing more
        return found
    hashes = _in_threads(_sha256, [folder / name for name in wanted])
    for (name, (_, sha256)), actual in zip(wanted.items(), hashes, strict=True):
        if actual != sha256:
            found.append(f"{name} has other bytes than were written (SHA-256)")
    return found


def _in_threads(function, paths: Iterable[Path]) -> list:
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return list(pool.map(function, paths))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flushed_entry(path: Path) -> dict:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
