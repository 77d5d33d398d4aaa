"""Runs on a TPU host, from the folder that launch/tpu.py copied it to.

    python3 host.py setup    code, bucket, environment
    python3 host.py check    whether all hosts see the same folder for outputs
    python3 host.py start    the supervisor, detached; once per attempt
    python3 host.py poll     how it stands
    python3 host.py stop     ends it: SIGTERM, so that it saves, then SIGKILL

Beside it lie job.json (what to run), the code, and perhaps secrets.env. The last line
of every answer is `jaxloop-host: {JSON}`; without it, nobody was reached. Plain Python
>= 3.10: it makes the environment, so it cannot need one.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIGURATION, INFRASTRUCTURE = 2, 75
TICK = 0.2  # seconds between looks at the child
PYTHONS = ("python3.13", "python3.12", "python3.11", "python3")
GCSFUSE = """set -e
export DEBIAN_FRONTEND=noninteractive
key=/usr/share/keyrings/cloud.google.asc
url=https://packages.cloud.google.com/apt
curl -fsS $url/doc/apt-key.gpg | sudo tee $key > /dev/null
echo "deb [signed-by=$key] $url gcsfuse-$(lsb_release -c -s) main" \
    | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
sudo apt-get -o DPkg::Lock::Timeout=600 update -q
sudo apt-get -o DPkg::Lock::Timeout=600 install -q -y gcsfuse
"""


class Refused(Exception):
    """(message, exit code): this host cannot run the job."""


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def write_json(path: Path, value) -> None:
    part = path.with_name(path.name + f".{os.getpid()}")
    part.write_text(json.dumps(value))
    os.replace(part, path)


JOB = read_json(HERE / "job.json")
STATUS, LOG = HERE / "status.json", HERE / "log"


def expand(path: str) -> Path:
    return Path(os.path.expanduser(path))


def run(*words: str, **options) -> None:
    """Refused, with the end of what it said, if the command fails."""
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode != 0:
        said = done.stdout.strip()[-1500:]
        raise Refused(f"{shlex.join(words)[:200]}\n{said}", INFRASTRUCTURE)


# --- setup ---------------------------------------------------------------------------


def setup(index: int) -> dict:
    code = unpack()
    mount()
    write_beside(index)
    return {"code": str(code), "environment": environment(code)}


def unpack() -> Path:
    """The code, in a folder that is either whole or not there."""
    target = HERE / f"code-{JOB['code']}"
    if target.is_dir():
        return target
    archive = HERE / f"code-{JOB['code']}.tar.gz"
    if hashlib.sha256(archive.read_bytes()).hexdigest() != JOB["archive"]:
        raise Refused(f"{archive.name} was damaged on its way", INFRASTRUCTURE)
    part = HERE / f"code-{JOB['code']}.part"
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(part, filter="data")
        else:  # older Pythons; we made the archive ourselves and checked its hash
            tar.extractall(part)
    part.rename(target)
    return target


def mount() -> None:
    """The bucket as a folder, at the same place on all hosts."""
    bucket = JOB["bucket"]
    if not bucket:
        return
    folder = expand(JOB["mount"])
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mountpoint", "-q", str(folder)]).returncode == 0:
        return
    if shutil.which("gcsfuse") is None:
        run("bash", "-c", GCSFUSE)
    # No caching of names: other hosts write too. Checkpoints take their names by
    # renaming a folder: one step in a bucket with folders (hierarchical namespace), a
    # copy of each object in any other.
    flags = ("--implicit-dirs", "--rename-dir-limit=1000000")
    cache = ("--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0")
    run("gcsfuse", *flags, *cache, bucket, str(folder))


def beside() -> Path:
    """The folder of launch records, beside the run's own, and shared like it."""
    out = expand(JOB["out"])
    return out.with_name(out.name + ".launch")


def write_beside(index: int) -> None:
    """The run's launch record, and a token by which hosts see one another."""
    folder = beside()
    try:
        tokens = folder / "hosts" / JOB["token"]
        tokens.mkdir(parents=True, exist_ok=True)
        (tokens / str(index)).write_text(os.uname().nodename + "\n")
        if index == 0:
            shutil.copy(HERE / f"code-{JOB['code']}.tar.gz", folder)
            record = folder / f"attempt-{JOB['attempt']:03d}.json"
            record.write_text(json.dumps(JOB["record"], indent=1) + "\n")
    except OSError as error:
        raise Refused(f"outputs cannot be written: {error}", CONFIGURATION) from None


