"""Prompts written by the model of a run: alone, in front of a recipe, interrupted."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from configs import self_instruct
from jaxloop.config import ConfigError
from jaxloop.experiment import Model, ModelTokenizer
from jaxloop.loop import writing
from jaxloop.loop.folder import read_records
from jaxloop.loop.interrupt import Preempted
from jaxloop.loop.models import LoopModels
from jaxloop.loop.recipe import Evaluation, PromptStage
from jaxloop.loop.run import run
from jaxloop.loop.workbench import new_params
from jaxloop.loop.writing import write_prompts
from jaxloop.mesh import MeshShape, make_mesh
from jaxloop.metrics import read_metrics
from jaxloop.models.decoder import Decoder, ModelShape
from jaxloop.models.export import save_model
from jaxloop.prompts.dataset import JsonlData
from jaxloop.prompts.maker import Maker, Screen
from jaxloop.prompts.perturbed import Perturbed
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.records import Rollout, Scored
from jaxloop.scoring import MajorityVote, canonical
from jaxloop.selection import AnswerConsistency
from tests.loop import tiny_config
from tests.prompts.conftest import DATA

LOOSE = Screen(fewest_words=0, keywords=(), alike=1.0)
SHORT = replace(tiny_config.SAMPLING, n=2, max_new_tokens=6)
DEVICES = MeshShape(8, 1, 1)


def any_text(text: str):
    """Whatever the model writes is a prompt, its first character the answer."""
    return (text + "+", {"answer": text[0]}) if text else None


MAKER = Maker(count=20, batch=4, sampling=SHORT, parse=any_text, screen=LOOSE)


def save_random(directory: Path, shape: ModelShape, tokenizer) -> str:
    """A Hugging Face directory with a model that has learnt nothing."""
    params = new_params(Decoder(shape), make_mesh(DEVICES), 0, "float32")
    save_model(directory, shape, jax.device_get(params), tokenizer)
    return str(directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """It writes random characters of the tiny world."""
    base, directory = tiny_config.config("dpo", ""), tmp_path_factory.mktemp("model")
    return save_random(directory, base.model.shape, base.tokenizer.load(""))


@pytest.fixture
def config(model, tmp_path):
    """config(stage, recipe=...): a config that starts from that model."""

    def make(stage: PromptStage, **changes):
        base = tiny_config.config("dpo", tmp_path / "out", sft=None, recipe=None)
        made = replace(
            base,
            model=Model(path=model, dtype="float32", remat="none"),
            tokenizer=ModelTokenizer(),
            evaluation=Evaluation(),
            mesh=DEVICES,
            prompts=stage,
        )
        return replace(made, **changes)

    return make


def rows_of(out: Path) -> list[dict]:
    lines = (out / "prompts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def counts_of(out: Path) -> dict[str, int]:
    return json.loads((out / "records" / "prompts" / "counts.json").read_text())


def whole(text: str) -> str | None:
    return text[:1] or None


ANSWERED = PromptStage(MAKER, SHORT, MajorityVote(extract=whole))


def backwards(self, prompts, sampling, *, by="policy"):
    """In the place of a model: what it is asked, read backwards."""
    return [
        tuple(
            Rollout(prompt.id, i, (), prompt.text[::-1], (), (), "eos")
            for i in range(sampling.n)
        )
        for prompt in prompts
    ]


def is_data_to_train_on(config, out: Path, printed: str) -> None:
    rows, tokenizer = rows_of(out), config.tokenizer.load(config.model.path)
    assert 0 < len(rows) <= 20
    assert len({row["prompt"] for row in rows}) == len(rows)
    data = config.data.load(tokenizer)
    assert not {p.text for p in data.test} & {row["prompt"] for row in rows}
    shown = {id for row in rows for id in row["written_from"]}
    assert shown <= {prompt.id for prompt in data.train}
    prompts = JsonlData(train=str(out / "prompts.jsonl")).load(tokenizer).train
    assert [p.text for p in prompts] == [row["prompt"] for row in rows]
    assert [p.columns["answer"] for p in prompts] == [row["answer"] for row in rows]
    counts = counts_of(out)
    dropped = sum(n for name, n in counts.items() if name.startswith("dropped/"))
    assert counts["texts"] == counts["kept"] + dropped
    assert f"{counts['texts']} texts, {len(rows)} kept" in printed


def test_an_interrupted_station_goes_on(config, tmp_path, monkeypatch, capsys):
    made = config(ANSWERED, out=str(tmp_path / "whole"))
    assert write_prompts(made) == 0
    is_data_to_train_on(made, tmp_path / "whole", capsys.readouterr().out)
    calls, write = [], LoopModels.write

    def interrupted(self, prompts, sampling, *, by="policy"):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise Preempted
        return write(self, prompts, sampling, by=by)

    monkeypatch.setattr(LoopModels, "write", interrupted)
    made = config(ANSWERED, out=str(tmp_path / "cut"))
    assert write_prompts(made) == writing.PREEMPTED
    journal = tmp_path / "cut" / "records" / "prompts" / "texts.jsonl"
    before = journal.read_bytes()
    assert len(read_records(journal, Scored)) == 8
    with journal.open("ab") as file:
        file.write(b'{"torn')
    assert write_prompts(made) == 0
    assert journal.read_bytes().startswith(before)
    for name in ("prompts.jsonl", "records/prompts/scored.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()
    calls.clear()
    assert write_prompts(made) == 0  # finished: nothing is asked again
    assert not calls


def test_a_run_that_is_stopped_while_writing_goes_on(config, tmp_path, monkeypatch):
    asked = []

    def stops(self, prompts, sampling, *, by="policy"):
        asked.append(len(prompts))
        if len(asked) == 2:
            raise Preempted
        return backwards(self, prompts, sampling, by=by)

    monkeypatch.setattr(LoopModels, "write", stops)
    made = config(PromptStage(MAKER))
    assert run(made) == writing.PREEMPTED
    assert not (tmp_path / "out" / "prompts.jsonl").exists()
    assert run(made) == 0
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    (line,) = (line for line in lines if line["phase"] == "prompts")
    assert line["prompts/kept"] == len(rows_of(tmp_path / "out")) > 0


@pytest.mark.full
def test_a_recipe_is_trained_on_what_consistency_leaves(config, tmp_path):
    filters = (AnswerConsistency(canonical),)
    many = replace(MAKER, count=60, batch=30)
    stage = PromptStage(many, replace(SHORT, n=8), MajorityVote(extract=whole), filters)
    base = tiny_config.config("dpo", "")
    recipe = replace(base.recipe, schedule=replace(base.recipe.schedule, prompts=0))
    made, out = config(stage, recipe=recipe), tmp_path / "out"
    assert write_prompts(made) == 0
    before = (out / "prompts.jsonl").stat()
    assert run(made) == 0  # in the same folder it goes on from there
    assert (out / "prompts.jsonl").stat() == before
    rows = rows_of(out)
    scored = read_records(out / "records" / "prompts" / "scored.jsonl", Scored)
    kept, dropped = filters[0](scored)
    assert dropped > 0
    assert [row.prompt.text for row in kept] == [row["prompt"] for row in rows]
    for index in range(2):
        file = out / "records" / f"round_{index:03d}" / "rollouts.jsonl"
        used = {row.prompt.text for row in read_records(file, Scored)}
        assert used == {row["prompt"] for row in rows}
    lines = read_metrics(out / "metrics.jsonl")
    (line,) = (line for line in lines if line["phase"] == "prompts")
    assert line["prompts/kept"] == len(rows)
    assert line["prompts/dropped/AnswerConsistency"] == dropped


def test_perturbed_prompts_become_pairs(config, tmp_path, monkeypatch):
    monkeypatch.setattr(LoopModels, "write", backwards)
    maker = Perturbed(
        count=100,
        batch=16,
        template="{seeds}",
        parse=any_text,
        sampling=replace(SHORT, n=1),
        screen=LOOSE,
        answering=replace(SHORT, n=1),
    )
    made = config(PromptStage(maker))
    assert write_prompts(made) == 0
    read = JsonlData(pairs=str(tmp_path / "out" / "prompts.jsonl"))
    data = made.data.load(made.tokenizer.load(made.model.path))
    pairs = read.load(made.tokenizer.load(made.model.path)).pairs
    assert [pair.prompt.text for pair in pairs] == [p.text for p in data.train]
    for pair in pairs:
        x = pair.prompt.text
        assert (pair.chosen.text, pair.rejected.text) == (x[::-1], "+" + x)


def nothing(text: str):
    return None


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (PromptStage(replace(MAKER, parse=nothing)), "no prompt is left.*unparsed"),
        (PromptStage(replace(MAKER, shots=25)), "shows 25 prompts .* the data has 24"),
        (PromptStage(replace(MAKER, column="x")), "no text in the field 'x'"),
    ],
)
def test_what_gives_nothing_is_said(config, stage, message, monkeypatch):
    monkeypatch.setattr(LoopModels, "write", backwards)
    with pytest.raises(ValueError, match=message):
        write_prompts(config(stage))


def test_configs_that_cannot_write_are_refused(config):
    with pytest.raises(ConfigError, match="names no prompt maker"):
        write_prompts(replace(config(PromptStage(MAKER)), prompts=None))
    random = tiny_config.config("dpo", "", prompts=PromptStage(MAKER))
    with pytest.raises(ConfigError, match="random model has no prompts to write"):
        write_prompts(random)
    with pytest.raises(ValueError, match="go together"):
        PromptStage(MAKER, sampling=SHORT)
    long = replace(MAKER, sampling=replace(SHORT, max_new_tokens=100_000))
    with pytest.raises(ConfigError, match=r"no prompt is left.*80 no_room"):
        write_prompts(config(PromptStage(long)))
    offline = replace(tiny_config.config("offline", ""), prompts=PromptStage(MAKER))
    assert any("leave one of them out" in problem for problem in offline.validate())


@pytest.fixture(scope="module")
def seed_tasks(tmp_path_factory) -> tuple[str, str]:
    """(the 175 seed tasks of Self-Instruct, a small random model that can read them)"""
    file = DATA / "self_instruct" / "seed_tasks.jsonl"
    if not file.is_file():
        pytest.skip("the seed tasks of Self-Instruct are not here")
    directory = tmp_path_factory.mktemp("random")
    maker = self_instruct.get_config().prompts.maker
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    texts = json.dumps(rows, ensure_ascii=False), maker.template, maker.example
    alphabet = {*"".join(texts), "\n", "\t", *"0123456789"}
    tokenizer = character_tokenizer("".join(sorted(alphabet)))
    shape = ModelShape(vocab=256, width=16, ffn=32, layers=1, max_positions=2**15)
    return str(file), save_random(directory, shape, tokenizer)


@pytest.mark.full
def test_self_instruct_from_its_seed_tasks(seed_tasks, tmp_path):
    file, directory = seed_tasks
    base = self_instruct.get_config()
    sampling = replace(base.prompts.maker.sampling, max_new_tokens=16, rows=8)
    maker = replace(
        base.prompts.maker, count=8, batch=8, patience=2, sampling=sampling, shots=3
    )
    config = replace(
        base,
        model=Model(path=directory, dtype="float32"),
        data=replace(base.data, train=file, max_prompt_tokens=200, on_long="filter"),
        mesh=DEVICES,
        tensorboard=False,
    )

    config = replace(config, prompts=PromptStage(maker), out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"no prompt is left \(prompts: 16 texts, 0"):
        write_prompts(config)
    journal = tmp_path / "out" / "records" / "prompts" / "texts.jsonl"
    rows = read_records(journal, Scored)
    assert len(rows) == 16
    for row in rows:  # what is asked for, and three shots
        assert row.prompt.text.count("<request>") == 1 + 3
        assert row.rollouts[0].token_ids
