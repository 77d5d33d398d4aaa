"""Configs that learn without labels, or choose what to learn from: they start, explain
themselves, and do what they are about. The runs are marked: a minute or two each.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs import restrain
from jaxloop.config import apply_overrides, load_config
from jaxloop.loop.folder import read_records
from jaxloop.loop.run import run
from jaxloop.metrics import read_metrics
from jaxloop.records import Pair
from jaxloop.scoring import FirstVote

CONFIGS = Path(restrain.__file__).parent


def spec(name: str, variant: str | None) -> str:
    return f"{CONFIGS / name}.py" + (f":{variant}" if variant else "")


@pytest.mark.parametrize(
    ("name", "variant", "setting"),
    [
        ("cream", None, "recipe.scorer.scorer.against"),
        ("cream", "plain", "recipe.scorer.against"),
        ("rip", None, "recipe.scorer.path"),
        ("rip", "self", "recipe.scorer.path"),
    ],
)
def test_a_second_model_is_asked_for_by_name(name, variant, setting):
    """What the docstring tells users to give is a setting, and is missed."""
    config = load_config(spec(name, variant))
    unset = "BASE" if name == "cream" else "REWARD_MODEL"
    with pytest.raises(ValueError, match=f"{unset}: no such directory"):
        config.recipe.scorer.check([])
    set_ = apply_overrides(config, [f"{setting}=nowhere"])
    with pytest.raises(ValueError, match="nowhere: no such directory"):
        set_.recipe.scorer.check([])


@pytest.mark.parametrize("tiny", ["", "tiny-"])
def test_ttrl_differs_from_restrain_by_restraint_alone(tiny):
    plain = restrain.RECIPES[f"{tiny}ttrl"]
    full = restrain.RECIPES[tiny.rstrip("-") or None]
    assert isinstance(full.scorer, FirstVote)
    assert full.scorer.vote == plain.scorer
    for part in ("sampling", "objective", "schedule", "optimizer"):
        assert getattr(full, part) == getattr(plain, part)


def looks(name: str, variant: str, out: Path) -> list[dict]:
    """What was measured on held-out problems in a run of that tiny variant."""
    config = replace(
        load_config(spec(name, variant)), out=str(out / variant), tensorboard=False
    )
    assert run(config) == 0
    lines = read_metrics(out / variant / "metrics.jsonl")
    return [line for line in lines if line["phase"] == "eval"]


@pytest.mark.full
def test_restrained_votes_teach_what_the_majority_gets_wrong(tmp_path):
    """Long sums, on which wrong estimates win the votes at first. That TTRL gets less
    far is not asserted: one pair of runs in three had both equal."""
    before, after = looks("restrain", "tiny", tmp_path)
    assert before["eval/long/accuracy"] < 0.2
    assert after["eval/long/accuracy"] > before["eval/long/accuracy"] + 0.3
    assert after["eval/accuracy"] > 0.9
    lines = read_metrics(tmp_path / "tiny" / "metrics.jsonl")
    steps = [line for line in lines if line["phase"] == "online"]
    assert any("first_vote" in name for name in steps[0])


@pytest.mark.full
def test_kept_prompts_are_worth_more_than_as_many_of_the_pool(tmp_path):
    before, kept = looks("rip", "tiny", tmp_path)
    _, unfiltered = looks("rip", "tiny-unfiltered", tmp_path)
    assert kept["eval/accuracy"] > before["eval/accuracy"] + 0.3
    assert kept["eval/accuracy"] > unfiltered["eval/accuracy"] + 0.05
    counts, garbled = [], []
    for variant in ("tiny", "tiny-unfiltered"):
        file = tmp_path / variant / "records" / "round_000" / "pairs.jsonl"
        pairs = read_records(file, Pair)
        counts.append(len(pairs))
        garbled.append(np.mean([pair.prompt.columns["garbled"] for pair in pairs]))
    assert counts[0] == pytest.approx(counts[1], rel=0.1)
    assert garbled[0] < 0.25 < garbled[1]


@pytest.mark.full
def test_a_pair_is_no_surer_than_two_rounds_agree(tmp_path):
    """Under a poor judge and at a high rate what was gained is kept. That plain pairs
    lose it is not asserted: in one pair of runs of three they did not."""
    found = [look["eval/accuracy"] for look in looks("cream", "tiny", tmp_path)]
    assert max(found) > found[0] + 0.3
    assert found[-1] > max(found) - 0.1
    for index in range(3):
        file = tmp_path / "tiny" / "records" / f"round_{index:03d}" / "pairs.jsonl"
        (label,) = {pair.reason.split()[-1] for pair in read_records(file, Pair)}
        assert 0.5 < float(label) < 0.9
