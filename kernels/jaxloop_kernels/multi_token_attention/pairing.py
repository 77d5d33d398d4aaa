"""Wide queries and keys of which two neighbouring queries share the products.

In `widen` the logits of query i are those of its A lagged queries with A keys each,

    sum_s q[i - s] . kt_s[j],    s = A - 1 - a.

Queries 2m and 2m + 1 have all but two of these q[i - s] in common, which a short
convolution by Toom and Cook (Winograd's F(2, 3)) makes use of: for three lags, with
d0 .. d3 = q[2m - 2 .. 2m + 1] and g0, g1, g2 = kt_2, kt_1, kt_0,

    one   = (d0 - d2) . g0              row 2m:      one + two + three
    two   = (d1 + d2) . (g0 + g1 + g2) / 2
    three = (d2 - d1) . (g0 - g1 + g2) / 2
    four  = (d3 - d1) . g2              row 2m + 1:  two - three + four

are four products where there were six; further lags are further columns of the same
four. In bfloat16 the sums d are rounded once more than the queries were.

Documents: the taps of a pair are cut where the document of its first query ends. The
second query may belong to the next one. It is its first token then, and sees none but
itself: what it has got of the taps before belongs to the causal band, and `causal_band`
finds it there if it is told what cuts the taps (`cut_by`). If the first query is
padding, the pair is the second's. This takes a document to be in one piece, but for
padding inside of it.

Shapes as in `widen`; G groups of three lags.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxloop_kernels.multi_token_attention.widen import exact, lanes, moved, widen_keys


def gains(taps: int) -> bool:
    """Whether four products for three lags are fewer than one a lag and query."""
    return 2 * _groups(taps) < taps


def width(taps: int, H: int) -> int:
    """Of a wide query or key, each of the four products in whole lanes."""
    return 4 * lanes(_groups(taps) * H)


def _groups(taps: int) -> int:
    return -(-taps // 3)


def cut_by(segments_BT: jax.Array) -> jax.Array:
    """(B, T): the document whose taps the query of each row has got."""
    even_BM, odd_BM = segments_BT[:, ::2], segments_BT[:, 1::2]
    return jnp.repeat(jnp.where(even_BM == 0, odd_BM, even_BM), 2, axis=1)


def pair_queries(
    q_BNTH: jax.Array, taps: int, segments_BT: jax.Array | None = None
) -> jax.Array:
    """(B, N, T / 2, 4, G * H), in q's dtype; T is even."""

    def lagged(lag: int):
        """The queries `lag` before the even rows, in float32."""
        x_BNMH = exact(moved(q_BNTH, -lag, axis=2)[:, :, ::2])
        if segments_BT is None or lag < 0:
            return x_BNMH
        own_BM = cut_by(segments_BT)[:, ::2]
        same_BM = moved(segments_BT, -lag, axis=1)[:, ::2] == own_BM
        return jnp.where(same_BM[:, None, :, None], x_BNMH, 0)

    return jnp.stack(pair_rows(lagged, taps, q_BNTH.dtype), axis=-2)


def pair_rows(lagged: Callable[[int], jax.Array], taps: int, dtype) -> list[jax.Array]:
    """What each of the four products takes of a pair's rows, G side by side.

    lagged(lag): the rows `lag` before the first of a pair, -1 is the second.
    """
    parts = [[], [], [], []]
    for group in range(_groups(taps)):
        d0, d1, d2, d3 = (lagged(3 * group + 2 - n) for n in range(4))
        for part, x in zip(parts, (d0 - d2, d1 + d2, d2 - d1, d3 - d1), strict=True):
            part.append(x.astype(dtype))
    return [jnp.concatenate(part, axis=-1) for part in parts]


def both_rows(products) -> tuple[jax.Array, jax.Array]:
    """The first and the second of each pair, from the four products."""
    one, two, three, four = products
    return one + (two + three), (two - three) + four


def products_bar(first_bar, second_bar) -> list[jax.Array]:
    """The transpose of `both_rows`."""
    return [first_bar, first_bar + second_bar, first_bar - second_bar, second_bar]


def pair_keys(
    k_BKTH: jax.Array, theta_NAC: jax.Array, segments_BT: jax.Array | None = None
) -> jax.Array:
    """(B, N, T, 4, G * H), in k's dtype."""
    N, _, C = theta_NAC.shape
    right_NPC = pair_taps(theta_NAC).reshape(N, -1, C)
    wide = widen_keys(k_BKTH, right_NPC, segments_BT)
    return wide.reshape(*wide.shape[:3], 4, -1)


def pair_taps(taps_NAx: jax.Array) -> jax.Array:
    """(N, 4, G, ...) float32: what the four products take of the taps (N, A, ...)."""
    N, A, *shape = taps_NAx.shape
    G = _groups(A)
    more = [(0, 0), (0, 3 * G - A), *[(0, 0)] * len(shape)]
    by_lag_NAx = jnp.pad(exact(taps_NAx)[:, ::-1], more)
    g2, g1, g0 = jnp.moveaxis(by_lag_NAx.reshape(N, G, 3, *shape), 2, 0)
    parts = [g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2]
    return jnp.stack(parts, axis=1)


def near_logits(q_BNME: jax.Array, k_BNTE: jax.Array) -> jax.Array:
    """(B, N, T): the logit of each query and the key in its row, from all columns."""
    B, N, T, E = k_BNTE.shape
    q_BNM14E = exact(q_BNME).reshape(B, N, T // 2, 1, 4, E // 4)
    k_BNM24E = exact(k_BNTE).reshape(B, N, T // 2, 2, 4, E // 4)
    product_BNM24 = (q_BNM14E * k_BNM24E).sum(axis=-1)
    sign_24 = jnp.array([[1, 1, 1, 0], [0, 1, -1, 1]], product_BNM24.dtype)
    return (product_BNM24 * sign_24).sum(axis=-1).reshape(B, N, T)


def in_lanes(x_BNTF: jax.Array, part: int) -> jax.Array:
    """(B, N, F, T): time last, of each `part` rows the even ones before the odd."""
    B, N, T, F = x_BNTF.shape
    x = x_BNTF.reshape(B, N, T // part, part // 2, 2, F)
    return x.transpose(0, 1, 5, 2, 4, 3).reshape(B, N, F, T)


def in_rows(x_BNFT: jax.Array, part: int) -> jax.Array:
    """(B, N, T, F): undoes `in_lanes`."""
    B, N, F, T = x_BNFT.shape
    x = x_BNFT.reshape(B, N, F, T // part, 2, part // 2)
    return x.transpose(0, 1, 3, 5, 4, 2).reshape(B, N, T, F)
