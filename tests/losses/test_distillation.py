"""Distillation: exact with all tokens, honest with few, still where masked."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxloop.losses import distillation
from jaxloop.losses.objective import stats_of
from jaxloop.losses.objectives import Distill, Supervised
from jaxloop.losses.reduce import values

B, C, V = 2, 3, 11
LOSSES = {
    "forward": (distillation.forward_kl, None),
    "reverse": (distillation.reverse_kl, None),
    "jensen": (distillation.jensen_shannon, 0.3),
}
all_losses = pytest.mark.parametrize("name", LOSSES)


def dense(name, student_logits, teacher_logits, temperature=1.0):
    """The definition over the whole vocabulary, (B, C)."""
    beta = LOSSES[name][1]
    p = jax.nn.softmax(student_logits / temperature)
    q = jax.nn.softmax(teacher_logits / temperature)

    def kl(a, b):
        return (a * jnp.log(a / b)).sum(axis=-1)

    if name == "forward":
        return kl(q, p)
    if name == "reverse":
        return kl(p, q)
    mean = beta * q + (1 - beta) * p
    return beta * kl(q, mean) + (1 - beta) * kl(p, mean)


def make_logits(seed=0, scale=2.0, size=(B, C, V)):
    rng = np.random.default_rng(seed)
    return jnp.asarray(scale * rng.normal(size=(2, *size)))


def chosen(student_logits, teacher_logits, k):
    """Student's and teacher's log-probabilities of the teacher's k likeliest tokens."""
    teacher_BCK, ids_BCK = jax.lax.top_k(jax.nn.log_softmax(teacher_logits), k)
    student_BCV = jax.nn.log_softmax(student_logits)
    return jnp.take_along_axis(student_BCV, ids_BCK, axis=-1), teacher_BCK, ids_BCK


def divergence(name, student_logits, teacher_logits, k, **how):
    student_BCK, teacher_BCK, _ = chosen(student_logits, teacher_logits, k)
    loss, beta = LOSSES[name]
    if beta is not None:
        loss = partial(loss, beta=beta)
    return loss(*distillation.outcomes(student_BCK, teacher_BCK, **how))


def value_and_slopes(function, *arrays):
    """Values (B, C), and gradients of their sum."""
    of = jax.value_and_grad(lambda *x: (function(*x).sum(), function(*x)), has_aux=True)
    (_, value), slopes = jax.jit(of)(*arrays)
    return value, slopes


@all_losses
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_tokens_are_the_dense_divergence(name, tail, temperature):
    student, teacher = make_logits().astype(jnp.float32)
    how = {"k": V, "tail": tail, "temperature": temperature}
    actual = value_and_slopes(partial(divergence, name, **how), student, teacher)
    wanted = partial(dense, name, temperature=temperature)
    value, slope = value_and_slopes(wanted, student, jax.lax.stop_gradient(teacher))
    np.testing.assert_allclose(actual[0], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actual[1], slope, rtol=1e-4, atol=1e-6)


@all_losses
def test_the_tail_is_one_more_outcome(name):
    student, teacher = make_logits(1)
    k, order = 4, jnp.argsort(-teacher, axis=-1)

    def merged(logits):
        """Logits whose last entry has the mass of all behind the k-th."""
        sorted_BCV = jnp.take_along_axis(logits, order, axis=-1)
        rest = jax.nn.logsumexp(sorted_BCV[..., k:], axis=-1, keepdims=True)
        return jnp.concatenate([sorted_BCV[..., :k], rest], axis=-1)

    actual = value_and_slopes(partial(divergence, name, k=k), student, teacher)
    value, slope = value_and_slopes(
        lambda student: dense(name, merged(student), merged(teacher)), student
    )
    np.testing.assert_allclose(actual[0], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actual[1], slope, rtol=1e-4, atol=1e-6)


@all_losses
def test_without_a_tail_the_choices_are_renormalised(name):
    student, teacher = make_logits(2)
    k, order = 4, jnp.argsort(-teacher, axis=-1)
    kept = [jnp.take_along_axis(x, order, axis=-1)[..., :k] for x in (student, teacher)]
    actual = divergence(name, student, teacher, k, tail=False, temperature=1.7)
    expected = dense(name, *kept, temperature=1.7)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@all_losses
def test_more_choices_see_more(name):
    """Merging outcomes never raises a divergence."""
    with jax.enable_x64(True):
        student, teacher = make_logits(3)
        seen = np.array([divergence(name, student, teacher, k) for k in (1, 2, 5, V)])
    assert (np.diff(seen, axis=0) > -1e-9).all()
    assert (seen[0] >= 0).all()


