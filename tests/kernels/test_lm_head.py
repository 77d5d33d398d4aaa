"""Hidden states to token statistics: the chunked form against the whole one.

On several devices the contract is: the batch cut over (data, fsdp) and the vocabulary
over tensor give the same numbers, no device ever holds more logits than its share of a
chunk, and the parts' gradients of the vocabulary meet once, outside the loop.
"""

import re
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jaxloop_kernels.lm_head import lm_head, reference, top_tokens, xla

B, T, D, V, K = 4, 10, 8, 37, 5


def make_inputs(seed=0, shape=(B, T, D, V), dtype="float32"):
    B, T, D, V = shape
    keys = jax.random.split(jax.random.key(seed), 6)
    hidden_BTD = 2 * jax.random.normal(keys[0], (B, T, D))
    vocab_VD = jax.random.normal(keys[1], (V, D))
    # Tokens that exist: the last rows may be padding.
    target_BT = jax.random.randint(keys[2], (B, T), 0, V - 7)
    bars_3BT = jax.random.normal(keys[3], (3, B, T))
    return hidden_BTD.astype(dtype), vocab_VD.astype(dtype), target_BT, bars_3BT


def value_and_grads(head, inputs, **settings):
    """(all statistics, gradients of a random mix of the differentiable three)."""
    hidden_BTD, vocab_VD, target_BT, bars_3BT = inputs

    @jax.jit
    def run(hidden_BTD, vocab_VD, temperature):
        def loss(hidden_BTD, vocab_VD):
            out = head(hidden_BTD, vocab_VD, target_BT, **(settings | temperature))
            mix = zip(bars_3BT, (out.logp_BT, out.entropy_BT, out.lse_BT), strict=True)
            return sum((bar_BT * x_BT).sum() for bar_BT, x_BT in mix), out

        grad = jax.value_and_grad(loss, (0, 1), has_aux=True)
        (_, out), grads = grad(hidden_BTD, vocab_VD)
        return out, grads

    temperature = {k: settings[k] for k in settings if k == "temperature"}
    return run(hidden_BTD, vocab_VD, temperature)


def make_choices(seed=0, shape=(B, T, D, V)):
    """Tokens of which some occur twice, and the weights of their log-probabilities."""
    B, T, _, V = shape
    keys = jax.random.split(jax.random.key(seed + 100), 2)
    choices_BTK = jax.random.randint(keys[0], (B, T, K), 0, V - 7)
    choices_BTK = choices_BTK.at[..., -1].set(choices_BTK[..., 0])
    return choices_BTK, jax.random.normal(keys[1], (B, T, K))


def with_choices(head, choices_BTK, bars_BTK):
    """A head with a random mix of the choices in its logp: so their gradient shows."""

    def run(*arrays, **settings):
        out = head(*arrays, choices_BTK, **settings)
        mix_BT = (bars_BTK * out.choice_logp_BTK).sum(axis=-1)
        return out._replace(logp_BT=out.logp_BT + mix_BT)

    return run


def assert_close(actual, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, **tolerance)


HOW = [
    {},
    {"chunk": 3},
    {"chunk": 1, "parts": 2, "temperature": 0.7},
    {"chunk": 5, "parts": 4, "soft_cap": 3.0},
    {"chunk": 99, "temperature": 1.9, "soft_cap": 2.0, "valid": V - 5},
    {"chunk": 4, "valid": 30},
]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_xla_matches_reference(how):
    inputs = make_inputs()
    what = {k: v for k, v in how.items() if k not in ("chunk", "parts")}
    heads = [reference.lm_head, xla.lm_head]
    if how:  # the first without choices
        heads = [with_choices(head, *make_choices()) for head in heads]
    expected = value_and_grads(heads[0], inputs, **what)
    actual = value_and_grads(heads[1], inputs, **how)
    assert_close(actual, expected, rtol=2e-5, atol=2e-5)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(actual))


