"""Words of a command line apart: the commands' own flags, and everything else."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxloop.config.errors import ConfigError


class Help(Exception):
    """Raised by a command to print its text and end with 0."""


@dataclass(frozen=True)
class Arguments:
    """A command line taken apart; `rest` keeps its order."""

    switches: frozenset[str]
    options: dict[str, str]
    rest: tuple[str, ...]


def read_arguments(
    argv: Sequence[str], *, switches: Sequence[str] = (), options: Sequence[str] = ()
) -> Arguments:
    """Takes `switches` (`--dry-run`) and `options` with a value (`--sweep X`) out.

    `_` and `-` are the same in their names. ConfigError for an option without a value.
    """
    found, values, rest = set(), {}, []
    queue = list(argv)
    while queue:
        token = queue.pop(0)
        head, equals, value = token.partition("=")
        name = head.replace("_", "-")
        if name in switches and not equals:
            found.add(name)
        elif name in options:
            if not equals and not queue:
                raise ConfigError(f"{name} needs a value")
            values[name] = value if equals else queue.pop(0)
        else:
            rest.append("--help" if token == "-h" else token)
    return Arguments(frozenset(found), values, tuple(rest))


def positionals(argv: Sequence[str], names: Sequence[str], usage: str) -> list[str]:
    """Exactly the named words, for commands that take nothing else.

    `--help` raises Help with `usage`; any other number of words is a ConfigError.
    """
    if "--help" in argv or "-h" in argv:
        raise Help(usage)
    strange = [word for word in argv if word.startswith("--")]
    if strange or len(argv) != len(names):
        what = f"does not know {strange[0]}" if strange else f"takes {' '.join(names)}"
        raise ConfigError(f"the command {what}, but got {len(argv)} words\n\n{usage}")
    return list(argv)
