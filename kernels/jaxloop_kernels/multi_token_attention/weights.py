"""What Multi-Token Attention learns: convolution kernels, head mixes, norm and gate.

Golovneva, Wang, Weston, Sukhbaatar, arXiv 2504.00927. Its steps, for one layer, after
RoPE (i query, j key; n, m, g heads; a, b taps of a kernel):

 1. score[n, i, j] = scale q[n, i] . k[n, j]
 2. score = 0 where j > i
 3. score[n, i, j] = sum_ab pre[n, a, b] score[n, i - (A - 1) + a, j - (C - 1) / 2 + b]
 4. score[m] = sum_n pre_mix[m, n] score[n]
 5. prob = softmax over j <= i, 0 where j > i
 6. as 3 with `post`, then 0 where j > i
 7. prob[m] = sum_n prob[n] post_mix[n, m]
 8. out[n, i] = sum_j prob[n, i, j] v[n, j]
 9. RMSNorm of each head of out; times 0.2 + 0.6 exp(-0.3 layer) in the paper's v1
10. out *= sigmoid(out gate + gate_bias)

Packed documents stay apart: j > i above means "not visible", which is also what lies in
another document or in padding, and a kernel's tap counts only where its row is of the
document of the row it is taken for.

Shapes: N query heads, H head size of the values, A query taps, C key taps, G mixing
groups of M heads (N = G M, a group's heads are neighbours), E gates a head (1 or H).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mta(NamedTuple):
    """The parameters of one layer, of any float dtype; None: the step is left out."""

    pre_NAC: jax.Array | None = None
    """Step 3: key-query convolution of the scores. Last row: the query itself."""
    pre_mix_GMM: jax.Array | None = None
    """Step 4, indexed [group, out, in]."""
    post_NAC: jax.Array | None = None
    """Step 6: key-query convolution of the probabilities."""
    post_mix_GMM: jax.Array | None = None
    """Step 7, indexed [group, in, out]."""
    norm_H: jax.Array | None = None
    """Step 9: scale of the RMSNorm, shared by the heads."""
    gate_HE: jax.Array | None = None
    """Step 10."""
    gate_bias_E: jax.Array | None = None


def identity(
    heads: int,
    head_dim: int,
    *,
    pre: tuple[int, int] | None = (6, 11),
    post: tuple[int, int] | None = (6, 11),
    pre_group: int | None = None,
    post_group: int | None = None,
    norm: bool = False,
    gates: int | None = None,
) -> Mta:
    """Parameters that leave attention as it was, float32.

    pre, post: taps (A, C) of the two convolutions; pre_group, post_group: heads that
    mix with one another (M); gates: E. None leaves a part out. The norm, of ones, does
    change the output, and so does the gate: of zeros, it halves it (the paper's code
    draws the gate from a truncated normal instead).

    The paper's model with all parts: groups of all heads, norm, gates=1. Raises
    ValueError for sizes that make no sense.
    """
    gate_HE = gate_bias_E = None
    if gates is not None:
        gate_HE, gate_bias_E = jnp.zeros((head_dim, gates)), jnp.zeros(gates)
    mta = Mta(
        pre_NAC=None if pre is None else identity_kernel(heads, *pre),
        pre_mix_GMM=None if pre_group is None else identity_mix(heads, pre_group),
        post_NAC=None if post is None else identity_kernel(heads, *post),
        post_mix_GMM=None if post_group is None else identity_mix(heads, post_group),
        norm_H=jnp.ones(head_dim) if norm else None,
        gate_HE=gate_HE,
        gate_bias_E=gate_bias_E,
    )
    check(mta, heads, head_dim)
    return mta


def identity_kernel(heads: int, query_taps: int, key_taps: int) -> jax.Array:
    """(N, A, C): 1 at the query itself and the key itself."""
    kernel_NAC = jnp.zeros((heads, query_taps, key_taps))
    return kernel_NAC.at[:, -1, key_taps // 2].set(1.0)


def identity_mix(heads: int, group: int) -> jax.Array:
    """(G, M, M). Raises ValueError where the groups do not divide the heads."""
    if group < 1 or heads % group:
        raise ValueError(f"mixing groups of {group} heads do not divide {heads} heads")
    return jnp.tile(jnp.eye(group), (heads // group, 1, 1))


def query_reach(mta: Mta) -> int:
    """How many earlier queries take part in a row: those of both kernels, together."""
    kernels = (mta.pre_NAC, mta.post_NAC)
    return sum(kernel.shape[1] - 1 for kernel in kernels if kernel is not None)


def check(mta: Mta, heads: int, head_dim: int) -> None:
    """ValueError where a part does not fit N query heads and values of size H."""
    for name in ("pre_NAC", "post_NAC"):
        kernel = getattr(mta, name)
        if kernel is None:
            continue
        if kernel.ndim != 3 or kernel.shape[0] != heads or 0 in kernel.shape:
            raise ValueError(f"{name} must be ({heads}, A, C), got {kernel.shape}")
        if kernel.shape[2] % 2 == 0:
            raise ValueError(f"{name}: the key taps must be odd, got {kernel.shape}")
    for name in ("pre_mix_GMM", "post_mix_GMM"):
        mix = getattr(mta, name)
        if mix is None:
            continue
        G, M = mix.shape[:2] if mix.ndim == 3 else (0, 0)
        if mix.shape != (G, M, M) or heads != G * M:
            raise ValueError(
                f"{name} must be (G, M, M) with G M = {heads} heads, got {mix.shape}"
            )
    if mta.norm_H is not None and mta.norm_H.shape != (head_dim,):
        raise ValueError(f"norm_H must be ({head_dim},), got {mta.norm_H.shape}")
    if (mta.gate_HE is None) != (mta.gate_bias_E is None):
        raise ValueError("gate_HE and gate_bias_E come together")
    if mta.gate_HE is not None and mta.gate_bias_E is not None:
        shapes = mta.gate_HE.shape, mta.gate_bias_E.shape
        if shapes not in [((head_dim, E), (E,)) for E in (1, head_dim)]:
            raise ValueError(
                f"the gate must be ({head_dim}, E) with a bias (E,), E = 1 or "
                f"{head_dim}; got {shapes[0]} and {shapes[1]}"
            )