def test_padded_rows_equal_rows_that_are_not_there():
    hidden_BTD, vocab_VD, target_BT, bars_3BT = make_inputs()
    target_BT = target_BT % 30
    short = (hidden_BTD, vocab_VD[:30], target_BT, bars_3BT)
    expected, (hidden_bar, vocab_bar) = value_and_grads(reference.lm_head, short)
    long = (hidden_BTD, vocab_VD, target_BT, bars_3BT)
    actual, bars = value_and_grads(reference.lm_head, long, valid=30)
    assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert_close(bars[0], hidden_bar, rtol=1e-5, atol=1e-5)
    assert_close(bars[1][:30], vocab_bar, rtol=1e-5, atol=1e-5)
    assert not np.asarray(bars[1][30:]).any()


def test_reference_gradient_is_that_of_finite_differences():
    with jax.enable_x64(True):
        shape = (1, 3, 4, 9)
        hidden_BTD, vocab_VD, *ids, _ = make_inputs(shape=shape, dtype="float64")
        ids.append(make_choices(shape=shape)[0])

        @jax.jit
        def differentiable(hidden_BTD, vocab_VD):
            out = lm_head(hidden_BTD, vocab_VD, *ids, temperature=0.6, soft_cap=3.0)
            return out.logp_BT, out.entropy_BT, out.lse_BT, out.choice_logp_BTK

        assert differentiable(hidden_BTD, vocab_VD)[0].dtype == jnp.float64
        check_grads(differentiable, (hidden_BTD, vocab_VD), 1, ["rev"], rtol=1e-6)


def test_statistics_mean_what_they_say():
    hidden_BTD, vocab_VD, target_BT, _ = make_inputs()
    choices_BTK, _ = make_choices()
    logit_BTV = np.einsum("BTD,VD->BTV", hidden_BTD, vocab_VD).astype(np.float64)
    greedy_BT = logit_BTV.argmax(axis=-1)
    target_BT = target_BT.at[:, ::2].set(greedy_BT[:, ::2])
    head = jax.jit(partial(lm_head, temperature=0.5, chunk=3))
    out = head(hidden_BTD, vocab_VD, target_BT, choices_BTK)
    weight_BTV = np.exp(logit_BTV / 0.5)
    prob_BTV = weight_BTV / weight_BTV.sum(axis=-1, keepdims=True)
    np.testing.assert_array_equal(out.hit_BT, target_BT == greedy_BT)
    assert 0 < out.hit_BT.mean() < 1
    close = {"rtol": 2e-5, "atol": 2e-5}
    at_BT1 = np.asarray(target_BT)[..., None]
    picked_BT = np.take_along_axis(prob_BTV, at_BT1, axis=-1)[..., 0]
    assert_close(out.logp_BT, np.log(picked_BT), **close)
    entropy_BT = -(prob_BTV * np.log(prob_BTV)).sum(axis=-1)
    assert_close(out.entropy_BT, entropy_BT, **close)
    assert_close(out.mean_logit_BT, logit_BTV.mean(axis=-1), **close)
    assert_close(out.lse_BT, np.log(weight_BTV.sum(axis=-1)), **close)
    assert_close(out.log_sum_sq_BT, np.log((prob_BTV**2).sum(axis=-1)), **close)
    chosen_BTK = np.take_along_axis(prob_BTV, np.asarray(choices_BTK), axis=-1)
    assert_close(out.choice_logp_BTK, np.log(chosen_BTK), **close)


def test_log_sum_sq_is_between_certain_and_uniform():
    hidden_BTD, vocab_VD, target_BT, _ = make_inputs()
    certain = lm_head(1e4 * hidden_BTD, vocab_VD, target_BT).log_sum_sq_BT
    uniform = lm_head(0 * hidden_BTD, vocab_VD, target_BT, valid=20).log_sum_sq_BT
    np.testing.assert_allclose(certain, 0, atol=1e-6)
    np.testing.assert_allclose(uniform, -np.log(20), rtol=1e-6)


