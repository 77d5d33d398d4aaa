"""Functions of users, in processes that may hang, die and talk: none may stop a run."""

import contextlib
import copy
import gc
import importlib.util
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jaxloop.scoring import Function, PoolError, check
from tests.scoring.samples import prompt, run

HERE = pathlib.Path(__file__).parent


def load(path: pathlib.Path):
    """A module that is in no sys.modules, as a config file's."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


user = load(HERE / "user_functions.py")


def alive(pid: int) -> bool:
    """Runs, and is not just waiting to be buried."""
    with contextlib.suppress(OSError):
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return state[0] != "Z"
    return False


def gone(pids, within=10.0) -> bool:
    end = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def pids_of(scorer: Function) -> list[int]:
    return [worker.process.pid for worker in scorer._pool.workers]


@pytest.fixture
def made():
    """made(fn, **settings): a scorer that is closed, and seen to be, at the end."""
    scorers = []

    def make(fn, **settings):
        scorers.append(Function(fn, **settings))
        return scorers[-1]

    yield make
    pids = [pid for scorer in scorers for pid in pids_of(scorer)]
    for scorer in scorers:
        scorer.close()
    assert gone(pids)


def statuses(scores):
    assert all((s.value is None) == (s.status != "scored") for s in scores)
    return [score.status for score in scores]


def test_scores_come_in_order_with_the_columns(made):
    texts = ["a", "ab", "b", "aa"] * 5
    scores = run(made(user.share_of_gold), *texts, answer="a", level=3)
    assert [s.value for s in scores] == [1, 0.5, 0, 1] * 5
    assert scores[0].components == {"share_of_gold": 1.0}


def test_a_function_gets_only_the_columns_that_it_names(made):
    only = made(user.only_answer, name="same")
    scores = run(only, "a", "b", answer="a", level=3)
    assert [s.value for s in scores] == [1, 0]
    assert scores[0].components == {"same": 1.0}
    with pytest.raises(
        ValueError, match=r"row 'p': column 'answer' is missing.*'answr'"
    ):
        check(only, [prompt(answr="a")])


def test_workers_persist_share_the_work_and_never_import_jax(made):
    scorer = made(user.process, workers=2)
    first = {s.value for s in run(scorer, *"abcdefghijklmnopqrst")}
    assert first == {s.value for s in run(scorer, *"abcdefghijklmnopqrst")}
    assert first == set(pids_of(scorer))
    assert len(first) == 2
    assert os.getpid() not in first
    assert [s.value for s in run(made(user.imports, workers=1), "a")] == [0]


def test_everything_that_goes_wrong_is_told_apart_and_nothing_else_suffers(
    made, caplog
):
    texts = [
        "ok",
        "none",
        "nan",
        "inf",
        "raise",
        "text",
        "exit",
        "die",
        "print",
        "long",
    ]
    with caplog.at_level(logging.WARNING, "jaxloop"):
        scores = run(made(user.naughty), *texts, "read", "ok")
    assert statuses(scores) == [
        "scored",
        "unscored",
        "nan",
        "nan",
        *["error"] * 4,
        "scored",
        "error",
        *["scored"] * 2,
    ]
    assert [s.value for s in scores if s.value is not None] == [1, 1, 0, 1]
    assert len(caplog.records) == 1  # the first of its kind; the others are counted
    assert len(caplog.text) < 6000


def test_the_first_traceback_is_logged_with_its_row(made, caplog):
    with caplog.at_level(logging.WARNING, "jaxloop"):
        run(made(user.naughty), "ok", "raise", "raise")
    assert "the lost key" in caplog.text
    assert "row 'p', sample 1" in caplog.text
    assert "user_functions.py" in caplog.text


def test_hung_calls_are_killed_and_the_others_scored(made):
    texts = ["ok", "hang", "ok", "stubborn", "ok", "ok"]
    scorer = made(user.naughty, deadline=1.0)
    check(scorer, [prompt()])
    start = time.monotonic()
    scores = run(scorer, *texts)
    took = time.monotonic() - start
    assert statuses(scores) == [
        *["scored", "timeout"] * 2,
        *["scored"] * 2,
    ]
    assert 1.0 <= took < 6
    assert statuses(run(scorer, "ok")) == ["scored"]


def test_what_a_killed_call_started_is_killed_with_it(made, tmp_path):
    file = tmp_path / "pids"
    scores = run(made(user.naughty, deadline=1.0), "child", pids=str(file))
    assert statuses(scores) == ["timeout"]
    children = [int(line) for line in file.read_text().split()]
    assert len(children) == 1
    assert gone(children)


def test_async_calls_run_together(made):
    scorer = made(user.patient, workers=1)
    check(scorer, [prompt()])
    start = time.monotonic()
    scores = run(scorer, *map(str, range(20)))
    assert [s.value for s in scores] == list(range(20))
    assert time.monotonic() - start < 20 * 0.2 / 2


def test_async_calls_have_deadlines_and_faults_of_their_own(made):
    texts = ["1", "late", "raise", "nan", "2", "deaf"]
    scores = run(made(user.patient, deadline=1.0, workers=1), *texts)
    expected = ["scored", "timeout", "error", "nan", "scored", "timeout"]
    assert statuses(scores) == expected


@pytest.mark.parametrize(("guilty", "status"), [("block", "timeout"), ("die", "error")])
def test_one_that_stops_the_event_loop_does_not_cost_its_neighbours(
    made, guilty, status
):
    scorer = made(user.patient, deadline=1.0, workers=1)
    assert statuses(run(scorer, "1", guilty, "2")) == ["scored", status, "scored"]


def test_large_texts_pass(made):
    text = "a\N{SNOWMAN}\ud800" * 500_000
    assert run(made(user.share_of_gold), text, answer="a")[0].value == pytest.approx(
        1 / 3
    )


def test_no_prompts_are_no_work(made):
    scorer = made(user.only_answer)
    assert scorer([], []) == []
    assert pids_of(scorer) == []


def test_an_idle_worker_that_died_is_replaced_without_blame(made):
    scorer = made(user.naughty, workers=1)
    assert statuses(run(scorer, "ok")) == ["scored"]
    (pid,) = pids_of(scorer)
    os.kill(pid, signal.SIGKILL)
    assert gone([pid])
    assert statuses(run(scorer, "ok")) == ["scored"]


def test_static_methods_work(made):
    assert run(made(user.Rules.length), "four")[0].value == 4


@pytest.mark.parametrize(
    "fn", [lambda p, c: 1.0, len, print], ids=["lambda", "len", "print"]
)
def test_what_a_worker_could_not_import_is_refused_at_once(fn):
    with pytest.raises(ValueError, match="top level of a file"):
        Function(fn)


@pytest.mark.parametrize("wrong", [{"deadline": 0.0}, {"workers": 0}, {"at_once": 0}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Function(user.naughty, **wrong)


def test_a_column_that_is_no_json_is_refused_by_row(made):
    with pytest.raises(ValueError, match=r"row 'p'.*naughty"):
        run(made(user.naughty), "ok", picture=b"\0")


def test_a_file_that_fails_in_the_worker_is_one_clear_error(made, tmp_path):
    file = tmp_path / "config.py"
    file.write_text("def score(prompt, completion):\n    return 1.0\n")
    scorer = made(load(file).score)
    file.write_text("import no_such_package\n")
    with pytest.raises(PoolError, match=r"(?s)'score' of .*config.py.*no_such_package"):
        check(scorer, [])
    assert pids_of(scorer) == []
    file.write_text("import os\nos._exit(7)\n")
    with pytest.raises(PoolError, match="status 7"):
        run(scorer, "ok")
    assert pids_of(scorer) == []


def test_a_file_may_import_its_neighbours_as_its_loader_let_it(
    made, tmp_path, monkeypatch
):
    (tmp_path / "neighbour_of_config.py").write_text("VALUE = 0.25\n")
    file = tmp_path / "config.py"
    file.write_text(
        "from neighbour_of_config import VALUE\n"
        "def score(prompt, completion):\n    return VALUE\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert run(made(load(file).score), "x")[0].value == 0.25


def test_workers_end_with_the_scorer():
    scorer = Function(user.naughty)
    run(scorer, "ok", "ok")
    pids = pids_of(scorer)
    assert pids
    assert all(map(alive, pids))
    del scorer
    gc.collect()
    assert gone(pids)


def test_copies_have_no_processes():
    scorer = Function(user.naughty, deadline=1.0)
    run(scorer, "ok")
    twin = copy.deepcopy(scorer)
    assert twin == scorer
    assert pids_of(twin) == []
    scorer.close()
    assert statuses(run(scorer, "ok")) == ["scored"]
    scorer.close()


PARENT = """
    import json, sys, time
    sys.path[:0] = {paths}
    from tests.scoring.samples import prompt, run
    from tests.scoring.test_functions import pids_of, user
    from jaxloop.scoring import Function
    scorer = Function(user.naughty, deadline={deadline})
    run(scorer, "ok", "ok")
    print(json.dumps(pids_of(scorer)), flush=True)
    {rest}
"""


def parent(rest: str, deadline: float = 5.0) -> subprocess.Popen:
    paths = [str(HERE.parents[1]), str(HERE.parents[1] / "kernels")]
    program = PARENT.format(paths=paths, rest=rest, deadline=deadline)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("rest", "deadline", "kill"),
    [
        ("", 5.0, False),
        ("raise SystemExit(1)", 5.0, False),
        ("time.sleep(100)", 5.0, True),
        ("run(scorer, 'hang', 'stubborn')", 0.5, True),
    ],
    ids=["end", "exit", "killed idle", "killed busy"],
)
def test_no_process_outlives_the_interpreter(rest, deadline, kill):
    """Even where that was killed: idle workers see the pipe close, and the kernel's
    timer ends the busy ones some seconds after the deadline."""
    with parent(rest, deadline) as process:
        assert process.stdout is not None
        pids = json.loads(process.stdout.readline())
        assert pids
        if kill:
            time.sleep(0.2)
            process.kill()
        process.wait(30)
    assert gone(pids, within=deadline + 10)
