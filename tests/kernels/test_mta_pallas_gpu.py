"""The convolution before the softmax: the GPU kernels, interpreted, against the dense.

Gradients are those of a random mix of the outputs, in q, k, v and the kernel.
"""

import re
import sys
from functools import partial
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from jaxloop_kernels.multi_token_attention import (
    Mta,
    identity,
    multi_token_attention,
    pallas_gpu,
    reference,
    shapes,
)
from tests.kernels import mta_cases
from tests.kernels.mta_cases import (
    QUICKLY,
    assert_close,
    pairwise,
    value_and_grads,
)

RATIOS = (1, 2, 4, 8)
HEAD_SIZES = (64, 128, 256, 96)
# (T, block_q, block_k): many blocks, the last not full; one token; two blocks of
# queries, three of keys; blocks of keys that are larger.
TIMES = ((1100, 128, 64), (1, 128, 64), (130, 128, 64), (300, 32, 64))
KERNELS = ((6, 11), (2, 9), (1, 1), (4, 9))
SEGMENTS = (False, True)
LEVELS = (RATIOS, HEAD_SIZES, TIMES, KERNELS, SEGMENTS)


def make(ratio, head_dim, T, kernel, segments, *more, **how):
    """A case without a convolution after the softmax."""
    return mta_cases.make(ratio, head_dim, T, kernel, False, segments, *more, **how)


def check(ratio, head_dim, time, kernel, segments):
    T, *blocks = time
    mta_cases.check(
        pallas_gpu.core, make(ratio, head_dim, T, kernel, segments), *blocks
    )


def some_ordinary(cases):
    """Four that have every ratio, size, time and kernel once; the rest is left to the
    long run, for a case takes seconds to compile."""
    for i, case in enumerate(cases):
        marks = [] if i in (0, 6, 11, 13) else [pytest.mark.full]
        yield pytest.param(case, marks=marks)


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
    case = make(2, 32, 150, (2, 9), True, "bfloat16")
    expected = value_and_grads(reference.core, *case)
    actual = value_and_grads(pallas_gpu.core, *case, block_q=64, block_k=32)
    assert actual[0].dtype == jnp.bfloat16
    assert_close(actual, expected, 2e-2)


@pytest.mark.full
def test_a_kernel_of_low_rank_has_its_gradient():
    (q, k, v, _), segments_BT, bar_BTNH = make(2, 32, 70, (1, 1), True)
    keys = jax.random.split(jax.random.key(1), 2)
    left_NAP = jax.random.normal(keys[0], (2, 3, 2)) / 2
    right_NPC = jax.random.normal(keys[1], (2, 2, 5)) / 2

    def through_factors(core):
        def run(q, k, v, factors, segments_BT, **how):
            mta = Mta(pre_NAC=factors[0] @ factors[1])
            return core(q, k, v, mta, segments_BT, **how)

        return run

    case = ((q, k, v, (left_NAP, right_NPC)), segments_BT, bar_BTNH)
    expected = value_and_grads(through_factors(reference.core), *case)
    actual = value_and_grads(through_factors(pallas_gpu.core), *case, rank=2)
    assert_close(actual, expected, 2e-5)


def test_plain_attention_also_of_another_value_size():
    (q, k, v, _), _, _ = make(4, 32, 100, (1, 1), False, value_dim=24)

    @partial(jax.jit, compiler_options=QUICKLY)
    def run(q, k, v):
        choices = (Mta(), identity(4, 24, pre=(3, 5), post=None))
        return [pallas_gpu.core(q, k, v, mta, scale=32**-0.5) for mta in choices]

    keys, values = (jnp.repeat(x, 4, axis=2) for x in (k, v))
    values = jnp.pad(values, ((0, 0), (0, 0), (0, 0), (0, 8)))
    plain = jax.nn.dot_product_attention(q, keys, values, is_causal=True)[..., :24]
    assert_close(run(q, k, v), [plain, plain], 2e-5)


def test_nothing_is_seen_of_later_tokens_and_of_other_documents():
    (q, k, v, mta), _, _ = make(2, 32, 96, (6, 11), False)
    segments_BT = jnp.where(jnp.arange(96) < 40, 1, 2)[None]

    @partial(jax.jit, compiler_options=QUICKLY)
    def run(k, v):
        how = {"scale": 0.2, "block_q": 32, "block_k": 16}
        return pallas_gpu.core(q, k, v, mta, segments_BT, **how)

    def change(tokens: slice):
        """The largest change of each row."""
        bump = jnp.zeros(96).at[tokens].set(1.0)[None, :, None, None]
        return np.abs(run(k + bump, v - bump) - run(k, v)).max(axis=(0, 2, 3))

    first, last = change(np.s_[:40]), change(np.s_[70:])
    assert (first[:40] > 1e-4).all()
    assert not first[40:].any()
    assert (last[70:] > 1e-4).all()
    assert not last[:65].any()
    # A later key is in a convolved one, and taken out by the band: but for rounding.
    assert (last[65:70] < 1e-5).all()


