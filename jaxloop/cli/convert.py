"""`jaxloop convert`: a checkpoint of a run in Hugging Face form."""

from collections.abc import Sequence
from pathlib import Path

from jaxloop.cli.arguments import positionals
from jaxloop.config.errors import ConfigError

USAGE = """\
jaxloop convert OUT/checkpoints/latest DIR

Writes the model, its configuration and its tokenizer to DIR, ready for transformers and
vLLM. Instead of `latest`: `best`, where the run was told checkpoint.best=METRIC, or a
step, OUT/checkpoints/step_00000120.
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command; `argv` are the words after `convert`."""
    source, target = map(Path, positionals(argv, ["CHECKPOINT", "DIR"], USAGE))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"convert: {target} exists and is not empty: name another DIR"
        )

    from jaxloop.loop.serve import convert_checkpoint

    print(convert_checkpoint(source, target))
    return 0
