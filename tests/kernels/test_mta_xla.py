"""Multi-Token Attention in blocks of queries against the dense form."""

from functools import partial
from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop_kernels.multi_token_attention import (
    Mta,
    identity,
    multi_token_attention,
    reference,
    xla,
)

FACTORS = {
    "time": (1, 7, 37, 100),
    "ratio": (1, 2, 4, 8),
    "head_dim": (64, 96, 128, 256),
    "kernel": ((6, 11), (2, 9), (1, 1), (4, 9)),
    "parts": ("all", "pre", "post", "mixes"),
    "order": ("convolve_first", "mix_first"),
    "packed": (False, True),
}
"""What may matter; `ratio` is query heads a kv head."""

LONG = FACTORS | {"time": (64, 300, 700, 1100)}


def covering(factors, together):
    """Few cases in which all levels of as many factors as `together` meet."""
    names = list(factors)
    cases = list(product(*factors.values()))
    np.random.default_rng(0).shuffle(cases)
    levels = [zip(names, case, strict=True) for case in cases]
    meetings = [set(combinations(case, together)) for case in levels]
    missing, chosen = set().union(*meetings), []
    while missing:
        best = max(range(len(cases)), key=lambda i: len(meetings[i] & missing))
        chosen.append(dict(zip(names, cases[best], strict=True)))
        missing -= meetings[best]
    return chosen


def every(**fixed):
    """Cases of all levels of the other factors."""
    levels = product(*(FACTORS | {k: (v,) for k, v in fixed.items()}).values())
    return [dict(zip(FACTORS, case, strict=True)) for case in levels]


