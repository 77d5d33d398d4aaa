"""`jaxloop sample`: answers of a saved model to one prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from jaxloop.cli.arguments import Help
from jaxloop.config.errors import ConfigError
from jaxloop.config.help import format_help
from jaxloop.config.overrides import apply_overrides, split_items

USAGE = """\
jaxloop sample DIR "PROMPT" [name=value ...]

DIR is a Hugging Face directory or a checkpoint of a run, OUT/checkpoints/latest. The
settings are those of sampling, n=2 temperature=0.7 max_new_tokens=64, and these:
"""


@dataclass(frozen=True)
class Options:
    """What this command has beside the settings of sampling."""

    seed: int = 0
    """Another seed gives other samples; the same seed the same ones."""
    chat: bool = False
    """Put the prompt into the model's chat template as a user's message."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; `argv` are the words after `sample`."""
    rest = [word for word in argv if word not in ("-h", "--help")]
    if not rest and argv:
        raise Help(f"{USAGE}\n{format_help(Options())}")
    helping = len(rest) < len(argv)
    if len(rest) < 2 and not helping:
        raise ConfigError(f'sample takes DIR and "PROMPT"\n\n{USAGE}')

    from jaxloop.sampling.settings import Sampling

    default = replace(Sampling(), n=1)
    if helping:
        raise Help(f"{USAGE}\n{format_help(Options())}\n{format_help(default)}")
    path, prompt, *items = rest
    options, sampling = _settings(Options(), default, items)

    from jaxloop.loop.serve import sample_text

    texts = sample_text(path, prompt, sampling, options.seed, options.chat)
    for index, text in enumerate(texts):
        if sampling.n > 1:
            print(f"--- {index + 1} of {sampling.n}")
        print(text, flush=True)
    return 0


def _settings(options: Options, sampling, items: Sequence[str]):
    """Both with the overrides of their fields; all problems in one ConfigError."""
    pairs, problems = split_items(items)
    own = {field.name for field in fields(options)}
    results = []
    for target, mine in ((options, True), (sampling, False)):
        words = [
            f"--{name}" if text is None else f"{name}={text}"
            for name, text in pairs
            if (name in own) == mine
        ]
        flags = [f"--{name}" for name in sorted(own)]
        try:
            results.append(apply_overrides(target, words, flags=flags))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return tuple(results)
