"""A round whose judge is a server that goes away and comes back; its canaries."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from jaxloop.loop.folder import RunFolder
from jaxloop.loop.interrupt import Interrupt
from jaxloop.loop.recipe import From
from jaxloop.loop.rounds import sampled_and_scored
from jaxloop.loop.run import run
from jaxloop.loop.stations import evaluate
from jaxloop.loop.store import Position
from jaxloop.loop.workbench import build, prepare
from jaxloop.mesh import MeshShape
from jaxloop.metrics import read_metrics
from jaxloop.scoring import Endpoint, Judge, Points
from jaxloop.scoring.endpoint import EndpointError
from tests.loop import tiny_config
from tests.scoring.chat_server import broken, said, serving


def judged(out, url: str):
    base = tiny_config.config("dpo", out, mesh=MeshShape(8, 1, 1))
    scorer = Judge(
        template="{question}|{answer}",
        parse=Points(high=9),
        by=Endpoint(url, "scripted", pause=0.01, attempts=2, at_once=8),
        guarded=False,
        sampling=replace(tiny_config.SAMPLING, n=2),
    )
    recipe = replace(base.recipe, scorer=scorer)
    evaluation = replace(base.evaluation, every=0)
    sft = replace(base.sft, batch_size=8)
    return replace(base, sft=sft, recipe=recipe, evaluation=evaluation)


def nines(body) -> str:
    """A point for each nine, and all of them for a colon."""
    answer = body["messages"][0]["content"].partition("|")[2]
    return f"Score: {9 if answer == ':' else min(answer.count('9'), 9)}"


@contextmanager
def opened(config):
    """The workbench of a run, and its first weights."""
    folder = RunFolder(Path(config.folder))
    with Interrupt() as interrupt:
        bench = build(config, prepare(config), folder, interrupt)
        try:
            yield bench, bench.initial_params()
        finally:
            bench.close()


def test_a_round_survives_its_judge(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    out, state, answered = tmp_path / "out", {"left": 50}, []

    def answer(body, _):
        state["left"] -= 1
        if state["left"] < 0:
            return broken(503, "gone")
        answered.append((body["messages"][0]["content"], body["seed"]))
        return said(nines(body))

    with serving(answer) as (url, asked):
        config = judged(out, url)

        def scored():
            with opened(config) as (bench, params):
                at = Position("recipe")
                return sampled_and_scored(bench, config.recipe, params, at)[0]

        with pytest.raises(EndpointError, match="503 Service Unavailable: gone"):
            scored()
        assert (out / "records" / "round_000" / "samples.jsonl").exists()
        assert len(list((out / "endpoint").rglob("*.json"))) == 50
        state["left"] = 10**6
        rows = scored()
        assert not set(answered[:50]) & set(answered[50:])  # nothing is asked twice
        count = len(asked.bodies)
        assert scored() == rows
        assert len(asked.bodies) == count
    told = [judgement for row in rows for judgement in row.judgements]
    assert len({judgement.prompt.text for judgement in told}) > 25
    for judgement in told:
        asked_for = {"messages": [{"content": judgement.prompt.text}]}
        assert [r.text for r in judgement.rollouts] == [nines(asked_for)] * 2


def test_an_evaluation_shows_the_judge_canaries(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "*")
    out = tmp_path / "out"
    server = serving(lambda body, _: said(nines(body)))
    with server as (url, _), opened(judged(out, url)) as (bench, params):
        evaluate(bench, params, name="round_000", step=0, phase="eval", round=0)
    (line,) = read_metrics(out / "metrics.jsonl")
    assert line["judge/canary/colon"] == 1.0
    assert line["judge/canary/opener"] <= 0.5
    assert "judge/canary/empty" not in line  # an empty answer is not shown at all
    assert "colon (1.00)" in capsys.readouterr().out
    kept = (out / "records" / "canaries" / "round_000.jsonl").read_text()
    assert "Let me take this apart" in kept


def later(out, url: str):
    """With another judge from the second round on."""
    base = judged(out, url)
    change = From(2, "scorer", replace(base.recipe.scorer, name="later"))
    evaluation = replace(base.evaluation, every=2)
    recipe = replace(base.recipe, changes=(change,))
    return replace(base, recipe=recipe, evaluation=evaluation)


def shown_to(lines) -> list[str]:
    """The judge that met the canaries in each line."""
    names = [{n.partition("/")[0] for n in line if "/canary/" in n} for line in lines]
    assert all(len(each) == 1 for each in names)
    return ["".join(each) for each in names]


def test_the_judge_of_the_round_meets_the_canaries(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    out = tmp_path / "out"
    server = serving(lambda body, _: said(nines(body)))
    with server as (url, _), opened(later(out, url)) as (bench, params):
        for i in range(2):
            evaluate(bench, params, name=f"{i}", step=0, phase="eval", running=i)
    assert shown_to(read_metrics(out / "metrics.jsonl")) == ["judge", "later"]


@pytest.mark.full
def test_each_look_of_a_run_is_at_the_judge_of_its_round(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    out = tmp_path / "out"
    with serving(lambda body, _: said(nines(body))) as (url, _):
        config = later(out, url)
        assert run(replace(config, sft=replace(config.sft, steps=1))) == 0
    looks = [x for x in read_metrics(out / "metrics.jsonl") if x["phase"] == "eval"]
    ends = [i for i, line in enumerate(looks) if line.get("round") is not None]
    found = shown_to(looks)
    border = ends[1] + 1  # behind the first round, still of its judge
    assert len(looks) > ends[-1] > border  # and inside the second
    assert found == ["judge"] * border + ["later"] * (len(looks) - border)
