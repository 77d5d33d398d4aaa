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
    cut, parts = tile.cut, []
    for lag in range(cut.lags, -1, -1):
        source = (phase - lag) % cut.phases
        shift = (lag - phase + source) // cut.phases
        start = source * (tile.phase_rows + PAD) + PAD - shift
        part = ref[m, :, start : start + tile.phase_rows]
        if inputs.earlier is not None and lag:
            same = inputs.earlier[0, phase_rows_of(tile, phase)] >= lag
            part = jnp.where(same, part, 0.0)
        parts.append(part.astype(tile.dtype))
    return _rows_of_all_windows(parts)


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


def convolved(tile: Tile, inputs: Inputs, padded_ref, m) -> list:
    """`convolve` of each phase."""
    if tile.late == "lags":
        phases = range(tile.cut.phases)
        return [convolve(tile, inputs, padded_ref, m, p) for p in phases]
    if tile.late == "pairs":
        return _convolved_pairs(tile, inputs, padded_ref, m)
    parts = []
    for source, shift in joint_rows(tile.cut):
        start = source * (tile.phase_rows + PAD) + PAD - shift
        part = padded_ref[m, :, start : start + tile.phase_rows]
        parts.append(part.astype(tile.dtype))
    both = dot(_rows_of_all_windows(parts), inputs.taps[m])
    halves = both[:, :LANES], both[:, LANES:]
    return [half.reshape(-1, tile.phase_rows, LANES) for half in halves]


def _convolved_pairs(tile: Tile, inputs: Inputs, padded_ref, m) -> list:
    def lagged(lag: int):
        source = lag % 2
        start = source * (tile.phase_rows + PAD) + PAD - (lag + source) // 2
        return padded_ref[m, :, start : start + tile.phase_rows]

    parts = pairing.pair_rows(lagged, tile.cut.lags + 1, tile.dtype)
    size = parts[0].shape[-1]
    products = [
        dot(x.reshape(-1, size), inputs.taps[m, at * size : (at + 1) * size])
        for at, x in enumerate(parts)
    ]
    both = pairing.both_rows(products)
    return [x.reshape(-1, tile.phase_rows, LANES) for x in both]


def convolve_back(tile: Tile, inputs: Inputs, taps_back, ref, m, phase: int):
    """`convolve` transposed: from later rows, in a tile that is padded below."""
    cut, parts = tile.cut, []
    for lag in range(cut.lags, -1, -1):
        target = (phase + lag) % cut.phases
        start = target * (tile.phase_rows + PAD) + (phase + lag) // cut.phases
        part = ref[m, :, start : start + tile.phase_rows]
        if inputs.later is not None and lag:
            same = inputs.later[0, phase_rows_of(tile, phase)] >= lag
            part = jnp.where(same, part, 0.0)
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


def joint_rows(cut: Cut) -> list[tuple[int, int]]:
    """(phase, shift) of all rows that a row of either phase takes part of."""
    pairs = [(phase, lag) for phase in (0, 1) for lag in range(cut.lags + 1)]
    sources = [(phase, lag, (phase - lag) % 2) for phase, lag in pairs]
    return sorted({(s, (lag - phase + s) // 2) for phase, lag, s in sources})


def joint_taps(cut: Cut, taps: jax.Array) -> jax.Array:
    """(N, parts 128, 256) of (N, A 128, 128): columns of even rows, then of odd ones.

    For a matrix unit that is 256 wide: it has the columns anyway, and both phases share
    most of the rows that they take.
    """
    N, A = taps.shape[0], cut.lags + 1
    squares = taps.reshape(N, A, LANES, LANES)
    zero = jnp.zeros((N, LANES, LANES), taps.dtype)

    def block(source, shift, phase):
        lag = 2 * shift + phase - source
        return squares[:, A - 1 - lag] if 0 <= lag < A else zero

    rows = [
        jnp.concatenate([block(*part, phase) for phase in (0, 1)], axis=2)
        for part in joint_rows(cut)
    ]
    return jnp.concatenate(rows, axis=1)


def paired_taps(taps: jax.Array) -> jax.Array:
    """(N, 4 G 128, 128) of (N, A 128, 128): for the products that `pairing` has."""
    N = taps.shape[0]
    squares = taps.reshape(N, -1, LANES, LANES)
    return pairing.pair_taps(squares).astype(taps.dtype).reshape(N, -1, LANES)
