"""Attention: each implementation against the reference, the reference against numpy.

Inputs are float32, where implementations differ by the order of sums only: 2e-5 of the
largest value.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloop_kernels.attention import attention, pallas_tpu, shapes, xla


def make_inputs(
    T, N=2, K=1, H=8, V=8, sinks=False, segments=False, B=2, dtype="float32"
):
    keys = jax.random.split(jax.random.key(T + N), 5)
    q_BTNH = 2 * jax.random.normal(keys[0], (B, T, N, H))
    k_BTKH = jax.random.normal(keys[1], (B, T, K, H))
    v_BTKV = jax.random.normal(keys[2], (B, T, K, V))
    sinks_N = jax.random.normal(keys[3], (N,)) if sinks else None
    bar_BTNV = jax.random.normal(keys[4], (B, T, N, V))
    arrays = [x.astype(dtype) for x in (q_BTNH, k_BTKH, v_BTKV)]
    return (*arrays, sinks_N, packed(B, T) if segments else None), bar_BTNV


def packed(B, T):
    """Documents of several lengths; one row ends, the other begins in padding."""
    ids_BT = np.ones((B, T), np.int32)
    for row, cuts in enumerate([(0.3, 0.35, 0.9), (0.1, 0.6, 0.62)][:B]):
        for cut in cuts:
            ids_BT[row, int(cut * T) :] += 1
    ids_BT[0][ids_BT[0] == 4] = 0
    ids_BT[1:] -= 1
    return jnp.asarray(ids_BT)


def value_and_grads(inputs, bar_BTNV, **settings):
    arrays, segments_BT = inputs[:4], inputs[4]

    @jax.jit
    def run(arrays):
        def loss(arrays):
            q_BTNH, k_BTKH, v_BTKV, sinks_N = arrays
            out = attention(
                q_BTNH, k_BTKH, v_BTKV, segments_BT, sinks_N=sinks_N, **settings
            )
            return (out * bar_BTNV).sum(), out

        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(arrays)
        return out, grads

    return run(arrays)


def assert_close(actual, expected, relative=2e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        largest = max(1, np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * largest)


# Every value of each feature, and most pairs of them.
CASES = [
    (1, {"segments": False}, {}),
    (1, {"segments": True, "sinks": True}, {"window": 1}),
    (5, {"N": 4, "K": 4, "segments": True}, {"window": 3, "soft_cap": 2.0}),
    (130, {"N": 4, "K": 2, "H": 16, "V": 8}, {"soft_cap": 5.0}),
    (130, {"N": 8, "K": 1, "H": 8, "V": 24, "sinks": True}, {"window": 40}),
    (300, {"N": 4, "K": 1, "segments": True, "sinks": True}, {"soft_cap": 3.0}),
    (300, {"N": 2, "K": 2, "segments": True}, {"window": 128, "scale": 0.5}),
]


@pytest.mark.parametrize(("T", "what", "how"), CASES)
def test_xla_matches_reference(T, what, how):
    """With every second case in blocks of few queries."""
    inputs, bar = make_inputs(T, **what)
    expected = value_and_grads(inputs, bar, implementation="reference", **how)
    more = {"block_q": 7} if "segments" in what or "sinks" in what else {}
    actual = value_and_grads(inputs, bar, implementation="xla", **how, **more)
    assert_close(actual, expected)


@pytest.mark.parametrize(("T", "what", "how"), CASES[3:])
def test_splash_matches_reference(T, what, how):
    inputs, bar = make_inputs(T, **what)
    expected = value_and_grads(inputs, bar, implementation="reference", **how)
    actual = value_and_grads(inputs, bar, implementation="pallas_tpu", **how)
    assert_close(actual, expected)


@pytest.mark.full
@pytest.mark.parametrize("T", [1, 127, 129, 1100])
@pytest.mark.parametrize("H", [64, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("implementation", ["xla", "pallas_tpu"])
def test_all_sizes(T, H, group, implementation):
    inputs, bar = make_inputs(T, N=8, K=8 // group, H=H, V=H, segments=True, B=1)
    expected = value_and_grads(inputs, bar, implementation="reference")
    actual = value_and_grads(inputs, bar, implementation=implementation)
    assert_close(actual, expected)


def test_reference_is_the_definition():
    """In numpy, one query at a time."""
    inputs, _ = make_inputs(11, N=4, K=2, V=5, sinks=True, segments=True)
    q, k, v, sinks, ids = (np.asarray(x, np.float64) for x in inputs)
    how = {"window": 4, "soft_cap": 1.5, "scale": 0.3, "implementation": "reference"}
    run = jax.jit(lambda *x: attention(*x[:3], x[4], sinks_N=x[3], **how))
    out = run(*inputs)
    for b, t, n in np.ndindex(2, 11, 4):
        seen = [s for s in range(max(0, t - 3), t + 1) if ids[b, s] == ids[b, t]]
        score = np.array([1.5 * np.tanh(0.3 * q[b, t, n] @ k[b, s, n // 2] / 1.5)
                          for s in seen])  # fmt: skip
        weight = np.exp(score) / (np.exp(score).sum() + np.exp(sinks[n]))
        expected = weight @ v[b, seen, n // 2] if ids[b, t] else np.zeros(5)
        np.testing.assert_allclose(out[b, t, n], expected, atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla", "pallas_tpu"])
def test_padding_and_other_documents_are_inert(implementation):
    """What one document, or padding, holds changes no other's output or gradient."""
    inputs, bar = make_inputs(140, segments=True)
    ids_BT = inputs[4]
    mine_BT11 = (ids_BT == 2)[..., None, None]
    other = [jnp.where(mine_BT11, x, 7 - 3 * x) for x in inputs[:3]]

    def run(q, k, v):
        pair = (q, k, v, None, ids_BT)
        return value_and_grads(pair, mine_BT11 * bar, implementation=implementation)

    (out, grads), (changed, changed_grads) = run(*inputs[:3]), run(*other)
    np.testing.assert_array_equal(out * mine_BT11, changed * mine_BT11)
    assert not np.asarray(jnp.where((ids_BT == 0)[..., None, None], out, 0)).any()
    for a, b in zip(grads[:3], changed_grads[:3], strict=True):
        assert np.asarray(a).any()
        assert not np.asarray(jnp.where(mine_BT11, 0, a)).any()
        assert_close(a, b)


