"""`jaxloop prompts`: what the model of a configuration writes, as training data."""

import sys
from collections.abc import Sequence

from jaxloop.cli.run import read_words
from jaxloop.cli.supervisor import enter
from jaxloop.config.compare import changed_from

USAGE = """\
jaxloop prompts CONFIG.py[:VARIANT] [name=value ...]

Runs the prompt maker of the configuration (`prompts`) on the prompts of its data, with
the model that it starts from, and writes OUT/prompts.jsonl (out=OUT): rows as those of
data.train, with the answer where one was written, and where they come from. Give the
same command again after an interruption. `jaxloop run` does this by itself, in front of
the recipe. With a config file, --help lists every setting.
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command; `argv` are the words after `prompts`."""
    if (code := enter(["prompts", *argv])) is not None:
        return code
    asked = read_words(argv, USAGE)

    from jaxloop.distributed import is_first

    changes = changed_from(asked.default, asked.config)
    if changes and is_first():
        print(f"changed from {asked.spec}:\n{changes}", file=sys.stderr, flush=True)

    from jaxloop.loop.writing import write_prompts

    return write_prompts(asked.config, argv=["jaxloop", "prompts", *argv])
