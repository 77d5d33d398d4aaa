"""The command line of launch/tpu.py: its words, and the values made of them."""

import argparse
import dataclasses
from pathlib import Path

from launch.cloud.job import Patience
from launch.cloud.slices import TIERS, ConfigurationError, Slice, seconds

EXAMPLES = """\
examples:
  tpu.py cost   try1 --zone europe-west4-a --accelerator v6e-16 --max-age 6h
  tpu.py run    try1 --zone europe-west4-a --accelerator v6e-16 --bucket gs://b CONFIG
  tpu.py logs   try1 -f --worker 2
  tpu.py delete try1
"""


def _asks_for_a_slice(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the slice")
    group.add_argument("--zone", help="for example europe-west4-a")
    group.add_argument("--project", help="default: gcloud's own")
    group.add_argument(
        "--accelerator", help="v6e-16, v5litepod-8, v4-32, ...; or v4 and --topology"
    )
    group.add_argument("--topology", help="chips in each direction, 4x4 or 2x2x4")
    tier = group.add_mutually_exclusive_group()
    words = {
        "spot": "can be preempted (default)",
        "on-demand": "is not preempted",
        "reserved": "from a reservation of yours",
        "flex": "flex-start: for a set time, which the cloud itself ends (alpha)",
    }
    for name in TIERS:
        tier.add_argument(
            f"--{name}", dest="tier", action="store_const", const=name, help=words[name]
        )
    group.add_argument("--slices", type=int, help="more than 1: multislice")
    group.add_argument(
        "--direct", action="store_true", default=None, help="no queue: tpu-vm create"
    )
    group.add_argument("--runtime", help="image of the hosts, where not the usual one")
    group.add_argument("--network")
    group.add_argument("--subnetwork")
    group.add_argument("--service-account", help="of the hosts")
    group.add_argument(
        "--valid-until", metavar="12h", help="how long to wait in the queue"
    )
    group.add_argument(
        "--max-age", metavar="24h", help="how long chips may be held, all in all"
    )
    group.add_argument("--price", type=float, help="of a chip-hour, for the estimate")


def _asks_for_a_job(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the run")
    group.add_argument("config", help="configs/FILE.py[:VARIANT], from the repository")
    group.add_argument("overrides", nargs="*", help="a.b=3, as for `jaxloop run`")
    group.add_argument(
        "--bucket", help="gs://NAME[/PREFIX] for outputs, mounted on every host"
    )
    group.add_argument("--shared", help="or a path that is mounted on all hosts")
    group.add_argument(
        "--env-file", help="NAME=VALUE lines for the run: secrets go here only"
    )
    group.add_argument("--extra", default="tpu", help=argparse.SUPPRESS)
    group.add_argument(
        "--failures",
        type=int,
        default=3,
        help="relaunches in a row without progress before giving up (default 3)",
    )
    group.add_argument(
        "--keep", action="store_true", help="do not delete the slice at the end"
    )


def make_parser(text: str, root: Path) -> argparse.ArgumentParser:
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument(
        "--dry-run", action="store_true", help="print every command, run none"
    )
    every.add_argument(
        "--state", default=str(root / "runs" / "tpu"), help="where runs are remembered"
    )
    for field in dataclasses.fields(Patience):
        every.add_argument(
            f"--{field.name}", type=float, default=field.default, help=argparse.SUPPRESS
        )
    parser = argparse.ArgumentParser(
        prog="tpu.py",
        description=text,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, help: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help, description=help, parents=[every])
        if name != "list":
            added.add_argument("name", help="of the slice and the run")
        return added

    for name, help in (
        ("create", "get a slice, and nothing else"),
        ("run", "get a slice if need be, run a config on it, delete it"),
        ("cost", "chip-hours at most"),
    ):
        added = verb(name, help)
        _asks_for_a_slice(added)
        if name != "cost":
            added.add_argument("--yes", action="store_true", help="do not ask")
        if name == "run":
            _asks_for_a_job(added)
    for name, help in (
        ("status", "what the cloud and the hosts say"),
        ("logs", "the log of one host"),
        ("ssh", "a shell or a command on one host"),
        ("stop", "end the run so that it can go on; the slice stays"),
        ("delete", "delete the slice; a run can go on with a new one"),
        ("list", "all TPUs of a zone"),
    ):
        added = verb(name, help)
        added.add_argument("--zone", required=name == "list")
        added.add_argument("--project")
        if name in ("logs", "ssh"):
            added.add_argument("--worker", type=int, default=0, help="which host")
        if name == "logs":
            added.add_argument("-f", "--follow", action="store_true")
            added.add_argument("-n", "--lines", type=int, default=100)
        if name == "ssh":
            added.add_argument("command", nargs="*", help="default: a shell")
    return parser


def slice_of(args: argparse.Namespace, before: Slice | None = None) -> Slice:
    """What the options ask for; what they leave open is as before."""
    durations = {"valid_until": args.valid_until, "max_age": args.max_age}
    given = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(Slice)
        if field.name not in durations and getattr(args, field.name) is not None
    }
    given |= {key: seconds(text) for key, text in durations.items() if text}
    if before is not None:
        return dataclasses.replace(before, **given)
    missing = [name for name in ("zone", "accelerator") if name not in given]
    if missing:
        raise ConfigurationError(
            f"nothing is remembered of {args.name}: give --{' and --'.join(missing)}"
        )
    return Slice(**given)


def patience_of(args: argparse.Namespace) -> Patience:
    if args.dry_run:
        return Patience(poll=0, first=0)
    fields = dataclasses.fields(Patience)
    return Patience(**{field.name: getattr(args, field.name) for field in fields})
