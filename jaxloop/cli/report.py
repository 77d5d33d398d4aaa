"""`jaxloop report`: the report of a run, anew from what the run wrote down."""

from collections.abc import Sequence
from pathlib import Path

from jaxloop.cli.arguments import positionals
from jaxloop.config.errors import ConfigError

USAGE = """\
jaxloop report OUT

Writes OUT/report.html from the metrics and records in OUT; also of a run that is still
going on or was cut off.
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command; `argv` are the words after `report`."""
    (out,) = positionals(argv, ["OUT"], USAGE)
    if not Path(out).is_dir():
        raise ConfigError(f"report: there is no folder {out}")

    from jaxloop.report import build_report

    print(build_report(Path(out)))
    return 0
