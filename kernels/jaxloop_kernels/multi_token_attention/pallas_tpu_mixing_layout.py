"""How the mixing kernel cuts time into blocks, and which of them it visits.

A convolution after the softmax reaches over the edge of a block: A - 1 rows up, and C
// 2 keys to either side. Blocks therefore overlap. A block of rows has the last A - 1
rows (one more, to be even) of the block before it on top; a window of 128 keys, the
lanes of one vector register, has C // 2 foreign keys at either end. What a block
computes of those rows and keys is only read by the convolution; no value moves between
blocks, and the transpose of a cut adds up what the parts contributed.

Rows of a block are stored by phase: all even ones, then all odd ones. The row of lag l
of an even row is an odd row for odd l: shifts by up to A - 1 rows are shifts by half as
many, and one shifted load serves an even and an odd row.

Shapes: B batch, N heads, T time, D features, I = `rows` query rows and J = `keys` keys
after the cut.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LANES = 128


class Steps(NamedTuple):
    """The grid's steps in the order in which they run, (S,) int32 each."""

    q: np.ndarray
    """Block of rows."""
    k: np.ndarray
    """Block of keys."""
    sweep: np.ndarray
    """0 or 1: which of the two passes over the keys."""
    edge: np.ndarray
    """FIRST and LAST, added, of the steps that share an output block (and a sweep)."""


FIRST, LAST = 1, 2