def test_bfloat16_is_as_good_as_its_rounding():
    inputs, _ = make_inputs(130, N=4, K=2, dtype="bfloat16", segments=True)
    wide = [x.astype("float32") for x in inputs[:3]]
    expected = attention(*wide, inputs[4], implementation="reference")
    for implementation in ("reference", "xla", "pallas_tpu"):
        run = jax.jit(partial(attention, implementation=implementation))
        out = run(*inputs[:3], inputs[4])
        assert out.dtype == jnp.bfloat16
        # 2^-8 of rounding for each of scaled queries, weights and the output.
        assert_close(out, expected, relative=3 * 2**-8)


def test_xla_holds_a_block_of_scores_not_all():
    """4096 x 4096 scores of 4 heads are 256 MiB; a quarter of that must do."""
    q = jax.ShapeDtypeStruct((1, 4096, 4, 32), jnp.float32)

    def loss(q, k, v):
        return attention(q, k, v, implementation="xla", block_q=128).sum()

    grad = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q).compile()
    assert grad.memory_analysis().temp_size_in_bytes < 256 * 2**20 / 4


@pytest.mark.parametrize("implementation", ["auto", "pallas_tpu"])
def test_on_a_mesh_each_device_has_its_rows_and_heads(mesh_of, implementation):
    mesh = mesh_of(data=2, tensor=2)
    inputs, bar = make_inputs(130, N=4, K=2, sinks=True, segments=True)
    expected = value_and_grads(inputs, bar, implementation="reference")
    axes = {"batch_axes": ("data", "fsdp"), "head_axes": ("tensor",)}
    place = partial(NamedSharding, mesh)
    specs = [P("data", None, "tensor")] * 3 + [P("tensor"), P("data")]
    with jax.set_mesh(mesh):
        cut = [jax.device_put(x, place(s)) for x, s in zip(inputs, specs, strict=True)]
        actual = value_and_grads(cut, bar, implementation=implementation, **axes)
        assert_close(actual, expected)
        odd, _ = make_inputs(8, N=3, K=3)
        with pytest.raises(ValueError, match="3 kv heads"):
            attention(*odd[:3], implementation="pallas_tpu", **axes)


