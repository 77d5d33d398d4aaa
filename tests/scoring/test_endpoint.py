"""A judge behind a server: one that answers, is busy, down, slow, or talks nonsense."""

import json
import time
from dataclasses import replace

import pytest

from jaxloop.config.serialise import to_json
from jaxloop.records import Prompt
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring.endpoint import LOST_IN_ROW, Endpoint, EndpointError
from tests.scoring.chat_server import broken, said, serving

SAMPLING = Sampling(n=2, temperature=0.7, max_new_tokens=9)
PROMPTS = [Prompt(f"p{i}", f"text {i}", ()) for i in range(6)]
KEY = "not-a-real-key-0123456789"


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """No proxy between this test and its server."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("JUDGE_KEY", KEY)


def quick(url: str, **settings) -> Endpoint:
    common = {"pause": 0.01, "timeout": 5.0, "attempts": 3, "at_once": 4}
    return Endpoint(url, "judge", **(common | settings))


def texts(endpoint: Endpoint, folder, prompts=PROMPTS, **settings):
    told = endpoint.write(prompts, SAMPLING, kept=folder, **settings)
    return [[rollout.text for rollout in group] for group in told]


def echo(body, count):
    return said(f"{body['messages'][0]['content']}, sample {body['seed']}")


EXPECTED = [[f"text {i}, sample {k}" for k in range(2)] for i in range(6)]


def test_each_prompt_gets_its_samples(tmp_path):
    with serving(echo) as (url, asked):
        assert texts(quick(url), tmp_path) == EXPECTED
    assert len(asked.bodies) == 12
    assert all(body["model"] == "judge" for body in asked.bodies)
    assert {body["temperature"] for body in asked.bodies} == {0.7}
    assert {body["max_tokens"] for body in asked.bodies} == {9}
    assert not any({"top_k", "min_p", "stop"} & set(body) for body in asked.bodies)


def test_rollouts_say_how_they_ended(tmp_path):
    with serving(lambda *_: said("a", reason="length")) as (url, _):
        told = quick(url).write(PROMPTS[:1], SAMPLING, kept=tmp_path)
    assert [(r.index, r.stop, r.prompt_id) for r in told[0]] == [
        (0, "length", "p0"),
        (1, "length", "p0"),
    ]


def test_nothing_is_asked_twice(tmp_path):
    with serving(echo) as (url, asked):
        texts(quick(url), tmp_path, PROMPTS[:3])
        assert texts(quick(url), tmp_path) == EXPECTED
        assert len(asked.bodies) == 12
        same = [replace(PROMPTS[0], id=f"other {i}") for i in range(4)]
        assert texts(quick(url), tmp_path, same) == [EXPECTED[0]] * 4
        assert len(asked.bodies) == 12
        assert texts(quick(url, cache=str(tmp_path)), tmp_path / "x") == EXPECTED
        assert len(asked.bodies) == 12
        quick(url).write(PROMPTS, replace(SAMPLING, temperature=0.1), kept=tmp_path)
        assert len(asked.bodies) == 24


def test_a_damaged_file_is_asked_for_again(tmp_path):
    with serving(echo) as (url, asked):
        texts(quick(url), tmp_path)
        next(tmp_path.rglob("*.json")).write_text("{")
        assert texts(quick(url), tmp_path) == EXPECTED
    assert len(asked.bodies) == 13


@pytest.mark.parametrize(
    "trouble",
    [
        broken(429, Retry_After="0"),
        broken(503),
        broken(200, "<html>sorry</html>"),
        broken(200, '{"choices": []}'),
        broken(200, '{"choices": [{"message": {"content": 7}}]}'),
    ],
    ids=lambda reply: f"{reply[0]} {reply[1][:20]}",
)
def test_trouble_that_passes_is_waited_for(tmp_path, trouble):
    with serving(lambda b, n: trouble if n % 3 == 0 else echo(b, n)) as (url, asked):
        endpoint = quick(url, attempts=8)
        assert texts(endpoint, tmp_path) == EXPECTED
    assert len(asked.bodies) > 12


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (broken(500, "disk full"), "500 Internal Server Error: disk full, 3 times"),
        (broken(200, "hello"), "no chat completion: hello, 3 times"),
        (broken(401, "who?"), "401 Unauthorized: who?; key_variable is empty"),
        (broken(404, "no such model"), "404 Not Found: no such model"),
        (broken(302, Location="http://example.invalid/"), "302 Found"),
        (broken(400, "too long"), "400 Bad Request: too long"),
    ],
    ids=lambda each: str(each)[:20],
)
def test_trouble_that_stays_is_one_message(tmp_path, trouble, says):
    with serving(lambda *_: trouble) as (url, _), pytest.raises(EndpointError) as told:
        texts(quick(url), tmp_path)
    assert says in str(told.value)
    assert url in str(told.value)


def test_a_server_that_goes_away_loses_nothing_that_came(tmp_path):
    """And is asked no longer than it takes to see that it is gone."""
    up = True
    prompts = [Prompt(f"p{i}", f"text {i}", ()) for i in range(40)]

    with serving(lambda b, n: echo(b, n) if n < 7 or up else broken()) as (url, asked):
        up = False
        with pytest.raises(EndpointError, match="same command goes on"):
            texts(quick(url), tmp_path, prompts)
        assert len(list(tmp_path.rglob("*.json"))) == 7
        assert len(asked.bodies) <= 7 + 3 * (LOST_IN_ROW + 4)
        up, before = True, len(asked.bodies)
        told = texts(quick(url), tmp_path, prompts)
        assert told[7] == ["text 7, sample 0", "text 7, sample 1"]
        assert 80 - 7 <= len(asked.bodies) - before <= 80 - 7 + 4


def test_a_few_requests_without_an_answer_are_empty_and_said(tmp_path):
    def refusing(body, count):
        wrong = body["messages"][0]["content"] == "text 3"
        return broken(400, "too long") if wrong else echo(body, count)

    lines = []
    with serving(refusing) as (url, asked):
        told = texts(quick(url), tmp_path, say=lines.append)
        assert told == [*EXPECTED[:3], ["", ""], *EXPECTED[4:]]
        assert len(asked.bodies) == 12  # to send it again would not help
        texts(quick(url), tmp_path)
        assert len(asked.bodies) == 14  # what did not come was not kept
    (line,) = lines
    assert "2 of 12 requests got no answer and count as invalid" in line
    assert "too long" in line


def test_a_slow_server_meets_the_deadline_and_nobody_waits(tmp_path):
    with serving(echo, seconds=0.5) as (url, _):
        began = time.monotonic()
        with pytest.raises(EndpointError, match=r"only \d of 12 .* deadline=0.7 s"):
            texts(quick(url, deadline=0.7, at_once=2), tmp_path)
        assert time.monotonic() - began < 2
        assert len(list(tmp_path.rglob("*.json"))) == 2


def test_a_request_that_hangs_is_lost(tmp_path):
    told = pytest.raises(EndpointError, match="timed out")
    with serving(echo, seconds=1.0) as (url, _), told:
        texts(quick(url, timeout=0.1, attempts=1), tmp_path, PROMPTS[:1])


def test_so_many_at_once_and_no_more(tmp_path):
    with serving(echo, seconds=0.05) as (url, asked):
        texts(quick(url, at_once=3), tmp_path)
    assert asked.most == 3


def test_whoever_looks_on_may_stop_it(tmp_path):
    class Stopped(Exception):
        pass

    seen = []

    def on_progress(done):
        seen.append(done)
        if done >= 4:
            raise Stopped

    with serving(echo, seconds=0.02) as (url, _):
        with pytest.raises(Stopped):
            texts(quick(url, at_once=2), tmp_path, on_progress=on_progress)
        assert seen == sorted(seen)
        assert 4 <= len(list(tmp_path.rglob("*.json"))) < 12


def test_the_key_is_sent_and_is_nowhere_else(tmp_path, capfd):
    """Not even where the server repeats it."""
    answers = lambda b, n: said(f"your key is {KEY}")  # noqa: E731
    with serving(answers) as (url, asked):
        endpoint = quick(url, key_variable="JUDGE_KEY")
        endpoint.check()
        told = texts(endpoint, tmp_path)
        assert all(h["Authorization"] == f"Bearer {KEY}" for h in asked.headers)
    refusing = serving(lambda *_: broken(403, f"bad key {KEY}"))
    with refusing as (url, _), pytest.raises(EndpointError) as error:
        texts(quick(url, key_variable="JUDGE_KEY"), tmp_path)
    kept = [file.read_text() for file in tmp_path.rglob("*.json")]
    shown = [*kept, str(told), str(error.value), str(capfd.readouterr())]
    shown += [repr(endpoint), json.dumps(to_json(endpoint))]
    assert not any(KEY in text for text in shown)
    assert "the key is in $JUDGE_KEY" in str(error.value)


def test_before_a_run_it_is_seen_whether_it_is_there(monkeypatch):
    with serving(echo) as (url, asked):
        quick(url).check()
        assert not asked.bodies
    with pytest.raises(EndpointError, match=r"127.0.0.1.*is the server up\?"):
        quick(url, timeout=1.0).check()
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(EndpointError, match="variable JUDGE_KEY is not set"):
        quick(url, key_variable="JUDGE_KEY").check()
    monkeypatch.setenv("JUDGE_KEY", "two\nlines")
    with pytest.raises(EndpointError, match="no key has"):
        quick(url, key_variable="JUDGE_KEY").check()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "file:///etc/passwd"}, "must begin with http"),
        ({"url": "localhost:8000"}, "must begin with http"),
        ({"url": "http://me:secret@host/v1"}, "no user or password"),
        ({"at_once": 0}, "at_once"),
        ({"attempts": 0}, "attempts"),
        ({"deadline": 0}, "deadline"),
    ],
)
def test_what_cannot_be_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Endpoint(**({"url": "http://localhost/v1", "model": "m"} | settings))
