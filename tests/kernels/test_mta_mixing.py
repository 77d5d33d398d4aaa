"""The fused TPU kernels with head mixes, interpreted, against the definition."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from jaxloop_kernels.multi_token_attention import (
    identity,
    pallas_tpu_mixing,
    reference,
)
from jaxloop_kernels.multi_token_attention import pallas_tpu_mixing_blocks as blocks
from jaxloop_kernels.multi_token_attention import (
    pallas_tpu_mixing_layout as layout,
)
from tests.kernels.mta_cases import QUICKLY


class Case(NamedTuple):
    T: int = 70
    N: int = 4
    K: int = 4
    H: int = 16
    Hv: int = 16
    pre: tuple[int, int] | None = None
    post: tuple[int, int] | None = None
    pre_group: int | None = None
    post_group: int | None = None
    order: str = "convolve_first"
    documents: bool = False
    blocks: tuple[int, int] = (32, 128)
    dtype: str = "float32"


FULL_STACK = Case(
    K=2, pre=(6, 11), post=(6, 11), pre_group=4, post_group=2, documents=True
)
ORDINARY = {
    "full stack": FULL_STACK,
    "mixes": Case(T=40, N=2, K=1, pre_group=2, post_group=2),
}
MORE = {
    "mix first": FULL_STACK._replace(order="mix_first", pre_group=2, post_group=4),
    "one document": FULL_STACK._replace(documents=False, K=4, blocks=(64, 256)),
    "scores laid by": FULL_STACK._replace(T=520, H=24, Hv=8),
    "only before": Case(K=1, pre=(2, 9), pre_group=4, documents=True),
    "only after": Case(K=2, post=(4, 9), post_group=4, T=140, documents=True),
    "no late mix": Case(post=(6, 11), pre_group=2, documents=True),
    "taps of one": Case(pre=(1, 1), post=(1, 1), pre_group=4, post_group=4),
    "query taps only": Case(pre=(3, 1), post=(3, 1), pre_group=4, post_group=4),
    "key taps only": Case(pre=(1, 5), post=(1, 5), pre_group=4, post_group=4),
    "sixteen heads": FULL_STACK._replace(N=16, K=2, pre_group=16, post_group=16),
    "five heads": Case(N=5, K=1, pre_group=5, post_group=5, post=(4, 9)),
    "three and two": Case(N=6, K=2, pre_group=3, post_group=2, documents=True),
    "one token": Case(T=1, pre=(6, 11), post=(6, 11), pre_group=4, post_group=4),
    "long": FULL_STACK._replace(T=300, H=96, Hv=96, blocks=(64, 128)),
}


def make(case: Case, seed: int = 0):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    B, T, N, K = 2, case.T, case.N, case.K
    mta = identity(
        N,
        case.Hv,
        pre=case.pre,
        post=case.post,
        pre_group=case.pre_group,
        post_group=case.post_group,
    )
    mta = jax.tree.map(lambda x: x + 0.2 * normal(*x.shape), mta)
    arrays = (
        normal(B, T, N, case.H),
        normal(B, T, K, case.H),
        normal(B, T, K, case.Hv),
    )
    arrays = tuple(x.astype(case.dtype) for x in arrays)
    return *arrays, mta, segments(B, T) if case.documents else None


def segments(B: int, T: int) -> jax.Array:
    """Documents of 2, 5 and more tokens; padding before, between, in and after them."""
    one_T = np.zeros(T, np.int32)
    at, lengths = 1, [2, 5, 3, T // 3, 4, T // 4]
    for number, length in enumerate(lengths):
        one_T[at : at + length] = number % 3 + 1 + (number // 3) * 3
        at += length + (number == 2)
    one_T[[10, T // 4 + 1]] = 0
    return jnp.stack([jnp.asarray(np.roll(one_T, b * 3)) for b in range(B)])


def value_and_grads(core, case: Case, **blocks):
    q, k, v, mta, segments_BT = make(case)
    weight_BTNH = jax.random.normal(jax.random.key(0), (*q.shape[:3], case.Hv))

    @partial(jax.jit, compiler_options=QUICKLY)
    def run(q, k, v, mta):
        def total(*arrays):
            scaling = {"scale": 0.3, "order": case.order}
            out_BTNH = core(*arrays, segments_BT, **scaling, **blocks)
            out_BTNH = out_BTNH.astype(jnp.float32)
            return (out_BTNH * weight_BTNH).sum(), out_BTNH

        (_, out), grads = jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True)(
            q, k, v, mta
        )
        return {"out": out, "q": grads[0], "k": grads[1], "v": grads[2]} | {
            name: x for name, x in grads[3]._asdict().items() if x is not None
        }

    return run(q, k, v, mta)


def check(case: Case, tolerance: float):
    block_q, block_k = case.blocks
    core = partial(pallas_tpu_mixing.core, interpret=True)
    found = value_and_grads(core, case, block_q=block_q, block_k=block_k)
    wanted = value_and_grads(reference.core, case)
    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        got, want = (np.asarray(x, np.float32) for x in (found[name], want))
        # A mix of one row or kernel of one tap may have no gradient at all.
        worst = np.abs(got - want).max() / max(np.abs(want).max(), 1e-3)
        assert worst <= tolerance, (name, worst)


@pytest.mark.parametrize("name", ORDINARY)
def test_values_and_gradients(name):
    check(ORDINARY[name], 2e-5)


@pytest.mark.full
@pytest.mark.parametrize("name", MORE)
def test_values_and_gradients_of_more(name):
    check(MORE[name], 2e-5)


@pytest.mark.full
@pytest.mark.parametrize("order", ["convolve_first", "mix_first"])
def test_bfloat16(order):
    """Scores up to 8 are rounded before each mix; gradients sum such terms."""
    check(FULL_STACK._replace(dtype="bfloat16", order=order), 4e-2)


@pytest.mark.full
def test_a_wide_matrix_unit_changes_only_how():
    """Both phases are then convolved by one product, and no products are shared."""
    q, k, v, mta, segments_BT = make(FULL_STACK)

    @partial(jax.jit, static_argnums=0)
    def run(matrix_unit):
        sizes = {"block_q": 32, "block_k": 256, "matrix_unit": matrix_unit}
        how = {"scale": 0.3, "order": "convolve_first", "interpret": True}
        return pallas_tpu_mixing.core(q, k, v, mta, segments_BT, **how, **sizes)

    np.testing.assert_allclose(run(256), run(128), atol=2e-5)


CHECKED = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
)


def no_races() -> bool:
    found = interpret_pallas_call.races  # only a private name tells
    assert found is not None
    return not found.races_found


def test_scores_laid_by_come_back_without_races():
    """Four blocks of keys: two go to the device's memory and come back."""
    case = Case(T=370, N=2, K=2, pre=(2, 3), post=(3, 11), pre_group=2, post_group=2)
    q, k, v, mta, _ = make(case)
    how = {"scale": 0.3, "order": "convolve_first"}
    wanted = reference.core(q, k, v, mta, None, **how)
    sizes = {"block_q": 256, "block_k": 128, "mix_rows": 64, "interpret": CHECKED}
    got = pallas_tpu_mixing.core(q, k, v, mta, **how, **sizes)
    np.testing.assert_allclose(got, wanted, atol=2e-5 * float(jnp.abs(wanted).max()))
    assert no_races()


