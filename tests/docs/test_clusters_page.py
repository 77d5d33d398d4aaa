"""docs/clusters.md, launch/gke/ and launch/sky.yaml, where there is no cluster."""

import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from jax._src.clusters import cloud_tpu_cluster

from jaxloop import exit_codes
from jaxloop.cli.main import main
from jaxloop.job import GIVEN, Job, find_job

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clusters.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)
FATAL = {exit_codes.FAULT, exit_codes.CONFIGURATION, exit_codes.DIVERGED}
AGAIN = {exit_codes.INFRASTRUCTURE, exit_codes.PREEMPTED}
# What the page uses of each tool, as its documentation (xpk: 1.16.0) lists it.
OPTIONS = {
    "gcloud": {
        *("location", "role", "member", "format", "repository-format"),
        *("uniform-bucket-level-access", "enable-hierarchical-namespace"),
    },
    "docker": {"build-arg"},
    "kubectl": {
        *("dry-run", "from-env-file", "follow", "prefix", "selector", "for", "timeout"),
    },
    "xpk": {
        *("cluster", "zone", "type", "bucket", "size", "mount-point", "readonly"),
        *("auto-mount", "mount-options", "workload", "tpu-type", "num-slices"),
        *("docker-image", "storage", "max-restarts", "restart-on-exit-codes"),
        *("termination-grace-period-seconds", "command"),
    },
    "sky": {"name", "env"},
}
# Says with what it was called, and keeps what it is given on its standard input.
STAND_IN = """#!/bin/bash
printf '%s\\0' "${{0##*/}}" "$@" $'\\n' >> {here}/calls
case "$*" in
    "projects describe"*) echo 123456 ;;
    *"-f -") cat >> {here}/stdin; echo "---" >> {here}/stdin ;;
esac
"""
JAXLOOP = """#!/bin/bash
printf '%s\\n' "$@" > {here}/arguments
env > {here}/environment
exit {code}
"""
# Makes a venv, and installs nothing.
PYTHON = """#!/bin/bash
echo "$*" >> {here}/said
case "$*" in
    *"sys.version)"*) echo 3.12 ;;
    "-m venv"*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
esac
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def manifests(kind: str) -> tuple[dict, dict]:
    """The service and the job of launch/gke/KIND.yaml."""
    text = (ROOT / "launch" / "gke" / f"{kind}.yaml").read_text()
    service, job = yaml.safe_load_all(text)
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    return service, job


def pod_of(job: dict) -> tuple[dict, dict]:
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def variables(job: dict, index: int) -> dict[str, str]:
    """Those that Kubernetes makes for the pod of that index."""
    named = {"metadata.annotations['batch.kubernetes.io/job-completion-index']": index}
    values = {"JOB_COMPLETION_INDEX": str(index)}
    for entry in pod_of(job)[1]["env"]:
        if "valueFrom" in entry:
            entry["value"] = str(named[entry["valueFrom"]["fieldRef"]["fieldPath"]])
        assert isinstance(entry["value"], str), f"{entry}: Kubernetes takes texts only"
        values[entry["name"]] = entry["value"]
    return values


@pytest.fixture
def sky():
    return yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())


@pytest.fixture
def page_calls(tmp_path):
    """(calls, stdin) of the tools when all commands of the page are run in order."""
    for tool in OPTIONS:
        executable(tmp_path / "bin" / tool, STAND_IN.format(here=tmp_path))
    env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    script = "set -euo pipefail\n" + "\n".join(BLOCKS)
    subprocess.run(["bash", "-c", script], cwd=ROOT, env=env, check=True, timeout=60)
    calls = (tmp_path / "calls").read_text().split("\0\n\0")
    stdin = (tmp_path / "stdin").read_text()
    return [call.split("\0") for call in calls if call], stdin


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_the_manifest_fits_the_schema(kind):
    for manifest in manifests(kind):
        kubernetes_validate.validate(manifest, "1.34", strict=True)


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_the_job_is_one_process_a_pod_and_its_names_fit(kind):
    service, job = manifests(kind)
    pod, container = pod_of(job)
    name = job["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    # The image's own command gets the arguments, and signals: no shell stands between.
    assert "command" not in container
    assert container["args"][0] == "run"
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    assert spec["activeDeadlineSeconds"] > 0
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert volumes == {mount["name"] for mount in container["volumeMounts"]}
    (out,) = [word for word in container["args"] if word.startswith("out=")]
    assert out.startswith("out=/runs/")
    assert "/runs" in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert job["spec"]["template"]["metadata"]["annotations"] == {
        "gke-gcsfuse/volumes": "true"  # without it no bucket is mounted
    }


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_the_job_knows_our_exit_codes(kind):
    """First rule that fits: what Kubernetes does with a pod that failed."""
    _, job = manifests(kind)
    pod, container = pod_of(job)
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy demands it
    rules = job["spec"]["podFailurePolicy"]["rules"]

    def action(code: int, disrupted: bool = False) -> str:
        for rule in rules:
            conditions = rule.get("onPodConditions", [])
            if (
                disrupted
                and {"type": "DisruptionTarget", "status": "True"} in conditions
            ):
                return rule["action"]
            codes = rule.get("onExitCodes", {"values": []})
            if code in codes["values"]:
                assert codes["operator"] == "In"
                assert codes["containerName"] == container["name"]
                return rule["action"]
        return "Count"

    assert {action(code) for code in FATAL} == {"FailJob"}
    assert action(exit_codes.PREEMPTED) == "Ignore"
    assert action(137, disrupted=True) == "Ignore"
    assert action(exit_codes.INFRASTRUCTURE) == action(137) == "Count"
    # All pods but the one that is lost are counted: at least five times of that.
    assert job["spec"]["backoffLimit"] >= 5 * (job["spec"]["completions"] - 1)


@pytest.mark.parametrize("index", [0, 1])
def test_a_pod_with_gpus_is_the_process_of_its_index(index, monkeypatch):
    service, job = manifests("gpu")
    for name, value in variables(job, index).items():
        monkeypatch.setenv(name, value)
    (port,) = pod_of(job)[1]["ports"]
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    address = f"{first}:{port['containerPort']}"
    assert find_job() == Job(address, job["spec"]["completions"], index, None)


@pytest.mark.parametrize("index", [0, 3])
def test_a_pod_of_a_slice_is_the_process_that_gke_says(index, monkeypatch):
    """The variables of GKE's own, as jax documents that it reads them."""
    _, job = manifests("tpu")
    pod, container = pod_of(job)
    hosts = job["spec"]["completions"]
    names = [f"jaxloop-{host}.jaxloop" for host in range(hosts)]
    for name, value in variables(job, index).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TPU_WORKER_ID", str(index))
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", ",".join(names))
    tpu = cloud_tpu_cluster
    monkeypatch.setattr(tpu, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(tpu, "get_tpu_env_value_from_metadata", lambda name: None)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")
    (port,) = container["ports"]
    assert find_job() == Job(f"{names[0]}:{port['containerPort']}", hosts, index, None)
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert math.prod(map(int, topology.split("x"))) == hosts * chips


@pytest.mark.parametrize("rank", [0, 1])
def test_the_run_of_skypilot_is_the_process_of_its_rank(
    rank, sky, tmp_path, monkeypatch
):
    (tmp_path / "tree").mkdir()
    text = JAXLOOP.format(here=tmp_path, code=exit_codes.INFRASTRUCTURE)
    executable(tmp_path / "bin" / "jaxloop", text)
    env = {k: v for k, v in sky["envs"].items() if v is not None}
    env |= {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SETTINGS": "mesh.fsdp=4 seed=1"}
    env |= {"SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NODE_RANK": str(rank)}
    env |= {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "4"}
    done = subprocess.run(["bash", "-c", sky["run"]], env=env, cwd=tmp_path / "tree")
    assert done.returncode == exit_codes.INFRASTRUCTURE  # ours is what SkyPilot sees
    arguments = (tmp_path / "arguments").read_text().splitlines()
    config = sky["envs"]["CONFIG"]
    assert arguments == ["run", config, "out=/runs/sky", "mesh.fsdp=4", "seed=1"]
    for line in (tmp_path / "environment").read_text().splitlines():
        name, _, value = line.partition("=")
        if name in GIVEN:
            monkeypatch.setenv(name, value)
    assert find_job() == Job("10.0.0.5:8476", 2, rank, None)


def test_the_setup_of_skypilot_makes_the_environment(sky, tmp_path):
    """With a Python that installs nothing, and a driver for CUDA 12."""
    shutil.copytree(ROOT / "launch", tmp_path / "tree" / "launch")
    (tmp_path / "tree" / "setup.py").touch()
    python = executable(tmp_path / "python3.12", PYTHON.format(here=tmp_path))
    uv = f'#!/bin/bash\n[ "$2" != find ] || echo {python}\n'
    executable(tmp_path / ".local" / "bin" / "uv", uv)
    driver = "#!/bin/bash\ncase $1 in *driver*) echo 550.54 ;; *) echo 8.9 ;; esac\n"
    executable(tmp_path / "bin" / "nvidia-smi", driver)
    env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    script = ["bash", "-c", sky["setup"]]
    subprocess.run(script, env=env, cwd=tmp_path / "tree", check=True, timeout=60)
    assert "--editable .[cuda]" in (tmp_path / "said").read_text()
    assert (tmp_path / "tree" / ".venv" / "bin" / "python").exists()


def test_skypilot_is_told_what_to_do_again_and_where_the_run_is(sky):
    assert {*sky} == {
        *("name", "workdir", "num_nodes", "resources", "envs", "file_mounts"),
        *("setup", "run"),
    }
    recovery = sky["resources"]["job_recovery"]
    assert {*recovery["recover_on_exit_codes"]} == AGAIN
    assert recovery["max_restarts_on_errors"] == 0
    assert sky["file_mounts"] == {
        "/runs": {"source": "gs://${BUCKET}", "mode": "MOUNT"}
    }
    assert sky["envs"]["BUCKET"] is None  # SkyPilot then demands it
    assert all(v is None or isinstance(v, str) for v in sky["envs"].values())


@pytest.mark.parametrize("part", ["setup", "run"])
def test_the_shell_of_skypilot_is_clean(part, sky):
    here = str(Path(sys.executable).parent)
    shellcheck = shutil.which("shellcheck", path=f"{here}:{os.environ['PATH']}")
    assert shellcheck is not None, "it comes with the test extra"
    words = [shellcheck, "-x", "--shell=bash", "-"]
    subprocess.run(words, input=sky[part], text=True, check=True, cwd=ROOT)


def test_the_commands_of_the_page(page_calls, monkeypatch, capsys):
    """All tools, documented options, and runs that would start (here on 8 devices)."""
    calls, stdin = page_calls
    assert {call[0] for call in calls} == {*OPTIONS}
    runs = []
    for tool, *words in calls:
        used = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
        assert used <= OPTIONS[tool], (tool, words)
        settings = dict(word.partition("=")[::2] for word in words)
        if "--command" in settings:
            runs.append(shlex.split(settings["--command"])[1:])
            codes = settings["--restart-on-exit-codes"]
            assert codes == str(exit_codes.INFRASTRUCTURE)  # xpk has 127 to 255 itself
        if "CONFIG" in settings:
            runs.append(["run", settings["CONFIG"], *settings["SETTINGS"].split()])
    sent = [manifest for manifest in yaml.safe_load_all(stdin) if manifest]
    jobs = [pod_of(manifest) for manifest in sent if manifest["kind"] == "Job"]
    for pod, container in jobs:
        runs.append(container["args"])
        assert container["image"].startswith("us-east5-docker.pkg.dev/my-project/")
        volume = pod["volumes"][0]["csi"]["volumeAttributes"]
        assert volume["bucketName"] == "my-project-runs"
    images = [container["image"].rpartition(":")[2] for _, container in jobs]
    assert images == ["cuda13", "cuda13", "tpu"]
    monkeypatch.chdir(ROOT)
    kept = {tuple(w for w in run if not w.startswith("out=")) for run in runs}
    for words in kept:
        code = main([*words, "--dry-run"])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        assert "decoder rows" in shown.out


def test_the_files_of_the_page_are_there_and_its_table_has_the_codes():
    for name in re.findall(r"(?:launch|docs)/[\w./]*\w", PAGE):
        assert (ROOT / name).exists(), name
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("| "))
    for code in FATAL | AGAIN | {exit_codes.DONE}:
        assert re.search(rf"^\| [\d, ]*\b{code}\b", table, re.M), code
