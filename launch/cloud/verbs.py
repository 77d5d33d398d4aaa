"""The verbs of launch/tpu.py."""

import argparse
import dataclasses
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.cloud import commands, states
from launch.cloud.arguments import make_parser, patience_of, slice_of
from launch.cloud.commands import Host
from launch.cloud.gcloud import CloudError, Gcloud, NotThere
from launch.cloud.job import INFRASTRUCTURE, SUCCESS, Attempt, home
from launch.cloud.obliging import Obliging
from launch.cloud.relaunch import Launcher, Unavailable
from launch.cloud.ship import pack, would_be_shipped
from launch.cloud.slices import ConfigurationError, Slice, cost
from launch.cloud.states import Lost, Phase
from launch.cloud.store import Job, State, Store, place_outputs

ROOT = Path(__file__).resolve().parents[2]
Arguments = argparse.Namespace


class Signalled(BaseException):
    """A signal asked us to end; `args[0]` is its number."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def store_of(args: Arguments) -> Store:
    store = Store(Path(args.state), args.name)
    if not args.dry_run:
        return store
    # A dry run shows a beginning, and leaves what is remembered alone.
    dry, state = Store(Path(args.state) / ".dry-run", args.name), store.load()
    shutil.rmtree(dry.folder, ignore_errors=True)
    if state is not None:
        dry.save(dataclasses.replace(state, asked=False, since=0.0, ended=None))
    return dry


def known(args: Arguments) -> State:
    """What is remembered of NAME, or what the options say of it."""
    stored = Store(Path(args.state), args.name).load()
    if stored is not None:
        return stored
    if args.zone:
        return State(Slice(args.name, args.zone, "v4-8", project=args.project or ""))
    raise ConfigurationError(
        f"nothing is remembered of {args.name} in {args.state}: name its --zone (and "
        "--project)"
    )


def cloud_for(args: Arguments, spec: Slice, *, there: bool = True) -> Gcloud:
    answer = Obliging(spec, there=there) if args.dry_run else None
    return Gcloud(dry=args.dry_run, answer=answer)


def confirm(args: Arguments, spec: Slice) -> None:
    """Shows what it may cost and asks. ConfigurationError for a no."""
    print(cost(spec, args.price), file=sys.stderr, flush=True)
    if args.yes or args.dry_run:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody is here to agree to the cost: give --yes")
    if input("Create it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigurationError("not created")


def guarded(launcher: Launcher, work: Callable[[], int], *, keep: bool) -> int:
    """Does the work; whatever ends it early, the slice does not outlive it unless
    asked to. Returns the exit code; a second signal does not stop the deletion."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _signalled)
    code, clean = INFRASTRUCTURE, False
    try:
        code = work()
        clean = True
    except Signalled as signalled:
        code = 128 + signalled.args[0]
        say(f"{signal.Signals(signalled.args[0]).name}: cleaning up")
    except Unavailable as error:
        say(f"error: {error}")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if not launcher.state.asked:
            pass  # there is nothing, or what is there is not ours
        elif keep and clean:
            say(f"{launcher.spec.name} is kept; ./launch/tpu.py delete ends its cost")
        else:
            _clean_up(launcher, stop=not clean)
    return code


def _signalled(number: int, _frame: Any) -> None:
    raise Signalled(number)


def _clean_up(launcher: Launcher, *, stop: bool) -> None:
    """Stops what runs, so that it saves, and deletes the slice."""
    spec = launcher.spec
    try:
        seen = states.look(launcher.cloud, spec) if stop else None
        if seen and seen.phase is Phase.READY and launcher.state.attempt:
            attempt = Attempt(
                launcher.cloud, launcher.store, launcher.patience, seen.hosts, say
            )
            attempt.stop()
    except (CloudError, ConfigurationError) as error:
        say(str(error))
    try:
        launcher.release()
    except (Lost, CloudError, ConfigurationError) as error:
        say(
            f"{spec.name} MAY STILL COST MONEY: {error}. Its hosts delete it when its "
            f"time is up; sooner: ./launch/tpu.py delete {spec.name}"
        )


def create(args: Arguments) -> int:
    spec, store = slice_of(args), store_of(args)
    state = store.load()
    if state is not None and state.slice != spec:
        if state.asked:
            raise ConfigurationError(
                f"{args.name} is there, with other settings; delete it first"
            )
        state = None
    confirm(args, spec)
    store.save(state or State(spec))
    cloud = cloud_for(args, spec, there=False)
    launcher = Launcher(cloud, store, patience_of(args), say)

    def work() -> int:
        seen = launcher.acquire()
        say(f"{spec.name} is ready: {len(seen.hosts)} hosts")
        return SUCCESS

    with store.lock():
        return guarded(launcher, work, keep=True)


