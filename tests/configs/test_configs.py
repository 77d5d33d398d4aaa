"""Every config file and variant: complete, explained, and able to start."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from configs import sft
from jaxloop.cli.main import main
from jaxloop.config import ConfigError, apply_overrides, load_config
from jaxloop.models.decoder import ModelShape
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.records import Rollout

CONFIGS = Path(sft.__file__).parent
SMALL = ["tiny"]
VARIANTS = {
    "sft": SMALL,
    "irpo": SMALL,
    "scpo": ["semi", "tiny", "tiny-semi"],
    "rft": SMALL,
    "online_dpo": [
        *("semi", "offline", "grpo"),
        *("tiny", "tiny-semi", "tiny-offline", "tiny-grpo"),
    ],
    "gsm8k_grpo": SMALL,
}
NAMED = [(name, v) for name, variants in VARIANTS.items() for v in [None, *variants]]
TINY = [(name, v) for name, v in NAMED if v and v.startswith("tiny")]
REAL = [(name, v) for name, v in NAMED if (name, v) not in TINY]
SHAPE = ModelShape(vocab=128, heads=4, kv_heads=2)
FILES = ["model.path=DIR", "data.train=train.jsonl", "data.test=test.jsonl"]


def spec(name: str, variant: str | None = None) -> str:
    path = CONFIGS / f"{name}.py"
    return f"{path}:{variant}" if variant else str(path)


@pytest.mark.parametrize(("name", "variant"), NAMED)
def test_a_run_has_a_name_of_its_own(name, variant):
    config = load_config(spec(name, variant))
    assert config.name == (f"{name}-{variant}" if variant else name)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("name", "variant"), TINY)
def test_a_tiny_variant_starts_as_it_is(name, variant, devices):
    config = load_config(spec(name, variant))
    assert config.problems(config.model.shape, devices) == []


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("name", "variant"), REAL)
def test_a_real_one_asks_for_its_files_and_starts_with_them(name, variant, devices):
    config = load_config(spec(name, variant))
    found = config.problems(None, devices)
    wanted = ["model.path=DIR", "data.train=FILE", "data.test=FILE"]
    assert len(found) == len(wanted)
    assert all(any(want in problem for problem in found) for want in wanted)
    assert apply_overrides(config, FILES).problems(SHAPE, devices) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_an_unknown_variant_is_told_the_known_ones(name):
    with pytest.raises(ConfigError, match=f"known: {', '.join(VARIANTS[name])}"):
        load_config(spec(name, "tinny"))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_is_short_and_explains_itself(name):
    text = (CONFIGS / f"{name}.py").read_text()
    tree = ast.parse(text)
    docstring = ast.get_docstring(tree)
    assert docstring is not None
    assert len(text.splitlines()) - (tree.body[0].end_lineno or 0) <= 60
    assert re.search(r"arXiv\s\d{4}\.\d{5}", docstring)
    assert f"jaxloop run configs/{name}.py model.path=DIR" in docstring
    assert "Expected" in docstring
    assert all(variant in docstring for variant in VARIANTS[name])


def test_an_sft_stage_without_demonstrations_names_the_setting():
    config = apply_overrides(sft.get_config(), FILES)
    data = replace(config.data, demonstrations="")
    (problem,) = replace(config, data=data).validate()
    assert "data.demonstrations=FILE" in problem


ROWS = [
    {
        "question": f"Ann has {i} eggs and buys 12. How many has she?",
        "answer": f"{i}+12 = <<{i}+12={i + 12}>>{i + 12} eggs.\n#### {i + 12}",
    }
    for i in range(128)
]


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> list[str]:
    """Overrides: a model directory (without weights) and GSM8K-like rows."""
    folder = tmp_path_factory.mktemp("real")
    texts = [sft.TEMPLATE, *(value for row in ROWS for value in row.values())]
    alphabet = sorted(set("".join(texts)))
    character_tokenizer("".join(alphabet)).save(folder)
    golden = Path(__file__).parents[1] / "golden" / "qwen2_tied" / "config.json"
    shape = {"vocab_size": 128, "max_position_embeddings": 4096, "eos_token_id": 1}
    shape = json.loads(golden.read_text()) | shape
    (folder / "config.json").write_text(json.dumps(shape))
    overrides = [f"model.path={folder}"]
    for split, rows in (("train", ROWS[:96]), ("test", ROWS[96:])):
        file = folder / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides.append(f"data.{split}={file}")
    return overrides


@pytest.mark.parametrize(("name", "variant"), REAL)
def test_a_dry_run_of_a_real_one(name, variant, real, capsys):
    assert main(["run", spec(name, variant), *real, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "MiB" in out
    assert "+ 1024)" in out or name in ("sft", "rft")


def test_an_empty_file_of_prompts_is_named(real, tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    words = ["run", spec("irpo"), *real, f"data.train={empty}", "--dry-run"]
    assert main(words) == 2
    assert f"{empty}: empty, there is no row in it" in capsys.readouterr().err


def test_the_datas_own_solutions_are_demonstrations_that_score_1(real):
    config = apply_overrides(sft.get_config(), real)
    tokenizer = config.tokenizer.load(config.model.path)
    data = config.data.load(tokenizer)
    assert "####" in data.train[0].text
    for prompt, row, shown in zip(data.train, ROWS, data.demonstrations, strict=False):
        border = len(prompt.token_ids)
        assert shown.token_ids[:border] == prompt.token_ids
        text = tokenizer.decode(shown.token_ids[border:])
        assert text == row["answer"]
        rollout = Rollout(prompt.id, 0, (), text, (), (), "eos")
        (scored,) = sft.GOLD([prompt], [(rollout,)])
        assert scored.scores[0].value == 1.0
