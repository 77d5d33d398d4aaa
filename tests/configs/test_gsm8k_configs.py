"""What configs on GSM8K read, and what is said of what they do not find."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from configs import sft
from jaxloop.cli.main import main
from jaxloop.config import apply_overrides
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.records import Rollout

CONFIGS = Path(sft.__file__).parent
FILES = ["model.path=DIR", "data.train=train.jsonl", "data.test=test.jsonl"]


def spec(name: str, variant: str | None = None) -> str:
    path = CONFIGS / f"{name}.py"
    return f"{path}:{variant}" if variant else str(path)


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
