"""The convolution after the softmax, in a tile and its matrices of taps.

Along the keys of a window a tap is an off-diagonal, so that a query tap of all key taps
is a matrix (128, 128); the query taps are rows that are shifted.

Shapes as in `pallas_tpu_mixing_tile`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop_kernels.multi_token_attention import pairing
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_layout import LANES, Cut
from jaxloop_kernels.multi_token_attention.pallas_tpu_mixing_tile import (
    PAD,
    Inputs,
    Tile,
    dot,
    phase_rows_of,
)


def lagged_rows(tile: Tile, inputs: Inputs, ref, m, phase: int):
    """(w rows of a phase, A 128): the rows of all lags, largest first, side by side."""
    lags = range(tile.cut.lags, -1, -1)
    parts = [_lagged(tile, inputs.earlier, ref, m, phase, lag) for lag in lags]
    return _rows_of_all_windows([part.astype(tile.dtype) for part in parts])


def _lagged(tile: Tile, earlier, ref, m, phase: int, lag: int):
    """(w, rows of a phase, 128): the rows `lag` before, zero of other documents."""
    source = (phase - lag) % tile.cut.phases
    shift = (lag - phase + source) // tile.cut.phases
    start = source * (tile.phase_rows + PAD) + PAD - shift
    part = ref[m, :, start : start + tile.phase_rows]
    if earlier is None or lag < 0:
        return part
    return jnp.where(_same(tile, earlier, phase, lag), part, 0.0)


def _same(tile: Tile, bits_ref, phase: int, lag: int):
    return bits_ref[0, phase_rows_of(tile, phase)] & (1 << lag) != 0


def _rows_of_all_windows(parts):
    """(w rows, parts 128) of parts (w, rows, 128): one product takes up its matrix once
    for all windows."""
    x = jnp.concatenate(parts, axis=2)
    return x.reshape(-1, x.shape[2])


def convolve(tile: Tile, inputs: Inputs, padded_ref, m, phase: int):
    """Step 6 for the rows of one phase of a head: (w, rows, 128) float32.

    One product with the taps' matrices sums the lags.
    """
    rows = lagged_rows(tile, inputs, padded_ref, m, phase)
    return dot(rows, inputs.taps[m]).reshape(-1, tile.phase_rows, LANES)


def convolve_phases(tile: Tile, inputs: Inputs, padded_ref, m) -> list:
    """`convolve` of each phase."""
    if tile.late == "lags":
        phases = range(tile.cut.phases)
        return [convolve(tile, inputs, padded_ref, m, p) for p in phases]
    taps = inputs.taps.at[m]

    def lagged(lag: int):
        part = _lagged(tile, inputs.earlier, padded_ref, m, 0, lag)
        return part.astype(tile.dtype if tile.late == "joint" else jnp.float32)

    if tile.late == "joint":
        parts = [lagged(lag) for lag in joint_lags(tile.cut)]
        both = dot(_rows_of_all_windows(parts), taps[...])
        both = both[:, :LANES], both[:, LANES:]
        own_tap = taps[0:1, LANES : LANES + 1]
    else:
        parts = pairing.shared_rows(lagged, tile.cut.lags + 1, 2, tile.dtype)
        size = parts[0].shape[-1]
        products = [
            dot(x.reshape(-1, size), taps[at * size : (at + 1) * size])
            for at, x in enumerate(parts)
        ]
        both = pairing.join(products, 2)
        own_tap = taps[3 * size : 3 * size + 1, 0:1]
    even, odd = (x.reshape(-1, tile.phase_rows, LANES) for x in both)
    if inputs.earlier is not None:
        # A second row of another document is its first: it sees none but itself.
        own = lagged(-1).astype(tile.dtype).astype(jnp.float32)
        own = own * own_tap.astype(jnp.float32)
        odd = jnp.where(_same(tile, inputs.earlier, 1, 0), odd, own)
    return [even, odd]


def convolve_back(tile: Tile, inputs: Inputs, taps_back, ref, m, phase: int):
    """`convolve` transposed: from later rows, in a tile that is padded below."""
    cut, parts = tile.cut, []
    for lag in range(cut.lags, -1, -1):
        target = (phase + lag) % cut.phases
        start = target * (tile.phase_rows + PAD) + (phase + lag) // cut.phases
        part = ref[m, :, start : start + tile.phase_rows]
        if inputs.later is not None:
            part = jnp.where(_same(tile, inputs.later, phase, lag), part, 0.0)
        parts.append(part.astype(tile.dtype))
    bar = dot(_rows_of_all_windows(parts), taps_back[m])
    return bar.reshape(-1, tile.phase_rows, LANES)


def tap_matrices(kernel_NAC: jax.Array) -> jax.Array:
    """(N, A, 128, 128): the convolution over the keys of a window as products.

    Matrix a has tap c of query tap a where (row - column) = c - C // 2.
    """
    C = kernel_NAC.shape[2]
    lane = np.arange(LANES)
    offset = lane[:, None] - lane + C // 2
    one_hot_CLL = (offset == np.arange(C)[:, None, None]).astype(np.float32)
    return jnp.einsum(
        "NAC,CLM->NALM",
        kernel_NAC.astype(jnp.float32),
        one_hot_CLL,
        precision=jax.lax.Precision.HIGHEST,
    )


def joint_lags(cut: Cut) -> range:
    """Of all rows that either row of a pair takes part of, before its first."""
    return range(-1, cut.lags + 1)


def joint_taps(cut: Cut, taps: jax.Array) -> jax.Array:
    """(N, parts 128, 256) of (N, A 128, 128): columns of even rows, then of odd ones.

    For a matrix unit that is 256 wide: it has the columns anyway, and both phases share
    most of the rows that they take.
    """
    N, A = taps.shape[0], cut.lags + 1
    squares = taps.reshape(N, A, LANES, LANES)
    zero = jnp.zeros((N, LANES, LANES), taps.dtype)

    def block(lag):
        return squares[:, A - 1 - lag] if 0 <= lag < A else zero

    rows = [
        jnp.concatenate([block(lag), block(lag + 1)], axis=2) for lag in joint_lags(cut)
    ]
    return jnp.concatenate(rows, axis=1)


def paired_taps(taps: jax.Array) -> jax.Array:
    """(N, 4 G 128, 128) of (N, A 128, 128): for the products that `pairing` has."""
    N = taps.shape[0]
    squares = taps.reshape(N, -1, LANES, LANES)
    return pairing.shared_taps(squares, 2).astype(taps.dtype).reshape(N, -1, LANES)