@pytest.mark.parametrize("how", HOW[2:5], ids=str)
def test_top_tokens_are_the_choices_with_most_probability(how):
    hidden_BTD, vocab_VD, target_BT, _ = make_inputs()
    what = {k: v for k, v in how.items() if k not in ("chunk", "parts")}
    expected = reference.top_tokens(hidden_BTD, vocab_VD, 7, **what)
    head = jax.jit(partial(top_tokens, count=7, implementation="xla", **how))
    actual = head(hidden_BTD, vocab_VD)
    assert actual.ids_BTK.dtype == jnp.int32
    assert_close(actual.logp_BTK, expected.logp_BTK, rtol=1e-5, atol=1e-5)
    # Not the ids themselves: tokens that rounding alone tells apart may change places.
    ids_BTK = np.sort(actual.ids_BTK, axis=-1)
    assert (np.diff(ids_BTK) > 0).all()
    again = lm_head(hidden_BTD, vocab_VD, target_BT, actual.ids_BTK, **how)
    assert_close(again.choice_logp_BTK, actual.logp_BTK, rtol=1e-5, atol=1e-5)
    assert (np.diff(actual.logp_BTK) <= 0).all()
    assert int(actual.ids_BTK.max()) < how.get("valid", V)


def test_all_tokens_are_a_distribution_and_have_no_gradient():
    hidden_BTD, vocab_VD, *_ = make_inputs()
    for head in (reference.top_tokens, xla.top_tokens):
        logp_BTV = head(hidden_BTD, vocab_VD, V).logp_BTK
        np.testing.assert_allclose(jnp.exp(logp_BTV).sum(axis=-1), 1, rtol=1e-5)
        bar = jax.grad(lambda h, head=head: head(h, vocab_VD, 3).logp_BTK.sum())
        assert not np.asarray(bar(hidden_BTD)).any()


def work_of(*names, **settings):
    """(transcendental functions, operations) of the chunk that gives these numbers."""
    hidden_BTD, vocab_VD, target_BT, _ = make_inputs()

    @jax.jit
    def run(hidden_BTD, vocab_VD):
        out = lm_head(hidden_BTD, vocab_VD, target_BT, chunk=4, **settings)
        return [getattr(out, name) for name in names]

    cost = run.lower(hidden_BTD, vocab_VD).compile().cost_analysis()
    assert cost is not None
    return cost["transcendentals"], cost["flops"]


def test_what_is_not_used_costs_nothing():
    plain = work_of("logp_BT")
    squares = work_of("logp_BT", "log_sum_sq_BT")
    chosen = make_choices()[0]
    assert squares[0] > plain[0]
    assert squares[1] > plain[1]
    assert work_of("logp_BT", choices_BTK=chosen) == plain
    assert work_of("logp_BT", "choice_logp_BTK", choices_BTK=chosen)[1] > plain[1]


def test_bfloat16_accumulates_in_float32():
    inputs = make_inputs(dtype="bfloat16")
    exact = [x.astype("float32") for x in inputs[:2]] + list(inputs[2:])
    expected, expected_grads = value_and_grads(reference.lm_head, exact)
    actual, grads = value_and_grads(xla.lm_head, inputs, chunk=4)
    assert_close(actual, expected, rtol=1e-5, atol=1e-5)  # the products are exact
    assert all(grad.dtype == jnp.bfloat16 for grad in grads)
    assert_close(grads, expected_grads, rtol=2e-2, atol=4e-2)


def test_float32_matrix_under_bfloat16_hidden_keeps_a_float32_gradient():
    hidden_BTD, vocab_VD, *rest = make_inputs(dtype="bfloat16")
    mixed = (hidden_BTD, vocab_VD.astype("float32"), *rest)
    out, (hidden_bar, vocab_bar) = value_and_grads(xla.lm_head, mixed, chunk=4)
    same, (_, rounded_bar) = value_and_grads(
        xla.lm_head, (hidden_BTD, vocab_VD, *rest), chunk=4
    )
    assert hidden_bar.dtype == jnp.bfloat16
    assert vocab_bar.dtype == jnp.float32
    assert_close(out, same, rtol=0, atol=0)
    assert_close(vocab_bar.astype("bfloat16"), rounded_bar, rtol=0, atol=0)


