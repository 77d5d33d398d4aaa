"""Scorers that ask models: what the loop passes in, and what comes of it."""

from dataclasses import replace

import numpy as np
import pytest

from jaxloop.loop.folder import read_records
from jaxloop.loop.reference import in_parts
from jaxloop.loop.run import dry_run, run
from jaxloop.loop.serve import convert_checkpoint
from jaxloop.mesh import MeshShape
from jaxloop.metrics import read_metrics
from jaxloop.records import Scored
from jaxloop.scoring import ImplicitReward, RewardHead, Sum
from tests.loop import test_offline, tiny_config


def tiny(out, scorer):
    """The tiny rounds of DPO with that scorer, on all devices."""
    base = tiny_config.config("dpo", out, mesh=MeshShape(8, 1, 1))
    return replace(
        base,
        sft=replace(base.sft, batch_size=8),
        recipe=replace(base.recipe, scorer=scorer),
    )


def components(out, name: str) -> list[list[float]]:
    """Of every rollout, a list a round."""
    files = sorted((out / "records").glob("round_*/rollouts.jsonl"))
    return [
        [s.components[name] for row in read_records(file, Scored) for s in row.scores]
        for file in files
    ]


def test_the_implicit_reward_starts_at_zero_and_follows_the_policy(tmp_path):
    scorer = Sum((tiny_config.CountNines(), ImplicitReward(beta=0.1)))
    assert run(tiny(tmp_path / "out", scorer)) == 0
    first, second = components(tmp_path / "out", "implicit_reward")
    assert not np.any(first)
    assert np.std(second) > 0


def test_a_reward_model_of_its_own_scores_the_samples(tmp_path):
    trained = test_offline.config(tmp_path, "reward")
    assert run(trained) == 0
    convert_checkpoint(tmp_path / "out" / "checkpoints" / "latest", tmp_path / "rm")
    scorer = Sum((tiny_config.CountNines(), RewardHead(str(tmp_path / "rm"))), (0, 1))
    assert run(tiny(tmp_path / "run", scorer)) == 0
    rounds = sorted((tmp_path / "run" / "records").glob("round_*/rollouts.jsonl"))
    rows = [row for file in rounds for row in read_records(file, Scored)]
    scores = [each for row in rows for each in row.scores]
    texts = [rollout.text for row in rows for rollout in row.rollouts]
    pairs = [(t, s.value) for t, s in zip(texts, scores, strict=True)]
    nines = [value for text, value in pairs if text and set(text) <= {"9"}]
    ones = [value for text, value in pairs if text.startswith("1")]
    assert np.mean(nines) > np.mean(ones)


@pytest.mark.parametrize("by", [pytest.param("first", marks=pytest.mark.full), "other"])
def test_another_model_judges(tmp_path, by):
    """The model that the recipe started from, or one with a tokenizer of its own."""
    base = tiny_config.config("judged", tmp_path / "out", mesh=MeshShape(8, 1, 1))
    base = replace(base, sft=replace(base.sft, batch_size=8))
    if by == "other":
        assert run(replace(base, recipe=None, out=str(tmp_path / "judge"))) == 0
        convert_checkpoint(tmp_path / "judge" / "checkpoints" / "latest", tmp_path / by)
        by = str(tmp_path / by)
    scorer = replace(base.recipe.scorer, by=by)
    assert run(replace(base, recipe=replace(base.recipe, scorer=scorer))) == 0
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    rounds = [line for line in lines if line["phase"] == "round"]
    assert all(0 <= line["judge/mean"] <= 1 for line in rounds)
    for file in (tmp_path / "out" / "records").glob("round_*/rollouts.jsonl"):
        for row in read_records(file, Scored):
            assert row.judgements
            assert all(len(j.rollouts) == 2 for j in row.judgements)
    assert not list((tmp_path / "out" / "records").glob("round_*/judgements.jsonl"))


def test_a_policy_without_a_head_is_named(tmp_path):
    with pytest.raises(ValueError, match="no scalar head"):
        run(tiny(tmp_path / "out", RewardHead()))


def test_a_directory_without_a_head_shows_before_anything_runs(tmp_path):
    base = tiny_config.config("dpo", tmp_path / "out", mesh=MeshShape(8, 1, 1))
    stage = replace(base.sft, batch_size=8, steps=1)
    assert run(replace(base, sft=stage, recipe=None)) == 0
    convert_checkpoint(tmp_path / "out" / "checkpoints" / "latest", tmp_path / "hf")
    with pytest.raises(ValueError, match="no scalar head"):
        dry_run(tiny(tmp_path / "run", RewardHead(str(tmp_path / "hf"))))


def test_parts_of_a_batch_put_together_are_the_whole(mesh_of):
    batch = {"tokens_BT": np.arange(24).reshape(6, 4)}
    for parts in (1, 2, 3):
        doubled, first = in_parts(
            lambda part: (2 * part["tokens_BT"], part["tokens_BT"][:, 0]),
            batch,
            parts,
            mesh_of(),
        )
        np.testing.assert_array_equal(doubled, 2 * batch["tokens_BT"])
        np.testing.assert_array_equal(first, batch["tokens_BT"][:, 0])


def test_a_scorer_without_its_models_says_so():
    with pytest.raises(ValueError, match="given none"):
        ImplicitReward()([], [])
