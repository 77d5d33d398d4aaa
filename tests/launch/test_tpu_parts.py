"""The parts of launch/tpu.py by themselves: sizes, command lines, states, verdicts."""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from jaxloop import exit_codes
from launch.cloud import commands, host, job, states
from launch.cloud.gcloud import CloudError, Done, Gcloud, NotThere, error_of
from launch.cloud.job import Report, judge
from launch.cloud.ship import pack
from launch.cloud.slices import ConfigurationError, Slice, cost, seconds
from launch.cloud.states import Phase
from launch.cloud.store import Job, State, Store, place_outputs
from tests.launch.conftest import ROOT

SIZES = [
    # accelerator, topology, chips, hosts, devices of jax
    ("v2-8", "", 4, 1, 8),
    ("v3-32", "", 16, 4, 32),
    ("v4-8", "", 4, 1, 4),
    ("v4-32", "", 16, 4, 16),
    ("v4", "2x2x4", 16, 4, 16),
    ("v5litepod-8", "", 8, 1, 8),
    ("v5litepod-16", "", 16, 4, 16),
    ("v5p-8", "", 4, 1, 4),
    ("v5p", "4x4x4", 64, 16, 64),
    ("v6e-1", "", 1, 1, 1),
    ("v6e-8", "", 8, 1, 8),
    ("v6e-16", "", 16, 4, 16),
    ("v6e", "16x16", 256, 64, 256),
]
SPOT = Slice("try1", "z", "v6e-16")


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips", "hosts", "devices"), SIZES
)
def test_sizes_are_those_of_the_public_tables(
    accelerator, topology, chips, hosts, devices
):
    spec = Slice("a", "z", accelerator, topology)
    assert (spec.chips, spec.hosts, spec.devices) == (chips, hosts, devices)
    three = replace(spec, slices=3)
    assert (three.chips, three.hosts) == (3 * chips, 3 * hosts)
    assert three.nodes == ("a-0", "a-1", "a-2")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "A"}, "the name 'A' must"),
        ({"name": "-a"}, "the name"),
        ({"name": "a;rm"}, "the name"),
        ({"accelerator": "v9-8"}, "'v9' is none of v2, v3"),
        ({"accelerator": "v4-7"}, "is no size of v4"),
        ({"accelerator": "v6e-x"}, "is no size of v6e"),
        ({"accelerator": "v6e"}, "give a size once"),
        ({"topology": "4x4"}, "give a size once"),
        ({"accelerator": "v6e", "topology": "4by4"}, "must look like 4x4"),
        ({"accelerator": "v6e-10"}, "come in hosts of 4"),
        ({"accelerator": "v6e-0"}, "at least one chip"),
        ({"slices": 0}, "--slices 0"),
        ({"slices": 2, "direct": True}, "drop --direct"),
    ],
)
def test_what_cannot_be_is_refused(changes, says):
    with pytest.raises(ConfigurationError, match=says):
        replace(SPOT, **changes)


def test_durations():
    assert [seconds(text) for text in ("30s", "90m", "1.5h", "7d")] == [
        30,
        5400,
        5400,
        604800,
    ]
    for text in ("", "12", "h", "-1h", "1 h"):
        with pytest.raises(ConfigurationError, match="is no duration"):
            seconds(text)


def test_cost_multiplies_and_invents_no_price():
    spec = replace(SPOT, max_age=6 * 3600)
    assert "96 chip-hours" in cost(spec, None)
    assert "price 1.23 multiplies" in cost(spec, None)
    assert "at most 120.00" in cost(spec, 1.25)


