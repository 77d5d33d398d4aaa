"""One attempt: ship, set up, check, start on every host; then watch how it goes."""

import dataclasses
import hashlib
import json
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from launch.cloud import commands
from launch.cloud.commands import Host
from launch.cloud.gcloud import QUICK, SLOW, CloudError, Gcloud, NotThere, error_of
from launch.cloud.ship import Code
from launch.cloud.slices import ConfigurationError, Slice
from launch.cloud.states import Lost, Phase, look, poll, waits
from launch.cloud.store import Job, State, Store

# Exit codes of `jaxloop run` and of this launcher.
SUCCESS, FAULT, CONFIGURATION, DIVERGED, INFRASTRUCTURE = 0, 1, 2, 3, 75
AT_ONCE = 16  # calls of gcloud at a time
ANSWER = "jaxloop-host: "


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds; tests are in more of a hurry."""

    poll: float = 30.0
    """Between looks at a run, and at most at a queue."""
    first: float = 5.0
    """Until the second look at something new; doubled from then on."""
    connect: float = 900.0
    """For a new host to take connections."""
    grace: float = 120.0
    """For a run that was asked to stop, to save."""
    quiet: float = 300.0
    """Without an answer from a host before it counts as lost."""


class Report(NamedTuple):
    """What one host says of its part of the run."""

    attempt: int | None
    stage: str | None
    code: int | None
    alive: bool
    progress: tuple[int, ...] = ()


class Outcome(NamedTuple):
    """How an attempt ended."""

    code: int
    why: str
    lost: bool = False
    """The slice is of no more use."""
    progress: tuple[int, ...] = ()


def home(spec: Slice) -> str:
    """The folder on the hosts, from the user's home on."""
    return f".jaxloop/{spec.name}"


def on_all(cloud: Gcloud, hosts: Sequence[Host], call: Callable[[Host], Any]) -> list:
    """`call` for every host at once; an error is raised after all have ended."""
    pool = ThreadPoolExecutor(1 if cloud.dry else AT_ONCE)
    try:
        futures = [pool.submit(call, host) for host in hosts]
        errors = [future.exception() for future in futures]
        # What the user can mend goes before what may pass.
        errors.sort(key=lambda error: not isinstance(error, ConfigurationError))
        for error in errors:
            if error is not None:
                raise error
        return [future.result() for future in futures]
    except BaseException:
        cloud.abort()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def ask(
    cloud: Gcloud, spec: Slice, host: Host, verb: str, *, limit: float = QUICK
) -> dict:
    """What host.py answers. CloudError if nobody does, or if the fault is the host's;
    ConfigurationError for what the user can mend."""
    command = f"python3 {home(spec)}/host.py {verb} {host.index}"
    argv = commands.ssh(spec, host, command)
    done = cloud.call(argv, limit=limit)
    said = [line for line in done.out.splitlines() if line.startswith(ANSWER)]
    if not said:
        error = error_of(argv, done)
        raise error if done.code else CloudError(f"{host} does not answer: {error}")
    answer = json.loads(said[-1].removeprefix(ANSWER))
    if "error" in answer:
        kind = ConfigurationError if answer["code"] == CONFIGURATION else CloudError
        raise kind(f"{host}: {answer['error']}")
    return answer