@all_losses
@pytest.mark.parametrize("k", [3, V])
def test_nothing_to_learn_from_oneself(name, k):
    logits, _ = make_logits(4)
    value, slope = value_and_slopes(partial(divergence, name, k=k), logits, logits)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_jensen_shannon_lies_between_the_two_and_is_symmetric():
    student, teacher = jax.nn.log_softmax(make_logits(5))
    js = partial(distillation.jensen_shannon, student, teacher)
    forward = distillation.forward_kl(student, teacher)
    reverse = distillation.reverse_kl(student, teacher)
    np.testing.assert_allclose(js(beta=1e-3) / 1e-3, forward, rtol=0.02)
    np.testing.assert_allclose(js(beta=1 - 1e-3) / 1e-3, reverse, rtol=0.02)
    swapped = distillation.jensen_shannon(teacher, student, beta=0.7)
    np.testing.assert_allclose(js(beta=0.3), swapped, rtol=1e-5)
    assert (js() <= np.log(2)).all()


@all_losses
@pytest.mark.parametrize("tail", [True, False])
def test_gradients_by_finite_differences(name, tail):
    with jax.enable_x64(True):
        student, teacher = make_logits(6)
        assert student.dtype == jnp.float64
        how = {"k": 4, "tail": tail, "temperature": 1.3}
        loss = partial(divergence, name, teacher_logits=teacher, **how)
        check_grads(jax.jit(loss), (student,), 1, ["rev"], eps=1e-6, rtol=1e-6)


@all_losses
def test_the_teacher_has_no_gradient(name):
    student, teacher = make_logits(7)
    slope = jax.grad(lambda x: divergence(name, student, x, 4).sum())(teacher)
    assert not np.asarray(slope).any()


def test_an_empty_tail_can_fill_again():
    """The student left tokens that the teacher still says: the pull back is there."""
    teacher = jnp.log(jnp.array([[[0.5, 0.2]]]))
    student = jax.nn.log_softmax(jnp.array([[[5.0, 5.0, -20.0]]]))

    def loss(student):
        return distillation.forward_kl(
            *distillation.outcomes(student[..., :2], teacher)
        ).sum()

    slope = np.asarray(jax.grad(loss)(student))
    assert np.isfinite(slope).all()
    assert (slope[..., :2] > 1e3).all(), "less mass on the choices is a smaller loss"


def objective_of(name, **how) -> Distill:
    loss, beta = LOSSES[name]
    return Distill(loss, beta=beta, **how)


def batch_of(seed=0, k=4, scale=2.0, size=(B, C, V)):
    """(log-probabilities of the tokens, of the choices; a batch)."""
    student, teacher = make_logits(seed, scale, size).astype(jnp.float32)
    student_BCK, teacher_BCK, ids_BCK = chosen(student, teacher, k)
    rng = np.random.default_rng(seed)
    batch = {
        "mask_BC": rng.random(size[:2]) < 0.7,
        "valid_B": rng.random(size[0]) < 0.8,
        "weight_B": rng.random(size[0]).astype(np.float32),
        "teacher_ids_BCK": ids_BCK,
        "teacher_logp_BCK": teacher_BCK,
    }
    return jax.nn.log_softmax(student)[..., 0], student_BCK, batch


def run(objective, logp_BC, student_BCK, batch, counts=None):
    counts = objective.counts(batch) if counts is None else counts
    stats = stats_of(logp_BC, top_logp_BCK=student_BCK)
    return objective(stats, batch, counts)


def test_the_objective_is_a_token_mean_of_divergence_and_likelihood():
    logp_BC, student_BCK, batch = batch_of()
    batch |= {"mask_BC": jnp.ones((B, C)).at[0, 1:].set(0), "valid_B": jnp.ones(B)}
    objective = objective_of("jensen", temperature=2.0, nll=0.5)
    loss, metrics = run(objective, logp_BC, student_BCK, batch)
    each_BC = distillation.jensen_shannon(
        *distillation.outcomes(student_BCK, batch["teacher_logp_BCK"], temperature=2.0),
        beta=0.3,
    )
    weighted_BC = batch["weight_B"][:, None] * (each_BC - 0.5 * logp_BC)
    expected = (weighted_BC * batch["mask_BC"]).sum() / 4
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    figures = values(metrics)
    active = np.asarray(batch["mask_BC"], bool)
    np.testing.assert_allclose(figures["distillation/loss"], each_BC[active].mean())
    mass_BC = jnp.exp(batch["teacher_logp_BCK"]).sum(axis=-1)
    teacher_mass = figures["distillation/teacher_mass"]
    np.testing.assert_allclose(teacher_mass, mass_BC[active].mean(), rtol=1e-6)
    np.testing.assert_allclose(figures["nll_loss"], -logp_BC[active].mean(), rtol=1e-6)


def test_a_certain_teacher_is_a_demonstration():
    """With the said token as its one choice, forward KL is the likelihood."""
    logp_BC = -jnp.asarray([[0.3, 2.0, 1.0]])
    batch = {
        "mask_BC": jnp.ones((1, 3)),
        "teacher_ids_BCK": jnp.zeros((1, 3, 1), jnp.int32),
        "teacher_logp_BCK": jnp.zeros((1, 3, 1)),
    }
    loss, _ = run(Distill(), logp_BC, logp_BC[..., None], batch)
    plain, _ = Supervised()(stats_of(logp_BC), batch, {"tokens": jnp.float32(3)})
    np.testing.assert_allclose(loss, plain, rtol=1e-3)