@pytest.mark.parametrize(
    ("changes", "has", "has_not"),
    [
        ({}, ["--spot", "--node-id=try1", "--accelerator-type=v6e-16"], ["alpha"]),
        ({"tier": "on-demand"}, ["--node-id=try1"], ["--spot", "--reserved"]),
        ({"tier": "reserved"}, ["--reserved"], ["--spot"]),
        (
            {"tier": "flex"},
            ["alpha", "--provisioning-model=flex-start", "--max-run-duration=60s"],
            ["--spot"],
        ),
        (
            {"slices": 2},
            ["--node-count=2", "--node-prefix=try1"],
            ["--node-id=try1"],
        ),
        (
            {"accelerator": "v6e", "topology": "4x4"},
            ["--type=v6e", "--topology=4x4"],
            ["--accelerator-type=v6e"],
        ),
        ({"direct": True}, ["tpu-vm", "--version=v2-alpha-tpuv6e", "--spot"], []),
        ({"project": "p", "runtime": "r"}, ["--project=p", "--runtime-version=r"], []),
        (
            {"service_account": "a@b", "network": "n", "subnetwork": "s"},
            ["--service-account=a@b", "--network=n", "--subnetwork=s"],
            [],
        ),
    ],
)
def test_create_asks_for_what_was_asked(changes, has, has_not):
    words = commands.create(replace(SPOT, **changes), "script", remaining=60)
    assert set(has) <= set(words)
    assert not set(has_not) & set(words)
    assert "--metadata-from-file=startup-script=script" in words
    assert "--labels=jaxloop=try1" in words


def test_the_timer_of_the_hosts_deletes_the_slice():
    script = commands.startup_script(SPOT, 3600)
    assert "sleep 3600; " + shlex.join(commands.delete(SPOT)) in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_states_as_the_cloud_writes_them():
    assert states.read_state({"state": {"state": "ACTIVE"}}) == ("ACTIVE", "")
    failed = {"state": "FAILED", "failedData": {"error": {"message": "no chips"}}}
    assert states.read_state({"state": failed}) == ("FAILED", "no chips")
    sick = {"state": "READY", "healthDescription": "is ill"}
    assert states.read_state(sick) == ("READY", "is ill")
    for nonsense in ([], {}, {"state": {}}, None, {"state": 3}):
        with pytest.raises(CloudError):
            states.read_state(nonsense)


def test_times_as_the_cloud_writes_them():
    assert states.when("2025-01-01T00:00:00Z") == 1735689600
    assert states.when("2025-01-01T00:00:00.123456789Z") == 1735689600
    assert states.when("2025-01-01T01:00:00.5+01:00") == 1735689600
    assert states.when("yesterday") == 0


class Answers:
    """A cloud that says what it is told to, by words of the command."""

    def __init__(self, **answers):
        self.answers = answers

    def __call__(self, argv):
        for word, answer in self.answers.items():
            if word.replace("_", "-") in argv:
                if answer is None:
                    return Done(1, "", "NOT_FOUND")
                return Done(0, json.dumps(answer), "")
        raise AssertionError(argv)


READY = {"state": "READY", "networkEndpoints": [{}, {}]}
NODE_STATES = [
    ({"state": {"state": "WAITING_FOR_RESOURCES"}}, READY, Phase.WAITING),
    ({"state": {"state": "A_NEW_WORD"}}, READY, Phase.WAITING),
    ({"state": {"state": "SUSPENDED"}}, READY, Phase.GONE),
    ({"state": {"state": "FAILED"}}, READY, Phase.GONE),
    ({"state": {"state": "DELETING"}}, READY, Phase.LEAVING),
    (None, READY, Phase.ABSENT),
    ({"state": {"state": "ACTIVE"}}, READY, Phase.READY),
    ({"state": {"state": "ACTIVE"}}, {"state": "PREEMPTED"}, Phase.GONE),
    ({"state": {"state": "ACTIVE"}}, {"state": "REPAIRING"}, Phase.WAITING),
    ({"state": {"state": "ACTIVE"}}, None, Phase.GONE),
]


@pytest.mark.parametrize(("queued", "node", "phase"), NODE_STATES)
def test_a_slice_is_ready_when_its_nodes_are(queued, node, phase, capsys):
    cloud = Gcloud(dry=True, answer=Answers(queued_resources=queued, tpu_vm=node))
    seen = states.look(cloud, replace(SPOT, slices=2))
    assert seen.phase is phase
    if phase is Phase.READY:
        assert [str(host) for host in seen.hosts] == [
            "try1-0 worker 0",
            "try1-0 worker 1",
            "try1-1 worker 0",
            "try1-1 worker 1",
        ]
        assert [host.index for host in seen.hosts] == [0, 1, 2, 3]


