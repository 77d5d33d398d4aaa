"""The key-query convolution as plain attention with wider queries and keys.

Logits are bilinear, so convolving them moves onto their factors. With s = A - 1 - a the
lag of query tap a, and without the causal mask,

    sum_ac theta[a, c] (q[i - s] . k[j + c - C // 2])
        = sum_a q[i - s] . kt_a[j],    kt_a[j] = sum_c theta[a, c] k[j + c - C // 2]:

attention whose query is the A lagged queries side by side and whose key is the A
convolved keys. Multi-Token Attention sets entries above the diagonal to zero before it
convolves, which the right side does not know; only the U = A - 1 + C // 2 diagonals
nearest the causal edge see such entries, and `causal_band` says what to subtract there.

After the softmax the same holds on the value side: see `widen_values`, `join_rows`.

A kernel of low rank, theta[a, c] = sum_r left[a, r] right[r, c], needs only as many
parts as its rank: the queries' taps are summed with `left`, the keys' with `right`.

Everything here is heads first, (B, N, T, ...): time and features last, as kernels want
them. Segments are exact: a tap outside the document of its row (or column) is zero.

Shapes: B batch, T time, N query heads, K kv heads, R = N / K, H head size, A query
taps, C key taps, P parts (A, or the rank), U diagonals of the band, W lags.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST


def widen_queries(
    q_BNTH: jax.Array,
    taps: int,
    left_NAP: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """(B, N, T, P, H), in q's dtype: the query at lag taps - 1, ..., 1, 0.

    With `left_NAP` the P sums of the lagged queries instead (summed in float32).
    """
    lagged = [shift(q_BNTH, a + 1 - taps, segments_BT, axis=2) for a in range(taps)]
    if left_NAP is None:
        return _side_by_side(lagged)
    left_NAP11 = exact(left_NAP)[..., None, None]
    parts = [
        _total(exact(x) * left_NAP11[:, a, p] for a, x in enumerate(lagged))
        for p in range(left_NAP.shape[2])
    ]
    return _side_by_side([x.astype(q_BNTH.dtype) for x in parts])


def widen_keys(
    k_BKTH: jax.Array, right_NPC: jax.Array, segments_BT: jax.Array | None = None
) -> jax.Array:
    """(B, N, T, P, H), in k's dtype: each part of theta along the key taps."""
    N, P, C = right_NPC.shape
    B, K, T, H = k_BKTH.shape
    moved = [shift(k_BKTH, c - C // 2, segments_BT, axis=2) for c in range(C)]
    right_KRPC11 = exact(right_NPC).reshape(K, N // K, P, C, 1, 1)
    parts = []
    for p in range(P):
        terms = (
            exact(x)[:, :, None] * right_KRPC11[:, :, p, c] for c, x in enumerate(moved)
        )
        parts.append(_total(terms).astype(k_BKTH.dtype).reshape(B, N, T, H))
    return _side_by_side(parts)


def whole_lanes(x_BNTPE: jax.Array) -> jax.Array:
    """(B, N, T, P * E): the parts side by side, each of whole lanes."""
    E = x_BNTPE.shape[-1]
    x_BNTPE = jnp.pad(x_BNTPE, (*[(0, 0)] * 4, (0, lanes(E) - E)))
    return x_BNTPE.reshape(*x_BNTPE.shape[:3], -1)


def lanes(size: int) -> int:
    """Rounded up to whole lanes, of which a register has 128."""
    return size + -size % 128


def widen_values(
    v_BKTH: jax.Array, right_NPC: jax.Array, segments_BT: jax.Array | None = None
) -> jax.Array:
    """(B, N, T, P, H): values whose attention `join_rows` turns into the convolved one.

    A value at key j is reached from j + c - C // 2: the taps run the other way than
    those of the keys.
    """
    return widen_keys(v_BKTH, right_NPC[..., ::-1], segments_BT)


def factors(theta_NAC: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """left_NAP, right_NPC, P = min(rank, A, C), whose product is nearest to theta.

    It is theta where theta has that rank. The gradient is that of theta moving among
    kernels of that rank, and finite where its rank is lower still: singular vectors are
    held fixed, and what changes them is written into `right`.
    """
    theta_NAC = exact(theta_NAC)
    fixed = jax.lax.stop_gradient(theta_NAC)
    _, size_NP, right_NPC = jnp.linalg.svd(fixed, full_matrices=False)
    size_NP, right_NPC = size_NP[:, :rank], right_NPC[:, :rank]
    product = partial(jnp.einsum, precision=HIGHEST)
    left_NAP = product("NAC,NPC->NAP", theta_NAC, right_NPC)
    there_NP = size_NP > 1e-6 * size_NP[:, :1]
    inverse_NP = jnp.where(there_NP, jnp.where(there_NP, size_NP, 1.0) ** -2, 0.0)
    # Zero, but for its derivative: the part of theta's rows outside of `right`.
    turn_NPC = product(
        "NP,NAP,NAC->NPC",
        inverse_NP,
        jax.lax.stop_gradient(left_NAP),
        theta_NAC - fixed,
    )
    inside_NPC = product("NPC,NRC,NRD->NPD", turn_NPC, right_NPC, right_NPC)
    return left_NAP, right_NPC + turn_NPC - inside_NPC


def causal_band(
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    theta_NAC: jax.Array,
    segments_BT: jax.Array | None = None,
    taps_BTA: jax.Array | None = None,
) -> jax.Array:
    """(B, N, T, U), at least float32: what entry (i, i - u) has too much, u < U.

    That is theta over the taps (i', j') with j' > i'. They are all logits of a query
    and one of the U keys after it: U products of vectors a token.

    taps_BTA: which queries row i has got as taps, if not those of its document.
    """
    N, A, C = theta_NAC.shape
    B, K, T, _ = k_BKTH.shape
    U = A - 1 + C // 2
    if not U:
        return jnp.zeros((B, N, T, 0), jnp.float32)
    q_BKRTH = exact(q_BNTH).reshape(B, K, N // K, T, -1)
    k_BKTH = exact(k_BKTH)
    ahead = []
    within_BT = segments_BT if taps_BTA is None else None
    for w in range(1, U + 1):
        k_BK1TH = shift(k_BKTH, w, within_BT, axis=2)[:, :, None]
        ahead.append((q_BKRTH * k_BK1TH).sum(axis=-1).reshape(B, N, T))
    ahead_BNTW = jnp.stack(ahead, axis=-1)
    a, u, w = np.ogrid[:A, :U, 1 : U + 1]
    theta_NAUW = _pick(theta_NAC, a, w + u - (A - 1 - a) + C // 2)
    band_BNTU = jnp.zeros_like(ahead_BNTW)
    for a in range(A):
        lag = A - 1 - a
        lagged_BNTW = shift(ahead_BNTW, -lag, within_BT, axis=2)
        if taps_BTA is not None:
            there_BTW = _keys_there(segments_BT, lag, U) & taps_BTA[..., a, None]
            lagged_BNTW = jnp.where(there_BTW[:, None], lagged_BNTW, 0)
        band_BNTU += _mix_last(lagged_BNTW, theta_NAUW[:, a])
    return band_BNTU


def _keys_there(segments_BT, lag: int, U: int) -> jax.Array:
    """(B, T, U): whether key i - lag + w is in row i's document, w = 1 .. U."""
    keys = [moved(segments_BT, w - lag, axis=1) for w in range(1, U + 1)]
    return jnp.stack(keys, axis=-1) == segments_BT[..., None]


def join_rows(
    wide_BNTPH: jax.Array,
    near_BNTW: jax.Array,
    v_BKTH: jax.Array,
    phi_NAC: jax.Array,
    left_NAP: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """(B, N, T, H), at least float32: the values under the convolved probabilities.

    `wide_BNTPH` is the attention over `widen_values`. Row i takes part a of row
    i - (A - 1 - a), each normalised by its own sum. What that counts of keys after i is
    subtracted: it comes from `near_BNTW`, the probability of (i, i - w), w = 0 ..
    C // 2 - 1.
    """
    N, A, C = phi_NAC.shape
    B, K, T, H = v_BKTH.shape
    wide_BNTPH = exact(wide_BNTPH)
    if left_NAP is not None:
        wide_BNTPH = jnp.einsum(
            "BNTPH,NAP->BNTAH", wide_BNTPH, left_NAP, precision=HIGHEST
        )
    W = C // 2
    a, e, w = np.ogrid[:A, 1 : W + 1, :W]
    phi_NAEW = _pick(phi_NAC, a, W - (e + (A - 1 - a) + w))
    out_BNTH = jnp.zeros((B, N, T, H), wide_BNTPH.dtype)
    extra_BNTE = jnp.zeros_like(near_BNTW)
    for a in range(A):
        out_BNTH += shift(wide_BNTPH[:, :, :, a], a + 1 - A, segments_BT, axis=2)
        if W:
            lagged_BNTW = shift(near_BNTW, a + 1 - A, segments_BT, axis=2)
            extra_BNTE += _mix_last(lagged_BNTW, phi_NAEW[:, a])
    v_BKTH = exact(v_BKTH)
    for e in range(1, W + 1):
        v_BKT1H = shift(v_BKTH, e, segments_BT, axis=2)[:, :, None]
        extra_BKRT1 = extra_BNTE[..., e - 1].reshape(B, K, N // K, T, 1)
        out_BNTH -= (extra_BKRT1 * v_BKT1H).reshape(B, N, T, H)
    return out_BNTH


def _side_by_side(parts) -> jax.Array:
    """(B, N, T, P, H). Made flat: kernels want it flat, and padding is spared so."""
    wide_BNTE = jnp.concatenate(parts, axis=-1)
    return wide_BNTE.reshape(*parts[0].shape[:3], len(parts), -1)


def shift(x, by: int, segments_BT, *, axis: int) -> jax.Array:
    """Row t becomes row t + by, or zero outside of the array or of t's document."""
    rows = x.shape[axis]
    by = max(-rows, min(rows, by))
    if not by:
        return x
    if segments_BT is not None:
        other_BT = moved(segments_BT, by, axis=1)
        shape = [1] * x.ndim
        shape[0], shape[axis] = segments_BT.shape
        same = (other_BT == segments_BT).reshape(shape)
        return jnp.where(same, moved(x, by, axis=axis), 0)
    return moved(x, by, axis=axis)


def moved(x, by: int, *, axis: int) -> jax.Array:
    """Row t becomes row t + by, or zero where that is outside."""
    by = max(-x.shape[axis], min(x.shape[axis], by))
    pads = [(0, 0)] * x.ndim
    pads[axis] = (max(-by, 0), max(by, 0))
    start, padded = max(by, 0), jnp.pad(x, pads)
    return jax.lax.slice_in_dim(padded, start, start + x.shape[axis], axis=axis)


def _pick(kernel_NAC, a, c) -> jax.Array:
    """The kernel's entries at the indices a, c, zero where c is no tap."""
    inside = (c >= 0) & (c < kernel_NAC.shape[-1])
    picked = exact(kernel_NAC)[:, a, np.where(inside, c, 0)]
    return jnp.where(inside, picked, 0)


def _total(terms) -> jax.Array:
    return reduce(jnp.add, terms)


def exact(x) -> jax.Array:
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _mix_last(x_BNTW, weight_NUW) -> jax.Array:
    return jnp.einsum("BNTW,NUW->BNTU", x_BNTW, weight_NUW, precision=HIGHEST)
