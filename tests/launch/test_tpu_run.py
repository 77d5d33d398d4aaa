"""launch/tpu.py from end to end, against a fake gcloud and hosts that are processes."""

import json
import os
import signal
import time

import pytest

SLICE = ("--zone", "z", "--accelerator", "v6e-16", "--bucket", "gs://b", "--yes")
TWO = ("--zone", "z", "--accelerator", "v4-16", "--bucket", "gs://b", "--yes")
CONFIG = "configs/quickstart.py"
ONE = ("--zone", "z", "--accelerator", "v6e-8", "--bucket", "gs://b", "--yes")


def metrics(cloud, name="try1"):
    return (cloud.outputs(name) / "metrics.jsonl").read_text().splitlines()


def log(cloud, name="try1", attempt=1, host=0):
    logs = cloud.outputs(name + ".launch") / "logs"
    return (logs / f"attempt-{attempt:03d}-host-{host}.log").read_text()


def wait_for(condition, seconds=100):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.05)


def test_four_hosts_run_and_the_slice_is_deleted(small):
    small.order(hosts=4, ssh_refusals=2)
    done = small.tpu("run", "try1", *SLICE, CONFIG, "steps=2", "a.b=x y")
    assert done.returncode == 0, done.stderr
    assert "64" not in done.stdout
    assert "16 chips on 4 hosts" in done.stderr
    assert "384 chip-hours" in done.stderr
    assert "outputs in gs://b/try1" in done.stderr
    assert metrics(small) == ["step 1", "step 2"]
    assert small.is_empty()
    for host in range(4):
        text = log(small, host=host)
        assert "steps=2 a.b=x y out=" in text
        assert "ended with exit code 0" in text
    assert small.remembered("try1")["ended"] == 0

    # The same command says so and asks for nothing.
    before = len(small.calls())
    done = small.tpu("run", "try1", *SLICE, CONFIG, "steps=2", "a.b=x y")
    assert done.returncode == 0
    assert "try1 is done" in done.stderr
    assert len(small.calls()) == before


def test_preempted_in_the_middle_it_goes_on_under_the_same_name(small):
    small.order(hosts=2, preempt=["buckets/b/try1/held-1"])
    done = small.tpu("run", "try1", *TWO, CONFIG, "steps=4", "hold=3")
    assert done.returncode == 0, done.stderr
    assert "attempt 1: the slice is" in done.stderr
    assert len(small.calls("queued-resources create try1")) == 2
    assert metrics(small) == [f"step {step}" for step in (1, 2, 3, 4)]
    assert "begins at step 3" in log(small, attempt=2)
    assert small.is_empty()


def test_multislice_is_one_run_over_all_nodes(small):
    small.order(hosts=2)
    words = ("--zone", "z", "--accelerator", "v4-16", "--slices", "2", "--yes")
    job = ("--bucket", "gs://b/some/where", CONFIG, "steps=1", "data=gs://b/x")
    done = small.tpu("run", "try1", *words, *job)
    assert done.returncode == 0, done.stderr
    text = log(small, "some/where/try1")
    assert f"data={small.folder}/hosts/try1-0/0/.jaxloop/bucket/b/x " in text
    (create,) = small.calls("queued-resources create")
    assert "--node-count=2" in create
    assert "--node-prefix=try1" in create
    hosts = {(call[4], call[5]) for call in small.calls("host.py start")}
    assert hosts == {
        (f"try1-{node}", f"--worker={worker}") for node in (0, 1) for worker in (0, 1)
    }
    assert (small.folder / "buckets/b/some/where/try1/metrics.jsonl").exists()


def test_one_host_on_demand_without_a_queue(small):
    done = small.tpu("run", "try1", *ONE, "--on-demand", "--direct", CONFIG)
    assert done.returncode == 0, done.stderr
    (create,) = small.calls("tpu-vm create")
    assert "--version=v2-alpha-tpuv6e" in create
    assert not {"--spot", "--reserved"} & set(create)
    assert small.is_empty()


@pytest.mark.parametrize(
    ("code", "host", "wanted", "says"),
    [
        (2, 1, 2, "the configuration does not allow it"),
        (3, 0, 3, "training diverged"),
    ],
)
def test_verdicts_of_the_run_end_it_at_once(small, code, host, wanted, says):
    small.order(hosts=2)
    done = small.tpu("run", "try1", *TWO, CONFIG, f"exit={code}", f"host={host}")
    assert done.returncode == wanted, done.stderr
    assert says in done.stderr
    assert len(small.calls("host.py start")) == 2
    assert small.is_empty()


@pytest.mark.parametrize(("code", "allowed"), [(75, 1), (1, 0)])
def test_failures_without_progress_come_to_an_end(small, code, allowed):
    words = (CONFIG, f"exit={code}", "at=2", f"--failures={allowed}")
    done = small.tpu("run", "try1", *ONE, *words)
    assert done.returncode == code, done.stderr
    assert f"{allowed + 1} failures in a row without progress" in done.stderr
    assert f"exit {code}" in done.stderr
    assert len(small.calls("host.py start")) == allowed + 1
    assert len(small.calls("queued-resources create")) == 1  # the hosts are well
    assert small.is_empty()