def lower(shape: shapes.Shape, segments: bool, dtype: str) -> str:
    """The program of the gradients for a card that need not be there."""
    B, T, N, K, H = shape
    array = jax.ShapeDtypeStruct
    kv_BTKH = array((B, T, K, H), dtype)
    mta = jax.eval_shape(lambda: identity(N, H, post=None))
    segments_BT = array((B, T), jnp.int32) if segments else None

    def loss(q_BTNH, k_BTKH, v_BTKH, mta, segments_BT):
        how = {"scale": H**-0.5, "interpret": False}
        out = pallas_gpu.core(q_BTNH, k_BTKH, v_BTKH, mta, segments_BT, **how)
        return out.astype(jnp.float32).sum()

    # Newer versions of jax want to be told which card it is.
    card = AbstractDevice(device_kind="NVIDIA A10", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=card)):
        traced = jax.jit(jax.grad(loss, (0, 1, 2, 3))).trace(
            array((B, T, N, H), dtype), kv_BTKH, kv_BTKH, mta, segments_BT
        )
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def full(*case, name: str):
    return pytest.param(*case, id=name, marks=pytest.mark.full)


SHAPES = [
    pytest.param(shapes.MTA_880M, True, "bfloat16", id="880M"),
    full(shapes.MTA_880M, False, "float32", name="880M, float32"),
    full(shapes.MTA_300M, False, "bfloat16", name="300M"),
    full(shapes.MTA_550M, True, "bfloat16", name="550M"),
    full(shapes.MTA_1B, True, "bfloat16", name="1B"),
    full(shapes.LLAMA_3_8B, True, "bfloat16", name="8B"),
]


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize(("shape", "segments", "dtype"), SHAPES)
def test_lowers_for_the_card_forward_and_backward(shape, segments, dtype):
    text = lower(shape, segments, dtype)
    calls = re.findall(r'custom_call @__gpu\$xla\.gpu\.triton.*?name = "(\w+)"', text)
    assert calls == ["mta_forward", "mta_backward_queries", "mta_backward_keys"]
    for dims in re.findall(r"tensor<((?:\d+x)+)[a-z]", text):
        assert sum(int(n) >= shape.time for n in dims.split("x")[:-1]) <= 1, dims


CARDS = [
    ("NVIDIA A10", "8.6", True),
    ("NVIDIA H100", "9.0", True),
    ("Tesla T4", "7.5", False),
    ("AMD Instinct", "gfx90a", False),
]


@pytest.mark.parametrize(("kind", "capability", "serves"), CARDS)
def test_auto_takes_it_on_the_cards_that_run_it(monkeypatch, kind, capability, serves):
    card = SimpleNamespace(device_kind=kind, compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [card])
    (q, k, v, mta), _, _ = make(2, 64, 20, (6, 11), False)

    def kernels(**how):
        run = partial(multi_token_attention, **how)
        return "mta_forward" in str(jax.make_jaxpr(run)(q, k, v, mta))

    assert kernels() == serves
    with monkeypatch.context() as without:
        without.setitem(sys.modules, pallas_gpu.__name__, None)
        assert not kernels()
    if not serves:
        with pytest.raises(NotImplementedError, match=f"{kind}; NVIDIA"):
            kernels(implementation="pallas_gpu")


def test_a_named_implementation_runs_or_says_why_not():
    (q, k, v, mta), segments_BT, _ = make(2, 32, 40, (4, 9), True)

    def run(mta, name="pallas_gpu", **blocks):
        how = partial(multi_token_attention, implementation=name, **blocks)
        return jax.jit(how, compiler_options=QUICKLY)(q, k, v, mta, segments_BT)

    assert_close(run(mta), run(mta, "reference"), 2e-5)
    with pytest.raises(NotImplementedError, match="head mixing; xla has it"):
        run(mta._replace(pre_mix_GMM=jnp.ones((1, 2, 2))))
    with pytest.raises(NotImplementedError, match="after the softmax; xla has it"):
        run(mta._replace(post_NAC=mta.pre_NAC))
    with pytest.raises(ValueError, match="powers of two, at least 16; got 96"):
        run(mta, block_q=96)