def run(args: Arguments) -> int:
    store = store_of(args)
    with store.lock():
        state = _prepare(args, store)
        if state.ended == SUCCESS:
            say(f"{args.name} is done: {state.job.out if state.job else ''}")
            return SUCCESS
        spec = state.slice
        cloud = cloud_for(args, spec, there=False)
        patience = patience_of(args)
        launcher = Launcher(cloud, store, patience, say)
        if not state.asked:
            confirm(args, spec)
        store.save(state)
        code = pack(ROOT, store.ship)
        dirty = f" + {len(code.changed)} changed files" if code.changed else ""
        say(f"code {code.hash}: commit {code.commit[:12]}{dirty}")

        def work() -> int:
            outcome = launcher.run(code, most_failures=args.failures)
            store.change(ended=outcome.code)
            if outcome.code == SUCCESS:
                say(f"{spec.name}: done; outputs in {_public(launcher.state.job)}")
            else:
                say(f"error: {spec.name}: {outcome.why}; logs beside the outputs")
            return outcome.code

        return guarded(launcher, work, keep=args.keep)


def _prepare(args: Arguments, store: Store) -> State:
    """The slice and the job, as asked for now and as remembered."""
    state = store.load()
    spec = slice_of(args, state.slice if state else None)
    job = _job_of(args, spec)
    if state is not None and state.asked and state.slice != spec:
        raise ConfigurationError(
            f"{args.name} is there, with other settings; delete it first"
        )
    if state is None:
        return State(spec, job)
    if state.job is not None and state.attempt and state.job != job:
        raise ConfigurationError(
            f"{args.name} was begun with another command:\n"
            f"  jaxloop {' '.join(state.job.command)}\n"
            "A run id stands for one run: give the same command, or another name."
        )
    return dataclasses.replace(state, slice=spec, job=job)


def _job_of(args: Arguments, spec: Slice) -> Job:
    config = args.config.partition(":")[0]
    if not would_be_shipped(ROOT, ROOT / config):
        raise ConfigurationError(
            f"{config} is not among the files of {ROOT} that git tracks or does not "
            "ignore: name a config from there"
        )
    if args.env_file and not Path(args.env_file).is_file():
        raise ConfigurationError(f"--env-file {args.env_file} is not there")
    if args.env_file and would_be_shipped(ROOT, Path(args.env_file)):
        raise ConfigurationError(
            f"--env-file {args.env_file} would be copied with the code, into the "
            "record of the run too: name it in .gitignore"
        )
    places = [word for word in args.overrides if word.startswith("out=")]
    others = [word for word in args.overrides if not word.startswith("out=")]
    out = places[-1].removeprefix("out=") if places else ""
    out, bucket, mount = place_outputs(
        spec, out, args.bucket or "", args.shared or "", keep=args.keep
    )
    env_file = str(Path(args.env_file).resolve()) if args.env_file else ""
    # Data in the bucket is read where the bucket is mounted.
    others = [word.replace(f"=gs://{bucket}/", f"={mount}/") for word in others]
    command = ("run", args.config, *others, f"out={out}")
    return Job(command, out, bucket, mount, args.extra, env_file)


def _public(job: Job | None) -> str:
    """The place of the outputs, as seen from here."""
    if job is None:
        return ""
    if job.bucket:
        return f"gs://{job.bucket}{job.out.removeprefix(job.mount)}"
    return job.out


def status(args: Arguments) -> int:
    state, cloud = _with_cloud(args)
    spec = state.slice
    seen = states.look(cloud, spec)
    age = f", {(time.time() - seen.since) / 3600:.1f} h old" if seen.since else ""
    print(
        f"{spec.describe()}\n{seen.state or seen.phase.value}{age} {seen.why}".strip()
    )
    if state.ended is not None:
        print(f"the run ended with exit code {state.ended}")
    if state.job is None:
        return SUCCESS
    print(f"jaxloop {' '.join(state.job.command)}\noutputs: {_public(state.job)}")
    print(f"attempt {state.attempt}, code {state.code or '-'}")
    if seen.phase is not Phase.READY or not state.attempt:
        return SUCCESS
    attempt = Attempt(cloud, store_of(args), patience_of(args), seen.hosts, say)
    for host, report in zip(seen.hosts, attempt.reports(), strict=True):
        if report is None:
            print(f"  {host}: no answer")
            continue
        ended = f", exit code {report.code}" if report.code is not None else ""
        print(f"  {host}: {report.stage}{ended}")
        if report.progress:
            print(f"    newest checkpoint: step {report.progress[0]}")
    return SUCCESS


