"""`jaxloop run` and `eval`: from words to a checked configuration."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxloop.cli import sweep as sweep_module


def test_a_run_gets_the_overridden_config_and_the_command_line(
    cli, called, config_file
):
    words = ["run", config_file, "part.rate=1", "--steps", "1e2", "code=7"]
    code, _, err = cli(*words)
    assert code == 7
    ((name, config, argv, profiled),) = called
    assert (name, config.part.rate, config.steps) == ("run", 1.0, 100)
    assert profiled is None
    assert argv == ["jaxloop", *words]
    assert "part.rate  0.5 -> 1.0" in err


def test_updates_to_profile_are_told_to_the_run(cli, called, config_file):
    assert cli("run", config_file, "--profile", "3-4", "code=0")[0] == 0
    assert called[0][3] == (3, 4)
    called.clear()
    for words, message in (
        (["--profile", "4-3"], "--profile 12 or --profile 12-15"),
        (["--profile", "4", "--sweep", "steps=1,2"], "leave --sweep out"),
    ):
        code, _, err = cli("run", config_file, *words)
        assert code == 2
        assert message in err
    assert not called


def test_looking_at_a_config_runs_nothing(cli, called, config_file):
    code, out, _ = cli("run", config_file, "--print-config", "steps=3")
    assert code == 0
    assert json.loads(out)["steps"] == 3
    assert cli("run", config_file, "steps=3", "--dry_run")[:2] == (0, "dry 3\n")
    code, out, _ = cli("run", config_file, "--help", "nonsense")
    assert code == 0
    assert "part.rate: float = 0.5\n        How fast." in out
    assert "--print-config" in out
    assert not called


@pytest.mark.parametrize("command", ["run", "eval"])
def test_problems_end_with_2_before_anything_runs(cli, called, config_file, command):
    code, _, err = cli(command, config_file, "stops=3", "part.rate=x")
    assert code == 2
    assert "2 problems" in err
    assert "did you mean steps?" in err
    assert "Meaning: How fast." in err
    code, _, err = cli(command, config_file, "steps=0", "part.rate=2")
    assert code == 2
    assert "steps = 0 must be positive" in err
    assert "part.rate is above 1" in err
    code, _, err = cli(command, f"{config_file}:bad")
    assert (code, err) == (
        2,
        "jaxloop: get_config must return jaxloop's Config, not Other\n",
    )
    assert not called


def test_a_mistyped_flag_finds_the_flag(cli, called, config_file):
    code, _, err = cli("run", config_file, "--dry-rum")
    assert code == 2
    assert "did you mean --dry-run?" in err


def test_eval_prints_json(cli, called, config_file):
    code, out, _ = cli("eval", config_file, "steps=2")
    assert code == 0
    assert json.loads(out) == {"eval/accuracy": 0.5}
    assert called[0][1].steps == 2


@pytest.fixture
def children(monkeypatch):
    """The commands that a sweep would start; exit codes from `code=N` in them."""
    commands = []

    def run_child(command):
        commands.append(command)
        codes = [int(w.removeprefix("code=")) for w in command if w.startswith("code=")]
        return (codes or [0])[-1], codes == [130]

    monkeypatch.setattr(sweep_module, "_run_child", run_child)
    return commands


def test_a_sweep_runs_each_combination_in_its_own_folder(cli, config_file, children):
    code, out, _ = cli(
        "run", config_file, "out=o", "--sweep", "part.rate=0.1,0.2 steps=1,2"
    )
    assert code == 0
    prefix = [sys.executable, "-m", "jaxloop", "run", config_file, "out=o"]
    assert children == [
        [*prefix, f"part.rate={rate}", f"steps={steps}", f"out=o/sweep-00{index}"]
        for index, (rate, steps) in enumerate(
            [("0.1", 1), ("0.1", 2), ("0.2", 1), ("0.2", 2)]
        )
    ]
    assert "sweep-003 part.rate=0.2 steps=2\n" in out


@pytest.mark.parametrize("flag", ["--dry-run", "--print-config"])
def test_looking_at_a_sweep_only_lists_it(cli, config_file, children, flag):
    code, out, _ = cli("run", config_file, "--sweep=steps=1,2", flag)
    assert (code, out) == (0, "sweep-000 steps=1\nsweep-001 steps=2\n")
    assert not children


def test_a_sweep_is_checked_before_its_first_run(cli, config_file, children):
    code, _, err = cli("run", config_file, "--sweep", "steps=1,0,x part.rate=0.5,2")
    assert code == 2
    assert "steps = 0 must be positive (in steps=0 part.rate=0.5)" in err
    assert "steps=x: not a whole number" in err
    assert "part.rate is above 1 (in steps=1 part.rate=2)" in err
    assert err.count("part.rate is above 1") == 1
    code, _, err = cli("run", config_file, "--sweep", "out=a,b")
    assert code == 2
    assert "out cannot be swept" in err
    assert not children


def test_a_failed_run_does_not_stop_a_sweep_but_an_interrupt_does(
    cli, config_file, children
):
    code, _, err = cli("run", config_file, "--sweep", "code=0,3,0")
    assert (code, len(children)) == (3, 3)
    assert "sweep-001 (3)" in err
    children.clear()
    code, _, _ = cli("run", config_file, "--sweep", "code=0,130,0")
    assert (code, len(children)) == (130, 2)


def test_sigterm_is_handed_to_the_child_which_ends_in_its_own_time(tmp_path):
    """A real child that needs a moment to save after SIGTERM is waited for."""
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    child = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n"
        f"    time.sleep(0.5); pathlib.Path({str(saved)!r}).touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import sys; from jaxloop.cli.sweep import _run_child\n"
        f"print(_run_child([sys.executable, '-c', {child!r}]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    )
    killer = threading.Timer(30, process.kill)
    killer.start()
    while not ready.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    killer.cancel()
    assert out == "(143, True)\n"
    assert saved.exists()
