"""A gcloud whose cloud is a folder ($FAKE_CLOUD) and whose hosts are local processes.

    orders.json    what it is told to do (tests write it; see ORDERS)
    state.json     queued resources and nodes
    calls.jsonl    every command line
    hosts/NODE/W/  the home of worker W; FAKE_HOST is in its processes' environment
    buckets/B/     a bucket

It takes the flags of the real command's synopsis and no others.
"""

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
ORDERS = {
    "polls": 1,  # times that `describe` says it waits before it is ready
    "hosts": 1,  # of one slice
    "ssh_refusals": 0,  # of each host, before it takes connections
    "preempt": [],  # globs under $FAKE_CLOUD: preempted, once each, when there is one
    "fail": "",  # the request FAILS with this message
    "faults": [],  # {"match": words, "times": 1, "hang"|"text"|"error": ...}, in turn
    "boot": False,  # whether hosts run their startup script
    "host_env": {},
}
PLACE = {"--zone", "--project", "--quiet", "--format"}
MAKE = {"--accelerator-type", "--type", "--topology", "--async", "--labels", "--spot"}
MAKE |= {"--metadata-from-file", "--network", "--subnetwork", "--service-account"}
MAKE |= {"--scopes", "--reserved"}
QUEUE = {"--runtime-version", "--node-id", "--node-count", "--node-prefix"}
QUEUE |= {"--valid-until-duration"}
FLEX = {"--provisioning-model", "--max-run-duration"}
FLAGS = {
    "queued-resources create": PLACE | MAKE | QUEUE,
    "alpha queued-resources create": PLACE | MAKE | QUEUE | FLEX,
    "queued-resources describe": PLACE,
    "queued-resources delete": PLACE | {"--force", "--async"},
    "queued-resources list": PLACE,
    "tpu-vm create": PLACE | MAKE | {"--version"},
    "tpu-vm describe": PLACE,
    "tpu-vm delete": PLACE | {"--async"},
    "tpu-vm list": PLACE,
    "tpu-vm ssh": PLACE | {"--worker", "--command"},
    "tpu-vm scp": PLACE | {"--worker"},
}
OTHERS = {
    "auth login": set(),
    "config set": set(),
    "projects create": set(),
    "projects delete": set(),
    "projects add-iam-policy-binding": {"--member", "--role"},
    "billing projects link": {"--billing-account"},
    "services enable": set(),
    "iam service-accounts create": set(),
    "compute tpus locations list": set(),
    "compute tpus accelerator-types list": {"--zone"},
    "compute tpus tpu-vm versions list": {"--zone"},
    "storage buckets create": {"--location", "--uniform-bucket-level-access"}
    | {"--enable-hierarchical-namespace"},
    "storage buckets add-iam-policy-binding": {"--member", "--role"},
    "storage cp": set(),
    "storage ls": set(),
    "storage rm": {"--recursive"},
}


class Fails(Exception):
    pass


def load(name: str, default):
    try:
        return json.loads((CLOUD / name).read_text())
    except FileNotFoundError:
        return default


def save(name: str, value) -> None:
    part = CLOUD / f"{name}.{os.getpid()}"
    part.write_text(json.dumps(value, indent=1))
    os.replace(part, CLOUD / name)


