"""All processes of a job report to the first one, which says who is still to come.

Lines of JSON over TCP, on the port that jax's coordinator takes afterwards.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from jaxloop.job import Job

SAY_EVERY = 15.0
LINE_BYTES = 1 << 16
PEER_SECONDS = 60
"""After so long without a sign of its host a process counts as lost."""
Say = Callable[[str], None]


class Refused(Exception):
    """The processes are not of the same job."""


class Link:
    """A connection on which lines of JSON are sent and received."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self.unread = b""
        connection.setblocking(False)
        _notice_lost_hosts(connection)

    def send(self, message: dict[str, Any]) -> None:
        """A short line; one who is gone does not hear it."""
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The lines that have arrived; None at the end, and where it is no JSON."""
        try:
            data = self.socket.recv(LINE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        *lines, self.unread = (self.unread + data).split(b"\n")
        if not data or len(self.unread) > LINE_BYTES:
            return None
        try:
            found = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return found if all(isinstance(line, dict) for line in found) else None


def _notice_lost_hosts(connection: socket.socket) -> None:
    """The kernel asks a silent peer whether it is there: a host without power says
    nothing when it goes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    settings = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}
    settings["TCP_USER_TIMEOUT"] = 1000 * PEER_SECONDS
    for name, value in settings.items():
        if option := getattr(socket, name, None):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def call_roll(
    job: Job, same: str, deadline: float, say: Say
) -> tuple[list[str], dict[int, Link]]:
    """For the first process: the hosts of all, and a link to each of the others.

    `same`: what all must have in common. Refused where one does not, TimeoutError at
    `deadline` (of time.monotonic), naming those that did not come.
    """
    port, began = int(job.address.rpartition(":")[2]), time.monotonic()
    hosts, links = {0: socket.gethostname()}, {}
    said = began
    with _listen(port) as listener, DefaultSelector() as selector:
        selector.register(listener, EVENT_READ, None)
        while len(hosts) < job.processes:
            for key, _ in selector.select(1.0):
                if key.data is None:
                    link = Link(listener.accept()[0])
                    selector.register(link.socket, EVENT_READ, link)
                    continue
                link = key.data
                lines = link.receive()
                for line in lines or ():
                    process, host = _checked(line, job, same, [*links.values(), link])
                    hosts[process], links[process] = host, link
                if lines is None:  # it may come back
                    selector.unregister(link.socket)
                    link.socket.close()
                    for process in [k for k, of in links.items() if of is link]:
                        del hosts[process], links[process]
            now = time.monotonic()
            if now >= deadline:
                raise TimeoutError(f"{_roll(job, hosts)} after {now - began:.0f} s")
            if now - said >= SAY_EVERY:
                said = now
                say(_roll(job, hosts))
    in_order = [hosts[process] for process in range(job.processes)]
    for link in links.values():
        link.send({"hosts": in_order})
    names = ", ".join(dict.fromkeys(in_order))
    say(f"{job.processes} processes are here, on {names}")
    return in_order, links


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=both)


def _checked(line: dict, job: Job, same: str, links: list[Link]) -> tuple[int, str]:
    """(process, host) of one that reports; Refused, for all, where it is another's."""
    process, host = line.get("process"), str(line.get("host"))
    problem = ""
    if not isinstance(process, int) or not 0 < process < job.processes:
        problem = f"{host} reports as process {process} of {job.processes}"
    elif line.get("processes") != job.processes:
        problem = (
            f"{host} counts {line.get('processes')} processes, not {job.processes}"
        )
    elif line.get("same") != same:
        problem = (
            f"process {process} ({host}) was started otherwise than process 0: "
            f"{line.get('same')} against {same}"
        )
    if problem:
        for link in links:
            link.send({"refused": problem})
        raise Refused(problem)
    return int(process), host  # pyright: ignore[reportArgumentType]


def _roll(job: Job, hosts: dict[int, str]) -> str:
    here = ", ".join(f"{k} ({hosts[k]})" for k in sorted(hosts))
    missing = ", ".join(str(k) for k in range(job.processes) if k not in hosts)
    return (
        f"{len(hosts)} of {job.processes} processes are here: {here}; "
        f"waiting for {missing}"
    )


def answer_roll(
    job: Job, same: str, deadline: float, say: Say
) -> tuple[list[str], Link]:
    """For the others: the hosts of all, once they are there, and the link to the first.

    Refused and TimeoutError as for the first process.
    """
    hello = {"process": job.process, "processes": job.processes, "same": same}
    hello["host"] = socket.gethostname()
    host, _, port = job.address.rpartition(":")
    began = said = time.monotonic()
    while (now := time.monotonic()) < deadline:
        if now - said >= SAY_EVERY:
            said = now
            say(f"process {job.process} waits for process 0 at {job.address}")
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), 5.0)
        except OSError:
            time.sleep(0.5)
            continue
        link = Link(connection)
        link.send(hello)
        if hosts := _wait_for_all(link, deadline):
            return hosts, link
        connection.close()  # it was the end of an earlier job, or process 0 went
        time.sleep(0.5)
    raise TimeoutError(
        f"process {job.process}: not all processes were at {job.address} within "
        f"{time.monotonic() - began:.0f} s"
    )


def _wait_for_all(link: Link, deadline: float) -> list[str] | None:
    """What the first process says at last; None where the connection ends."""
    with DefaultSelector() as selector:
        selector.register(link.socket, EVENT_READ)
        while time.monotonic() < deadline:
            if not selector.select(1.0):
                continue
            lines = link.receive()
            if lines is None:
                return None
            for line in lines:
                if "refused" in line:
                    raise Refused(str(line["refused"]))
                return list(line["hosts"])
    return None