@pytest.mark.full
def test_gradients_have_no_races_and_read_nothing_that_was_not_written():
    case = FULL_STACK._replace(T=40, N=2, K=1, pre_group=2, post_group=2)
    core = partial(pallas_tpu_mixing.core, interpret=CHECKED)
    found = value_and_grads(core, case, block_q=32, block_k=128, mix_rows=16)
    for name, want in value_and_grads(reference.core, case).items():
        limit = 2e-5 * float(jnp.abs(want).max())
        np.testing.assert_allclose(found[name], want, atol=limit, err_msg=name)
    assert no_races()


@pytest.mark.parametrize("gradient", [False, True])
def test_lowers_for_tpu(gradient):
    q, k, v, mta, segments_BT = make(
        FULL_STACK._replace(H=128, Hv=128, dtype="bfloat16")
    )

    def run(q, k, v, mta):
        core = partial(pallas_tpu_mixing.core, interpret=False)
        return core(q, k, v, mta, segments_BT, scale=0.1, order="convolve_first")

    def total(*arrays):
        return run(*arrays).astype(jnp.float32).sum()

    fn = jax.grad(total, (0, 1, 2, 3)) if gradient else run
    lowered = export.export(jax.jit(fn), platforms=["tpu"])(q, k, v, mta)
    assert lowered.mlir_module().count("tpu_custom_call") == (4 if gradient else 1)


