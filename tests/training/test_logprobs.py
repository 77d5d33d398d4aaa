"""What a pass over the model gives the losses, against the logits of the whole row."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxloop.models.decoder import Decoder, ModelShape, init_boxed, unembedding
from jaxloop.training.logprobs import token_stats
from jaxloop.training.step import make_head_scorer, make_scorer
from jaxloop.training.teachers import make_mixed_teacher, make_teacher

SHAPE = ModelShape(
    vocab=32, width=16, ffn=24, layers=1, heads=2, kv_heads=2, head_dim=8, tied=False
)
WITH_HEAD = replace(SHAPE, outputs=2)
START, COLUMNS, ROWS, VOCAB, K = 3, 5, 4, 29, 6


def drawn(shape: ModelShape, seed: int) -> dict:
    params = nn.unbox(init_boxed(Decoder(shape), jax.random.key(seed)))
    params["unembed_VD"] *= 8  # far from uniform
    if shape.outputs:
        size = (shape.width, shape.outputs)
        params["head_DK"] = jax.random.normal(jax.random.key(seed + 1), size)
    return params


@pytest.fixture(scope="module")
def params():
    return drawn(WITH_HEAD, 0)


@pytest.fixture(scope="module")
def batch():
    keys = jax.random.split(jax.random.key(7), 2)
    size = (ROWS, START + COLUMNS)
    return {
        "tokens_BT": jax.random.randint(keys[0], size, 0, VOCAB),
        "positions_BT": jnp.broadcast_to(jnp.arange(size[1]), size),
        "segments_BT": jnp.ones(size, jnp.int32),
        "teacher_ids_BCK": jax.random.randint(keys[1], (ROWS, COLUMNS, K), 0, VOCAB),
    }


def hidden_and_logp(model, params, batch):
    """Hidden states and log-probabilities of all tokens, at every place of the row."""
    rows = (batch[name] for name in ("tokens_BT", "positions_BT", "segments_BT"))
    hidden_BTD, _ = model.apply({"params": params}, *rows)
    logit_BTV = (hidden_BTD @ unembedding(params).T)[..., :VOCAB]
    return hidden_BTD, jax.nn.log_softmax(logit_BTV)


def test_choices_and_head_are_those_of_the_state_before(params, batch):
    model = Decoder(WITH_HEAD)
    stats = jax.jit(lambda p, b: token_stats(model, p, b, start=START, vocab=VOCAB))(
        params, batch
    )
    hidden_BTD, logp_BTV = hidden_and_logp(model, params, batch)
    before_BCV = logp_BTV[:, START - 1 : -1]
    wanted = jnp.take_along_axis(before_BCV, batch["teacher_ids_BCK"], axis=-1)
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(stats.top_logp_BCK, wanted, **close)
    squares_BC = jnp.log(jnp.sum(jnp.exp(before_BCV) ** 2, axis=-1))
    np.testing.assert_allclose(stats.log_sum_sq_BC, squares_BC, **close)
    outputs_BTK = hidden_BTD @ params["head_DK"]
    assert stats.head_BEK.shape == (ROWS, COLUMNS + 1, 2)
    np.testing.assert_allclose(stats.head_BEK, outputs_BTK[:, START - 1 :], **close)


def test_what_a_batch_or_a_model_lacks_is_none(batch):
    tokens = {k: v for k, v in batch.items() if k != "teacher_ids_BCK"}
    stats = token_stats(Decoder(SHAPE), drawn(SHAPE, 0), tokens, start=START)
    assert stats.top_logp_BCK is None
    assert stats.head_BEK is None


def test_a_head_moves_nothing_else(params, batch):
    with_head = token_stats(Decoder(WITH_HEAD), params, batch, start=START)
    plain = {k: v for k, v in params.items() if k != "head_DK"}
    without = token_stats(Decoder(SHAPE), plain, batch, start=START)
    jax.tree.map(
        np.testing.assert_array_equal, replace_head(with_head), replace_head(without)
    )


def replace_head(stats):
    return stats.replace(head_BEK=None)


def test_head_scorer(params, batch, mesh_of):
    model, mesh = Decoder(WITH_HEAD), mesh_of()
    score = make_head_scorer(model, mesh, start=START)
    expected = token_stats(model, params, batch, start=START).head_BEK
    np.testing.assert_allclose(score(params, batch), expected, rtol=1e-5, atol=1e-6)
    plain = make_head_scorer(Decoder(SHAPE), mesh, start=START)
    with pytest.raises(ValueError, match="no scalar head"):
        plain(drawn(SHAPE, 0), batch)


@pytest.mark.parametrize("k", [1, 4, VOCAB])
def test_a_teacher_names_its_likeliest_tokens(k, params, batch, mesh_of):
    model = Decoder(WITH_HEAD)
    teach = make_teacher(model, mesh_of(), start=START, k=k, vocab=VOCAB)
    ids_BCK, logp_BCK = teach(params, batch)
    _, logp_BTV = hidden_and_logp(model, params, batch)
    expected_BCK, expected_ids_BCK = jax.lax.top_k(logp_BTV[:, START - 1 : -1], k)
    np.testing.assert_array_equal(ids_BCK, expected_ids_BCK)
    np.testing.assert_allclose(logp_BCK, expected_BCK, rtol=1e-5, atol=1e-5)


def test_a_teacher_and_a_student_that_are_one_agree(params, batch, mesh_of):
    model, mesh = Decoder(WITH_HEAD), mesh_of()
    teach = make_teacher(model, mesh, start=START, k=K, vocab=VOCAB)
    ids_BCK, logp_BCK = teach(params, batch)
    batch = batch | {"teacher_ids_BCK": ids_BCK}
    stats = token_stats(model, params, batch, start=START, vocab=VOCAB)
    np.testing.assert_allclose(stats.top_logp_BCK, logp_BCK, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [3, VOCAB])
def test_mixed_teachers_are_the_mean_of_their_distributions(k, params, batch, mesh_of):
    """Teachers of two sizes; every log-probability is the mixture's own."""
    wide = replace(SHAPE, width=24)
    models, trees = [Decoder(WITH_HEAD), Decoder(wide)], [params, drawn(wide, 5)]
    teach = make_mixed_teacher(
        models, mesh_of(), start=START, k=k, weights=(3.0, 1.0), vocab=VOCAB
    )
    ids_BCK, logp_BCK = teach(*trees, batch)
    parts = [
        jnp.exp(hidden_and_logp(model, tree, batch)[1][:, START - 1 : -1])
        for model, tree in zip(models, trees, strict=True)
    ]
    mixture_BCV = np.asarray(0.75 * parts[0] + 0.25 * parts[1])
    at_ids = np.take_along_axis(mixture_BCV, np.asarray(ids_BCK), axis=-1)
    np.testing.assert_allclose(jnp.exp(logp_BCK), at_ids, rtol=1e-5, atol=1e-7)
    assert (np.diff(logp_BCK) <= 0).all()
    names = np.sort(ids_BCK, axis=-1)
    assert (np.diff(names) > 0).all(), "a token was named twice"
    if k == VOCAB:
        np.testing.assert_allclose(jnp.exp(logp_BCK).sum(axis=-1), 1, rtol=1e-5)