@pytest.mark.parametrize("name", shapes.ALL)
def test_lowers_for_tpu(name):
    s = shapes.ALL[name]
    args = abstract(s)

    def run(q, k, v, ids, sinks):
        how = {"scale": 0.1, "window": s.window, "soft_cap": s.soft_cap}
        return pallas_tpu.core(q, k, v, ids, sinks, **how, interpret=False)

    grad = jax.jit(jax.grad(lambda *x: run(*x).astype("float32").sum(), (0, 1, 2)))
    text = jax.export.export(grad, platforms=["tpu"])(*args).mlir_module()
    assert text.count("tpu_custom_call") >= 3  # forward, dq, dk with dv


def abstract(s: shapes.Shape):
    B, T, N, K = s[:4]
    bf16 = partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    return (
        bf16((B, T, N, s.head)),
        bf16((B, T, K, s.head)),
        bf16((B, T, K, s.value)),
        jax.ShapeDtypeStruct((B, T), jnp.int32),
        jax.ShapeDtypeStruct((N,), jnp.float32) if s.sinks else None,
    )


def test_xla_lowers_for_cuda():
    args = abstract(shapes.QWEN2_5_0_5B)[:4]
    grad = jax.jit(jax.grad(lambda *x: xla.core(*x, scale=0.1).astype("float32").sum()))
    assert jax.export.export(grad, platforms=["cuda"])(*args).mlir_module()


def test_named_implementations_do_not_fall_back():
    (q, k, v, *_), _ = make_inputs(4)
    with pytest.raises(NotImplementedError, match=r"float32 .* xla takes it"):
        attention(q, k, v, implementation="cudnn")
    half = [x.astype("bfloat16") for x in (q, k, v)]
    with pytest.raises(NotImplementedError, match="soft cap; xla"):
        attention(*half, soft_cap=2.0, implementation="cudnn")
    with pytest.raises(NotImplementedError, match="there are auto"):
        attention(q, k, v, implementation="flash")
    with pytest.raises(ValueError, match="multiples of 128"):
        attention(q, k, v, implementation="pallas_tpu", block_q=100)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"k_BTKH": (2, 4, 1, 9)}, "wants k"),
        ({"k_BTKH": (2, 4, 3, 8), "v_BTKV": (2, 4, 3, 8)}, "must divide"),
        ({"segments_BT": (4, 2)}, "segments"),
        ({"sinks_N": (3,)}, "sinks"),
    ],
)
def test_shapes_that_make_no_sense(change, match):
    sizes = {"q_BTNH": (2, 4, 2, 8), "k_BTKH": (2, 4, 1, 8), "v_BTKV": (2, 4, 1, 8)}
    with pytest.raises(ValueError, match=match):
        attention(**{name: jnp.ones(size) for name, size in (sizes | change).items()})


@pytest.mark.parametrize("how", [{"window": 0}, {"soft_cap": 0.0}])
def test_numbers_that_make_no_sense(how):
    with pytest.raises(ValueError, match="attention: "):
        attention(*make_inputs(4)[0][:3], **how)
