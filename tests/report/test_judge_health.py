"""What the page says of judges: verdicts, curves, score against length."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from jaxloop.report.build import build_report, render
from jaxloop.report.charts import Series, line_chart
from jaxloop.report.curves import panels
from jaxloop.report.folder import read_run
from jaxloop.report.health import Reading, health_section, judge_readings, judge_state
from jaxloop.report.score_length import clouds, score_length_section
from jaxloop.report.signals import CANARY, SIGNALS
from jaxloop.scoring.judge_metrics import judge_metrics
from tests.report.judged_run import build, judged_row, record_set, scored
from tests.report.test_report import Page

BY_NAME = {signal.name: signal for signal in SIGNALS}


def run_of(*lines):
    """A run with these metrics, a round each."""
    metrics = [
        {"phase": "round", "round": i, "step": 10 * i} | line
        for i, line in enumerate(lines)
    ]
    judges = list(dict.fromkeys(n.split("/")[0] for line in lines for n in line))
    return SimpleNamespace(metrics=metrics, judges=judges, online=False, first_round=0)


def state(name, *values):
    (found,) = judge_readings(run_of(*({f"judge/{name}": v} for v in values))).values()
    return found[0].state


@pytest.mark.parametrize(
    ("name", "good", "warn", "bad"),
    [
        ("agreement", 0.9, 0.7, 0.5),
        ("accuracy", 0.9, 0.7, 0.5),
        ("invalid_frac", 0.01, 0.1, 0.6),
        ("unjudged_frac", 0.0, 0.1, 0.6),
        ("swap_agreement", 0.9, 0.7, 0.5),
        ("first_bias", -0.1, -0.4, -0.9),
        ("first_bias", 0.1, 0.4, 0.9),
        ("tied_frac", 0.1, 0.6, 0.95),
        ("saturated_frac", 0.1, 0.9, 1.0),
        ("length_corr", 0.1, 0.5, 0.9),
    ],
)
def test_marks_follow_the_last_value(name, good, warn, bad):
    assert state(name, bad, good) == "good"
    assert state(name, good, warn) == "warn"
    assert state(name, good, bad) == "bad"


@pytest.mark.parametrize("name", ["mean", "std"])
def test_what_has_no_rule_has_no_mark(name):
    assert state(name, 3.0, 4.0) == ""


def test_every_metric_of_a_judge_is_told():
    rng = np.random.default_rng(0)
    rows = [judged_row(f"p{i}", rng) for i in range(6)]
    measured = {name.removeprefix("judge/") for name in judge_metrics(rows)}
    assert measured == set(BY_NAME)


def test_what_is_not_known_yet_is_shown_too():
    run = run_of({"judge/agreement": 0.9, "judge/new_share": 0.5})
    known, new = judge_readings(run)["judge"]
    assert (known.signal.name, new.signal.title) == ("agreement", "New share")
    assert new.state == ""


def test_a_judge_that_follows_length_as_the_truth_does_is_not_blamed():
    run = run_of({"judge/length_corr": 0.8})
    blamed = judge_readings(run, None)["judge"][0]
    excused = judge_readings(run, 0.75)["judge"][0]
    assert (blamed.state, excused.state) == ("bad", "good")
    assert "Of the truth itself it is 0.75" in excused.signal.told
    assert judge_readings(run, 0.3)["judge"][0].state == "bad"


def test_the_held_out_side_counts_too():
    training = Series("in training", (0.0,), (0.9,))
    held_out = Series("held out", (0.0,), (0.5,))
    assert Reading(BY_NAME["agreement"], (training, held_out)).state == "bad"


def test_the_curve_that_stands_out_is_the_one_that_is_told():
    run = run_of({"judge/agreement": 0.9, "judge/invalid_frac": 0.0})
    run.metrics.append(
        {"phase": "eval", "step": 0, "eval/judge/agreement": 0.5}
        | {"eval/judge/invalid_frac": 0.02}
    )
    found = judge_readings(run)
    assert [reading.text for reading in found["judge"]] == ["50%", "0%"]
    words = str(health_section(run, found, {}))
    assert 'agrees with the truth <b class="bad">50%</b> held out.' in words


@pytest.mark.parametrize("name", ["agreement", "accuracy", "swap_agreement"])
def test_a_judge_that_gets_worse_is_looked_at_while_still_well(name):
    assert state(name, 0.95, 0.9, 0.86) == "good"
    assert state(name, 0.95, 0.9, 0.84) == "warn"
    assert state(name, 0.84, 0.9, 0.95) == "good"
    run = run_of({f"judge/{name}": 0.95}, {f"judge/{name}": 0.8})
    assert "80%</b> after 95%." in health_section(run, judge_readings(run), {})


def test_of_a_long_curve_the_last_twelfth_speaks():
    noisy = (0.9,) * 90 + (0.95,) * 9 + (0.1,)
    reading = Reading(
        BY_NAME["agreement"], (Series("", tuple(map(float, range(100))), noisy),)
    )
    assert reading.last == [pytest.approx(np.mean(noisy[-8:]))]


def test_the_best_liked_canary_speaks_for_all():
    run = run_of({"judge/invalid_frac": 0.0})
    for step, values in ((0, (0.1, 0.4)), (10, (0.9, 0.2))):
        names = ("judge/canary/empty", "judge/canary/injected_yes")
        line = dict(zip(names, values, strict=True))
        run.metrics.append({"phase": "eval", "step": step} | line)
    reading = judge_readings(run)["judge"][-1]
    assert reading.series[0].y == (0.4, 0.9)
    assert reading.state == "bad"
    assert reading.signal.told.endswith("Best liked at the end: empty.")
    assert reading.signal.title == CANARY.title


def test_a_verdict_counts_what_stands_out():
    run = run_of({"judge/agreement": 0.9, "judge/invalid_frac": 0.1, "judge/mean": 3.0})
    assert judge_state(judge_readings(run)["judge"]) == ("warn", "look at 1 of 2")
    run = run_of({"judge/agreement": 0.9})
    assert judge_state(judge_readings(run)["judge"]) == ("good", "healthy")


def test_the_section_says_what_stands_out_in_words():
    run = run_of({"judge/agreement": 0.55, "judge/invalid_frac": 0.01})
    charts = {}
    text = " ".join(
        re.sub("<[^>]*>", " ", health_section(run, judge_readings(run), charts)).split()
    )
    assert "Stands out: agrees with the truth 55%" in text
    assert len(charts) == 2
    assert health_section(run_of(), {}, charts) is None


def test_judges_have_their_own_place_and_no_second_one(judged):
    run = read_run(judged)
    assert run.judges == ["judge", "points", "meta"]
    names = [p.name for found in panels(run).values() for p in found]
    assert names
    assert not [name for name in names if name.startswith(("judge/", "meta/"))]
    page = Page(build_report(judged).read_text())
    assert page.text.index("The judges") < page.text.index("Curves")
    for signal in SIGNALS:
        assert signal.title in page.text


def test_the_band_is_where_values_should_lie():
    chart = line_chart(
        [Series("x", (0.0, 1.0), (0.2, 0.9))], label="x", bounds=(0, 1), zone=(0.5, 2)
    )
    _, _, top, bottom = chart.data["frame"]
    (zone,) = re.findall(r'<rect class="zone"[^>]*>', chart.svg)
    y, height = (float(re.search(f'{n}="([^"]*)"', zone)[1]) for n in (" y", "height"))
    assert y == pytest.approx(top, abs=0.1)
    assert y + height == pytest.approx((top + bottom) / 2, abs=0.1)
    outside = line_chart([Series("x", (0.0,), (0.2,))], label="x", zone=(5, 6))
    assert "zone" not in outside.svg


def test_the_correlation_is_that_of_the_metrics(tmp_path):
    rng = np.random.default_rng(1)
    rows = [judged_row(f"p{i}", rng) for i in range(9)]
    (cloud,) = clouds([record_set(tmp_path, rows)])
    told = judge_metrics(rows)["judge/length_corr"]
    assert cloud.correlation == pytest.approx(told)
    assert -1 <= cloud.truth_correlation <= 1


def test_every_scored_completion_is_in_a_disc(tmp_path):
    rng = np.random.default_rng(2)
    rows = [judged_row(f"p{i}", rng, n=5) for i in range(60)]
    rows.append(scored(["x", "not scored"], scores=[1.0, None], truths=[1.0, None]))
    section = score_length_section(clouds([record_set(tmp_path, rows)]))
    assert section is not None
    counts = re.findall(r"<title>[^<]*: ([\d,]+) ?(right|wrong|)</title>", section)
    assert sum(int(count) for count, _ in counts) == 301
    assert {kind for _, kind in counts} == {"right", "wrong"}
    assert len(counts) < 200


def test_a_few_very_long_ones_do_not_squeeze_the_rest(tmp_path):
    rng = np.random.default_rng(3)
    rows = [judged_row(f"p{i}", rng) for i in range(40)]
    rows.append(scored(["x" * 20_000], scores=[1.0]))
    section = score_length_section(clouds([record_set(tmp_path, rows)]))
    assert "20,001" not in section
    places = [float(x) for x in re.findall(r'class="disc[^"]*" cx="([^"]*)"', section)]
    assert max(places) - min(places) > 100
    assert re.search(r"\d{3} tokens or more", section)


@pytest.mark.parametrize(
    ("texts", "scores"), [(["a", "bb"], [1.0, 1.0]), (["a", "b"], [0.0, 1.0])]
)
def test_one_score_or_one_length_is_no_picture(tmp_path, texts, scores):
    assert clouds([record_set(tmp_path, [scored(texts, scores=scores)])]) == []
    assert score_length_section([]) is None


def test_hostile_judges_stay_text(judged, hostile):
    html = build_report(judged).read_text()
    page = Page(html)
    assert page.tags.count("script") == 2
    assert "<img" not in html
    assert "<script>alert" not in html
    data = json.loads(page.raw["application/json"])
    prompts = {p["id"]: p for one in data["sets"] for p in one["prompts"]}
    for i, text in enumerate(hostile):
        (case,) = prompts[f"hostile-{i}"]["judged"]
        clean = text.replace("\ud800", "")
        assert case["judge"] == clean[:40]
        assert case["orders"][0]["told"][0]["text"] == clean[:2000]
        assert case["orders"][0]["request"][:1500] == clean[:1500]
    assert prompts["hostile-1"]["left"].startswith(hostile[1])


def test_a_judge_with_a_hostile_name_is_escaped(judged):
    run = read_run(judged)
    line = {"phase": "round", "round": 0, "step": 0, "<img src=x>/invalid_frac": 0.5}
    html = render(replace(run, metrics=[*run.metrics, line]), None)
    assert "<img" not in html
    assert "&lt;img src=x&gt;: look at 1 of 1" in html


def test_many_judgements_stay_small(tmp_path, monkeypatch):
    from jaxloop.report import tables

    monkeypatch.setattr(tables, "JUDGEMENT_BYTES", 60_000)
    monkeypatch.setattr(tables, "ROLLOUT_BYTES", 120_000)
    small = build_report(build(tmp_path / "small", prompts=60)).stat().st_size
    monkeypatch.undo()
    large = build_report(tmp_path / "small").stat().st_size
    assert small < 400_000 < large


def test_a_run_without_judges_says_nothing_of_them(finished):
    page = Page(build_report(finished).read_text())
    assert ("id", "judge") not in {(n, v) for _, n, v in page.attributes}
    assert "Judgements" not in page.text
