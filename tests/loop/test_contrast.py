"""Rewards by token from two prompts (T-REG): what a run makes of them, and of what."""

import json
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.config import ConfigError
from jaxloop.loop.recipe import Contrast
from jaxloop.loop.run import run
from jaxloop.loop.workbench import new_params, prepare
from jaxloop.losses.objectives import Pairwise
from jaxloop.mesh import MeshShape
from jaxloop.metrics import read_metrics
from jaxloop.models.decoder import Decoder
from jaxloop.training.logprobs import token_stats
from tests.loop import test_offline, tiny_config

CONTRAST = Contrast(better="99=", worse="#1=")
OBJECTIVE = Pairwise(token_regulariser=3.0)


def offline(tmp_path, contrast=CONTRAST, objective=OBJECTIVE):
    base = test_offline.config(tmp_path, None)
    lines = map(json.dumps, test_offline.rows("pairs", 6))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    stage = replace(base.offline, objective=objective, contrast=contrast, epochs=2)
    return replace(base, offline=stage)


@partial(jax.jit, static_argnums=(0, 3))
def stats_behind(model, params, ids, start):
    batch = {
        "tokens_BT": ids,
        "positions_BT": jnp.arange(ids.size)[None],
        "segments_BT": jnp.ones_like(ids),
    }
    return token_stats(model, params, batch, start=start).logp_BC


def says(model, params, front, completion) -> np.ndarray:
    """Log-probabilities of the completion's tokens behind `front`, without padding."""
    ids = np.array([[*front, *completion]])
    return np.asarray(stats_behind(model, params, ids, len(front)))[0]


def test_the_first_loss_is_that_of_rewards_read_behind_the_two_texts(tmp_path):
    """The policy is the reference still: log 2 + weight x mean of r^2."""
    config = offline(tmp_path)
    materials = prepare(config)
    tokenizer = materials.tokenizer
    model = Decoder(config.model.shape, np.dtype("float32"))
    params = new_params(model, materials.mesh, config.seed, "float32")
    squares = []
    for pair in materials.data.pairs:
        rewards = []
        for side in (pair.chosen, pair.rejected):
            better, worse = (
                says(
                    model,
                    params,
                    tokenizer.encode(text) + pair.prompt.token_ids,
                    side.token_ids,
                )
                for text in (CONTRAST.better, CONTRAST.worse)
            )
            rewards += (1 / (1 + np.exp(worse - better)) - 0.5).tolist()
        squares.append(np.mean(np.square(rewards)))
    assert len(squares) == 6
    assert run(config) == 0
    losses = [x["loss"] for x in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    expected = 3.0 * np.mean(squares)
    np.testing.assert_allclose(losses[0] - math.log(2), expected, rtol=1e-4)
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    "kind", ["dpo", pytest.param("semi_online", marks=pytest.mark.full)]
)
def test_rounds_and_steps_make_them_too(tmp_path, kind):
    config = tiny_config.config(kind, tmp_path / "out", mesh=MeshShape(8, 1, 1))
    schedule = replace(config.recipe.schedule, prompts=8)
    recipe = replace(
        config.recipe, objective=OBJECTIVE, contrast=CONTRAST, schedule=schedule
    )
    sft = replace(config.sft, batch_size=8)
    assert run(replace(config, recipe=recipe, sft=sft)) == 0
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    losses = [x["loss"] for x in lines if x.get("phase") in ("train", "online")]
    assert losses[0] > math.log(2)  # by the rewards
    assert np.isfinite(losses).all()
    for path in (tmp_path / "out").glob("records/*/reference.npz"):
        arrays = np.load(path)
        reward_NRC = arrays["token_reward_BC"]
        assert reward_NRC.shape[:2] == arrays["reference_logp_BC"].shape[:2]
        assert 0 < np.abs(reward_NRC).max() < 0.5
        # Nothing is rewarded behind a completion's end.
        assert (reward_NRC[arrays["reference_logp_BC"] == 0] == 0).all()


def test_what_is_wrong_with_a_contrast_shows_before_anything_runs(tmp_path):
    for config in (offline(tmp_path, None), offline(tmp_path, CONTRAST, Pairwise())):
        assert any("offline.contrast belongs" in told for told in config.validate())
    with pytest.raises(ConfigError, match=r"offline.contrast: .*no field 'gold'"):
        prepare(offline(tmp_path, Contrast("{gold}", "1")))
    with pytest.raises(ConfigError, match=r"a completion \(offline.contrast\) = 5"):
        prepare(offline(tmp_path, Contrast("9" * 5000, "1")))
    with pytest.raises(ValueError, match="the same text"):
        Contrast("1", "1")
    recipe = replace(tiny_config.config("dpo", "").recipe, contrast=CONTRAST)
    config = replace(tiny_config.config("dpo", ""), recipe=recipe)
    assert any("recipe.contrast belongs" in told for told in config.validate())