def environment(code: Path) -> str:
    """A venv with what the code needs; made once for each list of requirements."""
    folder = HERE.parent / f"venv-{JOB['environment']}-{JOB['extra'] or 'plain'}"
    stamp = folder / "complete"
    if stamp.exists():
        return "found"
    shutil.rmtree(folder, ignore_errors=True)
    python = find_python()
    if python:
        run(python, "-m", "venv", str(folder))
    else:  # the images' own Python is older: uv brings one along
        run("python3", "-m", "pip", "install", "--quiet", "--user", "uv")
        uv = ("python3", "-m", "uv", "venv", "--quiet", "--seed", "--python", "3.12")
        run(*uv, str(folder))
    # jaxloop itself is installed too, for its version and entry points, but what runs
    # is the code of this attempt: it stands first on the path.
    package = f"{code}[{JOB['extra']}]" if JOB["extra"] else str(code)
    pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet")
    run(*pip, package)
    stamp.write_text("")
    return "made"


def find_python() -> str:
    asks = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    for name in PYTHONS:
        if shutil.which(name) is None:
            continue
        if subprocess.run([name, "-c", asks], stderr=subprocess.DEVNULL).returncode:
            continue
        return name
    return ""


def check() -> dict:
    tokens = beside() / "hosts" / JOB["token"]
    seen = sorted(int(path.name) for path in tokens.iterdir())
    missing = sorted(set(range(JOB["hosts"])) - set(seen))
    if missing:
        raise Refused(
            f"{expand(JOB['out'])} is not shared: hosts {missing} wrote beside it, and "
            "it is not seen here. Name a bucket or a mounted path that all hosts have.",
            CONFIGURATION,
        )
    return {"seen": len(seen)}


# --- starting ------------------------------------------------------------------------


def alive(pid) -> bool:
    """Whether a process runs that we started: pids are given out again."""
    try:
        words = Path(f"/proc/{int(pid)}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError, TypeError):
        return False
    return state != "Z" and os.fsencode(str(HERE / "supervise.py")) in words


def start(index: int) -> dict:
    status = read_json(STATUS)
    if alive(status.get("supervisor")):
        if status.get("attempt") == JOB["attempt"]:
            return {"pid": status["supervisor"], "found": True}
        stop()
    words = [sys.executable, str(HERE / "supervise.py"), str(index)]
    write_json(STATUS, {"attempt": JOB["attempt"], "stage": "starting"})
    with open(LOG, "ab") as log:
        log.write(f"=== attempt {JOB['attempt']} on host {index}\n".encode())
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=HERE,
        )
    while child.poll() is None and read_json(STATUS).get("supervisor") != child.pid:
        time.sleep(TICK / 10)
    return {"pid": child.pid, "found": False}


# --- questions -----------------------------------------------------------------------


def poll(index: int) -> dict:
    status = read_json(STATUS)
    answer = {key: status.get(key) for key in ("attempt", "stage", "code")}
    answer["alive"] = alive(status.get("supervisor"))
    if index == 0:
        answer["progress"] = progress(expand(JOB["out"]))
    return answer


def progress(out: Path) -> list:
    """(newest checkpoint, bytes of records): both last, so both are progress."""
    steps = [
        int(path.name[5:])
        for path in out.glob("checkpoints/step_*")
        if path.name[5:].isdigit()
    ]
    size = sum(path.stat().st_size for path in out.glob("records/**/*.jsonl"))
    return [max(steps, default=-1), size]


def stop() -> dict:
    """Ends the supervisor and all it started; says what was left to end."""
    status = read_json(STATUS)
    pid = status.get("supervisor", 0)
    if not alive(pid):
        return {"stopped": False}
    os.kill(pid, signal.SIGTERM)
    until = time.time() + JOB["grace"] + 10
    while alive(pid) and time.time() < until:
        time.sleep(TICK)
    if alive(pid):
        for victim in (read_json(STATUS).get("child", pid), pid):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(victim, signal.SIGKILL)
    return {"stopped": True}


def main(verb: str, index: int) -> int:
    verbs = {
        "setup": lambda: setup(index),
        "check": check,
        "start": lambda: start(index),
        "poll": lambda: poll(index),
        "stop": stop,
    }
    try:
        answer = verbs[verb]()
    except Refused as refused:
        answer = {"error": refused.args[0], "code": refused.args[1]}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}", "code": INFRASTRUCTURE}
    print("jaxloop-host: " + json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0))
