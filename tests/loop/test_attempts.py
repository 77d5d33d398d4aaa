"""The account of a run's hours, against stories whose times are known."""

import json

import jax
import jax.numpy as jnp
import pytest

from jaxloop.loop.attempts import Attempt, add_up, read_attempts


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_run_that_was_killed_once(tmp_path, clock):
    def spend(seconds):
        clock.now += seconds

    killed = Attempt(tmp_path, clock=clock)
    spend(5)
    killed.phase("sampling")
    spend(20)
    killed.phase("scoring")
    spend(3)
    killed.phase("training")
    spend(10)
    with killed.spending("checkpoint"):
        spend(2)
    killed.kept()
    spend(30)
    killed.beat()  # the last that is heard of it
    spend(60)
    second = Attempt(tmp_path, clock=clock)
    spend(5)
    second.phase("training")
    spend(31)
    second.close()
    account = add_up(read_attempts(tmp_path))
    assert account.seconds == {
        "loading": 10,
        "productive": 30 + 31,
        "waiting": 3,
        "checkpoint": 2,
        "repeated": 30,
        "down": 60,
    }
    assert account.attempts == 2
    assert account.goodput == pytest.approx(61 / 166)
    figures = second.account().figures
    assert figures.pop("perf/goodput") == pytest.approx(61 / 166)
    assert figures == {f"perf/{name}_s": s for name, s in account.seconds.items()}
    ends = [attempt["end"] for attempt in read_attempts(tmp_path)]
    assert ends == ["", "finished"]


def test_the_first_word_on_its_end_is_right(tmp_path, clock):
    attempt = Attempt(tmp_path, clock=clock)
    attempt.close("preempted")
    attempt.close()
    assert read_attempts(tmp_path)[0]["end"] == "preempted"


def test_what_jax_compiles_is_not_productive(tmp_path):
    attempt = Attempt(tmp_path)
    attempt.phase("training")
    jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((3, 5))).block_until_ready()
    attempt.close()
    (found,) = read_attempts(tmp_path)
    assert found["seconds"]["compiling"] > 0
    whole = found["last"] - found["started"]
    assert sum(found["seconds"].values()) == pytest.approx(whole, abs=1e-3)
    before = dict(found["seconds"])
    jax.jit(lambda x: jnp.cos(x) @ x.T)(jnp.ones((3, 5)))  # of no attempt any more
    assert attempt._seconds["compiling"] == before["compiling"]


def test_the_account_is_on_the_disk_while_the_run_lives(tmp_path, clock):
    attempt = Attempt(tmp_path, clock=clock)
    attempt.phase("sampling")
    clock.now += 9
    attempt.beat()
    assert "productive" not in read_attempts(tmp_path)[0]["seconds"]
    clock.now += 2
    attempt.beat()
    text = (tmp_path / "attempts" / "0000.json").read_text()
    assert json.loads(text)["seconds"]["productive"] == 11


def test_a_folder_without_an_account(tmp_path):
    assert read_attempts(tmp_path) == []
    assert add_up([]).goodput == 0