def test_rows_without_a_cotangent_equal_rows_that_are_not_there():
    hidden_BTD, vocab_VD, target_BT, bars_3BT = make_inputs()
    kept = 6
    masked = (hidden_BTD, vocab_VD, target_BT, bars_3BT.at[..., kept:].set(0))
    sliced = tuple(x[:, :kept] for x in (hidden_BTD, target_BT))
    sliced = (sliced[0], vocab_VD, sliced[1], bars_3BT[..., :kept])
    _, (hidden_bar, vocab_bar) = value_and_grads(xla.lm_head, masked, chunk=4)
    _, (kept_bar, same_bar) = value_and_grads(xla.lm_head, sliced, chunk=4)
    np.testing.assert_array_equal(hidden_bar[:, kept:], 0)
    assert_close((hidden_bar[:, :kept], vocab_bar), (kept_bar, same_bar), atol=2e-5)


def test_temperature_may_be_traced_and_carries_no_gradient():
    *arrays, _ = make_inputs()

    def total(head, temperature):
        return head(*arrays, temperature=temperature).logp_BT.sum()

    for head in (reference.lm_head, xla.lm_head):
        value, bar = jax.jit(jax.value_and_grad(partial(total, head)))(0.7)
        assert_close(value, jax.jit(lambda head=head: total(head, 0.7))(), rtol=1e-6)
        assert bar == 0


def test_extreme_logits_stay_finite():
    hidden_BTD, vocab_VD, target_BT, bars_3BT = make_inputs()
    inputs = (1e4 * hidden_BTD, vocab_VD, target_BT, bars_3BT)
    for leaf in jax.tree.leaves(value_and_grads(xla.lm_head, inputs, chunk=4)):
        assert np.isfinite(leaf).all()


def share_of_logits(head, **settings):
    """What a step takes beside its arguments and results, in units of the whole logits.

    Loss and gradients for the vocabulary of Qwen 2.5, compiled but not run.
    """
    B, T, D, V = 2, 1024, 64, 151_936
    f32, i32 = jnp.float32, jnp.int32
    hidden_BTD = jax.ShapeDtypeStruct((B, T, D), f32)
    vocab_VD = jax.ShapeDtypeStruct((V, D), f32)
    target_BT = jax.ShapeDtypeStruct((B, T), i32)

    choices_BTK = jax.ShapeDtypeStruct((B, T, 64), i32)

    def loss(hidden_BTD, vocab_VD, target_BT, choices_BTK):
        out = head(hidden_BTD, vocab_VD, target_BT, choices_BTK, **settings)
        return out.logp_BT.sum() + out.entropy_BT.sum() + out.choice_logp_BTK.sum()

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return temporary(step, hidden_BTD, vocab_VD, target_BT, choices_BTK)


def temporary(step, hidden_BTD, vocab_VD, *rest):
    (B, T, _), V = hidden_BTD.shape, vocab_VD.shape[0]
    memory = step.lower(hidden_BTD, vocab_VD, *rest).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes / (4 * B * T * V)


def test_no_step_holds_the_logits_of_the_batch():
    assert share_of_logits(lm_head) < 0.25
    assert share_of_logits(lm_head, chunk=8) < 0.1
    assert share_of_logits(reference.lm_head) >= 1  # so this test can fail


def test_a_teacher_does_not_hold_the_logits_of_the_batch():
    hidden_BTD = jax.ShapeDtypeStruct((2, 1024, 64), jnp.float32)
    vocab_VD = jax.ShapeDtypeStruct((151_936, 64), jnp.float32)
    head = jax.jit(partial(top_tokens, count=64))
    assert temporary(head, hidden_BTD, vocab_VD) < 0.25


