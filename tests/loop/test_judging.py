"""`jaxloop judge`: judges whose judgements are known, and one that makes no sense."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from configs import judge_pairs
from jaxloop.cli.main import main
from jaxloop.config import ConfigError
from jaxloop.loop import judging
from jaxloop.loop.folder import read_records
from jaxloop.metrics import read_metrics
from jaxloop.records import Scored
from jaxloop.scoring import Endpoint, Exact, Judge
from tests.loop import random_judge
from tests.scoring.chat_server import broken, said, serving

ROOT = Path(judge_pairs.__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
TURN = "\n\nHuman: What is {i}?\n\nAssistant:"
PAIRS = [
    {
        "chosen": TURN.format(i=i) + f" It is good, {i}.",
        "rejected": TURN.format(i=i) + f" It is something else, not {i} at all.",
    }
    for i in range(12)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    texts = [side for row in PAIRS for side in row.values()]
    return str(random_judge.save(tmp_path_factory.mktemp("judge") / "hf", texts))


@pytest.fixture
def rows(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("no_proxy", "*")
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return str(file)


def config(model: str, rows: str, out, by=None, variant=None, short=False, decoded=8):
    """The config's judge in small; `short`: with next to no template."""
    base = judge_pairs.get_config(variant)
    scorer = base.evaluation.scorer
    assert isinstance(scorer, Judge)
    if by is not None:
        scorer = replace(scorer, by=by)
    if short:
        fields = sorted(scorer.template_fields())
        template = "".join(f"{{{name}}}" for name in fields)
        scorer = replace(scorer, template=template, guarded=False)
    sampling = replace(scorer.sampling, max_new_tokens=8, rows=decoded, prefill_rows=8)
    return replace(
        base,
        model=replace(base.model, path=model, dtype="float32"),
        data=replace(base.data, pairs=rows),
        evaluation=replace(
            base.evaluation,
            scorer=replace(scorer, sampling=sampling),
            sampling=replace(sampling, n=2, rows=8),
        ),
        out=str(out),
        tensorboard=False,
    )


@pytest.mark.parametrize("variant", judge_pairs.JUDGES)
def test_each_variant_asks_for_its_files_and_starts_with_them(variant):
    base = judge_pairs.get_config(variant)
    assert base.name == "-".join(filter(None, ["judge_pairs", variant]))
    assert str(variant or "judge_pairs.py") in (judge_pairs.__doc__ or "")
    found = base.problems(None, 8)
    assert len(found) == 2
    assert any("model.path=DIR" in problem for problem in found)
    assert any("data.test=FILE" in problem for problem in found)
    data = replace(base.data, pairs="pairs.jsonl")
    given = replace(base, model=replace(base.model, path="DIR"), data=data)
    assert given.problems(None, 8) == []


def shown(text: str) -> tuple[str, str]:
    """Answer A and answer B of a request."""
    a, b = re.split(r"Answer [AB]:\n", text)[1:3]
    return a, b.partition("Explain")[0]


def server_judge(verdict):
    """A server whose judge says `verdict(A, B)`."""
    return serving(lambda b, _: said(verdict(*shown(b["messages"][0]["content"]))))


def judged(model, rows, out, verdict) -> tuple[dict, str]:
    with server_judge(verdict) as (url, _):
        by = Endpoint(url, "scripted", pause=0.01, attempts=2)
        code, text = judging.judge(config(model, rows, out, by))
    assert code == 0
    (line,) = read_metrics(out / "metrics.jsonl")
    return line, text


def good(a: str, b: str) -> str:
    return "[[A]]" if "good" in a else "[[B]]"


