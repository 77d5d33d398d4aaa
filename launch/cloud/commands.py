"""The exact command lines of gcloud. Pure: what is asked for in, words out."""

from collections.abc import Sequence
from typing import NamedTuple

from launch.cloud.slices import Slice

TPUS = ("compute", "tpus")
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LABEL = "jaxloop"


class Host(NamedTuple):
    """One machine of a slice."""

    node: str
    worker: int
    index: int
    """Among all hosts of the run."""

    def __str__(self):
        return f"{self.node} worker {self.worker}"


def place(spec: Slice) -> list[str]:
    words = [f"--zone={spec.zone}"]
    return words + ([f"--project={spec.project}"] if spec.project else [])


def _size(spec: Slice) -> list[str]:
    if spec.topology:
        return [f"--type={spec.version}", f"--topology={spec.topology}"]
    return [f"--accelerator-type={spec.accelerator}"]


def _common(spec: Slice, startup_script: str) -> list[str]:
    words = [f"--labels={LABEL}={spec.name}"]
    words.append(f"--metadata-from-file=startup-script={startup_script}")
    if spec.network:
        words.append(f"--network={spec.network}")
    if spec.subnetwork:
        words.append(f"--subnetwork={spec.subnetwork}")
    if spec.service_account:
        words += [f"--service-account={spec.service_account}", f"--scopes={SCOPE}"]
    return words


def create(spec: Slice, startup_script: str, *, remaining: int) -> list[str]:
    """Asks for the slice. `remaining`: seconds for which it may be held."""
    runtime = spec.runtime or spec.family.runtime
    tier = {"spot": ["--spot"], "reserved": ["--reserved"]}.get(spec.tier, [])
    if spec.direct:
        words = ["gcloud", *TPUS, "tpu-vm", "create", spec.name, *place(spec)]
        words += [*_size(spec), f"--version={runtime}", *tier]
        return [*words, *_common(spec, startup_script), "--async", "--quiet"]
    # Only the alpha command knows the tier whose length the cloud itself enforces.
    track = ["alpha"] if spec.tier == "flex" else []
    words = ["gcloud", *track, *TPUS, "queued-resources", "create", spec.name]
    words += [*place(spec), *_size(spec), f"--runtime-version={runtime}"]
    if spec.slices > 1:
        words += [f"--node-count={spec.slices}", f"--node-prefix={spec.name}"]
    else:
        words.append(f"--node-id={spec.name}")
    words += tier
    if spec.tier == "flex":
        words.append("--provisioning-model=flex-start")
        words.append(f"--max-run-duration={remaining}s")
    words.append(f"--valid-until-duration={spec.valid_until}s")
    return [*words, *_common(spec, startup_script), "--async", "--quiet"]


def describe(spec: Slice) -> list[str]:
    kind = "tpu-vm" if spec.direct else "queued-resources"
    words = ["gcloud", *TPUS, kind, "describe", spec.name]
    return [*words, *place(spec), "--format=json"]


def describe_node(spec: Slice, node: str) -> list[str]:
    words = ["gcloud", *TPUS, "tpu-vm", "describe", node]
    return [*words, *place(spec), "--format=json"]


def delete(spec: Slice) -> list[str]:
    """Deletes the request and its nodes."""
    if spec.direct:
        words = ["gcloud", *TPUS, "tpu-vm", "delete", spec.name]
        return [*words, *place(spec), "--async", "--quiet"]
    words = ["gcloud", *TPUS, "queued-resources", "delete", spec.name]
    return [*words, *place(spec), "--force", "--async", "--quiet"]


def list_all(zone: str, project: str, *, direct: bool = False) -> list[str]:
    kind = "tpu-vm" if direct else "queued-resources"
    words = ["gcloud", *TPUS, kind, "list", f"--zone={zone}"]
    return [*words, *([f"--project={project}"] if project else []), "--format=json"]


def ssh(spec: Slice, host: Host, command: str = "") -> list[str]:
    """`command` runs in the user's home on the host; empty is a shell."""
    words = ["gcloud", *TPUS, "tpu-vm", "ssh", host.node, f"--worker={host.worker}"]
    words += [*place(spec), "--quiet"]
    return [*words, f"--command={command}"] if command else words


def scp(spec: Slice, host: Host, files: Sequence[str], target: str) -> list[str]:
    """`target` is relative to the user's home on the host."""
    words = ["gcloud", *TPUS, "tpu-vm", "scp", *files, f"{host.node}:{target}"]
    return [*words, f"--worker={host.worker}", *place(spec), "--quiet"]


def startup_script(spec: Slice, remaining: int) -> str:
    """What each host runs as root when it boots: a timer that deletes the slice.

    It needs neither the laptop nor the run. The image's own gcloud speaks for the
    service account of the hosts, which must be allowed to delete TPUs.
    """
    words = " ".join(delete(spec))
    return f"#!/bin/bash\n(sleep {remaining}; {words}) > /dev/null 2>&1 &\n"
