"""Runs on a TPU host, detached: the devices first, then the run, then its exit code.

Whatever happens to the connection, the log and the exit code are in files, the log also
beside the outputs. SIGTERM, or the end of the time allowed, asks the run to save and
stop; what does not stop in time is killed, for a leftover process holds the TPU.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

# Its neighbour in the folder that both are copied to.
from host import (
    HERE,
    INFRASTRUCTURE,
    JOB,
    LOG,
    STATUS,
    TICK,
    beside,
    expand,
    read_json,
    write_json,
)


def write_status(**changes) -> None:
    write_json(STATUS, {**read_json(STATUS), **changes, "time": time.time()})


class Supervisor:
    """Devices first, then the run; records how it ended, whatever happens."""

    def __init__(self, index: int):
        self.index = index
        self.child: subprocess.Popen | None = None
        self.asked_at = 0.0
        self.copied_at = time.time()
        signal.signal(signal.SIGTERM, self._asked)

    def _asked(self, *_):
        self.asked_at = self.asked_at or time.time()

    def main(self) -> int:
        write_status(supervisor=os.getpid(), stage="devices", code=None)
        python = HERE.parent / f"venv-{JOB['environment']}-{JOB['extra'] or 'plain'}"
        python = str(python / "bin" / "python")
        code = self.run([python, str(HERE / "supervise.py"), "devices"])
        if code == 0:
            write_status(stage="run")
            code = self.run([python, "-m", "jaxloop", *JOB["command"]])
        print(f"=== ended with exit code {code}", flush=True)
        self.copy_log()
        write_status(stage="ended", code=code)
        return code

    def run(self, words) -> int:
        """Exit code; 128 + N for an end by signal N, as shells have it."""
        code = HERE / f"code-{JOB['code']}"
        home = f"={expand('~')}/"
        words = [word.replace("=~/", home, 1) for word in words]
        env = {**os.environ, **secrets(), "PYTHONUNBUFFERED": "1"}
        env["PYTHONPATH"] = f"{code}{os.pathsep}{code / 'kernels'}"
        env["JAXLOOP_SOURCE"] = json.dumps(JOB["source"])  # there is no git to ask
        self.child = subprocess.Popen(words, cwd=code, env=env, start_new_session=True)
        write_status(child=self.child.pid)
        told = False
        while self.child.poll() is None:
            now = time.time()
            if now > JOB["expires"] and not self.asked_at:
                print("=== its time is up", flush=True)
                self.asked_at = now
            if self.asked_at and not told:
                told = True
                self.child.send_signal(signal.SIGTERM)
            if self.asked_at and now > self.asked_at + JOB["grace"]:
                self.kill()
            if now > self.copied_at + JOB["copy_every"]:
                self.copy_log()
            time.sleep(TICK)
        self.kill()  # what it left behind holds the TPU
        result = self.child.returncode
        return 128 - result if result < 0 else result

    def kill(self) -> None:
        assert self.child is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)

    def copy_log(self) -> None:
        """To the shared folder: a preempted host takes its own disk along."""
        self.copied_at = time.time()
        name = f"attempt-{JOB['attempt']:03d}-host-{self.index}.log"
        try:
            (beside() / "logs").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(LOG, beside() / "logs" / name)
        except OSError as error:
            print(f"=== the log cannot be copied: {error}", flush=True)


def secrets() -> dict:
    """NAME=VALUE lines of secrets.env, with or without `export` and quotes."""
    try:
        text = (HERE / "secrets.env").read_text()
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "export":
            words = words[1:]
        for word in words:
            name, equals, value = word.partition("=")
            if equals:
                found[name] = value
    return found


def devices() -> int:
    """All devices of all hosts are seen from here; every host asks at the same time."""
    hosts, total = JOB["hosts"], JOB["devices"]
    try:
        # As the run itself will do, from the code of this attempt.
        from jaxloop.distributed import init_distributed

        init_distributed()
        import jax

        here, everywhere = jax.local_device_count(), jax.device_count()
        kind = jax.devices()[0].device_kind
    except Exception as error:
        print(f"devices: {type(error).__name__}: {error}", flush=True)
        return INFRASTRUCTURE
    print(f"devices: {here} here, {everywhere} in all, of kind {kind}", flush=True)
    if everywhere != total or here * hosts != total:
        print(
            f"devices: {total} in all and {total // hosts} here were expected: a host "
            "of this slice is broken, or it is not the slice that was asked for",
            flush=True,
        )
        return INFRASTRUCTURE
    return 0


if __name__ == "__main__":
    asked = sys.argv[1]
    sys.exit(devices() if asked == "devices" else Supervisor(int(asked)).main())