def test_a_slice_with_too_few_devices_is_told_before_training(small):
    small.order(host_env={"TOY_DEVICES": "75"})
    done = small.tpu("run", "try1", *ONE, CONFIG, "--failures", "0")
    assert done.returncode == 75
    assert "toy job" not in log(small)
    assert small.is_empty()


def test_a_host_that_stops_answering_is_replaced(small):
    small.order(
        hosts=2,
        faults=[{"match": ["--worker=1", "poll"], "times": 60, "error": "255"}],
    )
    child = small.popen("run", "try1", *TWO, CONFIG, "steps=2", "hold=2")
    wait_for(lambda: len(small.calls("queued-resources create")) == 2)
    small.order(faults=[])
    _, err = child.communicate(timeout=100)
    assert child.returncode == 0, err
    assert "no answer from try1 worker 1" in err
    assert metrics(small) == ["step 1", "step 2"]


def test_the_cloud_may_hang_and_talk_nonsense(small):
    small.order(
        faults=[
            {
                "match": ["queued-resources", "describe"],
                "text": "<html>oops",
                "times": 3,
            },
            {"match": ["queued-resources", "describe"], "text": '{"a": 1}'},
            {"match": ["queued-resources", "create"], "error": "503 try again"},
            {"match": ["scp"], "error": "connection reset"},
            {"match": ["host.py setup"], "text": "no last line"},
            {"match": ["resources delete"], "error": "503 try again"},
        ]
    )
    done = small.tpu("run", "try1", *ONE, CONFIG, "steps=1")
    assert done.returncode == 0, done.stderr
    assert metrics(small) == ["step 1"]
    assert small.is_empty()


@pytest.mark.parametrize(
    ("orders", "says"),
    [
        (
            {
                "faults": [
                    {
                        "match": ["create"],
                        "error": "RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPerProject' "
                        "has been exceeded",
                        "times": 9,
                    }
                ]
            },
            "the quota does not allow this",
        ),
        ({"fail": "Quota exceeded for TPUS"}, "the quota does not allow it"),
        (
            {
                "faults": [
                    {"match": ["create"], "error": "PERMISSION_DENIED: tpu.admin"}
                ]
            },
            "PERMISSION_DENIED",
        ),
        (
            {"faults": [{"match": ["create"], "error": "NOT_FOUND: zone z"}]},
            "NOT_FOUND: zone z",
        ),
    ],
    ids=["quota", "quota later", "permission", "zone"],
)
def test_what_waiting_does_not_mend_ends_it(small, orders, says):
    small.order(**orders)
    done = small.tpu("run", "try1", *ONE, CONFIG)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert small.is_empty()


def test_no_capacity_in_time_is_the_clouds_fault(small):
    small.order(polls=10**9)
    done = small.tpu("run", "try1", *ONE, CONFIG, "--valid-until", "1s")
    assert done.returncode == 75, done.stderr
    assert "getting the slice took more than 1 s" in done.stderr
    assert small.is_empty()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_deletes_the_slice(small, number):
    child = small.popen("run", "try1", *ONE, CONFIG, "hold=2")
    wait_for((small.outputs("try1") / "held-0").exists)
    os.kill(child.pid, number)
    _, err = child.communicate(timeout=100)
    assert child.returncode == 128 + number, err
    assert small.calls("host.py stop")
    assert small.is_empty()
    # The same command goes on from there.
    done = small.tpu("run", "try1", *ONE, CONFIG, "hold=2")
    assert done.returncode == 0, done.stderr
    assert metrics(small) == ["step 1", "step 2", "step 3"]


def test_a_launcher_that_was_killed_finds_its_run_again(small):
    child = small.popen("run", "try1", *ONE, CONFIG, "hold=2")
    wait_for((small.outputs("try1") / "held-0").exists)
    second = small.tpu("run", "try1", *ONE, CONFIG, "hold=2")
    assert second.returncode == 2
    assert "another launcher looks after try1" in second.stderr
    child.kill()
    child.communicate()
    child = small.popen("run", "try1", *ONE, CONFIG, "hold=2", "--max-age", "24h")
    line = ""
    while "watching it" not in line:
        line = child.stderr.readline()
        assert line, "it did not find its run"
    os.kill(child.pid, signal.SIGTERM)
    child.communicate(timeout=100)
    assert len(small.calls("host.py start")) == 1
    assert small.is_empty()


def test_the_maximum_age_ends_it(small):
    words = ("--max-age", "8s", "--grace", "1")
    done = small.tpu("run", "try1", *ONE, CONFIG, "hold=2", *words, hurry=HURRY_LESS)
    assert done.returncode == 75, done.stderr
    assert "maximum age" in done.stderr
    assert small.is_empty()