class Attempt:
    """Starts one attempt on hosts that are there, and watches it."""

    def __init__(
        self,
        cloud: Gcloud,
        store: Store,
        patience: Patience,
        hosts: Sequence[Host],
        say: Callable[[str], None],
    ):
        state = store.load()
        assert state is not None
        assert state.job is not None
        self.cloud, self.store, self.patience = cloud, store, patience
        self.hosts, self.say = tuple(hosts), say
        self.state: State = state
        self.job: Job = state.job
        self.spec = state.slice

    def start(self, code: Code, *, expires: float) -> None:
        """Everything up to a running supervisor on each host; may be repeated."""
        number = self.state.attempt
        files = self._pack(code, number, expires)
        self.say(f"attempt {number}: connecting to {len(self.hosts)} hosts")
        # One first: it makes the keys that the others use.
        self._connect(self.hosts[0])
        on_all(self.cloud, self.hosts[1:], self._connect)
        self.say(f"attempt {number}: copying code {code.hash}")
        on_all(self.cloud, self.hosts, lambda host: self._copy(host, files))
        self.say(f"attempt {number}: setting up")
        self._each("setup", limit=SLOW)
        self._each("check")
        self._each("start")
        self.say(f"attempt {number}: started")

    def _each(self, verb: str, *, limit: float = QUICK) -> None:
        def call(host: Host) -> dict:
            return ask(self.cloud, self.spec, host, verb, limit=limit)

        on_all(self.cloud, self.hosts, lambda host: self._patiently(call, host))

    def _patiently(self, call: Callable[[Host], Any], host: Host) -> Any:
        """A second and a third try: connections break."""
        for left, wait in zip((2, 1, 0), waits(self.patience.first), strict=False):
            try:
                return call(host)
            except NotThere as error:
                raise Lost(f"{host}: {error}") from None
            except CloudError as error:
                if not left:
                    raise Lost(f"{host}: {error}") from None
                time.sleep(wait)

    def _connect(self, host: Host) -> None:
        """New hosts have no keys yet and refuse at first."""
        folder = shlex.quote(home(self.spec))
        command = f"mkdir -p {folder} && chmod 700 .jaxloop {folder}"

        def step() -> bool:
            self.cloud.run(commands.ssh(self.spec, host, command))
            return True

        try:
            poll(
                step,
                first=self.patience.first,
                limit=self.patience.connect,
                what=f"connecting to {host}",
            )
        except NotThere as error:
            raise Lost(f"{host}: {error}") from None

    def _copy(self, host: Host, files: Sequence[str]) -> None:
        folder = home(self.spec)

        def call(host: Host) -> None:
            argv = commands.scp(self.spec, host, files, f"{folder}/")
            self.cloud.run(argv, limit=SLOW)
            if self.job.env_file:
                target = f"{folder}/secrets.env"
                argv = commands.scp(self.spec, host, [self.job.env_file], target)
                self.cloud.run(argv)

        self._patiently(call, host)

    def _pack(self, code: Code, number: int, expires: float) -> list[str]:
        """Writes job.json and gathers what is copied."""
        ship = self.store.ship
        record = {
            "name": self.spec.name,
            "attempt": number,
            "commit": code.commit,
            "changed": code.changed,
            "code": code.hash,
            "command": ["jaxloop", *self.job.command],
            "slice": dataclasses.asdict(self.spec),
        }
        job = {
            "attempt": number,
            "command": self.job.command,
            "out": self.job.out,
            "bucket": self.job.bucket,
            "mount": self.job.mount,
            "extra": self.job.extra,
            "code": code.hash,
            "source": {
                "commit": code.commit,
                "uncommitted_changes": bool(code.changed),
                "code": code.hash,
            },
            "archive": hashlib.sha256(code.archive.read_bytes()).hexdigest(),
            "environment": code.environment,
            "hosts": len(self.hosts),
            "devices": self.spec.devices,
            "token": f"{number}-{secrets.token_hex(4)}",
            "expires": expires,
            "grace": self.patience.grace,
            "copy_every": max(60.0, self.patience.poll),
            "record": record,
        }
        (ship / "job.json").write_text(json.dumps(job, indent=1) + "\n")
        files = [ship / "job.json", code.archive]
        for name in ("host.py", "supervise.py"):
            shutil.copy(Path(__file__).with_name(name), ship / name)
            files.append(ship / name)
        return [str(path) for path in files]

    def reports(self) -> list[Report | None]:
        """One a host; None for a host that does not answer."""

        def call(host: Host) -> Report | None:
            try:
                answer = ask(self.cloud, self.spec, host, "poll")
            except (CloudError, NotThere, ConfigurationError):
                return None
            progress = tuple(answer.pop("progress", ()))
            return Report(**answer, progress=progress)

        return on_all(self.cloud, self.hosts, call)

    def stop(self) -> None:
        """SIGTERM everywhere, SIGKILL after the grace. Says who could not be reached,
        and never raises for it: what follows is a deletion."""

        def call(host: Host) -> str:
            try:
                limit = self.patience.grace + QUICK
                ask(self.cloud, self.spec, host, "stop", limit=limit)
            except (CloudError, NotThere, ConfigurationError) as error:
                return str(error)
            return ""

        for problem in on_all(self.cloud, self.hosts, call):
            if problem:
                self.say(f"not stopped: {problem}")

    def watch(self, *, expires: float) -> Outcome:
        """Looks until the attempt is over, one way or another."""
        progress: tuple[int, ...] = ()
        silent_since = failed_since = 0.0
        while True:
            now = time.time()
            if now > expires:
                self.stop()
                why = "the maximum age is reached"
                return Outcome(INFRASTRUCTURE, why, True, progress)
            gone = self._gone()
            if gone:
                return Outcome(INFRASTRUCTURE, gone, True, progress)
            reports = self.reports()
            before = next(iter(progress), -1)
            progress = max([progress, *(r.progress for r in reports if r)])
            step = next(iter(progress), -1)
            if step > before:
                self.say(f"newest checkpoint: step {step}")
            failed_since = failed_since or (now if any_failed(reports) else 0.0)
            late = failed_since and now > failed_since + self.patience.grace
            outcome = judge(reports, final=bool(late))
            if outcome is not None:
                if outcome.code != SUCCESS:
                    self.stop()
                return outcome._replace(progress=progress)
            silent = [
                host for host, r in zip(self.hosts, reports, strict=True) if not r
            ]
            silent_since = (silent_since or now) if silent else 0.0
            if silent and now > silent_since + self.patience.quiet:
                why = f"no answer from {', '.join(map(str, silent))}"
                return Outcome(INFRASTRUCTURE, why, True, progress)
            time.sleep(0 if self.cloud.dry else self.patience.poll)

    def _gone(self) -> str:
        """Why the slice is no longer there; empty if it is, or if nobody says."""
        try:
            seen = look(self.cloud, self.spec)
        except (CloudError, ConfigurationError) as error:
            self.say(str(error))
            return ""
        if seen.phase is Phase.READY:
            return ""
        return f"the slice is {seen.state or seen.phase.value} {seen.why}".strip()


