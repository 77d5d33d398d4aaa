"""Runs that are killed, in processes of their own.

    python crash.py KIND OUT [POINT:COUNT ...]

Runs the tiny config KIND in OUT once for each POINT, in a fork that is killed by
SIGKILL when it comes to that point for the COUNT-th time (`time:SECONDS` kills from
outside), and at last undisturbed. Imports are paid once; no fork happens after JAX has
started.
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path

import tiny_config
from jax._src import xla_bridge

from jaxloop import folders
from jaxloop.loop import models, reference, rounds, stations, updates
from jaxloop.loop import run as loop_run


def kill_at(point: str, count: int) -> None:
    """Makes this process kill itself at its COUNT-th visit of `point`."""
    seen = 0

    def visit():
        nonlocal seen
        seen += 1
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(module, name):
        original = getattr(module, name)

        def replaced(*args, **kwargs):
            visit()
            return original(*args, **kwargs)

        setattr(module, name, replaced)

    targets = {
        "sample": (rounds, "append_records"),  # sampled, not yet written
        "judge": (models, "append_records"),  # a judge wrote, not yet on disk
        "judged": (rounds, "write_records"),  # all judgements are on disk
        "sampled": (rounds, "score_metrics"),  # written, scored, nothing logged
        "reference": (reference, "rollout_logps"),
        "update": (updates, "look_and_save"),
        "evaluate": (stations, "evaluation_metrics"),
        "seal": (folders, "seal"),  # arrays are written, the manifest is not
        "place": (folders, "put_in_place"),
    }
    if point == "score":
        original = tiny_config.CountNines.__call__

        def scored(self, prompts, rollouts):
            visit()
            return original(self, prompts, rollouts)

        tiny_config.CountNines.__call__ = scored
    elif point == "term":  # SIGTERM instead, once that many updates are done
        original = updates.look_and_save

        def asked(stage, ledger, state):
            nonlocal seen
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(stage, ledger, state)

        updates.look_and_save = asked
    elif point != "time":
        before(*targets[point])


def child(kind: str, out: Path, point: str | None, count: float) -> int:
    """Forks a run; returns its exit code, -9 where it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            if point:
                kill_at(point, int(count))
            code = loop_run.run(tiny_config.config(kind, out), argv=["crash.py"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    if point == "time":
        time.sleep(count)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    kind, out, *points = sys.argv[1:]
    for text in points:
        point, count = text.split(":")
        code = child(kind, Path(out), point, float(count))
        expected = 143 if point == "term" else -9
        print(f"{text} exit {code}", flush=True)
        if code != expected and point != "time":
            sys.exit(f"{text}: the run ended with {code}, not {expected}")
    code = child(kind, Path(out), None, 0)
    assert not xla_bridge._backends, "JAX had started before the forks"
    sys.exit(code)


if __name__ == "__main__":
    main()
