"""`jaxloop eval`: the evaluation of a configuration, without training."""

import contextlib
import json
import sys
from collections.abc import Sequence

from jaxloop.cli.run import read_words
from jaxloop.cli.supervisor import enter
from jaxloop.exit_codes import DONE, PREEMPTED

USAGE = """\
jaxloop eval CONFIG.py[:VARIANT] [name=value ...]

Runs the evaluation of the configuration on its model and prints the metrics as JSON.
Nothing is trained, so there is no "first" model: a judge by it wants the directory of
that model (evaluation.scorer.by=DIR).
With a config file, --help lists every setting.
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command; `argv` are the words after `eval`."""
    if (code := enter(["eval", *argv])) is not None:
        return code
    config = read_words(argv, USAGE).config

    from jaxloop.distributed import is_first
    from jaxloop.loop.interrupt import Preempted
    from jaxloop.loop.run import evaluate

    try:
        with contextlib.redirect_stdout(sys.stderr):  # progress; JSON is for pipes
            metrics = evaluate(config)
    except Preempted:
        return PREEMPTED
    if is_first():
        print(json.dumps(metrics, indent=2))
    return DONE
