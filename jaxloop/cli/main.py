"""The `jaxloop` command: finds the subcommand, turns errors into exit codes.

`jaxloop.exit_codes` lists them. A command's module is imported when it is called, so
that `--help` costs nothing.
"""

import difflib
import dis
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import jaxloop
from jaxloop import exit_codes
from jaxloop.cli.arguments import Help
from jaxloop.config.errors import ConfigError

COMMANDS = {
    "run": "train: jaxloop run CONFIG.py[:VARIANT] [name=value ...]",
    "eval": "evaluate the model of a config: jaxloop eval CONFIG.py [name=value ...]",
    "prompts": "let a model write prompts: jaxloop prompts CONFIG.py [name=value ...]",
    "judge": "hold a judge against labels: jaxloop judge CONFIG.py [name=value ...]",
    "sample": 'answer a prompt: jaxloop sample DIR "PROMPT" [temperature=0.7 ...]',
    "report": "write OUT/report.html: jaxloop report OUT",
    "convert": "to Hugging Face form: jaxloop convert OUT/checkpoints/latest DIR",
}
USAGE = "\n".join(
    [
        "jaxloop: language models that improve themselves.",
        "",
        *(f"  {name:<8} {text}" for name, text in COMMANDS.items()),
        "",
        "jaxloop COMMAND --help explains a command, jaxloop run CONFIG.py --help lists",
        "every setting of a configuration. jaxloop --version prints the version.",
    ]
)

# What a `raise` of ours says to the user; any other error is a fault.
_FOR_USERS = (ValueError, OSError, ImportError, NotImplementedError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: this process's) and returns the exit code."""
    code = _run(list(sys.argv[1:] if argv is None else argv))
    if "jaxloop.distributed" in sys.modules:
        sys.modules["jaxloop.distributed"].leave(code)
    return code


def _run(argv: list[str]) -> int:
    try:
        return _dispatch(argv)
    except Help as text:
        print(text)
        return 0
    except KeyboardInterrupt:
        print("jaxloop: interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if is_for_the_user(error):
            print(f"jaxloop: {error}", file=sys.stderr)
            return exit_codes.CONFIGURATION
        traceback.print_exc()
        return exit_codes.INFRASTRUCTURE if _lost_a_peer(error) else exit_codes.FAULT


def _lost_a_peer(error: Exception) -> bool:
    """Whether the fault is of another process of the job, or of the network."""
    distributed = sys.modules.get("jaxloop.distributed")
    return distributed is not None and distributed.is_lost_peer(error)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"jaxloop {jaxloop.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        nearest = difflib.get_close_matches(argv[0], COMMANDS, n=1, cutoff=0.5)
        if ".py" in argv[0]:
            nearest = [f"run {argv[0]}"]
        hint = f"; did you mean jaxloop {nearest[0]}?" if nearest else f"\n\n{USAGE}"
        raise ConfigError(f"there is no command {argv[0]!r}{hint}")
    command = importlib.import_module(f"jaxloop.cli.{argv[0]}")
    return command.main(argv[1:])


def is_for_the_user(error: Exception) -> bool:
    """Whether an error is a message to the user rather than a fault.

    By our convention a `raise ValueError` (or of a missing file, an extra that is not
    installed) in jaxloop's own code names what to mend. The same types that come out of
    a library, or out of an expression of ours, are faults: they need their traceback.
    """
    if isinstance(error, ConfigError):
        return True
    if not isinstance(error, _FOR_USERS) or error.__traceback__ is None:
        return False
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    module = str(last.tb_frame.f_globals.get("__name__"))
    ours = module.partition(".")[0] in ("jaxloop", "jaxloop_kernels")
    instruction = last.tb_frame.f_code.co_code[last.tb_lasti]
    return ours and instruction == dis.opmap["RAISE_VARARGS"]
