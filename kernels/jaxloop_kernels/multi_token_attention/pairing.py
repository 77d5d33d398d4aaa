"""Wide queries and keys of which neighbouring queries share the products.

In `widen` the logits of query i are those of its A lagged queries with A keys each,

    sum_s q[i - s] . kt_s[j],    s = A - 1 - a.

Queries 2m and 2m + 1 have all but two of these q[i - s] in common, which a short
convolution by Toom and Cook (Winograd's F(2, 3)) makes use of: for three lags, with
d0 .. d3 = q[2m - 2 .. 2m + 1] and g0, g1, g2 = kt_2, kt_1, kt_0,

    one   = (d0 - d2) . g0              row 2m:      one + two + three
    two   = (d1 + d2) . (g0 + g1 + g2) / 2
    three = (d2 - d1) . (g0 - g1 + g2) / 2
    four  = (d3 - d1) . g2              row 2m + 1:  two - three + four

are four products where there were six. F(2, 2) takes three where there were four, and
the two nest: four queries are two pairs two rows apart, and six lags are two threes two
apart, of which F(2, 2) combines the even and the odd ones. They share twelve products.
Further lags are further columns of the same ones. In bfloat16 the sums d are rounded
once more than the queries were.

Documents: of the queries before a group, its rows get those of the document of its
first query that is no padding; of the group itself, all but padding. A row of a later
document gets queries of others then, and sees no key but those of the group, from its
document's first one on: what it has got too much is above the diagonal for any such
key. It belongs to the causal band, and `causal_band` finds it there if it is told what
the rows have got (`taps_there`). This takes a document to be in one piece, but for
padding inside of it.

Shapes as in `widen`; R queries of a group, P products, L lags, D = R + L - 1 queries
that they need, G groups of lags.
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop_kernels.multi_token_attention.widen import (
    HIGHEST,
    exact,
    lanes,
    moved,
    widen_keys,
)


class Sharing(NamedTuple):
    """Signs and halves; logits of a group are rows_RP @ products_P, product p being
    (queries_PD @ q[R m - L + 1 ..])[p] . (keys_PL @ kt_0 ..)[p]."""

    queries_PD: np.ndarray
    keys_PL: np.ndarray
    rows_RP: np.ndarray

    def around(self, inner: "Sharing") -> "Sharing":
        """This for rows and lags two apart, and `inner` for those between."""
        apart = np.kron(self.queries_PD, [1, 0])[:, :-1]
        return Sharing(
            np.stack([np.convolve(x, y) for x in apart for y in inner.queries_PD]),
            np.kron(self.keys_PL, inner.keys_PL),
            np.kron(self.rows_RP, inner.rows_RP),
        )

    def groups(self, taps: int) -> int:
        return -(-taps // self.keys_PL.shape[1])


TWO_LAGS = Sharing(
    np.array([[1, -1, 0], [0, 1, 0], [0, -1, 1]]),
    np.array([[0, 1], [1, 1], [1, 0]]),
    np.array([[1, 1, 0], [0, 1, 1]]),
)
THREE_LAGS = Sharing(
    np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]),
    np.array([[0, 0, 1], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [1, 0, 0]]),
    np.array([[1, 1, 1, 0], [0, 1, -1, 1]]),
)
SHARED = {2: THREE_LAGS, 4: THREE_LAGS.around(TWO_LAGS)}
"""By the queries of a group."""


def products(taps: int, R: int) -> float:
    """How many a query's logits take, each of the depth of a head."""
    return SHARED[R].groups(taps) * count(R) / R if R > 1 else taps


def count(R: int) -> int:
    """Products of a group and as many lags as it takes at once."""
    return SHARED[R].rows_RP.shape[1] if R > 1 else 1


def width(taps: int, H: int, R: int) -> int:
    """Of a wide query or key, each product's part in whole lanes."""
    return count(R) * lanes(SHARED[R].groups(taps) * H)


def cut_by(segments_BT: jax.Array, R: int) -> jax.Array:
    """(B, T / R): the document whose queries a group has got from before it."""
    segments_BMR = segments_BT.reshape(segments_BT.shape[0], -1, R)
    first_BM1 = (segments_BMR != 0).argmax(axis=-1, keepdims=True)
    return jnp.take_along_axis(segments_BMR, first_BM1, axis=-1)[..., 0]


def taps_there(segments_BT: jax.Array, taps: int, R: int) -> jax.Array:
    """(B, T, A): whether a row has got the query at lag A - 1, ..., 1, 0."""
    row_T1 = jnp.arange(segments_BT.shape[1])[:, None] % R
    lag_A = jnp.arange(taps)[::-1]
    lagged = [moved(segments_BT, -lag, axis=1) for lag in reversed(range(taps))]
    lagged_BTA = jnp.stack(lagged, axis=-1)
    same_BTA = lagged_BTA == jnp.repeat(cut_by(segments_BT, R), R, axis=1)[..., None]
    return jnp.where(row_T1 >= lag_A, lagged_BTA != 0, same_BTA)


