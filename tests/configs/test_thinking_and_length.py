"""TPO and LIFT-DPO: what their configs see and train on, and that it moves the figures
that they are about.

One supervised run a world serves a method and its control, as both start from the same
model.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from configs import lift_dpo, tpo
from jaxloop.config import apply_overrides
from jaxloop.metrics import read_metrics
from jaxloop.prompts.length_limits import LimitedPairs
from jaxloop.prompts.tokenizer import character_tokenizer
from jaxloop.records import Prompt, Rollout, Score, Scored
from tests.configs import test_tiny_runs

FULL = pytest.mark.full


OUTPUT = "I may say: well.\n\nRESPONSE: First line.\nSecond line."


@pytest.mark.parametrize(
    ("output", "response"),
    [
        (OUTPUT, "First line.\nSecond line."),
        ("thought\nRESPONSE:\nAll of it.\nRESPONSE: too", "All of it.\nRESPONSE: too"),
        ("RESPONSE: at once", "at once"),
        ("The word RESPONSE: inside a line is no marker.", None),
        ("a thought alone", None),
        ("thought\nRESPONSE:  \n", None),
    ],
)
def test_the_response_is_what_follows_the_marker(output, response):
    assert tpo.RESPONSE(output) == response


@pytest.mark.parametrize("variant", [None, "specific"])
def test_the_prompt_asks_for_the_marker_that_is_looked_for(variant):
    config = tpo.get_config(variant)
    asked = config.data.template.format(question="Why?")
    assert asked.startswith("Why?")
    assert " RESPONSE: " in asked


class Told:
    """Models that keep what they are asked, and judge that a longer text wins."""

    def __init__(self):
        self.asked = {}

    def special_tokens(self, *, by):
        assert by == "first"
        return ()

    def prompts(self, texts, *, by):
        self.asked |= texts
        return [Prompt(id, text, ()) for id, text in texts.items()]

    def write(self, prompts, sampling, *, by):
        return [(Rollout(p.id, 0, (), "[[A]]", (), (), "eos"),) for p in prompts]


def test_no_thought_reaches_the_judge_and_what_cannot_be_split_is_unscored():
    texts = ["secret one\nRESPONSE: good", "secret two\nRESPONSE: bad", "secret"]
    group = tuple(
        Rollout("p", i, (), text, (), (), "eos") for i, text in enumerate(texts)
    )
    prompt = Prompt("p", "Why? Think first.", (), {"question": "Why?"})
    models = Told()
    scorer = tpo.get_config().recipe.scorer
    (scored,) = scorer.with_models(models)([prompt], [group])
    assert len(models.asked) == 2  # both orders of the two that can be shown
    for text in models.asked.values():
        assert "good" in text
        assert "Why?" in text
        assert "secret" not in text
        assert "Think first" not in text
    assert [score.value is None for score in scored.scores] == [False, False, True]


def test_only_the_response_is_charged_for_its_length():
    def of(values):
        texts = ["long thought " * 9 + "\nRESPONSE: ok", "hm\nRESPONSE: " + "ok " * 9]
        group = [Rollout("p", i, (i,), t, (), (), "eos") for i, t in enumerate(texts)]
        scores = tuple(Score(value) for value in values)
        scored = Scored(Prompt("p", "", ()), tuple(group), scores)
        (pair,) = replace(tpo.get_config().recipe.selector, rho=2.0)([scored], None)
        return pair.chosen.index

    assert of((1.0, 2.0)) == 0  # the short response, behind the long thought
    assert of((2.0, 1.0)) == 0


def test_pairs_of_a_file_get_their_limits_from_the_config(tmp_path):
    alphabet = "".join(map(chr, range(32, 127))) + "\n"
    file = tmp_path / "pairs.jsonl"
    row = {"prompt": "Say it.", "chosen": "a long answer", "rejected": "short"}
    file.write_text(json.dumps(row) + "\n")
    data = apply_overrides(lift_dpo.get_config(), [f"data.pairs={file}"]).data
    assert isinstance(data, LimitedPairs)
    own, limited = data.load(character_tokenizer(alphabet)).pairs
    limit = limited.prompt.columns["limit"]
    assert limited.prompt.text == f"Answer in at most {limit} words.\n\nSay it."
    assert (limited.chosen.text == own.chosen.text) == (limit >= 3)
    plain = apply_overrides(lift_dpo.get_config("plain"), [f"data.pairs={file}"]).data
    assert plain.load(character_tokenizer(alphabet)).pairs == [own]


WARM = """\
from dataclasses import replace

from configs import {name} as method
from jaxloop.loop.recipe import Evaluation


def get_config(variant=None):
    base = method.get_config("tiny")
    return replace(base, recipe=None, offline=None, evaluation=Evaluation())
"""
jaxloop = test_tiny_runs.jaxloop  # the fixture: the command, in a process of its own


def two_runs(jaxloop, folder: Path, name: str, control: str) -> list[list[dict]]:
    """The evaluations of `tiny` and of its control, both from one warmed-up model."""
    warm, derived = folder / "warm.py", folder / "derived.py"
    warm.write_text(WARM.format(name=name))
    jaxloop("run", warm, f"out={folder / 'warm'}", "tensorboard=false")
    model = folder / "model"
    jaxloop("convert", folder / "warm" / "checkpoints" / "latest", model)
    derived.write_text(test_tiny_runs.DERIVED.format(name=name, path=str(model)))
    found = []
    for variant in ("tiny", control):
        out = folder / variant
        jaxloop("run", f"{derived}:{variant}", f"out={out}", "tensorboard=false")
        lines = read_metrics(out / "metrics.jsonl")
        found.append([line for line in lines if line["phase"] == "eval"])
    return found


@FULL
def test_thinking_hurts_at_first_and_wins_after_training(jaxloop, tmp_path):
    thinking, direct = two_runs(jaxloop, tmp_path, "tpo", "tiny-direct")
    assert thinking[0]["eval/accuracy"] < direct[0]["eval/accuracy"] - 0.05
    assert thinking[-1]["eval/accuracy"] > direct[-1]["eval/accuracy"] + 0.03


@FULL
def test_pairs_under_a_limit_teach_to_keep_to_it(jaxloop, tmp_path):
    """Of this seed; docs/claims.md says of others that it is not so with each."""
    limited, plain = two_runs(jaxloop, tmp_path, "lift_dpo", "tiny-plain")
    over = "eval/limits/violations"
    assert limited[0][over] == plain[0][over] > 0.3
    assert limited[-1][over] < limited[0][over] - 0.1
    assert limited[-1][over] < plain[-1][over] - 0.1
    assert limited[-1]["eval/accuracy"] > 0.85