@all_losses
def test_no_tokens_no_loss(name):
    logp_BC, student_BCK, batch = batch_of()
    empty = batch | {"mask_BC": jnp.zeros((B, C))}
    nothing = batch | {"valid_B": jnp.zeros(B)}
    for batch in (empty, nothing):
        loss, slope = jax.value_and_grad(
            lambda x, batch=batch: run(objective_of(name), logp_BC, x, batch)[0]
        )(jnp.full_like(student_BCK, jnp.nan))
        assert loss == 0
        assert not np.asarray(slope).any()


@partial(jax.jit, static_argnums=0)
def value_and_grad(objective, logp_BC, student_BCK, batch, counts):
    def loss(logp_BC, student_BCK):
        return run(objective, logp_BC, student_BCK, batch, counts)[0]

    return jax.value_and_grad(loss, (0, 1))(logp_BC, student_BCK)


CASES = st.tuples(
    st.integers(0, 2**31),
    st.sampled_from([(2, 2, 1), (3, 2, 7)]),
    st.sampled_from([1e-3, 1.0, 50.0, 1e4]),
)


@all_losses
@pytest.mark.parametrize("tail", [True, False])
@settings(deadline=None, max_examples=25, derandomize=True)
@given(case=CASES)
def test_random_batches(name, tail, case):
    """Finite, still where masked, the same in any order and in any parts."""
    seed, (B, C, k), scale = case
    objective = objective_of(name, tail=tail, nll=0.1)
    logp_BC, student_BCK, batch = batch_of(seed, k, scale, (B, C, 7))
    active_BC = batch["mask_BC"] & batch["valid_B"][:, None]
    hole = np.random.default_rng(seed).choice([np.nan, np.inf, -np.inf])
    logp_BC = jnp.where(active_BC, logp_BC, hole)
    student_BCK = jnp.where(active_BC[..., None], student_BCK, hole)
    counts = objective.counts(batch)
    whole, slopes = value_and_grad(objective, logp_BC, student_BCK, batch, counts)
    assert np.isfinite(whole)
    for slope in slopes:
        assert np.isfinite(slope).all()
        assert not np.asarray(slope)[~active_BC].any()

    def total(rows):
        part = {key: x[rows] for key, x in batch.items()}
        arrays = logp_BC[rows], student_BCK[rows], part, counts
        return value_and_grad(objective, *arrays)[0]

    rng = np.random.default_rng(seed)
    moved, parts = total(rng.permutation(B)), [total(np.array([i])) for i in range(B)]
    np.testing.assert_allclose(moved, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5, atol=1e-6)


@all_losses
@pytest.mark.parametrize("tail", [True, False])
def test_extreme_distributions_stay_finite(name, tail):
    """Certain of one token, against certain of another; logits 1e4 apart."""
    student = jnp.array([[[1e4, 0, 0], [-1e4, 0, 1e4], [0, 0, 0.0]]])
    teacher = jnp.array([[[0, 1e4, 0], [1e4, 0, -1e4], [1e4, -1e4, 0.0]]])
    for k in (1, 2, 3):
        how = partial(divergence, name, k=k, tail=tail)
        value, slope = value_and_slopes(how, student, teacher)
        assert np.isfinite(value).all()
        assert np.isfinite(slope).all()


@all_losses
def test_descending_it_arrives_at_the_teacher(name):
    student, teacher = make_logits(8, scale=1.0, size=(1, 1, 6))
    slope = jax.jit(jax.grad(lambda x: divergence(name, x, teacher, 6).sum()))
    for _ in range(300):
        student = student - 2.0 * slope(student)
    found, wanted = jax.nn.softmax(student), jax.nn.softmax(teacher)
    np.testing.assert_allclose(found, wanted, atol=2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"nll": -1.0}, "nll"),
        ({"loss": distillation.jensen_shannon, "beta": 1.0}, "beta 1.0 is not between"),
        ({"beta": 0.5}, "forward_kl has no use for beta"),
    ],
    ids=["temperature", "nll", "beta 1", "beta unused"],
)
def test_what_makes_no_sense_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Distill(**change)


def test_a_batch_without_a_teacher_is_named():
    logp_BC, student_BCK, batch = batch_of()
    assert Distill().needs == {"teacher"}
    del batch["teacher_logp_BCK"]
    with pytest.raises(ValueError, match="Distill needs 'teacher_logp_BCK'"):
        run(Distill(), logp_BC, student_BCK, batch)


def test_a_divergence_of_ones_own():
    def total_variation(student_BCN, teacher_BCN):
        gap_BCN = jnp.exp(student_BCN) - jnp.exp(teacher_BCN)
        return 0.5 * jnp.abs(gap_BCN).sum(axis=-1)

    logp_BC, student_BCK, batch = batch_of()
    loss, _ = run(Distill(total_variation), logp_BC, student_BCK, batch)
    assert 0 < loss < 1
