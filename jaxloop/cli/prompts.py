"""`jaxloop prompts`: what the model of a configuration writes, as training data."""

import sys
from collections.abc import Sequence

from jaxloop.cli.arguments import Help
from jaxloop.cli.run import config_and_overrides, resolve
from jaxloop.config.compare import changed_from
from jaxloop.config.help import format_help
from jaxloop.config.loading import load_config

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
    rest = [word for word in argv if word not in ("-h", "--help")]
    helping = len(rest) < len(argv)
    if helping and not rest:
        raise Help(USAGE)
    spec, overrides = config_and_overrides(rest, USAGE)
    default = load_config(spec)
    if helping:
        raise Help(f"{USAGE}\n{format_help(default)}")
    config = resolve(default, overrides, ("--help",))
    changes = changed_from(default, config)
    if changes:
        print(f"changed from {spec}:\n{changes}", file=sys.stderr, flush=True)

    from jaxloop.loop.writing import write_prompts

    return write_prompts(config, argv=["jaxloop", "prompts", *argv])