RUNS = Report(1, "run", None, True)
KILLED = Report(1, "run", None, False)


def ended(code):
    return Report(1, "ended", code, False)


@pytest.mark.parametrize(
    ("reports", "final", "code"),
    [
        ([RUNS, RUNS], False, None),
        ([RUNS, None], False, None),
        ([ended(0), RUNS], False, None),
        ([ended(0), ended(0)], False, 0),
        ([ended(0), None], False, None),
        ([ended(2), RUNS], False, 2),
        ([ended(75), ended(2)], False, 2),
        ([ended(3), RUNS], False, 3),
        ([ended(75), RUNS], False, None),  # others may still say why
        ([ended(75), RUNS], True, 75),
        ([ended(134), ended(75)], False, 75),
        ([ended(1), ended(1)], False, 1),
        ([ended(1), ended(75)], False, 75),
        ([ended(0), ended(143)], False, 75),
        ([KILLED, ended(0)], False, 75),
        ([KILLED, RUNS], False, None),
        ([KILLED, RUNS], True, 75),
    ],
)
def test_verdicts(reports, final, code):
    outcome = judge(reports, final=final)
    assert (outcome.code if outcome else None) == code


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("NOT_FOUND: x", NotThere),
        ("RESOURCE_EXHAUSTED: Quota limit x has been exceeded", ConfigurationError),
        ("PERMISSION_DENIED: y", ConfigurationError),
        ("unrecognized arguments: --x", ConfigurationError),
        ("RESOURCE_EXHAUSTED: there is no more capacity in the zone", CloudError),
        ("UNAVAILABLE: try again", CloudError),
        ("", CloudError),
    ],
)
def test_errors_are_told_apart(said, kind):
    assert type(error_of(["gcloud"], Done(1, "", said))) is kind


def test_a_hanging_command_ends_with_its_children():
    began = time.monotonic()
    hangs = "import subprocess; subprocess.run(['sleep', '600'])"
    with pytest.raises(CloudError, match=r"no answer within 0\.5 s"):
        Gcloud().run([sys.executable, "-c", hangs], limit=0.5)
    assert time.monotonic() - began < 60


def test_a_missing_gcloud_is_named():
    with pytest.raises(ConfigurationError, match=r"cloud\.google\.com/sdk"):
        Gcloud().run(["no-such-gcloud"])


PLACES = [
    ("", "gs://b/pre/fix", "", ("~/.jaxloop/bucket/b/pre/fix/try1", "b")),
    ("runs/x", "gs://b", "", ("~/.jaxloop/bucket/b/runs/x", "b")),
    ("gs://b/x", "gs://b/pre", "", ("~/.jaxloop/bucket/b/x", "b")),
    ("", "", "/nfs", ("/nfs/try1", "")),
    ("/nfs/x", "", "/nfs", ("/nfs/x", "")),
]


@pytest.mark.parametrize(("out", "bucket", "shared", "wanted"), PLACES)
def test_places_of_outputs(out, bucket, shared, wanted):
    assert place_outputs(SPOT, out, bucket, shared, keep=False)[:2] == wanted


@pytest.mark.parametrize(
    ("out", "bucket", "shared", "says"),
    [
        ("", "", "", "4 hosts write one run"),
        ("/tmp/x", "", "", "4 hosts write one run"),
        ("/tmp/x", "gs://b", "", "is not under"),
        ("/nfs2/x", "", "/nfs", "is not under /nfs"),
        ("../x", "", "/nfs", "must not climb"),
        ("gs://c/x", "gs://b", "", "--bucket gs://c"),
        ("gs://c/x", "", "", "--bucket gs://c"),
        ("", "gs://b", "/nfs", "not both"),
        ("", "", "nfs", "from / on"),
    ],
)
def test_places_that_are_not_shared_are_refused(out, bucket, shared, says):
    with pytest.raises(ConfigurationError, match=says):
        place_outputs(SPOT, out, bucket, shared, keep=True)