def test_a_judge_that_is_right(model, rows, tmp_path):
    line, text = judged(model, rows, tmp_path / "out", good)
    assert line["label/accuracy"] == 1.0
    assert line["label/compared"] == 12
    assert line["judge/swap_agreement"] == 1.0
    assert line["judge/first_bias"] == 0.0
    # Of 12 of 12, by hand: 12 / (12 + z^2).
    assert line["label/low"] == pytest.approx(12 / (12 + 3.8415), abs=1e-3)
    assert "100.0 % (95 % interval 75.8 to 100.0 %), 12 rows" in text
    kept = read_records(tmp_path / "out" / "judgements.jsonl", Scored)
    assert len(kept) == 12
    assert {row.prompt.columns["better"] for row in kept} == {0, 1}
    assert all(len(row.judgements) == 2 for row in kept)
    best = [row.rollouts[row.prompt.columns["better"]].text for row in kept]
    assert all("good" in answer for answer in best)


@pytest.mark.parametrize(
    ("verdict", "accuracy", "bias", "tied"),
    [
        (lambda a, b: "[[A]]", 0.5, 1.0, 1.0),
        (lambda a, b: good(b, a), 0.0, 0.0, 0.0),
        (lambda a, b: "[[C]]", 0.5, None, 1.0),
    ],
    ids=["first", "wrong", "ties"],
)
def test_judges_that_are_not(model, rows, tmp_path, verdict, accuracy, bias, tied):
    line, text = judged(model, rows, tmp_path / "out", verdict)
    assert line["label/accuracy"] == accuracy
    assert line.get("judge/first_bias") == bias
    assert line["label/tied_frac"] == tied
    assert ("it prefers none" in text) == (tied == 1.0)


def test_what_cannot_be_read_is_counted_and_left_out(model, rows, tmp_path):
    def often(a: str, b: str) -> str:
        return "hm" if "not 3 at all" in a + b else good(a, b)

    line, text = judged(model, rows, tmp_path / "out", often)
    assert line["judge/invalid_frac"] == pytest.approx(1 / 12)
    assert line["label/compared"] == 11
    assert line["label/accuracy"] == 1.0
    assert "8.3 % of the rows with labels have no valid judgement" in text


def test_a_random_model_says_nothing_and_that_is_said(model, rows, tmp_path, capsys):
    out = tmp_path / "out"
    tiny = config(model, rows, out, short=True)
    code, text = judging.judge(tiny)
    assert code == 0
    assert "not one of its judgements could be read" in text
    assert "accuracy" not in text
    (line,) = read_metrics(out / "metrics.jsonl")
    assert line["judge/invalid_frac"] == 1.0
    assert line["label/unjudged_frac"] == 1.0
    assert not any(
        s.value for r in read_records(out / judging.FILE, Scored) for s in r.scores
    )
    before = (out / judging.FILE).read_bytes()
    assert judging.judge(tiny)[1] == text
    assert (out / judging.FILE).read_bytes() == before