def any_failed(reports: Sequence[Report | None]) -> bool:
    return any(r and (r.code or (r.code is None and not r.alive)) for r in reports)


def judge(reports: Sequence[Report | None], *, final: bool) -> Outcome | None:
    """How the attempt ended, or None while it goes on.

    After one host has failed the others get time to say why they did (`final`: it is
    over): a wrong setting and a divergence are verdicts, all else may be the echo of
    another host's end.
    """
    if all(r is not None and r.code == SUCCESS for r in reports):
        return Outcome(SUCCESS, "done")
    codes = [r.code for r in reports if r is not None and r.code]
    dead = any(r is not None and r.code is None and not r.alive for r in reports)
    if not codes and not dead:
        return None
    running = any(r is None or (r.code is None and r.alive) for r in reports)
    decided = CONFIGURATION in codes or DIVERGED in codes
    if running and not final and not decided:
        return None
    if CONFIGURATION in codes:
        return Outcome(CONFIGURATION, "the configuration does not allow it")
    if DIVERGED in codes:
        return Outcome(DIVERGED, "training diverged")
    said = ", ".join(
        "no answer" if r is None else "killed" if r.code is None else f"exit {r.code}"
        for r in reports
    )
    code = FAULT if codes and all(code == FAULT for code in codes) else INFRASTRUCTURE
    return Outcome(code, f"the run failed on its hosts: {said}")