def test_one_host_may_keep_its_outputs_only_if_it_is_kept():
    alone = replace(SPOT, accelerator="v6e-8")
    assert place_outputs(alone, "", "", "", keep=True)[0] == "~/jaxloop-runs/try1"
    with pytest.raises(ConfigurationError, match="--keep"):
        place_outputs(alone, "", "", "", keep=False)


def test_what_is_remembered_comes_back(tmp_path):
    store = Store(tmp_path, "try1")
    assert store.load() is None
    state = State(SPOT, Job(("run", "c.py"), "~/x"), attempt=3, spent=1.5, ended=75)
    store.save(state)
    assert store.load() == state
    assert store.change(attempt=4).attempt == 4
    (tmp_path / "try1" / "state.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        store.load()


def test_the_hash_is_of_the_code_alone(small, tmp_path):
    first = pack(small.tree, tmp_path / "one")
    (small.tree / "setup.py").touch()
    again = pack(small.tree, tmp_path / "two")
    assert again.hash == first.hash
    assert again.archive.read_bytes() == first.archive.read_bytes()
    assert first.changed == ()
    (small.tree / "configs/quickstart.py").chmod(0o755)
    moded = pack(small.tree, tmp_path / "three")
    assert moded.hash != first.hash
    assert moded.environment == first.environment
    (small.tree / "setup.py").write_text("# other\n")
    other = pack(small.tree, tmp_path / "four")
    assert other.environment != first.environment
    (small.tree / "setup.py").unlink()
    assert pack(small.tree, tmp_path / "five").changed == (
        "configs/quickstart.py",
        "setup.py",
    )


def test_a_dry_run_calls_nothing_and_its_lines_do_the_work(small):
    words = ("--zone", "z", "--accelerator", "v6e-8", "--bucket", "gs://b")
    config = ("configs/quickstart.py", "name=x y")
    done = small.tpu("run", "try1", *words, "--dry-run", *config)
    assert done.returncode == 0, done.stderr
    assert not small.calls()
    lines = done.stdout.splitlines()
    assert all(line.startswith("gcloud ") for line in lines)
    # Pasted into a shell one by one, they run the job; the last delete the slice.
    small.order(polls=0)
    last = next(i for i, line in enumerate(lines) if " delete " in line)
    metrics = small.outputs("try1") / "metrics.jsonl"
    for number, line in enumerate(lines):
        if number == last:
            until = time.monotonic() + 30
            while not metrics.exists() or metrics.read_text().count("step") < 3:
                assert time.monotonic() < until
                time.sleep(0.05)
        shell = ["bash", "-c", line]
        ran = subprocess.run(shell, env=small.env, capture_output=True, text=True)
        absent = "describe" in line and "NOT_FOUND" in ran.stderr
        assert ran.returncode == 0 or absent, line + ran.stderr
        assert '"error"' not in ran.stdout, ran.stdout
    assert small.is_empty()


def test_the_launchers_know_the_exit_codes_of_jaxloop():
    """By heart, for they run where it is not installed."""
    assert job.SUCCESS == exit_codes.DONE
    for name in ("FAULT", "CONFIGURATION", "DIVERGED", "INFRASTRUCTURE"):
        assert getattr(job, name) == getattr(exit_codes, name), name
    for name in ("CONFIGURATION", "INFRASTRUCTURE"):
        assert getattr(host, name) == getattr(exit_codes, name), name
    table = (ROOT / "docs" / "tpu.md").read_text()
    for code in (job.SUCCESS, job.FAULT, job.CONFIGURATION, job.DIVERGED):
        assert f"\n| {code} |" in table
    assert f"\n| {exit_codes.INFRASTRUCTURE} |" in table
    slurm = (ROOT / "launch" / "slurm.sbatch").read_text()
    assert f"\n    {exit_codes.DONE}) rm" in slurm
    assert f"\n    {exit_codes.PREEMPTED}) again" in slurm
    assert f"\n    {exit_codes.INFRASTRUCTURE} | 134 | 137)" in slurm
