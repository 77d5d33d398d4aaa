"""Multi-Token Attention in the decoder (Golovneva et al. 2025, arXiv 2504.00927).

The op is `jaxloop_kernels.multi_token_attention`; here is which layers have which parts
of it, their parameters, and how they lie on the mesh. Everything starts as the
identity: with norm and gate off, a pretrained model gives the same logits after the
switch.

Layers that convolve (every 4th) and those that only mix heads run in one scan, so the
kernels of the convolutions are given to all layers, as the identity to those without,
which skip them. The parameters are modules of their own: the others are drawn as they
are without them.

Shapes: as in `decoder.py`, and A query taps, P key taps, G mixing groups, I and O the
heads of one, J layers that convolve, E outputs of the gate.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from jaxloop.mesh import mesh_axes
from jaxloop.models.parts import param, scale
from jaxloop_kernels.multi_token_attention import (
    Mta,
    identity,
    identity_kernel,
    identity_mix,
    multi_token_attention,
)
from jaxloop_kernels.multi_token_attention.decode import (
    Tail,
    decode,
    empty_tail,
    prefill_tail,
)

CACHE_BLOCK = 512
"""Slots of the cache attended to at once: a cache of 2,048 with 300 in use takes a
quarter of the time that all of it does, a full one 1.3 times (measured on CPU)."""


@dataclass(frozen=True)
class MtaShape:
    """Which parts of Multi-Token Attention a model has, and their sizes."""

    query_taps: int = 6
    """Queries that a convolution sees: the current one and those before it."""
    key_taps: int = 11
    """Keys that a convolution sees, half of them on each side; odd."""
    every: int = 4
    """Of so many layers one convolves; 1: all of them."""
    first: int = 2
    """The first layer that convolves, counted from 0."""
    before: bool = True
    """Convolution of the logits, before the softmax."""
    after: bool = True
    """Convolution of the weights, after the softmax."""
    mix_before: bool = True
    """Mixing of heads before the softmax, in all layers."""
    mix_after: bool = True
    """Mixing of heads after the softmax, in all layers."""
    group: int = 0
    """Heads of a mixing group; 0: all."""
    order: Literal["convolve_first", "mix_first"] = "convolve_first"
    """What comes first after the softmax (the authors' code convolves first)."""
    norm: bool = False
    """RMSNorm of each head's output. Changes what a pretrained model computes."""
    gate: bool = False
    """A learned sigmoid gate, a number for each token and head. Changes it too."""
    depth: bool = False
    """The factor by depth of the paper's first version. Changes it too."""

    def convolving(self, layers: int) -> tuple[int, ...]:
        """The layers that convolve, of so many."""
        convolves = self.before or self.after
        return tuple(range(self.first, layers, self.every)) if convolves else ()

    def groups(self, heads: int) -> int:
        """Into how many groups the heads fall that mix with one another."""
        mixes = self.mix_before or self.mix_after
        return heads // (self.group or heads) if mixes else heads

    def settings(self, index) -> dict[str, Any]:
        """What the op is told in layer `index`."""
        return {"depth": index if self.depth else None, "order": self.order}

    def problems(self, heads: int, layers: int) -> list[str]:
        """What makes no sense, one sentence each."""
        found = []
        if self.query_taps < 1 or self.key_taps < 1 or self.key_taps % 2 == 0:
            found.append(
                f"mta: {self.query_taps} query taps and {self.key_taps} key taps; both "
                "are positive, and the key taps odd"
            )
        if self.group < 0 or heads % (self.group or heads):
            found.append(
                f"mta.group = {self.group} does not divide the {heads} heads (0: all)"
            )
        if self.every < 1 or not 0 <= self.first < layers:
            found.append(
                f"mta.every = {self.every} must be positive, and mta.first = "
                f"{self.first} one of the {layers} layers"
            )
        return found


class LayerConvolutions(NamedTuple):
    """What one step of the scan over layers gets."""

    index: jax.Array
    """int32, the layer."""
    convolves: jax.Array
    """bool; where it is false the kernels are the identity and not used."""
    before_NAP: jax.Array | None
    after_NAP: jax.Array | None


class Convolutions(nn.Module):
    """The kernels of the layers that convolve, spread over all layers."""

    shape: MtaShape

    @nn.compact
    def __call__(self, heads: int, layers: int) -> LayerConvolutions:
        """Leaves have a leading axis (L,)."""
        s = self.shape
        chosen = np.array(s.convolving(layers), int)
        one_NAP = identity_kernel(heads, s.query_taps, s.key_taps)

        def init(_, size, dtype=jnp.float32):
            return jnp.broadcast_to(one_NAP, size).astype(dtype)

        def kernels(name: str, wanted: bool):
            if not wanted or not len(chosen):
                return None
            axes = (None, "heads", None, None)
            own_JNAP = param(self, name, (len(chosen), *one_NAP.shape), axes, init)
            all_LNAP = jnp.broadcast_to(one_NAP, (layers, *one_NAP.shape))
            return all_LNAP.astype(own_JNAP.dtype).at[chosen].set(own_JNAP)

        return LayerConvolutions(
            index=jnp.arange(layers),
            convolves=jnp.zeros(layers, bool).at[chosen].set(True),
            before_NAP=kernels("before_JNAP", s.before),
            after_NAP=kernels("after_JNAP", s.after),
        )


class LayerWeights(nn.Module):
    """The parts that every layer has: mixes, norm, gate."""

    shape: MtaShape

    @nn.compact
    def __call__(self, heads: int, head_dim: int, width: int) -> Mta:
        s, group = self.shape, self.shape.group or heads

        def mix(name: str, wanted: bool):
            def init(_, size, dtype=jnp.float32):
                return identity_mix(heads, group).astype(dtype)

            size = (heads // group, group, group)
            return param(self, name, size, (None,) * 3, init) if wanted else None

        mta = Mta(
            pre_mix_GMM=mix("mix_before_GOI", s.mix_before),
            post_mix_GMM=mix("mix_after_GIO", s.mix_after),
        )
        if s.norm:
            mta = mta._replace(norm_H=scale(self, "norm_H", head_dim))
        if s.gate:
            # As the authors draw it: cut at three standard deviations; the bias is 0.
            draw = nn.initializers.truncated_normal(width**-0.5, lower=-3.0, upper=3.0)
            zeros = nn.initializers.zeros
            mta = mta._replace(
                gate_HE=param(self, "gate_HE", (head_dim, 1), (None, None), draw),
                gate_bias_E=param(self, "gate_bias_E", (1,), (None,), zeros),
            )
        return mta


class Layer(NamedTuple):
    """The attention of one layer."""

    shape: MtaShape
    weights: Mta
    """Without convolutions."""
    convolutions: LayerConvolutions
    layers: int
    """How many the model has."""

    def attend(self, q_BTNH, k_BTKH, v_BTKH, segments_BT) -> jax.Array:
        """(B, T, N, H): causal attention of sequences with themselves. On a mesh each
        device has its own rows, and its own heads where no mixing group is cut by that;
        else all heads."""

        def run(weights, convolutions, *arrays):
            layer = self._replace(weights=weights, convolutions=convolutions)
            return layer._either(partial(layer._attend, *arrays))

        args = (self.weights, self.convolutions, q_BTNH, k_BTKH, v_BTKH, segments_BT)
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return run(*args)
        heads = heads_axis(self.shape, q_BTNH.shape[2], mesh.shape["tensor"])
        rows, by_head = mesh_axes(("batch", None, heads, None)), mesh_axes((heads,))
        whole = P()
        specs = (
            jax.tree.map(lambda _: whole, self.weights)._replace(
                pre_mix_GMM=by_head, post_mix_GMM=by_head
            ),
            jax.tree.map(lambda _: by_head, self.convolutions)._replace(
                index=whole, convolves=whole
            ),
            *(rows, rows, rows, mesh_axes(("batch", None))),
        )
        mapped = jax.shard_map(run, in_specs=specs, out_specs=rows, check_vma=False)
        return mapped(*args)

    def tail(self, q_BTNH, k_BTKH, length_B) -> Tail:
        """What decoding needs of the prompt besides keys and values; `length_B` of the
        T tokens are its own, None: all. Of no use in a layer that does not convolve."""

        B, _, N, H = q_BTNH.shape
        empty = empty_tail(self._convolving(), B, N, H, q_BTNH.dtype)

        def of(mta):
            if not convolves(mta):
                return empty
            return prefill_tail(q_BTNH, k_BTKH, mta, length_B)

        return self._either(of)

    def attend_cached(self, q_BQNH, k_BKSH, v_BKSH, tail: Tail, position_B, count_B):
        """(B, Q, N, H), and the tail after it: see `decode` of the op."""
        k_BKHS = k_BKSH.swapaxes(2, 3)

        def of(mta):
            args = (q_BQNH, k_BKHS, v_BKSH, mta, tail, position_B, count_B)
            return attend_next(self.shape, self.convolutions.index, *args)

        return self._either(of)

    def _attend(self, q_BTNH, k_BTKH, v_BTKH, segments_BT, mta):
        settings = self.shape.settings(self.convolutions.index)
        return multi_token_attention(
            q_BTNH, k_BTKH, v_BTKH, mta, segments_BT, **settings
        )

    def _convolving(self) -> Mta:
        before_NAP, after_NAP = (
            self.convolutions.before_NAP,
            self.convolutions.after_NAP,
        )
        return self.weights._replace(pre_NAC=before_NAP, post_NAC=after_NAP)

    def _either(self, of):
        """`of(mta)` with convolutions or without, as the layer has them."""
        count = len(self.shape.convolving(self.layers))
        if count in (0, self.layers):
            return of(self._convolving() if count else self.weights)
        branches = partial(of, self._convolving()), partial(of, self.weights)
        return jax.lax.cond(self.convolutions.convolves, *branches)


def convolves(mta: Mta) -> bool:
    return mta.pre_NAC is not None or mta.post_NAC is not None


def attend_next(
    s: MtaShape, index, q_BQNH, k_BKHS, v_BKSH, mta: Mta, tail, position_B, count_B=None
) -> tuple[jax.Array, Tail]:
    """`decode` of the op in layer `index`. All layers have a tail of the same size, so
    that they can be stacked; one without convolutions leaves it as it is."""
    (B, _, N, H), own = q_BQNH.shape, tail
    if not convolves(mta):
        own = empty_tail(mta, B, N, H, q_BQNH.dtype)
    args = (q_BQNH, k_BKHS, v_BKSH, mta, own, position_B, count_B)
    out_BQNH, after = decode(*args, **s.settings(index), block=CACHE_BLOCK)
    return out_BQNH, after if convolves(mta) else tail


def layers_mta(s: MtaShape, params: dict, layers: int) -> list[Mta]:
    """Each layer's parameters, cut out of the model's."""
    stacked, kernels = params["layers"]["attn"].get("mta", {}), params.get("mta", {})
    chosen = s.convolving(layers)

    def of(index: int) -> Mta:
        own = {name: leaf[index] for name, leaf in stacked.items()}
        if index in chosen:
            own |= {name: k[chosen.index(index)] for name, k in kernels.items()}
        return Mta(**{field: own.get(name) for name, field in FIELDS.items()})

    return [of(index) for index in range(layers)]


FIELDS = {
    "before_JNAP": "pre_NAC",
    "mix_before_GOI": "pre_mix_GMM",
    "after_JNAP": "post_NAC",
    "mix_after_GIO": "post_mix_GMM",
    "norm_H": "norm_H",
    "gate_HE": "gate_HE",
    "gate_bias_E": "gate_bias_E",
}
"""Names of our parameters -> of the op's."""


def empty_tails(s: MtaShape, layers: int, batch: int, heads: int, head_dim: int, dtype):
    """The tails of all layers before the first token, leaves (L, B, ...)."""
    taps = (s.query_taps, s.key_taps) if s.convolving(layers) else None
    pre, post = (taps if wanted else None for wanted in (s.before, s.after))
    mta = identity(heads, head_dim, pre=pre, post=post)
    tail = empty_tail(mta, batch, heads, head_dim, dtype)
    return jax.tree.map(lambda x: jnp.zeros((layers, *x.shape), x.dtype), tail)


def heads_axis(s: MtaShape, heads: int, tensor: int) -> str | None:
    """The logical axis of the heads while they attend: "heads", or None (not cut) where
    the mesh's `tensor` parts would cut a mixing group."""
    return None if s.groups(heads) % tensor else "heads"


def whole_attention(s: MtaShape | None, heads: int, tensor: int) -> str:
    """What to tell who cuts a model over `tensor` that mixes too many heads; or ""."""
    if s is None or heads_axis(s, heads, tensor) is not None:
        return ""
    return (
        f"Multi-Token Attention mixes heads in {s.groups(heads)} groups, which cannot "
        f"be cut into tensor = {tensor} parts: every device attends with all {heads} "
        f"heads (weights stay cut). mta.group = {heads // tensor} would cut it"
    )
