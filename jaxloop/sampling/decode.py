"""Sampling as pure functions on the device: prepare, prefill, insert, decode.

Shapes: B decode rows, P prompts prefilled at once, T a prompt's bucket, of which E are
a head that all prompts share and U what follows it, S cache slots of a row (the bucket
and the longest completion), C steps of a chunk; others as in `models/decoder.py`.

Every function has the shapes of its bucket, however many rows are live, and no row
looks at another: a sample has the same bits whatever the other rows do.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxloop.mesh import constrain
from jaxloop.models.decode import (
    DecodeWeights,
    LayerCache,
    copy_row,
    decode_step,
    decode_weights,
    empty_caches,
    split_cache,
)
from jaxloop.models.decoder import Cache, Decoder, rotation
from jaxloop.sampling.distribution import BLOCK, draw
from jaxloop.sampling.settings import Sampling


@struct.dataclass
class DecodeState:
    """What stays on the device from chunk to chunk; donated to every function.

    `hidden_BD` is the model's last output: the next token is drawn from it. Slot s of
    row b is in use when it is below the row's length, which the host knows.
    """

    caches: tuple[LayerCache, ...]
    hidden_BD: jax.Array


class Prefilled(NamedTuple):
    """Prompts run through the model, waiting for free rows."""

    caches: tuple[LayerCache, ...]
    """(P, K, H, T) keys and (P, K, T, H) values, a layer each."""
    hidden_PD: jax.Array
    """At each prompt's last token."""


class Rows(NamedTuple):
    """What the host tells of each row at the start of a chunk, (B,) each."""

    prompt_key_B: jax.Array
    """uint32; with `sample_B` it names the row's stream of random numbers."""
    sample_B: jax.Array
    """uint32 index of the sample among those of its prompt."""
    length_B: jax.Array
    """int32 slots in use: prompt and tokens so far."""
    made_B: jax.Array
    """int32 tokens so far."""
    live_B: jax.Array
    """bool; other rows are free."""


class Chunk(NamedTuple):
    """What a chunk drew. Of row b, the first `count_B[b]` tokens are its own."""

    token_CB: jax.Array
    logp_CB: jax.Array
    drawn_logp_CB: jax.Array
    count_B: jax.Array
    eos_B: jax.Array
    """bool: the last of them ends the sequence."""


def prepare(model: Decoder, size: int, params: dict) -> DecodeWeights:
    """Parameters in the layout of decoding, for a tokenizer of `size` tokens."""
    return decode_weights(params, model.shape, model.dtype, size, BLOCK)


def empty_state(model: Decoder, rows: int, slots: int) -> DecodeState:
    """All rows free."""
    caches = empty_caches(model.shape, rows, slots, model.dtype)
    hidden_BD = jnp.zeros((rows, model.shape.width), model.dtype)
    return _pin(DecodeState(caches, hidden_BD))


def prefill(model: Decoder, params: dict, tokens_PT, length_P) -> Prefilled:
    """Runs right-padded prompts (int32 (P, T), lengths (P,), at least 1)."""
    T = tokens_PT.shape[1]
    positions_PT = jnp.broadcast_to(jnp.arange(T), tokens_PT.shape)
    hidden_PTD, cache = model.apply(
        {"params": params}, tokens_PT, positions_PT, keep_cache=True, length_B=length_P
    )
    return _prefilled(hidden_PTD, cache, length_P)


def prefill_head(model: Decoder, params: dict, tokens_PE) -> Cache:
    """Keys and values of tokens that prompts have in common; all rows are equal, since
    the mesh wants some to cut, and one is kept."""
    positions_PE = jnp.broadcast_to(jnp.arange(tokens_PE.shape[1]), tokens_PE.shape)
    _, cache = model.apply({"params": params}, tokens_PE, positions_PE, keep_cache=True)
    return jax.tree.map(lambda x_LPKEH: x_LPKEH[:, :1], cache)


def prefill_rest(
    model: Decoder, params: dict, head: Cache, tokens_PU, length_P
) -> Prefilled:
    """As `prefill`, of prompts that begin with the head: what follows it is given, and
    lengths are those of the whole prompts."""
    P, U = tokens_PU.shape
    E = head.k.shape[3]

    def spread(x_L1KEH):
        size = (x_L1KEH.shape[0], P, *x_L1KEH.shape[2:])
        x_LPKEH = jnp.broadcast_to(x_L1KEH, size)
        x_LPKTH = jnp.pad(x_LPKEH, ((0, 0), (0, 0), (0, 0), (0, U), (0, 0)))
        return constrain(x_LPKTH, None, "batch", "kv_heads", None, None)

    def repeat(x_L1):
        return jnp.broadcast_to(x_L1, (x_L1.shape[0], P, *x_L1.shape[2:]))

    tail = jax.tree.map(repeat, head.tail)
    cache = Cache(k=spread(head.k), v=spread(head.v), tail=tail)
    positions_PU = jnp.broadcast_to(E + jnp.arange(U), (P, U))
    hidden_PUD, cache = model.apply(
        {"params": params}, tokens_PU, positions_PU, cache=cache, length_B=length_P - E
    )
    return _prefilled(hidden_PUD, cache, length_P - E)