def test_a_mixture_of_one_teacher_with_itself_is_that_teacher(params, batch, mesh_of):
    model, mesh = Decoder(WITH_HEAD), mesh_of()
    how = {"start": START, "k": 5, "vocab": VOCAB}
    alone = make_teacher(model, mesh, **how)(params, batch)
    twice = make_mixed_teacher([model] * 2, mesh, **how)(params, params, batch)
    np.testing.assert_array_equal(twice[0], alone[0])
    np.testing.assert_allclose(twice[1], alone[1], rtol=1e-5, atol=1e-6)


def test_eight_devices_teach_and_score_as_one(params, batch, mesh_of):
    model = Decoder(replace(WITH_HEAD, tied=False))

    def both(mesh):
        with jax.set_mesh(mesh):
            teach = make_mixed_teacher([model] * 2, mesh, start=START, k=4)
            ids_BCK, logp_BCK = teach(params, params, batch)
            score = make_scorer(model, mesh, start=START)
            head = make_head_scorer(model, mesh, start=START)
            return ids_BCK, logp_BCK, score(params, batch), head(params, batch)

    alone, together = both(mesh_of()), both(mesh_of(data=2, fsdp=2, tensor=2))
    np.testing.assert_array_equal(alone[0], together[0])
    for one, other in zip(alone[1:], together[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_weights_of_teachers_are_positive_and_one_each(mesh_of):
    for weights in ((1.0,), (1.0, 0.0)):
        with pytest.raises(ValueError, match="2 teachers need as many weights"):
            make_mixed_teacher(
                [Decoder(SHAPE)] * 2, mesh_of(), start=1, k=2, weights=weights
            )
