"""Methods whose rounds, samples or prompts are of several kinds, from their configs."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from configs import bridging, irpo, meta_rewarding, scpo
from jaxloop.config import apply_overrides
from jaxloop.loop.folder import read_records
from jaxloop.loop.run import run
from jaxloop.loop.serve import convert_checkpoint
from jaxloop.mesh import MeshShape
from jaxloop.metrics import read_metrics
from jaxloop.records import Pair, Scored
from jaxloop.scoring import MetaJudged
from jaxloop.selection import MinVote, TierLength


def test_the_rounds_of_the_papers():
    temperatures = [
        irpo.RECIPE.of_round(index).sampling.temperature for index in range(4)
    ]
    assert temperatures == [0.8, 0.8, 1.3, 1.3]
    filters = [scpo.RECIPE.of_round(index).filters for index in range(2)]
    assert filters == [(MinVote(0.5),), (MinVote(0.7),)]
    judged = [meta_rewarding.RECIPE.of_round(index) for index in range(4)]
    assert [isinstance(r.scorer, MetaJudged) for r in judged] == [
        True,
        True,
        False,
        False,
    ]
    assert [r.selector.selectors[1].longest for r in judged[:2]] == [1100, 1000]
    assert judged[3].selector == TierLength(rho=0.4)


def trained(config, out, *overrides: str):
    """(accuracies by evaluation, lines of rounds or steps) of a run on one device."""
    words = [f"out={out}", "tensorboard=false", "evaluation.prompts=256", *overrides]
    config = apply_overrides(replace(config, mesh=MeshShape(-1, 1, 1)), words)
    assert run(config) == 0
    lines = read_metrics(out / "metrics.jsonl")
    looks = [line["eval/accuracy"] for line in lines if line["phase"] == "eval"]
    return looks, [line for line in lines if line["phase"] in ("round", "online")]


@pytest.mark.full
@pytest.mark.parametrize("variant", ["tiny", "tiny-semi"])
def test_votes_and_hot_samples_raise_accuracy(tmp_path, variant):
    out = tmp_path / "out"
    looks, rounds = trained(scpo.get_config(variant), out)
    assert looks[-1] > looks[0] + 0.1, looks
    assert all(line["pairs/count"] > 20 for line in rounds)
    for index, tau in enumerate((0.25, 0.375)):
        folder = out / "records" / f"round_{index:03d}"
        rows = {r.prompt.id: r for r in read_records(folder / "rollouts.jsonl", Scored)}
        pairs = read_records(folder / "pairs.jsonl", Pair)
        assert any(pair.rejected.extra for pair in pairs)
        for pair in pairs:
            votes = rows[pair.prompt.id].scores[pair.chosen.index].votes
            assert not pair.chosen.extra
            assert votes >= tau * 8
            if "answer" in pair.prompt.columns and variant == "tiny-semi":
                assert (pair.weight, pair.chosen_score) == (1, 1)
    best = json.loads((out / "summary.json").read_text())["best"]
    assert best["metrics"]["eval/accuracy"] == max(looks)
    convert_checkpoint(out / "checkpoints" / "best", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").exists()


@pytest.mark.full
def test_a_batch_of_two_kinds_raises_accuracy(tmp_path):
    out = tmp_path / "out"
    looks, steps = trained(bridging.get_config("tiny"), out)
    assert looks[-1] > looks[0] + 0.3, looks
    kinds = Counter()
    for file in (out / "records" / "online").iterdir():
        for row in read_records(file, Scored):
            judged = row.prompt.columns.get("set") == "unlabelled"
            kinds[judged] += 1
            assert bool(row.judgements) == judged
            assert ("answer" in row.prompt.columns) != judged
    assert len(steps) == 30
    assert min(kinds.values()) > 0.3 * kinds.total()
    assert np.mean([line["judge/invalid_frac"] for line in steps]) < 0.2


@pytest.mark.full
def test_hotter_later_rounds_raise_accuracy(tmp_path):
    hotter = "recipe.changes.0.round=2"
    looks, rounds = trained(irpo.get_config("tiny"), tmp_path / "out", hotter)
    assert looks[-1] > looks[0] + 0.1, looks
    gaps = [line["sampling/sampling_logp_difference/mean"] for line in rounds]
    assert max(gaps) < 1e-3  # the trainer scores at each round's own temperature