HURRY_LESS = ("--poll=0.1", "--first=0.02", "--connect=20", "--quiet=2")


def test_the_hosts_delete_the_slice_when_nobody_else_does(small):
    small.order(boot=True)
    done = small.tpu(
        "create", "try1", "--zone", "z", "--accelerator", "v6e-8", "--yes",
        "--max-age", "2s",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not small.is_empty()
    wait_for(small.is_empty)


def test_a_slice_of_somebody_else_is_neither_used_nor_deleted(small):
    other = small.tree.parent / "another laptop"
    words = ("--zone", "z", "--accelerator", "v6e-8", "--yes", "--state", str(other))
    assert small.tpu("create", "try1", *words).returncode == 0
    done = small.tpu("run", "try1", *ONE, CONFIG)
    assert done.returncode == 2
    assert "choose another name" in done.stderr
    assert not small.calls("delete")
    assert not small.is_empty()


def test_the_environment_is_made_once_a_host_for_each_list_of_requirements(small):
    def installs():
        return (small.folder / "installs").read_text().count("-m pip install")

    words = (*ONE, "--keep", CONFIG)
    assert small.tpu("run", "try1", *words, "exit=3").returncode == 3
    assert installs() == 1
    (small.tree / CONFIG).write_text("# changed\n")
    assert small.tpu("run", "try1", *words, "exit=3").returncode == 3
    assert installs() == 1
    with open(small.tree / "setup.py", "a") as file:
        file.write("# another requirement\n")
    assert small.tpu("run", "try1", *words, "exit=3").returncode == 3
    assert installs() == 2
    assert not small.is_empty()
    assert small.tpu("delete", "try1").returncode == 0
    assert small.is_empty()


def test_the_code_of_the_run_is_the_commit_and_what_is_not_committed(small):
    (small.tree / CONFIG).write_text("# changed\n")
    (small.tree / "configs" / "new.py").write_text("# new\n")
    (small.tree / "configs" / "cache.egg-info").mkdir()
    (small.tree / "configs" / "cache.egg-info" / "x").touch()
    done = small.tpu("run", "try1", *ONE, "--keep", CONFIG, "print=JAXLOOP_SOURCE")
    assert done.returncode == 0, done.stderr
    folder = small.outputs("try1.launch")
    record = json.loads((folder / "attempt-001.json").read_text())
    assert record["commit"] == small.git("rev-parse", "HEAD")
    assert record["changed"] == ["configs/new.py", CONFIG]
    assert (folder / f"code-{record['code']}.tar.gz").exists()
    source = {"commit": record["commit"], "uncommitted_changes": True}
    source["code"] = record["code"]
    assert f"JAXLOOP_SOURCE is {json.dumps(source)}" in log(small)
    host = small.folder / "hosts/try1/0/.jaxloop/try1" / f"code-{record['code']}"
    assert (host / CONFIG).read_text() == "# changed\n"
    assert (host / "configs/new.py").exists()
    assert not (host / "configs/cache.egg-info").exists()
    assert os.access(host / "launch/tpu.py", os.X_OK)


def test_secrets_go_by_file_and_show_nowhere(small):
    file = small.tree.parent / "secrets.env"
    file.write_text("# mine\nexport WORD='open sesame'\n")
    words = (*ONE, "--env-file", str(file), CONFIG, "print=WORD")
    dry = small.tpu("run", "try1", *words, "--dry-run")
    done = small.tpu("run", "try1", *words, "--keep")
    assert done.returncode == 0, done.stderr
    assert "WORD is open sesame" in log(small)
    everywhere = dry.stdout + dry.stderr + done.stdout + done.stderr
    everywhere += (small.folder / "calls.jsonl").read_text()
    everywhere += (small.outputs("try1.launch") / "attempt-001.json").read_text()
    everywhere += json.dumps(small.remembered("try1"))
    assert "sesame" not in everywhere
    on_host = small.folder / "hosts/try1/0/.jaxloop/try1"
    assert on_host.stat().st_mode & 0o077 == 0

    (small.tree / "own.env").write_text("WORD=open sesame\n")
    done = small.tpu("run", "try2", *ONE, "--env-file", "own.env", CONFIG)
    assert done.returncode == 2
    assert "would be copied with the code" in done.stderr


def test_outputs_that_not_all_hosts_share_are_refused(small):
    small.order(hosts=2)
    slice_ = ("--zone", "z", "--accelerator", "v4-16", "--yes")
    done = small.tpu("run", "try1", *slice_, CONFIG)
    assert done.returncode == 2
    assert "2 hosts write one run" in done.stderr
    assert not small.calls()
    # A path that is said to be shared and is not: each host has a link of its own.
    shared = small.folder / "shared"
    shared.symlink_to("/proc/self/cwd")
    done = small.tpu("run", "try1", *slice_, "--shared", str(shared), CONFIG)
    assert done.returncode == 2, done.stderr
    assert "is not shared: hosts [" in done.stderr
    assert not small.calls("host.py start")
    assert small.is_empty()
