"""Multi-Token Attention without mixes: the TPU kernels, interpreted, against the dense.

Gradients are those of a random mix of the outputs, in q, k, v and the two kernels.
"""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.multi_token_attention import (
    Mta,
    identity,
    multi_token_attention,
    pallas_tpu,
    reference,
)
from tests.kernels import mta_cases
from tests.kernels.mta_cases import (
    assert_close,
    make,
    pairwise,
    value_and_grads,
)

RATIOS = (1, 2, 4, 8)
HEAD_SIZES = (64, 96, 128, 256)
# (T, block_q, block_k): one block; two; two of two parts; five, the last not full.
TIMES = ((1, None, None), (130, 128, 128), (500, 128, 256), (1100, 128, 256))
KERNELS = ((6, 11), (2, 9), (1, 1), (4, 9))
PARTS = tuple(product((False, True), (False, True)))  # (after the softmax, segments)
LEVELS = (RATIOS, HEAD_SIZES, TIMES, KERNELS, PARTS)


def check(ratio, head_dim, time, kernel, parts):
    T, *blocks = time
    case = make(ratio, head_dim, T, kernel, *parts)
    mta_cases.check(pallas_tpu.core, case, *blocks)


def some_ordinary(cases):
    """Every fourth; the other pairs are left to the long run, for a case takes seconds
    to compile."""
    for i, case in enumerate(cases):
        yield pytest.param(case, marks=[pytest.mark.full] if i % 4 else [])


@pytest.mark.parametrize("case", list(some_ordinary(pairwise(LEVELS))), ids=str)
def test_matches_the_dense_one(case):
    check(*case)


@pytest.mark.full
@pytest.mark.parametrize("case", list(product(*LEVELS)), ids=str)
def test_matches_the_dense_one_for_every_combination(case):
    check(*case)


def test_every_two_choices_meet_in_the_cases():
    cases = list(pairwise(LEVELS))
    for i, j in product(range(5), range(5)):
        met = {(case[i], case[j]) for case in cases}
        assert i == j or met == set(product(LEVELS[i], LEVELS[j]))


def test_bfloat16():
    """Rounded factors, rounded probabilities: 8 bits of each."""
    inputs, segments_BT, bar_BTNH = make(2, 64, 300, (6, 11), True, True, "bfloat16")
    case = (inputs, segments_BT, bar_BTNH)
    expected = value_and_grads(reference.core, *case)
    actual = value_and_grads(pallas_tpu.core, *case, block_q=128, block_k=128)
    assert actual[0].dtype == jnp.bfloat16
    assert_close(actual, expected, 2e-2)


# (heads, head size, T, kernel, after the softmax, segments): pairs in one part; in
# three, the last not full; in two of two parts; five taps of six; three alone, where
# the forward kernel takes both blocks in one step. Fours in one part, in two of one
# block, in two blocks; four taps of six; both blocks in one step.
SHARED = [
    (1, 64, 200, (6, 11), False, True, {"shared": 2}),
    (1, 64, 1000, (6, 11), False, True, {"shared": 4, "block_q": 512, "block_k": 512}),
    *(
        pytest.param(case, marks=pytest.mark.full)
        for case in [
            (2, 96, 600, (6, 11), True, True, {"shared": 2, "block_k": 256}),
            (2, 64, 900, (6, 11), False, False, {"shared": 2, "block_q": 256}),
            (1, 64, 1000, (5, 3), False, True, {"shared": 2, "block_q": 256}),
            (1, 64, 1000, (3, 1), False, True, {"shared": 2}),
            (2, 96, 500, (6, 11), True, True, {"shared": 4}),
            (2, 64, 1000, (5, 9), False, True, {"shared": 4, "block_k": 1024}),
            (1, 128, 900, (4, 1), True, True, {"shared": 4, "block_k": 512}),
            (1, 64, 1000, (6, 11), False, True, {"shared": 4}),
        ]
    ),
]


@pytest.mark.parametrize("case", SHARED, ids=str)
def test_queries_that_share_products(case):
    *shape, how = case
    case = make(*shape)
    expected = value_and_grads(reference.core, *case)
    actual = value_and_grads(pallas_tpu.core, *case, **how)
    assert_close(actual, expected, 2e-5)
    if case[1] is not None:
        padding = np.asarray(case[1] == 0)
        assert not np.asarray(actual[0])[padding].any()
        assert not any(np.asarray(x)[padding].any() for x in actual[1][:3])


@pytest.mark.full
@pytest.mark.parametrize(("shared", "T"), [(2, 200), (4, 400)])
def test_queries_that_share_products_in_bfloat16(shared, T):
    """Sums of queries are rounded as the queries are: the bound of the others."""
    case = make(2, 64, T, (6, 11), shared == 2, True, "bfloat16")
    expected = value_and_grads(reference.core, *case)
    actual = value_and_grads(pallas_tpu.core, *case, shared=shared)
    assert_close(actual, expected, 2e-2)


