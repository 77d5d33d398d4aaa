"""Functions such as users write, and such as go wrong. Loaded by path, as a config
is."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time


def share_of_gold(prompt, completion, answer, **columns):
    return completion.count(answer) / max(len(completion), 1)


def only_answer(prompt, completion, answer):
    return completion == answer


def naughty(prompt, completion, **columns):
    """Does what the completion says."""
    match completion:
        case "none":
            return None
        case "nan":
            return float("nan")
        case "inf":
            return float("-inf")
        case "raise":
            raise KeyError("the lost key")
        case "text":
            return "1.0"
        case "exit":
            sys.exit(0)
        case "hang":
            while True:
                pass
        case "stubborn":
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            time.sleep(1000)
        case "die":
            os._exit(3)
        case "print":
            os.write(1, b"noise on standard output\n" * 40_000)
            print('{"number": 0, "value": 99.0}')
        case "long":
            raise ValueError("x" * 10_000_000)
        case "child":
            child = subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(99)"]
            )
            with open(columns["pids"], "a") as file:
                file.write(f"{child.pid}\n")
            time.sleep(1000)
        case "read":
            return float(len(sys.stdin.read()))
    return 1.0


def imports(prompt, completion):
    return float("jax" in sys.modules) + 2 * float("numpy" in sys.modules)


def process(prompt, completion):
    time.sleep(0.02)
    return os.getpid()


async def patient(prompt, completion, **columns):
    match completion:
        case "late":
            await asyncio.sleep(1000)
        case "deaf":
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1000)
        case "block":
            time.sleep(1000)
        case "raise":
            raise RuntimeError("no")
        case "die":
            os._exit(3)
    await asyncio.sleep(0.2)
    return float(completion)


class Rules:
    @staticmethod
    def length(prompt, completion):
        return len(completion)