def _with_cloud(args: Arguments) -> tuple[State, Gcloud]:
    state = known(args)
    if args.dry_run:
        store_of(args).save(state)
    return state, cloud_for(args, state.slice)


def _host(args: Arguments, cloud: Gcloud, spec: Slice) -> Host:
    """The one that --worker counts, among all hosts of all slices."""
    seen = states.look(cloud, spec)
    if seen.phase is not Phase.READY:
        raise ConfigurationError(
            f"{spec.name} is {seen.state or seen.phase.value} {seen.why}".strip()
        )
    if not 0 <= args.worker < len(seen.hosts):
        raise ConfigurationError(f"--worker is one of 0 to {len(seen.hosts) - 1}")
    return seen.hosts[args.worker]


def logs(args: Arguments) -> int:
    state, cloud = _with_cloud(args)
    host = _host(args, cloud, state.slice)
    # -F: an attempt may be yet to begin.
    follow = "-F " if args.follow else ""
    command = f"tail -n {args.lines} {follow}{home(state.slice)}/log"
    return cloud.attach(commands.ssh(state.slice, host, command))


def ssh(args: Arguments) -> int:
    state, cloud = _with_cloud(args)
    host = _host(args, cloud, state.slice)
    return cloud.attach(commands.ssh(state.slice, host, " ".join(args.command)))


def stop(args: Arguments) -> int:
    state, cloud = _with_cloud(args)
    if state.job is None:
        raise ConfigurationError(f"nothing runs on {args.name}")
    seen = states.look(cloud, state.slice)
    if seen.phase is not Phase.READY:
        say(f"{args.name} is {seen.state or seen.phase.value}: nothing runs")
        return SUCCESS
    Attempt(cloud, store_of(args), patience_of(args), seen.hosts, say).stop()
    say(f"{args.name} is stopped and STILL COSTS MONEY: delete ends that, run goes on")
    return SUCCESS


def delete(args: Arguments) -> int:
    state, cloud = _with_cloud(args)
    store = store_of(args)
    if store.load() is None:
        store.save(state)
    Launcher(cloud, store, patience_of(args), say).release()
    return SUCCESS


def list_all(args: Arguments) -> int:
    cloud = Gcloud(dry=args.dry_run, answer=Obliging(Slice("list", "-", "v4-8")))
    rows = [("NAME", "STATE", "MADE")]
    for direct in (False, True):
        argv = commands.list_all(args.zone, args.project or "", direct=direct)
        for found in cloud.json(argv):
            name = str(found.get("name", "")).rpartition("/")[2]
            if direct and found.get("queuedResource"):
                continue  # it stands above
            state, why = states.read_state(found)
            rows.append((name, f"{state} {why}".strip(), found.get("createTime", "")))
    for row in rows:
        print(f"{row[0]:<32} {row[1]:<24} {row[2]}".rstrip())
    return SUCCESS


def show_cost(args: Arguments) -> int:
    state = Store(Path(args.state), args.name).load()
    print(cost(slice_of(args, state.slice if state else None), args.price))
    if state is not None and (state.spent or state.since):
        held = state.spent + (time.time() - state.since if state.since else 0.0)
        chip_hours = held / 3600 * state.slice.chips
        print(f"so far {held / 3600:.2f} h: {chip_hours:.1f} chip-hours")
    return SUCCESS


VERBS = {
    "create": create,
    "run": run,
    "logs": logs,
    "status": status,
    "ssh": ssh,
    "stop": stop,
    "delete": delete,
    "list": list_all,
    "cost": show_cost,
}


def main(argv: list[str], text: str) -> int:
    """Runs a command line; `text` heads its help. Returns the exit code."""
    parser = make_parser(text, ROOT)
    cut = argv.index("--") if "--" in argv else len(argv)
    args, more = parser.parse_known_args(argv[:cut])
    # Words after an option that follows CONFIG: argparse has closed the list by then.
    words = {"run": "overrides", "ssh": "command"}.get(args.verb)
    unknown = [word for word in more if words is None or word.startswith("-")]
    if unknown or (argv[cut:] and words is None):
        parser.error(f"unrecognized arguments: {' '.join(unknown or argv[cut:])}")
    if words is not None:
        setattr(args, words, getattr(args, words) + more + argv[cut + 1 :])
    try:
        return VERBS[args.verb](args)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CloudError, Lost, NotThere) as error:
        print(f"error: {error}", file=sys.stderr)
        return INFRASTRUCTURE
    except KeyboardInterrupt:
        return 130
