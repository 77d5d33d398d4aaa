"""The code as it is here: the commit plus what is not committed, with one hash.

Every file that git tracks or does not ignore goes along, with the bytes it has now, so
all hosts run the same bits and nothing has to be pushed first.
"""

import gzip
import hashlib
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

from launch.cloud.slices import ConfigurationError

LARGEST = 256 * 2**20  # bytes of a file that is surely no code
LOCKS = ("setup.py", "pyproject.toml", "requirements.lock")


class Code(NamedTuple):
    archive: Path
    commit: str
    changed: tuple[str, ...]
    """Paths that are not as in the commit."""
    hash: str
    """Of the names, modes and bytes of all files: the same for the same code."""
    environment: str
    """Of the files that say what to install."""


def _git(root: Path, *words: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True)
    except FileNotFoundError:
        raise ConfigurationError("git is not on the PATH") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise ConfigurationError(f"git {words[0]} in {root}: {said}")
    return done.stdout


def _names(listing: bytes) -> list[str]:
    return sorted({os.fsdecode(name) for name in listing.split(b"\0") if name})


def pack(root: Path, folder: Path) -> Code:
    """Writes `folder`/code-HASH.tar.gz. ConfigurationError if git cannot say what."""
    commit = _git(root, "rev-parse", "HEAD").decode().strip()
    listing = _git(root, "ls-files", "-z", "-co", "--exclude-standard")
    differing = _git(root, "diff", "HEAD", "--name-only", "-z", "--no-renames")
    untracked = _git(root, "ls-files", "-z", "-o", "--exclude-standard")
    changed = _names(differing) + _names(untracked)
    digest, environment = hashlib.sha256(), hashlib.sha256()
    buffer = io.BytesIO()
    # No times in it: the same code is the same archive.
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name in _names(listing):
            path = root / name
            if not path.is_symlink() and not path.is_file():
                continue  # deleted, or a submodule
            _add(tar, path, name, digest)
            if name in LOCKS:
                environment.update(name.encode() + b"\0" + path.read_bytes())
    sha = digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"code-{sha}.tar.gz"
    archive.write_bytes(buffer.getvalue())
    return Code(
        archive, commit, tuple(sorted(changed)), sha, environment.hexdigest()[:16]
    )


def _add(tar: tarfile.TarFile, path: Path, name: str, digest) -> None:
    entry = tarfile.TarInfo(name)
    if path.is_symlink():
        data = b""
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
    else:
        if path.stat().st_size > LARGEST:
            raise ConfigurationError(
                f"{path} has {path.stat().st_size / 2**20:.0f} MiB: put data in a "
                "bucket, or name it in .gitignore"
            )
        data = path.read_bytes()
        entry.size = len(data)
        entry.mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
    bits = f"{name}\0{entry.mode:o}\0{entry.linkname}\0{len(data)}\0".encode()
    digest.update(bits + data)
    tar.addfile(entry, io.BytesIO(data) if data else None)


def would_be_shipped(root: Path, path: Path) -> bool:
    """Whether git would send this file along with the code."""
    path = path.resolve()
    if not path.is_relative_to(root.resolve()):
        return False
    name = str(path.relative_to(root.resolve()))
    return bool(_git(root, "ls-files", "-co", "--exclude-standard", "--", name))
