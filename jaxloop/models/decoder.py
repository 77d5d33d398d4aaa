"""The decoder: one linen module for the Llama and Qwen families.

Shapes: B batch, T query time, S cache time, D width, F feed-forward, N query heads,
K kv heads, R query heads per kv head, H head size, C half head size, V vocabulary,
L layers.

Three uses of the same blocks:

- training: `cache=None`; the sequence is its own context, `segments_BT` separates what
  is packed into one row (0 is padding);
- prefill: the same with `keep_cache=True`, which also returns the keys and values;
- decoding: `cache` given; tokens are written at the slots named by `positions_BT`.

The module ends in hidden states. Logits are never formed here: `unembedding` gives the
vocabulary matrix, and `jaxloop_kernels.lm_head` goes from hidden states to
log-probabilities in chunks. A model with `outputs` has a scalar head beside it:
`head_outputs`.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxloop.mesh import axes_of, constrain
from jaxloop.models.mta import Convolutions, Layer, LayerWeights, MtaShape, empty_tails
from jaxloop.models.parts import bias, param, rms_norm, scale, weight
from jaxloop_kernels.attention import attention
from jaxloop_kernels.attention.xla import attend
from jaxloop_kernels.multi_token_attention.decode import Tail

Remat = Literal["none", "dots", "full"]


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's rescaling of the rotary frequencies for a longer context."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True)
class ModelShape:
    """What a checkpoint fixes: sizes and which parts of the family are there."""

    family: Literal["llama", "qwen2", "qwen3"] = "qwen2"
    """Whose tensor names and config the Hugging Face form of the model uses."""
    vocab: int = 128
    """Rows of the embedding; may be more than the tokenizer has."""
    width: int = 64
    """Size of the residual stream (D)."""
    ffn: int = 160
    """Hidden size of the feed-forward (F)."""
    layers: int = 2
    heads: int = 4
    """Query heads (N)."""
    kv_heads: int = 4
    """Key/value heads (K); divides `heads`."""
    head_dim: int = 16
    """Size of one head (H); even."""
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over the head size of queries and keys, before RoPE (Qwen3)."""
    tied: bool = True
    """The output matrix is the embedding."""
    max_positions: int = 2048
    """The longest sequence that the model is meant for."""
    mta: MtaShape | None = None
    """Multi-Token Attention in place of plain attention; none is plain."""
    outputs: int = 0
    """Numbers that a linear head gives at each position (a value, a reward); 0: no such
    head. It starts at zero."""


@struct.dataclass
class Cache:
    """Keys and values, (L, B, K, S, H) for the whole model; a layer sees (B, K, S, H).

    Heads before time: the batched products of decoding then need no transpose.
    """

    k: jax.Array
    v: jax.Array
    tail: Tail | None = None
    """With Multi-Token Attention what its convolutions see again of the last tokens,
    leaves (L, B, ...)."""


def init_cache(shape: ModelShape, batch: int, slots: int, dtype) -> Cache:
    L, H = shape.layers, shape.head_dim
    size, tail = (L, batch, shape.kv_heads, slots, H), None
    if shape.mta is not None:
        tail = empty_tails(shape.mta, L, batch, shape.heads, H, dtype)
    return Cache(k=jnp.zeros(size, dtype), v=jnp.zeros(size, dtype), tail=tail)


def rope_frequencies(shape: ModelShape) -> jax.Array:
    """(C,) radians a position; with Llama 3's scaling where the shape asks for it."""
    half = shape.head_dim // 2
    freq_C = shape.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    scaling = shape.rope_scaling
    if scaling is None:
        return freq_C
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns_C = scaling.original_positions * freq_C / (2 * jnp.pi)
    # Fast rotations stay, slow ones are stretched, those between are blended.
    blend_C = jnp.clip((turns_C - low) / (high - low), 0.0, 1.0)
    return freq_C * (blend_C + (1 - blend_C) / scaling.factor)


class Rotation(NamedTuple):
    """Sine and cosine of rotary angles, (..., C) each, float32."""

    sin: jax.Array
    cos: jax.Array


