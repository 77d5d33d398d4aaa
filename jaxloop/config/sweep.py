"""`--sweep "a=1,2 b=3,4"`: the combinations of a few settings."""

import itertools
import shlex

from jaxloop.config.errors import ConfigError
from jaxloop.config.overrides import split_items
from jaxloop.config.values import split_commas


def expand_sweep(text: str) -> list[list[str]]:
    """The override lists of all combinations; the last setting varies fastest.

    Commas separate values; a value that has commas itself stands in brackets:
    `a=(1,2),(3,4)`. ConfigError for a setting without values or named twice.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--sweep {text!r}: {error}") from None
    pairs, problems = split_items(words)
    names = [name for name, _ in pairs]
    problems += [
        f"{name} has no values" for name, v in pairs if not split_commas(v or "")
    ]
    problems += [
        f"{n} is named twice" for n in dict.fromkeys(names) if names.count(n) > 1
    ]
    if not words:
        problems.append('is empty: write "a=1,2 b=3,4"')
    if problems:
        raise ConfigError([f"--sweep: {problem}" for problem in problems])
    settings = [
        [f"{name}={v}" for v in split_commas(text or "")] for name, text in pairs
    ]
    return [list(combination) for combination in itertools.product(*settings)]
