"""`jaxloop judge`: a judge over rows with answers, held against their labels."""

import contextlib
import sys
from collections.abc import Sequence

from jaxloop.cli.run import read_words
from jaxloop.cli.supervisor import enter

USAGE = """\
jaxloop judge CONFIG.py[:VARIANT] [name=value ...]

Runs the judge in evaluation.scorer over the answers that the rows of the data have, or
that the model writes to them; prints how often it agrees with the rows' labels and with
itself, and keeps every judgement in OUT/judgements.jsonl. Given again, an interrupted
command goes on. With a config file, --help lists every setting.
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command; `argv` are the words after `judge`."""
    if (code := enter(["judge", *argv])) is not None:
        return code
    config = read_words(argv, USAGE).config

    from jaxloop.loop.judging import judge

    with contextlib.redirect_stdout(sys.stderr):  # progress; the result is for pipes
        code, text = judge(config, argv=["jaxloop", "judge", *argv])
    if text:
        print(text)
    return code
