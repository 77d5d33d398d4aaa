"""What `describe` says of a slice, and the state machine over it.

    absent -> create -> waiting -> ready
                          |          |
                          v          v
                         gone  (failed, suspended, preempted) -> delete -> absent

Every step is decided by what the cloud says now, so a launcher that was killed goes on
where another left off.
"""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple

from launch.cloud import commands
from launch.cloud.commands import Host
from launch.cloud.gcloud import EXISTS, QUOTA, CloudError, Gcloud, NotThere, error_of
from launch.cloud.slices import ConfigurationError, Slice

SLOWEST = 60.0  # seconds between looks at something that takes its time


class Phase(Enum):
    ABSENT = "absent"
    WAITING = "waiting"
    """Queued or being made."""
    READY = "ready"
    LEAVING = "leaving"
    """Being taken away; what comes next is ABSENT or GONE."""
    GONE = "gone"
    """Failed or preempted: in the way of a new one until it is deleted."""


# Of queued resources (v2 API) and of nodes; a state that is not here is waited out.
PHASES = {
    "CREATING": Phase.WAITING,
    "ACCEPTED": Phase.WAITING,
    "WAITING_FOR_RESOURCES": Phase.WAITING,
    "PROVISIONING": Phase.WAITING,
    "ACTIVE": Phase.READY,
    "SUSPENDING": Phase.LEAVING,
    "DELETING": Phase.LEAVING,
    "SUSPENDED": Phase.GONE,
    "FAILED": Phase.GONE,
    "READY": Phase.READY,
    "STARTING": Phase.WAITING,
    "RESTARTING": Phase.WAITING,
    "REIMAGING": Phase.WAITING,
    "REPAIRING": Phase.WAITING,
    "STOPPING": Phase.LEAVING,
    "STOPPED": Phase.GONE,
    "PREEMPTED": Phase.GONE,
    "TERMINATED": Phase.GONE,
}


class Seen(NamedTuple):
    """What the cloud says now."""

    phase: Phase
    state: str = ""
    """In its own words."""
    why: str = ""
    """Its error, if any."""
    hosts: tuple[Host, ...] = ()
    """Of a slice that is READY."""
    since: float = 0.0
    """When the oldest node was made, seconds since 1970; 0 if there is none."""


class Lost(Exception):
    """The slice cannot be had, or went away."""


def read_state(found: Any) -> tuple[str, str]:
    """(state, error) of a parsed description; CloudError if it has no state."""
    state = found.get("state") if isinstance(found, dict) else None
    why = ""
    if isinstance(state, dict):  # a queued resource: {"state": ..., "failedData": ...}
        error = state.get("failedData", {}).get("error", {})
        why = str(error.get("message", "")) or str(state.get("stateInitiator", ""))
        state = state.get("state")
    elif isinstance(found, dict):
        why = str(found.get("healthDescription", ""))
    if not isinstance(state, str):
        raise CloudError(f"a description without a state: {str(found)[:80]}")
    return state, why


def when(text: str) -> float:
    """RFC 3339 with nanoseconds -> seconds since 1970; 0 for what cannot be read."""
    head, _, rest = text.partition(".")
    zone = "+00:00" if not rest or rest.endswith("Z") else rest.lstrip("0123456789")
    try:
        return datetime.fromisoformat(head.removesuffix("Z") + zone).timestamp()
    except ValueError:
        return 0.0


def look(cloud: Gcloud, spec: Slice) -> Seen:
    """The slice and, once it is there, each of its nodes. CloudError if nobody says."""
    try:
        state, why = read_state(cloud.json(commands.describe(spec)))
    except NotThere:
        return Seen(Phase.ABSENT)
    phase = PHASES.get(state, Phase.WAITING)
    if phase is not Phase.READY:
        return Seen(phase, state, why)
    hosts: list[Host] = []
    made = []
    for node in spec.nodes:
        try:
            found = cloud.json(commands.describe_node(spec, node))
        except NotThere:
            return Seen(Phase.GONE, "ACTIVE", f"node {node} is not there")
        state, why = read_state(found)
        phase = PHASES.get(state, Phase.WAITING)
        if phase is not Phase.READY:
            return Seen(phase, state, f"node {node}: {state} {why}".strip())
        made.append(when(str(found.get("createTime", ""))))
        for worker in range(len(found.get("networkEndpoints") or [1])):
            hosts.append(Host(node, worker, len(hosts)))
    return Seen(Phase.READY, state, why, tuple(hosts), min(made))


def waits(first: float, most: float = SLOWEST) -> Iterator[float]:
    """Seconds between looks: doubling from `first` to `most`."""
    while True:
        yield first
        first = min(2 * first, max(most, first))


def poll(step: Callable[[], Any], *, first: float, limit: float, what: str) -> Any:
    """Calls `step` until it gives something; a CloudError in it counts as nothing.

    Lost after `limit` seconds, with the last error.
    """
    until, last = time.monotonic() + limit, ""
    for wait in waits(first):
        try:
            got = step()
        except CloudError as error:
            got, last = None, f": {error}"
        if got is not None:
            return got
        left = until - time.monotonic()
        if left <= 0:
            raise Lost(f"{what} took more than {limit:g} s{last}")
        time.sleep(min(wait, left))


def acquire(
    cloud: Gcloud,
    spec: Slice,
    *,
    startup_script: str,
    remaining: int,
    first: float,
    say: Callable[[str], None],
) -> Seen:
    """A slice that is ready: found, or asked for anew as often as it takes.

    ConfigurationError for what waiting does not mend, Lost when it is not to be had
    within `spec.valid_until`.
    """
    told = ""

    def step() -> Seen | None:
        nonlocal told
        seen = look(cloud, spec)
        words = f"{spec.name}: {seen.state or seen.phase.value} {seen.why}".strip()
        if words != told:
            told = words
            say(words)
        if seen.phase is Phase.READY:
            return seen
        if seen.phase is Phase.GONE:
            if QUOTA.search(seen.why):
                cloud.run(commands.delete(spec))
                raise ConfigurationError(f"the quota does not allow it: {seen.why}")
            ask_to_delete(cloud, spec)
        if seen.phase is Phase.ABSENT:
            argv = commands.create(spec, startup_script, remaining=remaining)
            done = cloud.call(argv)
            if done.code != 0 and not EXISTS.search(done.err):
                error = error_of(argv, done)
                if isinstance(error, NotThere):  # a zone, a network, an image
                    raise ConfigurationError(str(error))
                raise error
        return None

    seen = poll(step, first=first, limit=spec.valid_until, what="getting the slice")
    if len(seen.hosts) != spec.hosts:
        say(f"{spec.name}: {len(seen.hosts)} hosts, where {spec.hosts} were expected")
    return seen


def ask_to_delete(cloud: Gcloud, spec: Slice) -> None:
    try:
        cloud.run(commands.delete(spec))
    except NotThere:
        return


def release(
    cloud: Gcloud,
    spec: Slice,
    *,
    first: float,
    limit: float,
    say: Callable[[str], None],
) -> None:
    """Deletes the slice and waits until it is gone. Lost if it does not go."""
    asked = False

    def step() -> bool | None:
        nonlocal asked
        seen = look(cloud, spec)
        if seen.phase is Phase.ABSENT:
            return True
        if seen.phase is not Phase.LEAVING or not asked:
            ask_to_delete(cloud, spec)
            asked = True
        return None

    say(f"{spec.name}: deleting")
    poll(step, first=first, limit=limit, what=f"deleting {spec.name}")
    say(f"{spec.name}: deleted")
