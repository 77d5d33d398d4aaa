"""Multi-Token Attention over a cache: however the tokens come, the full forward."""

from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop_kernels.multi_token_attention import Mta, identity, multi_token_attention
from jaxloop_kernels.multi_token_attention.decode import (
    Tail,
    decode,
    empty_tail,
    prefill_tail,
)

B, T, N, K, H, S = 2, 12, 4, 2, 8, 16
SETTINGS = {"order": "convolve_first", "depth": 1}


@cache
def make_mta(parts="all") -> Mta:
    mta = identity(
        *(N, H),
        pre=(3, 5) if parts in ("all", "pre") else None,
        post=(4, 3) if parts in ("all", "post", "mix first") else None,
        pre_group=N if parts != "pre" else None,
        post_group=2 if parts != "pre" else None,
        norm=True,
        gates=1,
    )
    rng = np.random.default_rng(9)
    return jax.tree.map(lambda x: x + np.float32(0.4) * normal(rng, x.shape), mta)


def normal(rng, size):
    return rng.standard_normal(size, np.float32)


def make_tokens(seed=0):
    """q, k, v of a batch of sequences."""
    rng = np.random.default_rng(seed)
    return [normal(rng, (B, T, n, H)) for n in (N, K, K)]


@partial(jax.jit, static_argnames=("order", "depth"))
def full(q, k, v, mta, order="convolve_first", depth=1):
    kinds = {"implementation": "reference", "order": order, "depth": depth}
    return multi_token_attention(q, k, v, mta, **kinds)


class Sequences:
    """Caches and tails of a batch, and the tokens that go in."""

    step = staticmethod(jax.jit(decode, static_argnames=("order", "depth", "block")))

    def __init__(self, mta: Mta, settings=SETTINGS):
        self.mta, self.settings = mta, settings
        self.tail = empty_tail(mta, B, N, H, jnp.float32)
        # Whatever lies in slots that are still to come must not matter.
        self.k_BKHS = np.full((B, K, H, S), 1e3, np.float32)
        self.v_BKSH = np.full((B, K, S, H), 1e3, np.float32)
        self.position_B = np.zeros(B, np.int32)

    def write(self, k, v, position_B):
        # jit may read a NumPy array where it lies: never write into one it was given.
        self.k_BKHS, self.v_BKSH = self.k_BKHS.copy(), self.v_BKSH.copy()
        for row, start in enumerate(position_B):
            here = slice(start, start + k.shape[1])
            self.k_BKHS[row, :, :, here] = k[row].transpose(1, 2, 0)
            self.v_BKSH[row, :, here] = v[row].swapaxes(0, 1)

    def feed(self, q, k, v, count_B=None):
        self.write(k, v, self.position_B)
        arrays = (q, self.k_BKHS, self.v_BKSH, self.mta, self.tail)
        at_B = self.position_B
        out, self.tail = self.step(*arrays, at_B, count_B, **self.settings)
        out = np.asarray(out)
        self.position_B = self.position_B + (q.shape[1] if count_B is None else count_B)
        return out


def some(arrays, start, end):
    return [x[:, start:end] for x in arrays]


def close(got, expected):
    np.testing.assert_allclose(got, expected, atol=2e-5 * abs(expected).max())


@pytest.mark.parametrize("parts", ["all", "mix first", "pre", "post", "mixes"])
def test_token_by_token(parts):
    tokens, mta = make_tokens(), make_mta(parts)
    order = "mix_first" if parts == "mix first" else "convolve_first"
    settings = SETTINGS | {"order": order}
    rows = Sequences(mta, settings)
    out = [rows.feed(*some(tokens, t, t + 1)) for t in range(T)]
    close(np.concatenate(out, axis=1), full(*tokens, mta, **settings))


@pytest.mark.parametrize(
    ("parts", "block"),
    [("all", 3), ("all", 4), ("mix first", 5), ("pre", 3), ("post", 4), ("mixes", 5)],
)
def test_a_cache_in_blocks(parts, block):
    """Of 16 slots, which the block divides or not. What is in slots that are not
    reached is not even a number."""
    tokens, mta = make_tokens(), make_mta(parts)
    order = "mix_first" if parts == "mix first" else "convolve_first"
    settings = SETTINGS | {"order": order}
    rows = Sequences(mta, settings | {"block": block})
    if block == 3:
        rows.v_BKSH[:, :, 12:] = np.nan
    out = [rows.feed(*some(tokens, *cut)) for cut in ((0, 5), (5, 6), (6, 11))]
    close(np.concatenate(out, axis=1), full(*tokens, mta, **settings)[:, :11])
    with pytest.raises(ValueError, match="block must be positive, got 0"):
        Sequences(mta, settings | {"block": 0}).feed(*some(tokens, 0, 1))


def test_tails_are_as_long_as_the_kernels_reach():
    """Queries: 2 of the kernel before the softmax, 3 of the one after it."""
    for parts, queries, rows in (("all", 5, 3), ("pre", 2, 0), ("post", 3, 3)):
        tail = empty_tail(make_mta(parts), B, N, H, jnp.bfloat16)
        assert tail.q_BWNH.shape == (B, queries, N, H)
        assert tail.lse_BNP.shape == (B, N, rows)
    official = empty_tail(identity(N, H), B, N, H, jnp.bfloat16)
    assert official.q_BWNH.shape[1] == 10
    assert official.lse_BNP.shape[2] == 5
    with pytest.raises(ValueError, match="tail of 10"):
        Sequences(make_mta()).step(
            *make_tokens(), make_mta(), official, np.zeros(B, np.int32)
        )


