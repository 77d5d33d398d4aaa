"""The decoder of `decoder.py` once more, for one new token a row.

The same mathematics on the same parameters, arranged for decoding. A step is bound by
reading weights and cache, so

- weights are cast, cut into layers and laid out (out, in) once, before the loop: a scan
  over stacked layers would copy every slice at every step, and x_BD W_FD is the product
  that runs fastest for few rows (measured on CPU: 1.3 times x_BD W_DF);
- each layer's keys and values are arrays of their own, updated in place;
- keys are cached time last, so that both products of attention run over long rows.

Shapes as in `decoder.py`, and: J = R + 2, what a kv head has (its query heads, key,
value); E = K J H and M = K R H, flattened.
"""

import jax
import jax.numpy as jnp
from flax import struct

from jaxloop.mesh import constrain
from jaxloop.models.decoder import (
    Cache,
    ModelShape,
    Rotation,
    init_cache,
    rotate,
    unembedding,
)
from jaxloop.models.mta import attend_next, layers_mta
from jaxloop.models.parts import rms_norm
from jaxloop_kernels.multi_token_attention import Mta
from jaxloop_kernels.multi_token_attention.decode import Tail


@struct.dataclass
class LayerCache:
    """One layer's keys and values; slot s holds the token at position s."""

    k_BKHS: jax.Array
    v_BKSH: jax.Array
    tail: Tail | None = None
    """With Multi-Token Attention."""


@struct.dataclass
class LayerWeights:
    """One layer's parameters in the compute dtype (norm scales as they are)."""

    attn_norm_D: jax.Array
    qkv_ED: jax.Array
    qkv_bias_E: jax.Array | None
    q_norm_H: jax.Array | None
    k_norm_H: jax.Array | None
    o_DM: jax.Array
    o_bias_D: jax.Array | None
    mta: Mta | None
    mlp_norm_D: jax.Array
    gate_FD: jax.Array
    gate_bias_F: jax.Array | None
    up_FD: jax.Array
    up_bias_F: jax.Array | None
    down_DF: jax.Array
    down_bias_D: jax.Array | None


@struct.dataclass
class DecodeWeights:
    layers: tuple[LayerWeights, ...]
    embed_VD: jax.Array
    unembed_VD: jax.Array
    final_norm_D: jax.Array


def decode_weights(
    params: dict, shape: ModelShape, dtype, size: int, block: int
) -> DecodeWeights:
    """The parameters as `decode_step` wants them; one copy, made once for many steps.

    The output matrix keeps its first `size` rows, and gets rows of zeros until `block`
    divides their number.
    """
    stack = params["layers"]
    mtas = [None] * shape.layers
    if shape.mta is not None:
        mtas = layers_mta(shape.mta, params, shape.layers)
    layers = tuple(
        _layer_weights(jax.tree.map(lambda x, i=i: x[i], stack), shape, dtype, mta)
        for i, mta in enumerate(mtas)
    )
    out_VD = unembedding(params)[:size].astype(dtype)
    out_VD = jnp.pad(out_VD, ((0, -size % block), (0, 0)))
    return DecodeWeights(
        layers=layers,
        embed_VD=params["embed_VD"].astype(dtype),
        unembed_VD=constrain(out_VD, "vocab", "embed"),
        final_norm_D=params["final_norm_D"],
    )