@contextlib.contextmanager
def state():
    with open(CLOUD / "state.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = load("state.json", {"queued": {}, "nodes": {}, "used": {}})
        try:
            yield found
        finally:
            save("state.json", found)


def order(name: str):
    return load("orders.json", {}).get(name, ORDERS[name])


# --- faults --------------------------------------------------------------------------


def misbehave(words: list[str]) -> None:
    """The first fault that matches and is not used up."""
    with state() as now:
        for index, fault in enumerate(order("faults")):
            used = now["used"].get(f"fault {index}", 0)
            if used >= fault.get("times", 1) or not fault_matches(fault, words):
                continue
            now["used"][f"fault {index}"] = used + 1
            break
        else:
            return
    if fault.get("hang"):
        time.sleep(3600)
    if "text" in fault:
        print(fault["text"])
        sys.exit(0)
    raise Fails(fault["error"])


def fault_matches(fault: dict, words: list[str]) -> bool:
    line = " ".join(words)
    return all(part in line for part in fault["match"])


# --- resources -----------------------------------------------------------------------


def accelerator(flags: dict):
    kinds = [flags.get("--accelerator-type"), flags.get("--type")]
    if bool(kinds[0]) == bool(kinds[1]) or bool(kinds[1]) != ("--topology" in flags):
        raise Fails("INVALID_ARGUMENT: exactly one of the ways to give a size")
    return kinds[0] or kinds[1]


def create(kind: str, name: str, flags: dict) -> None:
    with state() as now:
        if name in now["queued"] or name in now["nodes"]:
            raise Fails(f"ALREADY_EXISTS: {name} already exists")
        script = flags["--metadata-from-file"].removeprefix("startup-script=")
        request = {
            "accelerator": accelerator(flags),
            "script": Path(script).read_text(),
            "polls": 0,
            "port": free_port(),
        }
        if kind == "tpu-vm":
            add_nodes(now, request, [name], "")
            return
        if "--node-id" in flags:
            request["names"] = [flags["--node-id"]]
        else:
            count, prefix = int(flags["--node-count"]), flags["--node-prefix"]
            request["names"] = [f"{prefix}-{index}" for index in range(count)]
        now["queued"][name] = request | {"state": "WAITING_FOR_RESOURCES"}


def free_port() -> int:
    import socket  # here and below: most calls need none of them, and start sooner

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def add_nodes(now: dict, request: dict, names: list[str], queued: str) -> None:
    made = time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime())
    total, index = len(names) * order("hosts"), 0
    for name in names:
        now["nodes"][name] = {
            "state": "READY",
            "createTime": made,
            "queuedResource": queued,
            "first": index,
            "hosts": order("hosts"),
            "total": total,
            "port": request["port"],
        }
        for worker in range(order("hosts")):
            home(name, worker).mkdir(parents=True)
            if order("boot"):
                import subprocess

                subprocess.Popen(
                    ["bash", "-c", request["script"]],
                    env=environment(now["nodes"][name], name, worker),
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
        index += order("hosts")


def remove_node(now: dict, name: str) -> None:
    """Its processes die and its disks go."""
    import shutil

    node = now["nodes"].pop(name, None)
    if node is None:
        return
    folder = CLOUD / "hosts" / name
    kill_all(str(folder) + "/")
    shutil.rmtree(folder, ignore_errors=True)


def kill_all(prefix: str) -> None:
    """Ends the processes that were started on hosts whose home begins so."""
    mark = b"FAKE_HOST=" + os.fsencode(prefix)
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int(folder.name) == os.getpid():
                continue  # a host may delete itself
            entries = (folder / "environ").read_bytes().split(b"\0")
            if any(entry.startswith(mark) for entry in entries):
                os.kill(int(folder.name), signal.SIGKILL)


def home(node: str, worker: int) -> Path:
    return CLOUD / "hosts" / node / str(worker)


def preempt(now: dict) -> None:
    for index, pattern in enumerate(order("preempt")):
        if now["used"].get(f"preempt {index}") or not any(CLOUD.glob(pattern)):
            continue
        now["used"][f"preempt {index}"] = True
        for name in list(now["nodes"]):
            remove_node(now, name)
        for request in now["queued"].values():
            request["state"] = "SUSPENDED"


def describe(kind: str, name: str) -> dict:
    with state() as now:
        preempt(now)
        if kind == "tpu-vm":
            if name not in now["nodes"]:
                raise Fails(f"NOT_FOUND: {name} was not found")
            node = now["nodes"][name]
            ends = [{"ipAddress": f"10.0.0.{w}"} for w in range(node["hosts"])]
            return node | {"name": f"projects/p/nodes/{name}", "networkEndpoints": ends}
        if name not in now["queued"]:
            raise Fails(f"NOT_FOUND: queued resource {name} was not found")
        request = now["queued"][name]
        request["polls"] += 1
        if request["state"] == "WAITING_FOR_RESOURCES" and order("fail"):
            request["state"] = "FAILED"
        waited = request["polls"] > order("polls")
        if request["state"] == "WAITING_FOR_RESOURCES" and waited:
            request["state"] = "ACTIVE"
            add_nodes(now, request, request["names"], name)
        described = {"state": request["state"]}
        if request["state"] == "FAILED":
            described["failedData"] = {"error": {"code": 8, "message": order("fail")}}
        return {"name": f"projects/p/queuedResources/{name}", "state": described}


def delete(kind: str, name: str) -> None:
    with state() as now:
        if kind == "tpu-vm":
            if name not in now["nodes"]:
                raise Fails(f"NOT_FOUND: {name}")
            remove_node(now, name)
            return
        if name not in now["queued"]:
            raise Fails(f"NOT_FOUND: {name}")
        for node in now["queued"].pop(name)["names"]:
            remove_node(now, node)


def listing(kind: str) -> list:
    with state() as now:
        names = list(now["queued" if kind == "queued-resources" else "nodes"])
    return [describe(kind, name) for name in names]


# --- hosts ---------------------------------------------------------------------------


def environment(node: dict, name: str, worker: int) -> dict:
    """Of every process on a host. A real TPU host has the rest in its metadata."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home(name, worker)),
        "FAKE_CLOUD": str(CLOUD),
        "FAKE_HOST": str(home(name, worker)),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{node['port']}",
        "JAX_NUM_PROCESSES": str(node["total"]),
        "JAX_PROCESS_ID": str(node["first"] + worker),
        **order("host_env"),
    }


def host(name: str, flags: dict) -> tuple[dict, int]:
    worker = int(flags["--worker"])
    with state() as now:
        node = now["nodes"].get(name)
        if node is None:
            raise Fails(f"NOT_FOUND: node {name} was not found")
        refused = now["used"].get(f"ssh {name} {worker}", 0)
        if refused < order("ssh_refusals"):
            now["used"][f"ssh {name} {worker}"] = refused + 1
            raise Fails("[/usr/bin/ssh] exited with return code [255].")
    return node, worker


def ssh(name: str, flags: dict) -> int:
    import subprocess

    node, worker = host(name, flags)
    words = ["bash", "-c", flags.get("--command", "echo a shell on $HOME")]
    folder = home(name, worker)
    env = environment(node, name, worker)
    return subprocess.run(words, cwd=folder, env=env).returncode


def scp(words: list[str], flags: dict) -> None:
    import shutil

    *files, target = words
    name, _, path = target.partition(":")
    _, worker = host(name, flags)
    folder = home(name, worker)
    for file in files:
        shutil.copy(file, folder / path)


# --- what is not about TPUs ----------------------------------------------------------


def other(words: list[str], flags: dict) -> None:
    import shutil

    line = " ".join(words)
    verb = next((verb for verb in OTHERS if f"{line} ".startswith(f"{verb} ")), None)
    if verb is None or set(flags) - OTHERS[verb]:
        raise Fails(f"Invalid choice: {line} {sorted(flags)}")
    places = [
        CLOUD / "buckets" / word.removeprefix("gs://")
        if "gs://" in word
        else Path(word)
        for word in words[len(verb.split()) :]
    ]
    if verb == "storage buckets create":
        places[0].mkdir(parents=True)
    elif verb == "storage ls":
        print(*sorted(path.name for path in places[0].iterdir()), sep="\n")
    elif verb == "storage rm":
        shutil.rmtree(places[0])
    elif verb == "storage cp":
        *files, target = places
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(file, target)


def main(argv: list[str]) -> int:
    with open(CLOUD / "calls.jsonl", "a") as calls:
        calls.write(json.dumps(argv) + "\n")
    plain = [word for word in argv if not word.startswith("--")]
    words = [word.partition("=") for word in argv if word.startswith("--")]
    flags = {name: value for name, _, value in words}
    track = ["alpha"] if plain[0] == "alpha" else []
    area, kind, verb, *rest = [*plain[len(track) + 1 :], "", ""]
    rest = [word for word in rest if word]
    allowed = FLAGS.get(" ".join([*track, kind, verb]))
    try:
        if area != "tpus" or allowed is None:
            other(plain, flags)
            return 0
        if set(flags) - allowed:
            raise Fails(f"unrecognized arguments: {sorted(set(flags) - allowed)}")
        misbehave(argv)
        if verb == "create":
            create(kind, rest[0], flags)
        elif verb == "describe":
            print(json.dumps(describe(kind, rest[0])))
        elif verb == "delete":
            delete(kind, rest[0])
        elif verb == "list":
            print(json.dumps(listing(kind)))
        elif verb == "ssh":
            return ssh(rest[0], flags)
        elif verb == "scp":
            scp(rest, flags)
    except Fails as error:
        print(f"ERROR: (gcloud.compute.tpus.{kind}.{verb}) {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