@pytest.mark.parametrize("cut", [P("tensor", None), P("tensor", "fsdp")], ids=str)
def test_eight_devices_equal_one(mesh_of, cut):
    shape = (8, 32, 16, 512)
    B, _, D, V = shape
    chunk, parts, tensor = 10, 4, 2
    hidden_BTD, vocab_VD, target_BT, bars_3BT = make_inputs(shape=shape)
    chosen = make_choices(shape=shape)
    mesh = mesh_of(data=2, fsdp=2, tensor=tensor)
    batch = NamedSharding(mesh, P(("data", "fsdp")))
    vocab, whole = NamedSharding(mesh, cut), NamedSharding(mesh, P("tensor", None))

    def run(hidden_BTD, vocab_VD, target_BT):
        def loss(hidden_BTD, vocab_VD):
            vocab_VD = jax.lax.with_sharding_constraint(vocab_VD, whole)
            head = with_choices(xla.lm_head, *chosen)
            out = head(hidden_BTD, vocab_VD, target_BT, chunk=chunk, parts=parts)
            mix = zip(bars_3BT, (out.logp_BT, out.entropy_BT, out.lse_BT), strict=True)
            return sum((bar_BT * x_BT).sum() for bar_BT, x_BT in mix), out

        grad = jax.value_and_grad(loss, (0, 1), has_aux=True)
        (_, out), grads = grad(hidden_BTD, vocab_VD)
        return out, grads

    step = jax.jit(
        run, in_shardings=(batch, vocab, batch), out_shardings=(batch, (batch, vocab))
    )
    args = (hidden_BTD, vocab_VD, target_BT)
    placed = jax.device_put(args, (batch, vocab, batch))
    head = with_choices(reference.lm_head, *chosen)
    expected = value_and_grads(head, (*args, bars_3BT))
    compiled = step.lower(*placed).compile()
    assert_close(compiled(*placed), expected, rtol=5e-5, atol=5e-5)

    text = compiled.as_text() or ""
    rows = B // parts * chunk
    share = rows * V // tensor
    assert max(sizes(text)) <= share, "a device holds more than its share of a chunk"
    sent = [
        size
        for line in text.splitlines()
        if re.search(r"(all-reduce|all-gather|reduce-scatter|all-to-all)\(", line)
        if "while/body" in line
        for size in sizes(line)
    ]
    assert sent
    assert max(sent) <= rows * D, "a chunk sends more than its hidden states"


def sizes(text):
    """Elements of the float32 arrays named in compiled code."""
    shapes = re.findall(r"f32\[([\d,]+)", text)
    return [prod(map(int, shape.split(","))) for shape in shapes]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "mosaic"}, "mosaic"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"soft_cap": -1.0}, "soft_cap"),
        ({"chunk": 0}, "chunk"),
        ({"parts": 3}, "parts=3 does not divide"),
        ({"target_BT": jnp.zeros((B, T + 1), int)}, r"target \(4, 11\)"),
        ({"target_BT": jnp.zeros((B, T))}, "target must be integers"),
        ({"choices_BTK": jnp.zeros((B, T), int)}, r"choices \(4, 10\)"),
        ({"choices_BTK": jnp.zeros((B, T, K))}, "choices must be integers"),
        ({"vocab_VD": jnp.zeros((V, D + 1))}, r"vocab \(37, 9\)"),
        ({"vocab_VD": jnp.zeros((0, D))}, "empty"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_what_makes_no_sense_is_named(change, message):
    hidden_BTD, vocab_VD, target_BT, _ = make_inputs()
    arguments = {"hidden_BTD": hidden_BTD, "vocab_VD": vocab_VD, "target_BT": target_BT}
    with pytest.raises((ValueError, NotImplementedError), match=message):
        lm_head(**(arguments | change))


@pytest.mark.parametrize("count", [0, V])
def test_top_tokens_are_at_most_all_tokens(count):
    hidden_BTD, vocab_VD, *_ = make_inputs()
    with pytest.raises(ValueError, match=f"count={count} of a vocabulary of 36"):
        top_tokens(hidden_BTD, vocab_VD, count, valid=V - 1)


def test_a_named_implementation_does_not_fall_back():
    with jax.enable_x64(True):
        hidden_BTD, vocab_VD = jnp.zeros((B, T, D)), jnp.zeros((V, D))
        with pytest.raises(NotImplementedError, match="float64"):
            lm_head(hidden_BTD, vocab_VD, jnp.zeros((B, T), int), implementation="xla")