def _layer_weights(
    layer: dict, shape: ModelShape, dtype, mta: Mta | None
) -> LayerWeights:
    s = shape
    K, R, H, D = s.kv_heads, s.heads // s.kv_heads, s.head_dim, s.width
    attn, mlp = layer["attn"], layer["mlp"]

    def joined(q_NH, k_KH, v_KH):
        """Grouped by kv head, so that cutting E over the mesh cuts whole groups."""
        q_KRH = q_NH.reshape(K, R, H, *q_NH.shape[2:])
        all_KJH = jnp.concatenate([q_KRH, k_KH[:, None], v_KH[:, None]], axis=1)
        return all_KJH.reshape(K * (R + 2) * H, *q_NH.shape[2:])

    def cast(x, *axes):
        return constrain(x.astype(dtype), *axes)

    q_bias, k_bias, v_bias = ("q_bias_NH", "k_bias_KH", "v_bias_KH")
    qkv = [attn[name].transpose(1, 2, 0) for name in ("q_DNH", "k_DKH", "v_DKH")]
    qkv_bias_E = None
    if s.qkv_bias:
        qkv_bias_E = cast(joined(attn[q_bias], attn[k_bias], attn[v_bias]), "kv_heads")
    return LayerWeights(
        attn_norm_D=layer["attn_norm_D"],
        qkv_ED=cast(joined(*qkv), "kv_heads", "embed"),
        qkv_bias_E=qkv_bias_E,
        q_norm_H=attn.get("q_norm_H"),
        k_norm_H=attn.get("k_norm_H"),
        o_DM=cast(attn["o_NHD"].reshape(-1, D).T, "embed", "heads"),
        o_bias_D=cast(attn["o_bias_D"], None) if s.out_bias else None,
        mta=mta,
        mlp_norm_D=layer["mlp_norm_D"],
        gate_FD=cast(mlp["gate_DF"].T, "ffn", "embed"),
        gate_bias_F=cast(mlp["gate_bias_F"], "ffn") if s.mlp_bias else None,
        up_FD=cast(mlp["up_DF"].T, "ffn", "embed"),
        up_bias_F=cast(mlp["up_bias_F"], "ffn") if s.mlp_bias else None,
        down_DF=cast(mlp["down_FD"].T, "embed", "ffn"),
        down_bias_D=cast(mlp["down_bias_D"], None) if s.mlp_bias else None,
    )


def empty_caches(
    shape: ModelShape, rows: int, slots: int, dtype
) -> tuple[LayerCache, ...]:
    """Zeros, a layer each."""
    return split_cache(init_cache(shape, rows, slots, dtype))


def split_cache(cache: Cache) -> tuple[LayerCache, ...]:
    """The decoder's stacked cache (L, B, K, S, H) in the form of this file."""
    layers = [jax.tree.map(lambda x, i=i: x[i], cache) for i in range(len(cache.k))]
    return tuple(
        LayerCache(k_BKHS=x.k.swapaxes(2, 3), v_BKSH=x.v, tail=x.tail) for x in layers
    )


def copy_row(
    caches: tuple[LayerCache, ...], row, others: tuple[LayerCache, ...], other_row
) -> tuple[LayerCache, ...]:
    """`caches` with the first slots of `row` replaced by a row of `others`."""

    def copy(old, new):
        new_1 = jax.lax.dynamic_slice_in_dim(new, other_row, 1)
        return jax.lax.dynamic_update_slice_in_dim(old, new_1, row, axis=0)

    return jax.tree.map(copy, caches, others)


def decode_step(
    weights: DecodeWeights,
    shape: ModelShape,
    caches: tuple[LayerCache, ...],
    token_B: jax.Array,
    position_B: jax.Array,
    rotation: Rotation,
) -> tuple[jax.Array, tuple[LayerCache, ...]]:
    """Hidden states (B, D) after the last norm, and the caches with the tokens in them.

    token_B, position_B: int32; rotation: (B, C), the angles of the positions. Slots up
    to a row's position are visible to it.
    """
    slots_S = jnp.arange(caches[0].v_BKSH.shape[2])
    visible_BS = slots_S <= position_B[:, None]
    # Gathered over fsdp first, as in the decoder.
    embed_VD = constrain(weights.embed_VD, "vocab", None)
    x_BD = constrain(embed_VD[token_B], "batch", None)
    out = []
    layers = zip(weights.layers, caches, strict=True)
    for index, (layer, cache) in enumerate(layers):
        with jax.named_scope("attention"):
            h_BD = rms_norm(x_BD, layer.attn_norm_D, shape.norm_eps)
            q_BKRH, k_BKH, v_BKH = _qkv(h_BD, layer, shape, rotation)
            cache = _write(cache, k_BKH, v_BKH, position_B)
            if layer.mta is None:
                a_BM = _attend(q_BKRH, cache, visible_BS)
            else:
                args = (layer.mta, index, position_B, shape)
                a_BM, cache = _attend_mta(q_BKRH, cache, *args)
            out.append(cache)
            h_BD = _linear(a_BM, layer.o_DM, layer.o_bias_D)
            x_BD = constrain(x_BD + h_BD, "batch", None)
        with jax.named_scope("mlp"):
            h_BD = rms_norm(x_BD, layer.mlp_norm_D, shape.norm_eps)
            x_BD = constrain(x_BD + _mlp(h_BD, layer), "batch", None)
    return rms_norm(x_BD, weights.final_norm_D, shape.norm_eps), tuple(out)