def test_stopped_and_started_again_it_ends_with_the_same_bits(
    model, rows, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    append, parts = judging.append_records, []

    def dying(path, records):
        parts.append(len(records))
        append(path, records[:2] if len(parts) == 2 else records)
        if len(parts) == 2:
            raise Killed

    with server_judge(good) as (url, _):
        whole, cut = (
            config(model, rows, tmp_path / name, Endpoint(url, "scripted"), decoded=2)
            for name in ("whole", "cut")
        )
        judging.judge(whole)
        monkeypatch.setattr(judging, "append_records", dying)
        with pytest.raises(Killed):
            judging.judge(cut)
        monkeypatch.setattr(judging, "append_records", append)
        file = tmp_path / "cut" / judging.FILE
        with file.open("a") as torn:
            torn.write('{"torn')
        judging.judge(cut)
    assert parts == [4, 4]
    assert file.read_bytes() == (tmp_path / "whole" / judging.FILE).read_bytes()


def test_p_true_judges_without_writing(model, rows, tmp_path):
    tiny = config(model, rows, tmp_path / "out", variant="p_true", short=True)
    code, text = judging.judge(tiny)
    (line,) = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert code == 0
    assert line["p_true/invalid_frac"] == 0.0
    assert 0 < line["p_true/mean"] < 1
    assert line["label/compared"] == 12
    assert "accuracy against the labels" in text


def test_a_server_that_is_down_keeps_what_came(model, rows, tmp_path):
    out, down = tmp_path / "out", [True]

    def answer(body, count):
        if down[0] and count >= 9:
            return broken()
        return said(good(*shown(body["messages"][0]["content"])))

    with serving(answer) as (url, asked):
        by = Endpoint(url, "scripted", pause=0.01, attempts=1, at_once=2)
        with pytest.raises(ValueError, match="same command goes on"):
            judging.judge(config(model, rows, out, by))
        assert len(list((out / "endpoint").rglob("*.json"))) == 9
        down[0], before = False, len(asked.bodies)
        code, text = judging.judge(config(model, rows, out, by))
        assert code == 0
        assert "100.0 %" in text
        assert len(asked.bodies) <= before + 24 - 9 + 2


def test_the_command(model, rows, tmp_path, capsys):
    with server_judge(good) as (url, _):
        words = [
            "judge",
            f"{judge_pairs.__file__}:endpoint",
            f"model.path={model}",
            f"data.pairs={rows}",
            f"evaluation.scorer.by.url={url}",
            "evaluation.scorer.by.model=scripted",
            f"out={tmp_path / 'out'}",
            "tensorboard=false",
        ]
        assert main(words) == 0
        out = capsys.readouterr().out
        assert out.startswith("12 rows judged\n  accuracy against the labels: 100.0 %")
        assert main([*words, "seed=1"]) == 2
        assert "holds a run of another configuration" in capsys.readouterr().err
    assert main([*words[:-2], f"out={tmp_path / 'new'}"]) == 2
    assert "is the server up?" in capsys.readouterr().err
    assert main(["judge", f"{judge_pairs.__file__}", f"model.path={model}"]) == 2
    assert "data.pairs=FILE" in capsys.readouterr().err


def test_without_a_judge_there_is_nothing_to_run(model, rows, tmp_path):
    base = config(model, rows, tmp_path / "out")
    base = replace(base, evaluation=replace(base.evaluation, scorer=Exact()))
    with pytest.raises(ConfigError, match="no Judge"):
        judging.judge(base)
    asked = config(model, "", tmp_path / "out", variant="questions")
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"turns": ["What?", "Why?"]}\n')
    data = replace(asked.data, test=str(questions))
    sampling = replace(asked.evaluation.sampling, n=1)
    evaluation = replace(asked.evaluation, sampling=sampling)
    with pytest.raises(ConfigError, match=r"evaluation.sampling.n = 1: .* set it to 2"):
        judging.judge(replace(asked, data=data, evaluation=evaluation))


@pytest.mark.full
def test_real_pairs_and_questions(tmp_path):
    """HH-RLHF's transcripts and MT-Bench's questions through the whole line."""
    hh = DATA / "hh_rlhf" / "harmless_base_test.jsonl"
    bench = DATA / "mt_bench" / "question.jsonl"
    if not (hh.exists() and bench.exists()):
        pytest.skip("the files of HH-RLHF and MT-Bench are not there")
    lines = hh.read_text(encoding="utf-8").split("\n")[:64]
    model = str(
        random_judge.save(tmp_path / "hf", [json.loads(x)["chosen"] for x in lines])
    )
    few = tmp_path / "pairs.jsonl"
    few.write_text("\n".join(lines), encoding="utf-8")
    base = config(model, str(few), tmp_path / "pairs")
    base = replace(base, data=replace(base.data, max_prompt_tokens=256))
    code, text = judging.judge(
        replace(base, evaluation=replace(base.evaluation, prompts=8))
    )
    assert (code, text.splitlines()[0]) == (0, "8 rows judged")
    questions = config(model, "", tmp_path / "questions", variant="questions")
    questions = replace(
        questions,
        data=replace(questions.data, test=str(bench), max_prompt_tokens=256),
        evaluation=replace(questions.evaluation, prompts=8),
    )
    code, text = judging.judge(questions)
    assert (code, text.splitlines()[0]) == (0, "8 rows judged")
    for row in read_records(tmp_path / "questions" / judging.FILE, Scored):
        assert len(row.rollouts) == 2
        assert row.prompt.columns["category"]
