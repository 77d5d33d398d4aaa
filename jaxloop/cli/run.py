"""`jaxloop run`: a config file and overrides become a run, or only a look at one."""

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxloop.cli.arguments import Help, read_arguments
from jaxloop.cli.supervisor import enter
from jaxloop.config.compare import changed_from
from jaxloop.config.errors import ConfigError
from jaxloop.config.fields import type_problems
from jaxloop.config.help import format_help
from jaxloop.config.loading import load_config
from jaxloop.config.overrides import apply_overrides
from jaxloop.config.serialise import to_json

FLAGS = ("--print-config", "--dry-run", "--help", "--sweep", "--profile")
USAGE = """\
jaxloop run CONFIG.py[:VARIANT] [name=value ...] [flags]

Settings are written recipe.sampling.temperature=0.9, or --recipe.sampling.temperature
0.9; elements of tuples by number, recipe.filters.0.minimum=0.5. A run that was
interrupted goes on when the same command is given again.

  --help          every setting of CONFIG.py with its type, value and meaning
  --print-config  the resolved configuration as JSON, and stop
  --dry-run       check everything, print shapes and bytes for each device, and stop
  --sweep "a=1,2 b=3,4"
                  one run for each combination, in turn, in OUT/sweep-000, ...; with
                  --dry-run or --print-config only the list
  --profile 12-15 write a profile of updates 12 to 15 to OUT/profile, for TensorBoard's
                  profile plugin (pip install xprof) or Perfetto
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command; `argv` are the words after `run`."""
    words = read_arguments(argv, switches=FLAGS[:2], options=FLAGS[3:])
    helping = "--help" in words.rest
    rest = [word for word in words.rest if word != "--help"]
    if not rest and helping:
        raise Help(USAGE)
    spec, overrides = config_and_overrides(rest, USAGE)
    looking = bool(words.switches)
    working = not (helping or looking or "--sweep" in words.options)
    if working and (code := enter(["run", *argv])) is not None:
        return code
    default = load_config(spec)
    if helping:
        raise Help(f"{USAGE}\n{format_help(default)}")
    if "--sweep" in words.options:
        if "--profile" in words.options:
            raise ConfigError("--profile is of one run: leave --sweep out")
        from jaxloop.cli.sweep import sweep

        return sweep(spec, default, overrides, words.options["--sweep"], looking)
    config = resolve(default, overrides, FLAGS)
    steps = None
    if "--profile" in words.options:
        from jaxloop.loop.profile import Steps

        steps = Steps.read(words.options["--profile"])
    if "--print-config" in words.switches:
        print(json.dumps(to_json(config), indent=2, ensure_ascii=False))
    if "--dry-run" in words.switches:
        from jaxloop.loop.run import dry_run

        print(dry_run(config))
    if looking:
        return 0
    from jaxloop.distributed import is_first

    changes = changed_from(default, config)
    if changes and is_first():
        print(f"changed from {spec}:\n{changes}", file=sys.stderr, flush=True)
    from jaxloop.loop.run import run

    return run(config, argv=["jaxloop", "run", *argv], profiled=steps)


def config_and_overrides(
    words: Sequence[str], usage: str
) -> tuple[str, tuple[str, ...]]:
    """The first word is the config file, the others are overrides."""
    if not words or words[0].startswith("-") or "=" in words[0]:
        got = f", not {words[0]!r}" if words else ""
        raise ConfigError(f"the first word must be a config file{got}\n\n{usage}")
    return words[0], tuple(words[1:])


class Asked(NamedTuple):
    """What the words of a command ask for."""

    spec: str
    """CONFIG.py or CONFIG.py:VARIANT."""
    default: Any
    """The configuration as its file has it."""
    config: Any
    """With the overrides."""


def read_words(argv: Sequence[str], usage: str) -> Asked:
    """Of a command that takes a config, overrides and --help, nothing else.

    Raises Help with the usage, and with a config file every setting of it; ConfigError
    for what is wrong.
    """
    rest = [word for word in argv if word not in ("-h", "--help")]
    helping = len(rest) < len(argv)
    if helping and not rest:
        raise Help(usage)
    spec, overrides = config_and_overrides(rest, usage)
    default = load_config(spec)
    if helping:
        raise Help(f"{usage}\n{format_help(default)}")
    return Asked(spec, default, resolve(default, overrides, ("--help",)))


def resolve(default: Any, overrides: Sequence[str], flags: Sequence[str] = ()) -> Any:
    """The `Config` with overrides, its values checked against the declared types, and
    by its own `validate()` where it has one: the problems that need no device.

    ConfigError with all that is wrong. `flags`: as in `apply_overrides`.
    """
    from jaxloop.experiment import Config

    if not isinstance(default, Config):
        kind = type(default).__name__
        raise ConfigError(f"get_config must return jaxloop's Config, not {kind}")
    config = apply_overrides(default, overrides, flags=flags)
    problems = type_problems(config)
    validate = getattr(config, "validate", None)
    if validate and not problems:  # it may count on the types
        problems = validate()
    if problems:
        raise ConfigError(problems)
    return config
