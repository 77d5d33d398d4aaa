"""The GPU benchmark runs on a CPU, at sizes that mean nothing, and compares like with
like."""

import gpu
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop_kernels.multi_token_attention import Mta, multi_token_attention


@pytest.mark.parametrize("op", gpu.OPS)
def test_runs_on_a_cpu(op, capsys):
    rows = gpu.main(["--ops", op], gpu.TINY)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)
    # There are no kernels of NVIDIA's on a CPU; PyTorch may be missing.
    absent = ("cudnn", "PyTorch", "pallas_gpu")
    must = [row for row in rows if not any(name in row.case.who for name in absent)]
    assert must
    for row in must:
        assert row.ms is not None, row.why
        assert min(row.ms, row.memory) > 0
    assert not any("Assertion" in row.why or "TypeError" in row.why for row in rows)


@pytest.mark.parity
def test_pytorchs_dense_form_is_the_same_op():
    torch = pytest.importorskip("torch", reason="parity tests need torch")
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    q, k, v = (normal(2, 3, 20, 8) for _ in range(3))
    pre, post, pre_mix, post_mix = (
        normal(3, 6, 11), normal(3, 6, 11), normal(3, 3), normal(3, 3))  # fmt: skip
    theirs = gpu.torch_mta(*map(torch.tensor, (q, k, v, pre, pre_mix, post, post_mix)))
    mta = Mta(pre, pre_mix[None], post, post_mix[None], None, None, None)
    heads_last = (jnp.asarray(x).swapaxes(1, 2) for x in (q, k, v))
    ours = multi_token_attention(*heads_last, mta, implementation="reference")
    ours = np.asarray(ours.swapaxes(1, 2))
    assert np.abs(theirs.numpy() - ours).max() <= 2e-5 * np.abs(ours).max()