class Cut(NamedTuple):
    """Blocks of one call. `lags` is A - 1 and `reach` is C // 2 of the convolution
    after the softmax, 0 and 0 without one."""

    time: int
    block_q: int
    windows: int
    """Of a block of keys."""
    lags: int
    reach: int

    @property
    def phases(self) -> int:
        return 2 if self.lags else 1

    @property
    def block_k(self) -> int:
        return self.windows * LANES

    @property
    def halo(self) -> int:
        """Rows of a block that are an earlier one's: whole pairs."""
        return self.lags + self.lags % 2

    @property
    def own_q(self) -> int:
        """Rows of a block that are in no earlier one."""
        return self.block_q - self.halo

    @property
    def own_window(self) -> int:
        """Keys of a window that it alone computes."""
        return LANES - 2 * self.reach

    @property
    def own_k(self) -> int:
        return self.windows * self.own_window

    @property
    def q_blocks(self) -> int:
        return -(-self.time // self.own_q)

    @property
    def k_blocks(self) -> int:
        return -(-self.time // self.own_k)

    @property
    def rows(self) -> int:
        return self.q_blocks * self.block_q

    @property
    def keys(self) -> int:
        return self.k_blocks * self.block_k

    def last_k(self, q: int) -> int:
        """The last block of keys that rows of block q see."""
        return min(((q + 1) * self.own_q - 1) // self.own_k, self.k_blocks - 1)


def last_block(cut: Cut, q):
    """`last_k` of an index that is known on the device only."""
    last = lax.div((q + 1) * cut.own_q - 1, cut.own_k)
    return jnp.minimum(last, cut.k_blocks - 1)


def by_rows(cut: Cut, sweeps: int = 1) -> Steps:
    """For each block of rows all visible keys, `sweeps` times, there and back."""
    found = [
        [(q, k, sweep) for k in range(cut.last_k(q) + 1)][:: 1 - 2 * sweep]
        for q in range(cut.q_blocks)
        for sweep in range(sweeps)
    ]
    return _steps(found)


def by_keys(cut: Cut) -> Steps:
    """For each block of keys all rows that see it."""
    blocks = range(cut.q_blocks)
    found = [
        [(q, k, 0) for q in blocks if k <= cut.last_k(q)] for k in range(cut.k_blocks)
    ]
    return _steps(found)


def _steps(runs: list[list[tuple[int, int, int]]]) -> Steps:
    table = [
        (*step, FIRST * (at == 0) + LAST * (at == len(run) - 1))
        for run in runs
        for at, step in enumerate(run)
    ]
    return Steps(*np.array(table, np.int32).T)


def cut_rows(cut: Cut, x_BNTD: jax.Array) -> jax.Array:
    """(B, N, I, D): blocks of rows, zeros before the first and after the last row."""
    B, N, _, D = x_BNTD.shape
    blocks, phases = cut.q_blocks, cut.phases
    x = _overlapping(x_BNTD, blocks, cut.own_q, cut.halo)
    x = x.reshape(B, N, blocks, cut.block_q // phases, phases, D)
    return x.swapaxes(3, 4).reshape(B, N, cut.rows, D)


def cut_pairs(cut: Cut, x_BNMD: jax.Array) -> jax.Array:
    """(B, N, I / 2, D): the same of what has one row for each pair."""
    B, N, _, D = x_BNMD.shape
    x = _overlapping(x_BNMD, cut.q_blocks, cut.own_q // 2, cut.halo // 2)
    return x.reshape(B, N, cut.rows // 2, D)


def _overlapping(x_BNTD, blocks: int, own: int, halo: int):
    """(B, N, blocks, halo + own, D)."""
    B, N, T, D = x_BNTD.shape
    x = jnp.pad(x_BNTD, ((0, 0), (0, 0), (0, blocks * own - T), (0, 0)))
    x = x.reshape(B, N, blocks, own, D)
    if not halo:
        return x
    before = jnp.pad(x[:, :, :-1, own - halo :], _LATER)
    return jnp.concatenate([before, x], axis=3)


_LATER = ((0, 0), (0, 0), (1, 0), (0, 0), (0, 0))
_EARLIER = ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0))


def join_rows(cut: Cut, x_BNID: jax.Array) -> jax.Array:
    """(B, N, T, D): each row from the block that it is the own row of."""
    B, N, _, D = x_BNID.shape
    blocks, phases = cut.q_blocks, cut.phases
    x = x_BNID.reshape(B, N, blocks, phases, cut.block_q // phases, D)
    x = x.swapaxes(3, 4).reshape(B, N, blocks, cut.block_q, D)[:, :, :, cut.halo :]
    return x.reshape(B, N, blocks * cut.own_q, D)[:, :, : cut.time]


def sum_rows(cut: Cut, x_BNID: jax.Array) -> jax.Array:
    """(B, N, I, D): each row of each block becomes the sum of the row's parts."""
    B, N, _, D = x_BNID.shape
    rows = jax.ShapeDtypeStruct((B, N, cut.time, D), x_BNID.dtype)
    (total_BNTD,) = jax.linear_transpose(partial(cut_rows, cut), rows)(x_BNID)
    return cut_rows(cut, total_BNTD)


def cut_keys(cut: Cut, x_BNTD: jax.Array, *, foreign: bool = True) -> jax.Array:
    """(B, N, J, D): windows of keys, with `foreign` ones or zeros at their ends."""
    B, N, T, D = x_BNTD.shape
    windows, own, reach = cut.k_blocks * cut.windows, cut.own_window, cut.reach
    x = jnp.pad(x_BNTD, ((0, 0), (0, 0), (0, windows * own - T), (0, 0)))
    x = x.reshape(B, N, windows, own, D)
    if reach and foreign:
        before = jnp.pad(x[:, :, :-1, own - reach :], _LATER)
        after = jnp.pad(x[:, :, 1:, :reach], _EARLIER)
        x = jnp.concatenate([before, x, after], axis=3)
    elif reach:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (reach, reach), (0, 0)))
    return x.reshape(B, N, cut.keys, D)


def spread_band(cut: Cut, band_BNTU: jax.Array) -> jax.Array:
    """(B, N, I, 128): entry (i, i - u) of the band at the lane of key i - u.

    The lane is that of its window, in any window: no two keys of a row's band share
    one, as the band is shorter than what a window has of its own.
    """
    T, U = band_BNTU.shape[2:]
    ahead = np.arange(T)[:, None] + cut.reach - np.arange(LANES)
    u_TL = ahead % cut.own_window
    wide = sum(jnp.where(u_TL == u, band_BNTU[..., u : u + 1], 0.0) for u in range(U))
    return cut_rows(cut, jnp.asarray(wide))