class Context(NamedTuple):
    """What all layers are given alike."""

    positions_BT: jax.Array
    turn: Rotation
    segments_BT: jax.Array | None
    length_B: jax.Array | None


def rotation(shape: ModelShape, positions: jax.Array) -> Rotation:
    """The rotary angles of `positions` (...).

    Made once, before any loop over layers or steps: inside one, compilers fuse sine and
    cosine into every use.
    """
    angle = positions[..., None].astype(jnp.float32) * rope_frequencies(shape)
    return Rotation(jnp.sin(angle), jnp.cos(angle))


def rotate(x: jax.Array, by: Rotation) -> jax.Array:
    """Rotary embedding of x (..., H) on halves, in float32 (Su et al. 2021, in
    GPT-NeoX's layout)."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    halves = [a * by.cos - b * by.sin, b * by.cos + a * by.sin]
    return jnp.concatenate(halves, axis=-1).astype(x.dtype)


def project(x_BT: jax.Array, w: jax.Array, contract: int = 1) -> jax.Array:
    """(B, T, in...) times (in..., out...), summed over the `contract` axes `in`.

    As a product of two matrices: with B and T apart, the weights' gradient sums over
    two axes, for which XLA on CPU has a slow path (twice the time of the whole MLP).
    """
    B, T, *_ = x_BT.shape
    inside, outside = w.shape[:contract], w.shape[contract:]
    w_IO = w.reshape(prod(inside), prod(outside))
    return (x_BT.reshape(B * T, -1) @ w_IO).reshape(B, T, *outside)


def _remember(cache: Cache | None, k_BTKH, v_BTKH, positions_BT) -> Cache:
    """The cache with the tokens at these positions in it."""
    k_BKTH, v_BKTH = (x.transpose(0, 2, 1, 3) for x in (k_BTKH, v_BTKH))
    if cache is None:
        return Cache(k=k_BKTH, v=v_BKTH)
    B, K = k_BKTH.shape[:2]
    rows_B11, heads_1K1 = jnp.arange(B)[:, None, None], jnp.arange(K)[None, :, None]
    at_BKT = (rows_B11, heads_1K1, positions_BT[:, None, :])
    return Cache(k=cache.k.at[at_BKT].set(k_BKTH), v=cache.v.at[at_BKT].set(v_BKTH))


def attend_cached(q_BTNH, cache: Cache, positions_BT) -> jax.Array:
    """(B, T, N, H): tokens at these positions see the cache up to their own slot."""
    B, T, N, H = q_BTNH.shape
    K, S = cache.k.shape[1:3]
    q_BKRTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    visible_BTS = jnp.arange(S)[None, None, :] <= positions_BT[:, :, None]
    out_BKRTH = attend(q_BKRTH, cache.k, cache.v, visible_BTS, scale=H**-0.5)
    return out_BKRTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


class Attention(nn.Module):
    shape: ModelShape
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD, cache: Cache | None, layer, context: Context):
        s = self.shape
        D, N, K, H = s.width, s.heads, s.kv_heads, s.head_dim
        q_DNH = weight(self, "q_DNH", (D, N, H), ("embed", "heads", "head_dim"), D)
        k_DKH = weight(self, "k_DKH", (D, K, H), ("embed", "kv_heads", "head_dim"), D)
        v_DKH = weight(self, "v_DKH", (D, K, H), ("embed", "kv_heads", "head_dim"), D)
        o_NHD = weight(self, "o_NHD", (N, H, D), ("heads", "head_dim", "embed"), N * H)

        q_BTNH = project(x_BTD, q_DNH)
        k_BTKH = project(x_BTD, k_DKH)
        v_BTKH = project(x_BTD, v_DKH)
        if s.qkv_bias:
            q_BTNH += bias(self, "q_bias_NH", (N, H), ("heads", "head_dim"))
            k_BTKH += bias(self, "k_bias_KH", (K, H), ("kv_heads", "head_dim"))
            v_BTKH += bias(self, "v_bias_KH", (K, H), ("kv_heads", "head_dim"))
        if s.qk_norm:
            q_BTNH = rms_norm(q_BTNH, scale(self, "q_norm_H", H), s.norm_eps)
            k_BTKH = rms_norm(k_BTKH, scale(self, "k_norm_H", H), s.norm_eps)
        turn_BT1C = jax.tree.map(lambda x_BTC: x_BTC[:, :, None], context.turn)
        q_BTNH, k_BTKH = rotate(q_BTNH, turn_BT1C), rotate(k_BTKH, turn_BT1C)
        q_BTNH = constrain(q_BTNH, "batch", None, "heads", None)

        earlier, cache = cache, _remember(cache, k_BTKH, v_BTKH, context.positions_BT)
        if s.mta is None and earlier is None:
            out_BTNH = attention(
                q_BTNH,
                k_BTKH,
                v_BTKH,
                context.segments_BT,
                # One token of one row, to draw parameters, fits no kernel on a mesh.
                implementation="xla" if self.is_initializing() else "auto",
                batch_axes=axes_of("batch"),
                head_axes=axes_of("heads"),
            )
        elif s.mta is None:
            out_BTNH = attend_cached(q_BTNH, cache, context.positions_BT)
        else:
            mta = LayerWeights(s.mta, name="mta")(N, H, D)
            layer = Layer(s.mta, mta, layer, s.layers)
            if earlier is None:
                out_BTNH = layer.attend(q_BTNH, k_BTKH, v_BTKH, context.segments_BT)
                tail = layer.tail(q_BTNH, k_BTKH, context.length_B)
            else:
                assert earlier.tail is not None  # kept by the same model
                first_B, count_B = context.positions_BT[:, 0], context.length_B
                kept = (cache.k, cache.v, earlier.tail)
                out_BTNH, tail = layer.attend_cached(q_BTNH, *kept, first_B, count_B)
            cache = Cache(cache.k, cache.v, tail)
        out_BTD = project(out_BTNH, o_NHD, contract=2)
        if s.out_bias:
            out_BTD += bias(self, "o_bias_D", (D,), (None,))
        return out_BTD, cache


class Mlp(nn.Module):
    shape: ModelShape
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD):
        D, F = self.shape.width, self.shape.ffn
        gate_DF = weight(self, "gate_DF", (D, F), ("embed", "ffn"), D)
        up_DF = weight(self, "up_DF", (D, F), ("embed", "ffn"), D)
        down_FD = weight(self, "down_FD", (F, D), ("ffn", "embed"), F)
        gate_BTF, up_BTF = project(x_BTD, gate_DF), project(x_BTD, up_DF)
        if self.shape.mlp_bias:
            gate_BTF += bias(self, "gate_bias_F", (F,), ("ffn",))
            up_BTF += bias(self, "up_bias_F", (F,), ("ffn",))
        h_BTF = constrain(jax.nn.silu(gate_BTF) * up_BTF, "batch", None, "ffn")
        out_BTD = project(h_BTF, down_FD)
        if self.shape.mlp_bias:
            out_BTD += bias(self, "down_bias_D", (D,), (None,))
        return out_BTD


class Block(nn.Module):
    """Scan form: (carry, the layer's cache and convolutions, what all layers get) ->
    (carry, new cache)."""

    shape: ModelShape
    dtype: jnp.dtype
    keep_cache: bool = False

    @nn.compact
    def __call__(self, x_BTD, cache, layer, context: Context):
        D, eps = self.shape.width, self.shape.norm_eps
        with jax.named_scope("attention"):
            h_BTD = rms_norm(x_BTD, scale(self, "attn_norm_D", D), eps)
            attention = Attention(self.shape, self.dtype, name="attn")
            h_BTD, cache = attention(h_BTD, cache, layer, context)
            x_BTD = constrain(x_BTD + h_BTD, "batch", None, None)
        with jax.named_scope("mlp"):
            h_BTD = rms_norm(x_BTD, scale(self, "mlp_norm_D", D), eps)
            x_BTD = x_BTD + Mlp(self.shape, self.dtype, name="mlp")(h_BTD)
        return constrain(x_BTD, "batch", None, None), cache if self.keep_cache else None


REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nn.Module):
    """(tokens, positions, segments, cache) -> (hidden states, cache)."""

    shape: ModelShape
    dtype: jnp.dtype = jnp.dtype("float32")
    """What the matrix products compute in; norms, softmax and losses stay float32."""
    remat: Remat = "none"
    """What is recomputed going backward: nothing, all but matrix products, all."""

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        cache: Cache | None = None,
        *,
        keep_cache: bool = False,
        length_B: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Hidden states (B, T, D) after the last norm, and the cache.

        tokens, positions, segments: int32 (B, T). `segments_BT=None` with `cache=None`
        is one segment a row. With a cache, slot s is visible to position p when s <= p;
        positions then run on from the first.
        length_B: how many tokens of a row the cache is kept for (the others are
        padding); only `Cache.tail` depends on it. None: all T.
        """
        s = self.shape
        V, D = s.vocab, s.width
        embed_VD = weight(self, "embed_VD", (V, D), ("vocab", "embed"), D)
        # Gathered over fsdp first: else the partitioner replicates the activations.
        embed_VD = constrain(embed_VD, "vocab", None)
        x_BTD = constrain(embed_VD[tokens_BT], "batch", None, None)
        if not s.tied:
            weight(self, "unembed_VD", (V, D), ("vocab", "embed"), D)

        block = Block
        if self.remat != "none":
            policy = REMAT_POLICIES[self.remat]
            block = nn.remat(Block, prevent_cse=False, policy=policy)
        shared = nn.broadcast
        in_axes: Any = (0, 0, shared)  # flax declares int only
        stack = nn.scan(
            block,
            length=s.layers,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=in_axes,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        keep_cache = keep_cache or cache is not None
        layers = stack(s, self.dtype, keep_cache, name="layers")
        turn = rotation(s, positions_BT)
        context = Context(positions_BT, turn, segments_BT, length_B)
        convolutions = None
        if s.mta is not None:
            convolutions = Convolutions(s.mta, name="mta")(s.heads, s.layers)
        x_BTD, cache = layers(x_BTD, cache, convolutions, context)
        x_BTD = rms_norm(x_BTD, scale(self, "final_norm_D", D), s.norm_eps)
        if s.outputs:  # last: the parameters before are drawn as they are without it
            zeros = nn.initializers.zeros
            param(self, "head_DK", (D, s.outputs), ("embed", None), zeros)
        return x_BTD, cache


def unembedding(params: dict) -> jax.Array:
    """The (V, D) matrix that turns hidden states into logits."""
    return params["unembed_VD"] if "unembed_VD" in params else params["embed_VD"]


def head_outputs(params: dict, hidden_BTD: jax.Array) -> jax.Array | None:
    """The scalar head's numbers (B, T, K), K = `ModelShape.outputs`, in float32; None
    for a model that has no head."""
    if "head_DK" not in params:
        return None
    head_DK = constrain(params["head_DK"], None, None).astype(jnp.float32)
    hidden_BTD = hidden_BTD.astype(jnp.float32)
    return jnp.einsum("BTD,DK->BTK", hidden_BTD, head_DK, precision="highest")


def init_boxed(model: Decoder, key: jax.Array, dtype="float32") -> dict:
    """Random parameters that carry their logical axes (`nn.unbox` removes them)."""
    tokens_11 = jnp.zeros((1, 1), jnp.int32)
    params = model.init(key, tokens_11, tokens_11)["params"]
    return jax.tree.map(lambda x: x.astype(dtype), params)


def cut_sizes(shape: ModelShape) -> dict[str, int]:
    """Lengths, by logical axis, of what a mesh may cut."""
    return {
        "embed": shape.width,
        "ffn": shape.ffn,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "vocab": shape.vocab,
    }


def count_parameters(shape: ModelShape) -> int:
    abstract = jax.eval_shape(lambda: init_boxed(Decoder(shape), jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(abstract)))