def pair_queries(
    q_BNTH: jax.Array, taps: int, R: int, segments_BT: jax.Array | None = None
) -> jax.Array:
    """(B, N, T / R, P, G * H), in q's dtype; R divides T."""

    def lagged(lag: int):
        """The queries `lag` before the first rows of groups, in float32."""
        x_BNMH = exact(moved(q_BNTH, -lag, axis=2)[:, :, ::R])
        if segments_BT is None:
            return x_BNMH
        segments_BM = moved(segments_BT, -lag, axis=1)[:, ::R]
        there_BM = segments_BM != 0
        if lag > 0:
            there_BM = segments_BM == cut_by(segments_BT, R)
        return jnp.where(there_BM[:, None, :, None], x_BNMH, 0)

    return jnp.stack(shared_rows(lagged, taps, R, q_BNTH.dtype), axis=-2)


def shared_rows(lagged: Callable, taps: int, R: int, dtype) -> list[jax.Array]:
    """What each product takes of a group's rows, the G side by side.

    lagged(lag): the rows `lag` before the first of each group; those after it are -1,
    -2 and so on.
    """
    signs_PD = SHARED[R].queries_PD
    D = signs_PD.shape[1]
    parts = [[] for _ in signs_PD]
    for group in range(SHARED[R].groups(taps)):
        last = (group + 1) * (D + 1 - R) - 1
        lags = [lagged(last - n) for n in range(D)]
        for part, signs_D in zip(parts, signs_PD, strict=True):
            terms = [sign * lags[n] for n, sign in enumerate(signs_D) if sign]
            part.append(reduce(jnp.add, terms).astype(dtype))
    return [jnp.concatenate(part, axis=-1) for part in parts]


def pair_keys(
    k_BKTH: jax.Array,
    theta_NAC: jax.Array,
    R: int,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """(B, N, T, P, G * H), in k's dtype."""
    N, _, C = theta_NAC.shape
    right_NPC = shared_taps(theta_NAC, R).reshape(N, -1, C)
    wide = widen_keys(k_BKTH, right_NPC, segments_BT)
    return wide.reshape(*wide.shape[:3], count(R), -1)


def shared_taps(taps_NAx: jax.Array, R: int) -> jax.Array:
    """(N, P, G, ...): what the products take of the taps (N, A, ...); exact."""
    N, A, *shape = taps_NAx.shape
    G, L = SHARED[R].groups(A), SHARED[R].keys_PL.shape[1]
    more = [(0, 0), (0, G * L - A), *[(0, 0)] * len(shape)]
    by_lag_NGLx = jnp.pad(exact(taps_NAx)[:, ::-1], more).reshape(N, G, L, *shape)
    keys_PL = SHARED[R].keys_PL.astype(by_lag_NGLx.dtype)
    return jnp.einsum("PL,NGL...->NPG...", keys_PL, by_lag_NGLx, precision=HIGHEST)


def near_logits(q_BNME: jax.Array, k_BNTE: jax.Array) -> jax.Array:
    """(B, N, T): the logit of each query and the key in its row, from all columns."""
    B, N, T, E = k_BNTE.shape
    M = q_BNME.shape[2]
    rows_RP = SHARED[T // M].rows_RP
    R, P = rows_RP.shape
    q_BNM1PE = exact(q_BNME).reshape(B, N, M, 1, P, E // P)
    k_BNMRPE = exact(k_BNTE).reshape(B, N, M, R, P, E // P)
    product_BNMRP = (q_BNM1PE * k_BNMRPE).sum(axis=-1)
    rows_RP = rows_RP.astype(product_BNMRP.dtype)
    return (product_BNMRP * rows_RP).sum(axis=-1).reshape(B, N, T)


def join(products: list, R: int) -> list:
    """rows_RP @ products, which are arrays; with fewer sums than that."""
    if R == 4:
        thirds = zip(products[::3], products[1::3], products[2::3], strict=True)
        inner = [(one + two, two + three) for one, two, three in thirds]
        even, odd = (join(list(x), 2) for x in zip(*inner, strict=True))
        return [even[0], odd[0], even[1], odd[1]]
    if R == 1:
        return products
    one, two, three, four = products
    return [one + (two + three), (two - three) + four]


def split(rows: list, R: int) -> list:
    """rows_RP.T @ rows: the gradients of the products from those of the rows."""
    if R == 4:
        even, odd = split(rows[::2], 2), split(rows[1::2], 2)
        pairs = zip(even, odd, strict=True)
        return [x for e, o in pairs for x in (e, e + o, o)]
    if R == 1:
        return rows
    even, odd = rows
    return [even, even + odd, even - odd, odd]


def in_lanes(x_BNTF: jax.Array, part: int, R: int) -> jax.Array:
    """(B, N, F, T): time last, of each `part` rows the first ones of groups first."""
    B, N, T, F = x_BNTF.shape
    x = x_BNTF.reshape(B, N, T // part, part // R, R, F)
    return x.transpose(0, 1, 5, 2, 4, 3).reshape(B, N, F, T)


def in_rows(x_BNFT: jax.Array, part: int, R: int) -> jax.Array:
    """(B, N, T, F): undoes `in_lanes`."""
    B, N, F, T = x_BNFT.shape
    x = x_BNFT.reshape(B, N, F, T // part, R, part // R)
    return x.transpose(0, 1, 3, 5, 4, 2).reshape(B, N, T, F)