def _qkv(h_BD, layer: LayerWeights, shape: ModelShape, rotation: Rotation):
    """Rotated queries (B, K, R, H) and keys (B, K, H), and values (B, K, H)."""
    B, R = h_BD.shape[0], shape.heads // shape.kv_heads
    qkv_BE = _linear(h_BD, layer.qkv_ED, layer.qkv_bias_E)
    qkv_BKJH = qkv_BE.reshape(B, shape.kv_heads, -1, shape.head_dim)
    qkv_BKJH = constrain(qkv_BKJH, "batch", "kv_heads", None, None)
    q_BKRH, k_BK1H, v_BK1H = jnp.split(qkv_BKJH, [R, R + 1], axis=2)
    if layer.q_norm_H is not None and layer.k_norm_H is not None:
        q_BKRH = rms_norm(q_BKRH, layer.q_norm_H, shape.norm_eps)
        k_BK1H = rms_norm(k_BK1H, layer.k_norm_H, shape.norm_eps)
    turn_B11C = jax.tree.map(lambda x_BC: x_BC[:, None, None], rotation)
    q_BKRH, k_BK1H = rotate(q_BKRH, turn_B11C), rotate(k_BK1H, turn_B11C)
    return q_BKRH, k_BK1H[:, :, 0], v_BK1H[:, :, 0]


def _write(cache: LayerCache, k_BKH, v_BKH, position_B) -> LayerCache:
    rows_B = jnp.arange(k_BKH.shape[0])
    mode = "drop"  # a finished row may stand one slot beyond its last
    return LayerCache(
        tail=cache.tail,
        k_BKHS=cache.k_BKHS.at[rows_B, :, :, position_B].set(k_BKH, mode=mode),
        v_BKSH=cache.v_BKSH.at[rows_B, :, position_B].set(v_BKH, mode=mode),
    )


def _attend(q_BKRH, cache: LayerCache, visible_BS) -> jax.Array:
    """Grouped-query attention with a float32 softmax. Returns (B, M)."""
    B, _, _, H = q_BKRH.shape
    score_BKRS = jnp.einsum("BKRH,BKHS->BKRS", q_BKRH, cache.k_BKHS)
    score_BKRS = score_BKRS.astype(jnp.float32) * H**-0.5
    score_BKRS = jnp.where(visible_BS[:, None, None], score_BKRS, -1e30)
    # Divided by their sum only after the product: S times fewer divisions.
    mass_BKRS = jnp.exp(score_BKRS - score_BKRS.max(axis=-1, keepdims=True))
    v_BKSH = cache.v_BKSH
    out_BKRH = jnp.einsum("BKRS,BKSH->BKRH", mass_BKRS.astype(v_BKSH.dtype), v_BKSH)
    out_BKRH = out_BKRH / mass_BKRS.sum(axis=-1, keepdims=True)
    return out_BKRH.astype(v_BKSH.dtype).reshape(B, -1)


def _attend_mta(q_BKRH, cache: LayerCache, mta, index: int, position_B, shape):
    """The same with Multi-Token Attention, and the cache after it."""
    B, H = q_BKRH.shape[0], shape.head_dim
    q_B1NH = q_BKRH.reshape(B, 1, shape.heads, H)
    kept = (cache.k_BKHS, cache.v_BKSH, mta, cache.tail, position_B)
    out_B1NH, tail = attend_next(shape.mta, index, q_B1NH, *kept)
    return out_B1NH.reshape(B, -1), LayerCache(cache.k_BKHS, cache.v_BKSH, tail)


def _mlp(h_BD: jax.Array, layer: LayerWeights) -> jax.Array:
    gate_BF = _linear(h_BD, layer.gate_FD, layer.gate_bias_F)
    up_BF = _linear(h_BD, layer.up_FD, layer.up_bias_F)
    h_BF = constrain(jax.nn.silu(gate_BF) * up_BF, "batch", "ffn")
    return _linear(h_BF, layer.down_DF, layer.down_bias_D)


def _linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
    """x (batch, in), weight (out, in), bias (out)."""
    out = jnp.einsum("bi,oi->bo", x, weight)
    return out if bias is None else out + bias
