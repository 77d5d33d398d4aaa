"""Configs that train a judge: they start, explain themselves, and make a judge better.

The long ones are marked: a minute each.
"""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from configs import j1, judging, self_taught
from jaxloop.cli.main import main
from jaxloop.config import ConfigError, apply_overrides, load_config
from jaxloop.experiment import Config, ModelTokenizer
from jaxloop.loop.folder import read_records
from jaxloop.loop.run import dry_run, run
from jaxloop.loop.serve import convert_checkpoint
from jaxloop.metrics import read_metrics
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.records import Demonstration, Scored
from jaxloop.scoring.rubric import load_template
from jaxloop.selection import GroupAdvantage
from tests.configs import test_tiny_runs

CONFIGS = Path(j1.__file__).parent
jaxloop = test_tiny_runs.jaxloop  # the fixture: the command, in a process of its own


def spec(name: str, variant: str | None) -> str:
    return f"{CONFIGS / name}.py" + (f":{variant}" if variant else "")


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> list[str]:
    """Overrides: a model directory (without weights) and preference rows."""
    folder = tmp_path_factory.mktemp("real")
    names = ("pairwise", "pairwise_scores", "pointwise")
    texts = "".join(map(load_template, names)) + "".join(map(chr, range(32, 127)))
    character_tokenizer("".join(sorted(set(texts)))).save(folder)
    golden = Path(__file__).parents[1] / "golden" / "qwen2_tied" / "config.json"
    shape = {"vocab_size": 128, "max_position_embeddings": 16384, "eos_token_id": 1}
    (folder / "config.json").write_text(
        json.dumps(json.loads(golden.read_text()) | shape)
    )
    overrides = [f"model.path={folder}"]
    for split, numbers in (("train", range(512)), ("test", range(512, 520))):
        rows = [
            {"prompt": f"What is {i}?", "chosen": f"{i}, a number", "rejected": "no"}
            for i in numbers
        ]
        file = folder / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides.append(f"data.{split}.pairs={file}")
    return overrides


ENDINGS = {
    "pairwise": "[[A]]",
    "pairwise_scores": "<score_A>7</score_A>\n<score_B>3.5</score_B>",
    "pointwise": "<score>7</score>",
}
FILES = {"judging": judging.JUDGES, "self_taught": self_taught.RECIPES}
REAL = [
    (name, variant)
    for name, variants in (FILES | {"j1": j1.VARIANTS}).items()
    for variant in variants
    if not (variant or "").startswith("tiny")
]


@pytest.mark.parametrize(("name", "variant"), REAL)
def test_what_is_asked_for_is_what_is_read(name, variant, real):
    config = apply_overrides(load_config(spec(name, variant)), real)
    judge, parse = config.data.judge, config.evaluation.scorer.parse
    assert parse == judge.parse
    assert config.recipe is None or config.recipe.scorer == config.evaluation.scorer
    said = ENDINGS[judge.template]
    assert parse(f"Thought.\n{said}", len(judge.show(2)[0])) is not None
    data = config.data.load(config.tokenizer.load(config.model.path))
    assert re.sub(r"\d(\.\d)?", "N", said) in data.train[0].text


def test_a_step_that_parts_pairs_is_refused_before_it_starts():
    config = j1.get_config("tiny")
    schedule = replace(config.recipe.schedule, together="")
    parted = replace(config, recipe=replace(config.recipe, schedule=schedule))
    (problem,) = parted.problems(config.model.shape, 1)
    assert "recipe.schedule.together=pair" in problem


def test_a_step_of_half_a_pair_is_refused(real, capsys):
    words = ["recipe.sampling.n=8", "recipe.schedule.accumulation=1"]
    words += ["recipe.schedule.prompts=511", "--dry-run"]
    assert main(["run", spec("j1", None), *real, *words]) == 2
    assert "take a multiple of 2" in capsys.readouterr().err


def test_rows_that_do_not_have_the_field_are_refused(real):
    config = j1.get_config()
    recipe = replace(config.recipe, advantage=GroupAdvantage())
    schedule = replace(recipe.schedule, together="couple")
    config = replace(config, recipe=replace(recipe, schedule=schedule))
    with pytest.raises(ConfigError, match=r"together=couple.*'couple' is missing"):
        dry_run(apply_overrides(config, real))


@pytest.fixture(scope="module")
def seed_judge(tmp_path_factory):
    """seed_judge(config): the config, begun from a judge of sums that imitates biased
    guesses; one for all."""
    made: dict[str, str] = {}

    def begun(config: Config) -> Config:
        shown = config.data.train.shown
        if shown not in made:
            folder = tmp_path_factory.mktemp("judge")
            base = replace(config, recipe=None, out=str(folder / "run"))
            assert run(replace(base, tensorboard=False)) == 0
            convert_checkpoint(folder / "run" / "checkpoints" / "latest", folder / "hf")
            made[shown] = str(folder / "hf")
        model = replace(config.model, path=made[shown], shape=None)
        return replace(config, model=model, tokenizer=ModelTokenizer(), sft=None)

    return begun


def trained(config: Config, out: Path) -> tuple[dict, dict]:
    """The evaluations before and after."""
    assert run(replace(config, out=str(out), tensorboard=False)) == 0
    lines = read_metrics(out / "metrics.jsonl")
    looks = [line for line in lines if line["phase"] == "eval"]
    return looks[0], looks[-1]


@pytest.mark.full
def test_reward_makes_a_judge_that_keeps_to_its_verdict(seed_judge, tmp_path):
    config = j1.get_config("tiny")
    assert config.sft is not None
    longer = replace(config, sft=replace(config.sft, steps=2000))
    first, last = trained(seed_judge(longer), tmp_path / "run")
    assert last["eval/consistent_accuracy"] > first["eval/consistent_accuracy"] + 0.1
    assert last["eval/flips"] < first["eval/flips"] - 0.15


@pytest.mark.full
def test_a_pointwise_judge_learns_to_rank_from_which_is_better(seed_judge, tmp_path):
    config = seed_judge(j1.get_config("tiny-pointwise"))
    first, last = trained(config, tmp_path / "run")
    name = "eval/ranking_accuracy"
    assert last[name] > first[name] + 0.2
    assert last["eval/ties"] < first["eval/ties"] - 0.2


@pytest.mark.full
def test_a_judge_learns_from_its_own_right_judgements(jaxloop, tmp_path):
    """One round in the world of seed 1, whose first judge flips the most of those of
    docs/claims.md, which has three rounds of each."""
    words = [f"{name}=1" for name in ("seed", "data.train.seed", "data.test.seed")]
    words += ["recipe.schedule.rounds=1", "tensorboard=false"]
    out = tmp_path / "run"
    jaxloop("run", CONFIGS / "self_taught.py:tiny", f"out={out}", *words)
    lines = read_metrics(out / "metrics.jsonl")
    first, last = [line for line in lines if line["phase"] == "eval"]
    assert last["eval/consistent_accuracy"] > first["eval/consistent_accuracy"] + 0.03
    assert last["eval/flips"] < first["eval/flips"] - 0.05
    folder, labels = out / "records" / "round_000", Counter()
    rows = read_records(folder / "rollouts.jsonl", Scored)
    by_id = {row.prompt.id: row for row in rows}
    for shown in read_records(folder / "demonstrations.jsonl", Demonstration):
        prompt_id, _, index = shown.id.rpartition("/")
        assert by_id[prompt_id].scores[int(index)].value == 1.0
        labels[by_id[prompt_id].prompt.columns["label"]] += 1
    assert labels["A"] == labels["B"] > 100
