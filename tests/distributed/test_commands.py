"""The commands that do not train: two processes do what one does."""

import math
from pathlib import Path

import pytest

from jaxloop.cli.main import main
from jaxloop.loop.folder import read_records
from jaxloop.metrics import comparable, read_metrics
from jaxloop.records import Scored
from tests.distributed import crew, small
from tests.distributed.test_pairs import ABSOLUTE, RELATIVE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def given(folder) -> list[str]:
    """Settings of `small.py:files`: a random model and prompts for it."""
    small.save_model(folder / "model")
    small.write_rows(folder / "rows.jsonl", 24)
    return [f"model.path={folder / 'model'}", f"data.train={folder / 'rows.jsonl'}"]


def both(folder: Path, command: str, kind: str, settings=()) -> tuple[Path, Path]:
    """What one process with eight devices writes, and two with four each."""
    one, two = folder / f"{command}-one", folder / f"{command}-two"
    words = [command, f"{crew.SMALL}:{kind}", *settings]
    assert main([*words, f"out={one}"]) == 0
    ended = crew.run(folder, ["-m", "jaxloop", *words, f"out={two}"], 2)
    assert ended.codes == [0, 0], "\n".join(ended.logs)
    end = "-eval" if command == "eval" else ""
    return Path(f"{one}{end}"), Path(f"{two}{end}")


def said(path: Path) -> list:
    """All tokens in a file of records: answers, and what judges say of them."""
    rows = read_records(path, Scored)
    return [
        [rollout.token_ids for rollout in group]
        for row in rows
        for group in [row.rollouts, *(each.rollouts for each in row.judgements)]
    ]


def same_metrics(one: Path, two: Path) -> None:
    (a,), (b,) = (map(comparable, read_metrics(out)) for out in (one, two))
    assert a.keys() == b.keys()
    for name, value in a.items():
        same = b[name] == value
        if isinstance(value, float):
            same = math.isclose(b[name], value, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        assert same, (name, value, b[name])


@pytest.mark.full
def test_eval(folder):
    one, two = both(folder, "eval", "dpo")
    drawn, again = (said(out / "records/eval/eval.jsonl") for out in (one, two))
    assert drawn == again
    assert sum(map(len, drawn)) == 16
    same_metrics(one, two)


@pytest.mark.full
def test_judge(folder):
    one, two = both(folder, "judge", "judged")
    drawn, again = (said(out / "judgements.jsonl") for out in (one, two))
    assert drawn == again
    assert sum(map(len, drawn)) == 8 * 2 * (1 + 2)  # each answer judged twice
    same_metrics(one, two)


def test_prompts(folder, given):
    one, two = both(folder, "prompts", "files", given)
    for name in ("prompts.jsonl", "records/prompts/counts.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    drawn, again = (said(out / "records/prompts/scored.jsonl") for out in (one, two))
    assert drawn == again
    assert len(drawn) == 10
