"""Environments of the peers that jaxloop is timed against, each its own venv.

`measure(name)` makes what is missing, runs `peer_NAME.py` there and returns its JSON.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Peer:
    """What a peer needs: Python versions that will do, and pinned requirements."""

    pythons: tuple[str, ...]
    requirements: tuple[str, ...]


PEERS = {
    "trl": Peer(
        ("3.11", "3.12", "3.13"),
        ("torch==2.13.0", "transformers==5.23.0", "trl==1.16.0"),
    ),
    # Tunix 0.1.7 wants Python 3.12 and a jax on which flax 0.12.8 still works.
    "tunix": Peer(("3.12",), ("google-tunix==0.1.7", "jax==0.11.0", "flax==0.12.8")),
}


def find_python(versions: tuple[str, ...]) -> str:
    """A command that runs one of `versions` of Python; SystemExit if there is none."""
    names = [sys.executable, "python3", *(f"python{version}" for version in versions)]
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    names += sorted(glob.glob(f"{pyenv}/versions/*/bin/python3"))
    for name in names:
        path = shutil.which(name)
        if path and _version(path) in versions:
            return path
    raise SystemExit(f"no Python {' or '.join(versions)} runs here; install one")


def _version(python: str) -> str:
    """ "3.12", or "" for what is on the PATH and does not run."""
    asked = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", asked], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def ensure_venv(name: str) -> Path:
    """The Python of the venv of a peer, made at the first call (minutes)."""
    peer, folder = PEERS[name], ROOT / f".venv-peer-{name}"
    stamp, python = folder / "installed", folder / "bin" / "python"
    wanted = "\n".join(peer.requirements)
    if not (stamp.is_file() and stamp.read_text() == wanted):
        base = find_python(peer.pythons)
        print(f"making {folder.name} with {base}: {wanted.split()}", file=sys.stderr)
        subprocess.run([base, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, *peer.requirements], check=True, stdout=sys.stderr)
        stamp.write_text(wanted)
    return python


def measure(name: str, *, timeout_s: float = 1800) -> dict:
    """What `peer_NAME.py` prints, as a dict; its own messages go to stderr."""
    command = [ensure_venv(name), HERE / f"peer_{name}.py"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, timeout=timeout_s
    )
    lines = re.findall(r"^\{.*\}$", done.stdout, re.MULTILINE)
    return json.loads(lines[-1])


if __name__ == "__main__":
    for name in sys.argv[1:] or PEERS:
        print(json.dumps(measure(name)))