def test_in_chunks():
    """Longer and shorter than what the kernels reach."""
    tokens, mta = make_tokens(), make_mta()
    rows = Sequences(mta)
    cuts = (0, 4, 5, 11, 12)
    out = [rows.feed(*some(tokens, *pair)) for pair in pairwise(cuts)]
    close(np.concatenate(out, axis=1), full(*tokens, mta))


def test_prompts_of_different_lengths():
    """Prefilled together, right-padded; then each row at its own position."""
    tokens, mta = make_tokens(), make_mta()
    lengths_B = np.array([2, 7], np.int32)
    rows = Sequences(mta)
    rows.write(*some(tokens[1:], 0, 7), [0, 0])
    q, k, _ = some(tokens, 0, 7)
    rows.tail = jax.jit(prefill_tail)(q, k, mta, lengths_B)
    rows.position_B = lengths_B
    expected = np.asarray(full(*tokens, mta))
    for step in range(5):
        at_B = lengths_B + step
        pick = [
            np.stack([x[b, t] for b, t in enumerate(at_B)])[:, None] for x in tokens
        ]
        out = rows.feed(*pick)
        close(out[:, 0], np.stack([expected[b, t] for b, t in enumerate(at_B)]))


def test_rows_that_take_fewer_tokens_of_a_chunk():
    tokens, mta = make_tokens(), make_mta()
    rows, expected = Sequences(mta), np.asarray(full(*tokens, mta))
    first = rows.feed(*some(tokens, 0, 4), np.array([4, 0], np.int32))
    close(first[0], expected[0, :4])
    pick = [np.stack([x[0, 4:8], x[1, 0:4]]) for x in tokens]
    second = rows.feed(*pick, np.array([1, 3], np.int32))
    close(second[0, :1], expected[0, 4:5])
    close(second[1, :3], expected[1, :3])
    pick = [np.stack([x[0, 5:9], x[1, 3:7]]) for x in tokens]
    third = rows.feed(*pick)
    close(third[0], expected[0, 5:9])
    close(third[1], expected[1, 3:7])


def test_fork():
    """Both rows go on from row 0's first six tokens, each its own way."""
    tokens, mta = make_tokens(), make_mta()
    rows = Sequences(mta)
    rows.feed(*some(tokens, 0, 6))
    fork = lambda x: np.stack([x[0], x[0]])  # noqa: E731
    rows.tail = Tail(*map(fork, rows.tail))
    rows.k_BKHS, rows.v_BKSH = fork(rows.k_BKHS), fork(rows.v_BKSH)
    out = [rows.feed(*some(tokens, t, t + 1)) for t in range(6, T)]
    forked = [x.copy() for x in tokens]
    for x in forked:
        x[1, :6] = x[0, :6]
    close(np.concatenate(out, axis=1), full(*forked, mta)[:, 6:])


def test_roll_back():
    """An earlier tail takes a sequence back; keys and values are written over."""
    tokens, wrong, mta = make_tokens(), make_tokens(seed=1), make_mta()
    rows = Sequences(mta)
    rows.feed(*some(tokens, 0, 6))
    kept = rows.tail
    for t in range(6, 9):
        rows.feed(*some(wrong, t, t + 1))
    rows.tail, rows.position_B = kept, np.full(B, 6, np.int32)
    out = [rows.feed(*some(tokens, t, t + 1)) for t in range(6, T)]
    close(np.concatenate(out, axis=1), full(*tokens, mta)[:, 6:])


def test_prefill_in_one_piece_leaves_the_tail_of_many():
    tokens, mta = make_tokens(), make_mta()
    rows = Sequences(mta)
    for t in range(T):
        rows.feed(*some(tokens, t, t + 1))
    whole = jax.jit(prefill_tail)(*tokens[:2], mta)
    np.testing.assert_array_equal(whole.q_BWNH, rows.tail.q_BWNH)
    close(whole.lse_BNP, rows.tail.lse_BNP)


def test_bfloat16():
    """Rounded: q, k, v and the probabilities, and what comes out; 8 bits each."""
    tokens, mta = [x.astype(jnp.bfloat16) for x in make_tokens()], make_mta()
    rows = Sequences(mta)
    rows.tail = empty_tail(mta, B, N, H, jnp.bfloat16)
    rows.k_BKHS, rows.v_BKSH = (
        x.astype(jnp.bfloat16) for x in (rows.k_BKHS, rows.v_BKSH)
    )
    out = [rows.feed(*some(tokens, t, t + 1)) for t in range(T)]
    got = np.concatenate(out, axis=1)
    assert got.dtype == jnp.bfloat16
    expected = full(*(x.astype(np.float32) for x in tokens), mta)
    error = abs(got.astype(np.float32) - expected).max()
    assert error < 0.03 * abs(expected).max()