@pytest.mark.parametrize(
    "cut",
    [
        layout.Cut(time=300, block_q=32, windows=1, lags=5, reach=5),
        layout.Cut(time=130, block_q=64, windows=2, lags=0, reach=0),
        layout.Cut(time=3, block_q=32, windows=1, lags=1, reach=0),
    ],
)
def test_blocks_hold_every_visible_pair_once(cut):
    """In steps and tiles: (row, key) is some tile's own exactly once if key <= row."""
    row = jnp.arange(1.0, cut.time + 1)[None, None, :, None]
    row_I = np.asarray(layout.cut_rows(cut, row)[0, 0, :, 0], int) - 1
    own_I = np.asarray(layout.cut_rows(cut, jnp.ones((1, 1, cut.time, 1))))[0, 0, :, 0]
    inner = np.arange(cut.rows) % cut.block_q
    half = cut.block_q // cut.phases
    own_I = (own_I > 0) & ((inner % half) * cut.phases + inner // half >= cut.halo)
    key_J = np.asarray(layout.cut_keys(cut, row, foreign=False)[0, 0, :, 0], int) - 1
    seen = np.zeros((cut.time, cut.time), int)
    for steps in (layout.by_rows(cut), layout.by_keys(cut)):
        for q, k in zip(steps.q, steps.k, strict=True):
            rows = slice(q * cut.block_q, (q + 1) * cut.block_q)
            rows = row_I[rows][own_I[rows]]
            keys = key_J[k * cut.block_k : (k + 1) * cut.block_k]
            np.add.at(seen, np.ix_(rows, keys[keys >= 0]), 1)
    causal = np.tri(cut.time, dtype=bool)
    assert (seen[causal] == 2).all()


def test_rows_come_back():
    cut = layout.Cut(time=100, block_q=32, windows=1, lags=5, reach=5)
    x = jax.random.normal(jax.random.key(0), (2, 3, 100, 4))
    np.testing.assert_array_equal(layout.join_rows(cut, layout.cut_rows(cut, x)), x)


def test_what_it_cannot_do_is_said():
    q, k, v, mta, _ = make(Case(pre=(6, 11), pre_group=4))
    plain = mta._replace(pre_mix_GMM=None)
    assert pallas_tpu_mixing.supports(q, k, v, mta, "convolve_first") == ""
    assert "mix" in pallas_tpu_mixing.supports(q, k, v, plain, "convolve_first")
    with pytest.raises(ValueError, match="multiple of 32"):
        pallas_tpu_mixing.core(q, k, v, mta, scale=1.0, order="mix_first", block_q=40)
    with pytest.raises(ValueError, match="mix_rows must be a multiple of 8"):
        pallas_tpu_mixing.core(q, k, v, mta, scale=1.0, order="mix_first", mix_rows=12)


SIXTEEN = blocks.Sizes(16, 16, 1024, 2, 128, 2, True, True, 128)
"""Heads of a 1B model, bfloat16, both convolutions."""


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("mebibytes", [60, 120])
def test_blocks_are_the_cheapest_that_fit(mebibytes, way):
    cuts = [
        layout.Cut(2048, rows, windows, 5, 5)
        for rows in blocks.ROWS
        for windows in (blocks.WINDOWS if way == "forward" else (1,))
    ]
    vmem = mebibytes * 2**20
    need = getattr(blocks, f"{way}_bytes")
    cut = blocks.choose(cuts, SIXTEEN, need, vmem)
    assert need(cut, SIXTEEN) <= vmem
    larger = cut._replace(block_q=cut.block_q + 32)
    assert need(larger, SIXTEEN) > need(cut, SIXTEEN)
    # Every block computes rows above the diagonal: the choice is near the fewest.
    entries = [len(layout.by_rows(c).q) * c.block_q * c.block_k for c in (cut, *cuts)]
    assert entries[0] <= 1.25 * min(entries)


def test_gradients_of_queries_fit():
    """Without a convolution after the softmax they need more than those of keys."""
    sizes = SIXTEEN._replace(width=768, query_rows=1, convolves=False)
    cuts = [layout.Cut(2048, rows, 1, 0, 0) for rows in blocks.ROWS]
    cut = blocks.choose(cuts, sizes, blocks.backward_bytes, 60 * 2**20)
    # Two blocks of queries, bfloat16, two of their gradients and the float32 sum; and
    # the same of the band, in float32.
    assert 16 * cut.block_q * (768 * 12 + 128 * 20) <= 60 * 2**20


def test_memory_without_room_is_said():
    cuts = [layout.Cut(64, 32, 1, 5, 5)]
    assert blocks.choose(cuts, SIXTEEN, blocks.backward_bytes, 2**24) is None
    q, k, v, mta, _ = make(Case(pre=(6, 11), pre_group=4))
    with pytest.raises(NotImplementedError, match="do not fit into 1 MiB"):
        pallas_tpu_mixing.core(q, k, v, mta, scale=1.0, order="mix_first", vmem=2**20)