def _prefilled(hidden_PTD, cache, length_P) -> Prefilled:
    assert isinstance(cache, Cache)
    last_P11 = (length_P - 1)[:, None, None]
    hidden_P1D = jnp.take_along_axis(hidden_PTD, last_P11, axis=1)
    hidden_PD = constrain(hidden_P1D[:, 0], "batch", None)
    return Prefilled(_pin_caches(split_cache(cache)), hidden_PD)


def insert(
    state: DecodeState, prefilled: Prefilled, source_B, row_B, count
) -> DecodeState:
    """Copies prompt `source_B[i]` to row `row_B[i]`, for i < count.

    Several rows may take the same prompt: that is how n samples share one prefill.
    """

    def one(i, state: DecodeState) -> DecodeState:
        source, row = source_B[i], row_B[i]
        caches = copy_row(state.caches, row, prefilled.caches, source)
        hidden_1D = jax.lax.dynamic_slice_in_dim(prefilled.hidden_PD, source, 1)
        hidden_BD = jax.lax.dynamic_update_slice_in_dim(
            state.hidden_BD, hidden_1D, row, axis=0
        )
        return DecodeState(caches, hidden_BD)

    return _pin(jax.lax.fori_loop(0, count, one, state))


def decode(
    model: Decoder,
    sampling: Sampling,
    size: int,
    eos_ids: tuple[int, ...],
    weights: DecodeWeights,
    state: DecodeState,
    rows: Rows,
    key: jax.Array,
) -> tuple[DecodeState, Chunk]:
    """A chunk of steps, fewer once no row is live.

    Tokens below `size` can be drawn, `eos_ids` end a row. The draw of token t of a row
    takes fold_in(fold_in(fold_in(key, prompt), sample), t): nothing else of the batch.
    """
    C, B = sampling.chunk, rows.live_B.shape[0]
    uniform_CB2 = _uniforms(key, rows, C)
    turns = rotation(model.shape, jnp.arange(C)[:, None] + rows.length_B)
    floats_CB = jnp.zeros((C, B), jnp.float32)
    chunk = Chunk(
        token_CB=jnp.zeros((C, B), jnp.int32),
        logp_CB=floats_CB,
        drawn_logp_CB=floats_CB,
        count_B=jnp.zeros_like(rows.length_B),
        eos_B=jnp.zeros_like(rows.live_B),
    )

    def going(carry):
        step, live_B, *_ = carry
        return (step < C) & live_B.any()

    def body(carry):
        step, live_B, state, chunk = carry
        with jax.named_scope("draw"):
            logits_BV = jnp.einsum(
                "BD,VD->BV",
                state.hidden_BD,
                weights.unembed_VD,
                preferred_element_type=jnp.float32,
            )
            logits_BV = constrain(logits_BV, "batch", "vocab")
            drawn = draw(logits_BV, uniform_CB2[step], sampling, size)
        position_B = rows.length_B + chunk.count_B
        count_B = chunk.count_B + live_B
        eos_B = live_B & jnp.isin(drawn.token_B, jnp.array(eos_ids))
        chunk = Chunk(
            token_CB=chunk.token_CB.at[step].set(drawn.token_B),
            logp_CB=chunk.logp_CB.at[step].set(drawn.logp_B),
            drawn_logp_CB=chunk.drawn_logp_CB.at[step].set(drawn.drawn_logp_B),
            count_B=count_B,
            eos_B=chunk.eos_B | eos_B,
        )
        live_B = live_B & ~eos_B & (rows.made_B + count_B < sampling.max_new_tokens)
        hidden_BD, caches = decode_step(
            weights,
            model.shape,
            state.caches,
            drawn.token_B,
            position_B,
            jax.tree.map(lambda x_CBC: x_CBC[step], turns),
        )
        return step + 1, live_B, DecodeState(caches, hidden_BD), chunk

    start = (jnp.int32(0), rows.live_B, state, chunk)
    _, _, state, chunk = jax.lax.while_loop(going, body, start)
    return _pin(state), chunk


def _uniforms(key: jax.Array, rows: Rows, chunk: int) -> jax.Array:
    """(C, B, 2) in [0, 1), multiples of 2^-24."""

    def of_row(prompt_key, sample, made):
        row_key = jax.random.fold_in(jax.random.fold_in(key, prompt_key), sample)

        def of_token(step):
            return jax.random.bits(jax.random.fold_in(row_key, made + step), (2,))

        return jax.vmap(of_token)(jnp.arange(chunk))

    bits_BC2 = jax.vmap(of_row)(rows.prompt_key_B, rows.sample_B, rows.made_B)
    return ((bits_BC2 >> 8) * jnp.float32(2**-24)).swapaxes(0, 1)


def _pin_caches(caches: tuple[LayerCache, ...]) -> tuple[LayerCache, ...]:
    heads = ("batch", "kv_heads", None, None)

    def pin(cache: LayerCache) -> LayerCache:
        k_BKHS, v_BKSH = (constrain(x, *heads) for x in (cache.k_BKHS, cache.v_BKSH))
        tail = jax.tree.map(
            lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), cache.tail
        )
        return LayerCache(k_BKHS, v_BKSH, tail)

    return tuple(map(pin, caches))


def _pin(state: DecodeState) -> DecodeState:
    hidden_BD = constrain(state.hidden_BD, "batch", None)
    return DecodeState(_pin_caches(state.caches), hidden_BD)
