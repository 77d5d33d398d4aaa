"""What the mixing kernels take: convolved queries and keys, and all of it in blocks.

Shapes as in `pallas_tpu_mixing`; E width of the widened queries and keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloop_kernels.multi_token_attention import pairing
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_layout import (
    LANES,
    cut_keys,
    cut_pairs,
    cut_rows,
    spread_band,
)
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_plan import BITS
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_taps import tap_matrices
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_tile import (
    Inputs,
    Tile,
)
from jaxloop_kernels.multi_token_attention.weights import Mta
from jaxloop_kernels.multi_token_attention.widen import (
    causal_band,
    moved,
    whole_lanes,
    widen_keys,
    widen_queries,
)

REACH = 12
"""Rows before and after, of which the kernels are told."""


class Arrays(NamedTuple):
    """Before they are cut into blocks; None where the part is absent."""

    q: jax.Array
    """(B, N, T, E), or of each pair (B, N, T / 2, E)."""
    k_BNTE: jax.Array
    """Heads that are not convolved may serve several queries', as those of v."""
    v_BNTH: jax.Array
    band_BNTU: jax.Array | None
    mta: Mta
    """Without the convolution before the softmax."""


def convolved(
    tile: Tile, q_BTNH, k_BTKH, v_BTKH, mta: Mta, segments_BT=None, *, scale: float
) -> Arrays:
    """Step 3 as wider queries and keys, with the scale in the latter."""
    q, k, v = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))
    k, v = (_serve(x, q.shape[1], tile.heads) for x in (k, v))
    band = None
    if mta.pre_NAC is not None:  # with the taps' own, keys are rounded once
        taps_NAC = mta.pre_NAC.astype(jnp.float32) * (scale * BITS)
        q, k, band = _widened(tile, q, k, taps_NAC, segments_BT)
    late = Mta(None, mta.pre_mix_GMM, mta.post_NAC, mta.post_mix_GMM)
    return Arrays(q, k, v.astype(tile.dtype), band, late)


def cut_inputs(tile: Tile, arrays: Arrays) -> Inputs:
    """In the kernels' blocks, but for `cut_segments`; linear in each array."""
    cut, mta, band = tile.cut, arrays.mta, arrays.band_BNTU
    post_mix, taps = mta.post_mix_GMM, None
    if mta.post_NAC is not None:
        taps = tap_matrices(mta.post_NAC).astype(tile.dtype)
        taps = taps.reshape(taps.shape[0], -1, LANES)
    return Inputs(
        q=(cut_pairs if tile.shared == 2 else cut_rows)(cut, arrays.q),
        k=cut_keys(cut, arrays.k_BNTE),
        v=cut_keys(cut, arrays.v_BNTH, foreign=False),
        band=None if band is None else spread_band(cut, band),
        pre_mix=_mix_matrix(tile, mta.pre_mix_GMM),
        taps=taps,
        post_mix=_mix_matrix(tile, None if post_mix is None else post_mix.mT),
    )


def cut_segments(tile: Tile, segments_BT) -> dict[str, jax.Array]:
    """What `Inputs` has of documents."""
    if segments_BT is None:
        return {}
    B, T = segments_BT.shape
    segments_BT = jnp.pad(segments_BT.astype(jnp.int32), ((0, 0), (0, T % 2)))

    def by_row(x_BT):
        wide = jnp.broadcast_to(x_BT[:, None, :T, None], (B, 1, T, LANES))
        return cut_rows(tile.cut, wide)[:, 0]

    found = {
        "segment_q": by_row(segments_BT),
        "segment_k": cut_keys(tile.cut, segments_BT[:, None, :T, None])[..., 0],
    }
    if not tile.cut.lags:
        return found
    own_BT = segments_BT
    if tile.late != "lags":
        own_BT = jnp.repeat(pairing.cut_by(segments_BT, 2), 2, axis=1)
    earlier_BT = _same_document(own_BT, segments_BT, 1)
    later_BT = _same_document(segments_BT, segments_BT, -1)
    return found | {"earlier": by_row(earlier_BT), "later": by_row(later_BT)}


def _same_document(own_BT, segments_BT, step: int):
    """(B, T) int32: bit s: the row s * step before is of document `own`."""
    lags = range(REACH)
    same = (moved(segments_BT, -lag * step, axis=1) == own_BT for lag in lags)
    return sum(x.astype(jnp.int32) << lag for lag, x in zip(lags, same, strict=True))


def _widened(tile: Tile, q_BNTH, k_BKTH, theta_NAC, segments_BT):
    """Wide queries and keys, and the band or None."""
    A, band, taps_BTA = theta_NAC.shape[1], None, None
    if tile.shared == 2:
        T, padded = q_BNTH.shape[2], segments_BT
        q = jnp.pad(q_BNTH, ((0, 0), (0, 0), (0, T % 2), (0, 0)))
        if segments_BT is not None:
            padded = jnp.pad(segments_BT, ((0, 0), (0, T % 2)))
            taps_BTA = pairing.taps_there(padded, A, 2)[:, :T]
        q = pairing.pair_queries(q, A, 2, padded)
        k = pairing.pair_keys(k_BKTH, theta_NAC, 2, segments_BT)
    else:
        q = widen_queries(q_BNTH, A, segments_BT=segments_BT)
        k = widen_keys(k_BKTH, theta_NAC, segments_BT)
        q, k = (x.reshape(*x.shape[:3], 1, -1) for x in (q, k))
    if tile.band:
        band = causal_band(q_BNTH, k_BKTH, theta_NAC, segments_BT, taps_BTA)
    return whole_lanes(q), whole_lanes(k), band


def _serve(x_BKTH, N: int, M: int):
    """Kv heads repeated until each group of M query heads has its own."""
    K = x_BKTH.shape[1]
    R = N // K
    if M % R == 0:
        return x_BKTH
    return jnp.repeat(x_BKTH, R // M if R % M == 0 else R, axis=1)


def _mix_matrix(tile: Tile, weight_GMM):
    """(G, M R, M R) [out, in] for groups of M heads, which may hold several smaller."""
    if weight_GMM is None:
        return None
    many = tile.heads // weight_GMM.shape[1]
    G = weight_GMM.shape[0] // many
    weight = weight_GMM.astype(jnp.float32).reshape(G, many, *weight_GMM.shape[1:])
    rows = jnp.eye(tile.mix_rows)
    matrix = jnp.einsum("GaOI,ab,rs->GaOrbIs", weight, jnp.eye(many), rows)
    size = tile.heads * tile.mix_rows
    return matrix.reshape(G, size, size).astype(tile.dtype)