def make_mta(heads, head_dim, kernel, parts) -> Mta:
    mta = identity(heads, head_dim, pre=kernel, post=kernel)
    mixes = identity(heads, head_dim, pre_group=heads, post_group=-(-heads // 2))
    mixes = mixes._replace(pre_NAC=None, post_NAC=None)
    chosen = {
        "all": mta._replace(
            pre_mix_GMM=mixes.pre_mix_GMM, post_mix_GMM=mixes.post_mix_GMM
        ),
        "pre": mta._replace(post_NAC=None),
        "post": mta._replace(pre_NAC=None),
        "mixes": mixes,
    }[parts]
    rng = np.random.default_rng(heads)
    return jax.tree.map(lambda x: x + np.float32(0.3) * normal(rng, x.shape), chosen)


def normal(rng, size):
    return rng.standard_normal(size, np.float32)


def make_inputs(time, ratio, head_dim, kernel, parts, packed, *, batch=1, kv_heads=1):
    rng, heads = np.random.default_rng(time + ratio), kv_heads * ratio
    q, k, v, bar = (
        normal(rng, (batch, time, n, head_dim))
        for n in (heads, kv_heads, kv_heads, heads)
    )
    segments = None
    if packed:  # documents of a third of the row, and some padding at the end
        ids = 1 + np.arange(time) * 3 // time
        ids = np.where(np.arange(time) < time - time // 10, ids, 0)
        segments = np.broadcast_to(ids.astype(np.int32), (batch, time))
    return (q, k, v, make_mta(heads, head_dim, kernel, parts)), segments, bar


def value_and_grads(core, arrays, segments, bar, order):
    @jax.jit
    def run(arrays, segments, bar):
        def forward(q, k, v, mta):
            return core(q, k, v, mta, segments, scale=0.1, order=order)

        out, pull = jax.vjp(forward, *arrays)
        return out, *pull(bar.astype(out.dtype))

    return run(arrays, segments, bar)


def assert_close(got, expected, rtol=2e-5):
    """Relative to the largest value of each array."""
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    for x, y in leaves:
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        # A gradient of rounding errors only, as of one key's softmax, is zero.
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * max(abs(y).max(), 1e-2))


def compare(case, block_q):
    case = dict(case)
    order = case.pop("order")
    inputs = make_inputs(**case)
    core = partial(xla.core, block_q=block_q)
    got = value_and_grads(core, *inputs, order)
    assert_close(got, value_and_grads(reference.core, *inputs, order))


def name_of(case):
    return "-".join(str(x).replace(" ", "") for x in case.values())


@pytest.mark.parametrize("case", covering(FACTORS, 1), ids=name_of)
def test_same_as_dense(case):
    compare(case, block_q=16)


@pytest.mark.full
@pytest.mark.parametrize("case", covering(FACTORS, 2), ids=name_of)
def test_same_as_dense_every_pair(case):
    compare(case, block_q=16)


@pytest.mark.full
@pytest.mark.parametrize("case", covering(LONG, 2), ids=name_of)
def test_same_as_dense_when_long(case):
    compare(case, block_q=128)


@pytest.mark.full
@pytest.mark.parametrize(
    "case",
    every(time=37, ratio=2, head_dim=64)
    + every(kernel=(2, 9), parts="all", order="convolve_first", packed=True),
    ids=name_of,
)
def test_same_as_dense_every_case(case):
    compare(case, block_q=16)


def test_ranges_of_keys_and_several_rows():
    """Two ranges, the second shorter; a batch; values wider than keys."""
    case = dict(zip(FACTORS, (700, 2, 4, (2, 3), "all", "", True), strict=True))
    del case["order"]
    arrays, segments, _ = make_inputs(**case, batch=2)
    q, k, v, mta = arrays
    v = np.concatenate([v, v * 2], axis=-1)
    bar = normal(np.random.default_rng(0), (*q.shape[:3], 8))
    inputs = (q, k, v, mta), segments, bar, "convolve_first"
    got = value_and_grads(partial(xla.core, block_q=128), *inputs)
    assert_close(got, value_and_grads(reference.core, *inputs))


def test_bfloat16():
    """The probabilities are rounded to 8 bits before their product with the values, and
    so is each gradient at its end: a few parts in 256 of the largest."""
    case = {"time": 70, "ratio": 2, "head_dim": 32, "kernel": (2, 5), "parts": "all"}
    arrays, segments, bar = make_inputs(**case, packed=True)
    low = tuple(x.astype(jnp.bfloat16) for x in arrays[:3])
    core = partial(xla.core, block_q=32)
    got = value_and_grads(core, (*low, arrays[3]), segments, bar, "convolve_first")
    exact = tuple(x.astype(jnp.float32) for x in low)
    expected = value_and_grads(
        reference.core, (*exact, arrays[3]), segments, bar, "convolve_first"
    )
    assert [x.dtype for x in jax.tree.leaves(got[1:4])] == [jnp.bfloat16] * 3
    assert_close(got, expected, rtol=0.015)


def test_public_function():
    """ "auto" on a CPU is xla, and the norm and the gate are on top of it."""
    case = {"time": 20, "ratio": 2, "head_dim": 8, "kernel": (2, 3), "parts": "all"}
    (q, k, v, mta), segments, _ = make_inputs(**case, packed=True)
    gate = {"gate_HE": jnp.ones((8, 1)), "gate_bias_E": jnp.ones(1)}
    mta = mta._replace(norm_H=jnp.arange(1.0, 9.0), **gate)

    def run(name):
        attend = partial(multi_token_attention, depth=2, implementation=name)
        return jax.jit(attend)(q, k, v, mta, segments)

    auto, by_blocks, dense = run("auto"), run("xla"), run("reference")
    np.testing.assert_array_equal(auto, by_blocks)
    assert_close(auto, dense)


def peak_bytes(core, time, gradient=True):
    size = jax.ShapeDtypeStruct((1, time, 4, 16), jnp.float32)
    mta = jax.eval_shape(lambda: identity(4, 16, pre=(3, 3), post=(3, 3), pre_group=4))

    def forward(q, k, v, mta):
        return core(q, k, v, mta, scale=0.25, order="convolve_first").sum()

    run = jax.grad(forward, (0, 1, 2, 3)) if gradient else forward
    compiled = jax.jit(run).lower(size, size, size, mta).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("gradient", [False, True])
def test_memory_grows_with_time_not_its_square(gradient, monkeypatch):
    monkeypatch.setattr(xla, "KEY_BLOCKS", 1)  # compiles once; the last range is whole
    core = partial(xla.core, block_q=64)
    one, two = (peak_bytes(core, time, gradient) for time in (1024, 2048))
    assert two < 2.2 * one
    scores = 4 * 2048 * 2048 * 4
    assert two < scores
    assert two < peak_bytes(reference.core, 2048, gradient) / 8
