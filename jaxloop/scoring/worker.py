"""The child process of a pool: loads one user-made function and answers calls of it.

Started by path (`python -P worker.py`) with the standard library alone, so that it is
there in milliseconds and never imports jax of its own accord. One JSON line in is a
batch of calls, one JSON line out the answer to one of them. What the function prints
goes to standard error; it cannot reach the pipes.
"""

import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import signal
import sys
import traceback

LONGEST_TRACEBACK = 4000  # characters, the last ones


def load(module: str, path: str, qualname: str):
    """The function `qualname` of the file `path`: imported by name where that finds it
    (relative imports then work), else by path, as a config file is."""
    found = None
    if module != "__main__":
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
    origin = found.origin if found else None
    if origin and os.path.exists(origin) and os.path.samefile(origin, path):
        value = importlib.import_module(module)
    else:
        name = "__jaxloop_main__" if module == "__main__" else module
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        value = importlib.util.module_from_spec(spec)
        sys.modules[name] = value
        spec.loader.exec_module(value)
    for part in qualname.split("."):
        value = getattr(value, part)
    return value


def arguments(call: dict) -> tuple:
    return call["prompt"], call["completion"]


def answer(value) -> dict:
    if isinstance(value, str | bytes):
        raise TypeError(f"returned {value[:80]!r}; a score is a number or None")
    return {"value": None if value is None else float(value)}


def failure() -> dict:
    return {"error": traceback.format_exc()[-LONGEST_TRACEBACK:]}


def call_once(function, call: dict) -> dict:
    try:
        return answer(function(*arguments(call), **call["columns"]))
    except BaseException:  # sys.exit() in a reward function is its error, not ours
        return failure()


async def call_all(function, calls: list[dict], deadline: float, reply) -> None:
    """All calls at once; each is cancelled at its deadline and answered when it
    ends."""

    async def one(call: dict) -> None:
        limit = asyncio.timeout(deadline)
        try:
            async with limit:
                result = answer(await function(*arguments(call), **call["columns"]))
        except BaseException:
            result = failure()
        reply(call["number"], {"timeout": True} if limit.expired() else result)

    await asyncio.gather(*(one(call) for call in calls))


def serve(requests, replies) -> None:
    def send(message: dict) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    def reply(number: int, result: dict) -> None:
        send({"number": number} | result)

    setup = json.loads(requests.readline())
    sys.path[:] = setup["sys_path"]
    try:
        function = load(setup["module"], setup["path"], setup["qualname"])
    except BaseException:
        send({"failed": failure()["error"]})
        return
    send({"ready": True})
    with asyncio.Runner() as runner:
        for line in requests:
            calls = json.loads(line)
            # The pool kills a late worker. Should the pool itself be gone by then, the
            # kernel does it, whatever the function is doing.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, setup["last_resort"])
            if inspect.iscoroutinefunction(function):
                runner.run(call_all(function, calls, setup["deadline"], reply))
            else:
                for call in calls:
                    reply(call["number"], call_once(function, call))
            signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        serve(requests, replies)
    os.killpg(0, signal.SIGKILL)  # what the function started and left behind, and this


if __name__ == "__main__":
    main()