def test_a_kernel_of_low_rank_costs_its_rank_and_has_its_gradient():
    (q, k, v, _), segments_BT, bar_BTNH = make(2, 64, 140, (6, 11), True, True)
    keys = jax.random.split(jax.random.key(1), 4)
    left = [jax.random.normal(key, (2, 6, 2)) / 2 for key in keys[:2]]
    right = [jax.random.normal(key, (2, 2, 11)) / 2 for key in keys[2:]]

    def through_factors(core):
        def run(q, k, v, factors, segments_BT, **how):
            pre, post = (left @ right for left, right in zip(*factors, strict=True))
            return core(q, k, v, Mta(pre_NAC=pre, post_NAC=post), segments_BT, **how)

        return run

    case = ((q, k, v, (left, right)), segments_BT, bar_BTNH)
    expected = value_and_grads(through_factors(reference.core), *case)
    actual = value_and_grads(through_factors(pallas_tpu.core), *case, rank=2)
    assert_close(actual, expected, 2e-5)


def test_rank_of_the_identity_has_finite_gradients():
    kernel_NAC = jnp.zeros((1, 6, 11)).at[:, -1, 5].set(1.0)

    def product_of_factors(kernel_NAC):
        left_NAP, right_NPC = pallas_tpu.widen.factors(kernel_NAC, 2)
        return left_NAP @ right_NPC

    value, vjp = jax.vjp(product_of_factors, kernel_NAC)
    np.testing.assert_allclose(value, kernel_NAC, atol=1e-6)
    bar_NAC = vjp(jax.random.normal(jax.random.key(0), kernel_NAC.shape))[0]
    assert np.isfinite(bar_NAC).all()


def test_without_parts_it_is_plain_attention_also_of_another_value_size():
    (q, k, v, _), _, bar_BTNH = make(4, 64, 200, (1, 1), False, False, value_dim=32)

    def plain(q, k, v, mta, segments_BT, *, scale, order):
        k, v = jnp.repeat(k, 4, axis=2), jnp.repeat(v, 4, axis=2)
        v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, 32)))
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return out[..., :32]

    case = ((q, k, v, Mta()), None, bar_BTNH)
    expected = value_and_grads(plain, *case)
    assert_close(value_and_grads(pallas_tpu.core, *case), expected, 2e-5)


def test_no_races_nothing_uninitialised_nothing_out_of_bounds():
    case = make(2, 32, 300, (6, 11), False, True)
    params = pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
    )
    expected = value_and_grads(reference.core, *case)
    how = {"block_q": 128, "block_k": 128, "interpret": params}
    assert_close(value_and_grads(pallas_tpu.core, *case, **how), expected, 2e-5)
    # Only a private name tells what was found.
    found = interpret_pallas_call.races
    assert found is not None
    assert not found.races_found


@pytest.mark.parametrize("after", [False, True], ids=["pre", "pre and post"])
def test_lowers_for_the_chip_forward_and_backward(after):
    inputs, segments_BT, bar_BTNH = make(2, 96, 600, (6, 11), after, True, "bfloat16")

    def loss(*arrays):
        out = pallas_tpu.core(*arrays, segments_BT, scale=0.1, interpret=False)
        return (out * bar_BTNH).sum()

    exported = jax.export.export(
        jax.jit(jax.grad(loss, (0, 1, 2, 3))), platforms=["tpu"]
    )(*inputs)
    text = exported.mlir_module()
    assert "mta_forward" in text
    assert "mta_backward" in text


def test_what_it_cannot_do_it_says():
    (q, k, v, mta), _, _ = make(2, 64, 8, (2, 3), False, False)
    assert pallas_tpu.supports(q, k, v, mta) == ""
    mixed = mta._replace(pre_mix_GMM=jnp.ones((1, 2, 2)))
    assert "mixing" in pallas_tpu.supports(q, k, v, mixed)
    with pytest.raises(ValueError, match="block_q must be a multiple of 128"):
        pallas_tpu.core(q, k, v, mta, scale=1.0, block_q=96)
    with pytest.raises(ValueError, match="2 in parts of 256 only"):
        pallas_tpu.core(q, k, v, mta, scale=1.0, shared=2)


def test_too_long_is_said_before_anything_is_compiled():
    """The gradient of a head's queries stays in fast memory, six times as wide."""
    mta = identity(8, 128, pre=(6, 11))
    for T, fits in ((8192, True), (32_768, False)):
        x = jax.ShapeDtypeStruct((1, T, 8, 128), jnp.bfloat16)
        assert (pallas_tpu.supports(x, x, x, mta) == "") == fits
    with pytest.raises(NotImplementedError, match="fast memory; xla takes it"):
        jax.eval_shape(
            partial(multi_token_attention, implementation="pallas_tpu"), x, x, x, mta
        )
