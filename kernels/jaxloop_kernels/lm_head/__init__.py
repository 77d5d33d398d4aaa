"""From hidden states to log-probabilities without the logits of a whole sequence.

With a vocabulary of 151,936 the logits of 2 x 512 tokens take 622 MB in float32, on any
model size. Training needs six numbers a token of them, and their gradient.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxloop_kernels.lm_head import pallas_tpu, reference, xla
from jaxloop_kernels.lm_head.passes import Shards
from jaxloop_kernels.lm_head.reference import LmHead, TopTokens

__all__ = ["Implementation", "LmHead", "Shards", "TopTokens", "lm_head", "top_tokens"]

Implementation = Literal["auto", "reference", "xla", "pallas_tpu"]


def lm_head(
    hidden_BTD: jax.Array,
    vocab_VD: jax.Array,
    target_BT: jax.Array,
    choices_BTK: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 1.0,
    soft_cap: float | None = None,
    valid: int | None = None,
    shards: Shards | None = None,
    implementation: Implementation = "auto",
    chunk: int | None = None,
    parts: int = 1,
) -> LmHead:
    """Log-probability, entropy, top-1 hit and three more numbers a position.

    logits = hidden vocab^T, then soft_cap * tanh(logits / soft_cap) where a cap is
    given, then / temperature. Products are taken in hidden's dtype with float32
    accumulation; all else is float32.

    hidden_BTD: bfloat16 or float32 (float64: reference only). vocab_VD: any float
    dtype, cast to hidden's; its gradient is summed in float32 and has its own dtype.
    target_BT: integers in [0, V). Temperature is positive, a float or a traced scalar.
    choices_BTK: integers in [0, V), K further tokens whose log-probabilities are wanted
    at each position, such as a teacher's likeliest; one may occur twice.

    `logp_BT`, `entropy_BT`, `lse_BT` and `choice_logp_BTK` are differentiable in hidden
    and vocab, not in the temperature; `hit_BT`, `mean_logit_BT` and `log_sum_sq_BT`
    carry no gradient. What a caller does not use, the compiler leaves out.

    On a mesh (Auto axes) the batch may be cut over some axes and the vocabulary over
    others, and no device sees logits of others, or gathers the matrix, only its share.
    `shards` says which axes and maps each device's part by hand, for xla and
    pallas_tpu alike; the gradients of the vocabulary meet once, at the end. Without it
    the compiler finds the way (xla only): `parts`, then, is the number of parts of the
    batch. It bounds the memory of each device, and lets the parts' gradients of the
    vocabulary meet once instead of once a chunk. Where the matrix is cut along D by an
    axis that cuts the batch too (fsdp), constrain it to be whole along D first, or
    every chunk gathers it again.

    `valid`: rows of the vocabulary that are tokens; those from there on are padding and
    take no probability. None: all.

    `chunk`: time steps whose logits are held at once; None fits `xla.LOGITS` a device.
    Only xla has use for `chunk` and `parts`.

    pallas_tpu is one kernel a pass and takes no choices; it needs D to be a multiple of
    128, and `shards` where there is more than one device. Interpreted off a TPU.

    Raises ValueError for shapes and numbers that make no sense, NotImplementedError for
    what the named implementation cannot do. "auto" is pallas_tpu on a TPU where it
    serves, else xla, for float64 the reference.
    """
    _check(hidden_BTD, vocab_VD, temperature, soft_cap, valid, chunk, parts)
    _check_ids(hidden_BTD, target_BT, choices_BTK)
    _check_shards(hidden_BTD, vocab_VD, shards)
    if implementation == "auto" and _pallas_serves(hidden_BTD, choices_BTK, shards):
        implementation = "pallas_tpu"
    implementation = _implementation(implementation, hidden_BTD)
    arrays = (hidden_BTD, vocab_VD, target_BT, choices_BTK)
    numbers = {"temperature": temperature, "soft_cap": soft_cap, "valid": valid}
    if implementation == "reference":
        return reference.lm_head(*arrays, **numbers)
    if implementation == "pallas_tpu":
        return pallas_tpu.lm_head(*arrays, **numbers, shards=shards)
    numbers |= {"shards": shards, "chunk": chunk, "parts": parts}
    return xla.lm_head(*arrays, **numbers)


def top_tokens(
    hidden_BTD: jax.Array,
    vocab_VD: jax.Array,
    count: int,
    *,
    temperature: float | jax.Array = 1.0,
    soft_cap: float | None = None,
    valid: int | None = None,
    implementation: Implementation = "auto",
    chunk: int | None = None,
    parts: int = 1,
) -> TopTokens:
    """The `count` likeliest tokens of each position and their log-probabilities.

    For a teacher: no gradient. Arguments, limits and errors as in `lm_head`; `count` is
    at least 1 and at most `valid`.
    """
    _check(hidden_BTD, vocab_VD, temperature, soft_cap, valid, chunk, parts)
    tokens = vocab_VD.shape[0] if valid is None else valid
    if not 0 < count <= tokens:
        raise ValueError(f"top_tokens: {count=} of a vocabulary of {tokens} tokens")
    implementation = _implementation(implementation, hidden_BTD)
    if implementation == "pallas_tpu":
        raise NotImplementedError("top_tokens: no pallas_tpu; there are reference, xla")
    arrays = (hidden_BTD, vocab_VD, count)
    numbers = {"temperature": temperature, "soft_cap": soft_cap, "valid": valid}
    if implementation == "reference":
        return reference.top_tokens(*arrays, **numbers)
    return xla.top_tokens(*arrays, **numbers, chunk=chunk, parts=parts)


def _implementation(name: Implementation, hidden_BTD) -> Implementation:
    if name == "auto":
        return "reference" if hidden_BTD.dtype == jnp.float64 else "xla"
    if name not in ("reference", "xla", "pallas_tpu"):
        raise NotImplementedError(
            f"lm_head implementation={name!r}; there are auto, reference, xla, "
            "pallas_tpu"
        )
    return name


def _pallas_serves(hidden_BTD, choices_BTK, shards: Shards | None) -> bool:
    """A kernel is not cut over devices by the compiler: they must be told or one."""
    if jax.default_backend() != "tpu" or (shards is None and jax.device_count() > 1):
        return False
    return pallas_tpu.cannot(hidden_BTD, choices_BTK) is None


def _check(hidden_BTD, vocab_VD, temperature, soft_cap, valid, chunk, parts):
    shapes = f"hidden {hidden_BTD.shape}, vocab {vocab_VD.shape}"
    if hidden_BTD.ndim != 3 or vocab_VD.ndim != 2:
        raise ValueError(f"lm_head wants hidden (B, T, D), vocab (V, D); got {shapes}")
    if vocab_VD.shape[1] != hidden_BTD.shape[2]:
        raise ValueError(f"lm_head wants vocab (V, D) of hidden's D; got {shapes}")
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"lm_head: temperature must be positive, got {temperature}")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"lm_head: soft_cap must be positive or None, got {soft_cap}")
    if 0 in hidden_BTD.shape or 0 in vocab_VD.shape:
        raise ValueError(f"lm_head: an empty axis; got {shapes}")
    if valid is not None and not 0 < valid <= vocab_VD.shape[0]:
        raise ValueError(f"lm_head: {valid=} is not within the vocabulary; {shapes}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"lm_head: chunk must be at least 1, got {chunk}")
    if parts < 1 or hidden_BTD.shape[0] % parts:
        raise ValueError(f"lm_head: {parts=} does not divide the batch; {shapes}")


def _check_ids(hidden_BTD, target_BT, choices_BTK):
    B, T, _ = hidden_BTD.shape
    if target_BT.shape != (B, T):
        raise ValueError(
            f"lm_head wants a target (B, T); got hidden {hidden_BTD.shape}, target "
            f"{target_BT.shape}"
        )
    if choices_BTK is not None and choices_BTK.shape[:-1] != (B, T):
        raise ValueError(
            f"lm_head wants choices (B, T, K); got hidden {hidden_BTD.shape}, choices "
            f"{choices_BTK.shape}"
        )
    for name, ids in (("target", target_BT), ("choices", choices_BTK)):
        if ids is not None and not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"lm_head: {name} must be integers, got {ids.dtype}")


def _check_shards(hidden_BTD, vocab_VD, shards: Shards | None):
    if shards is None:
        return
    parts, cuts = shards.sizes()
    if hidden_BTD.shape[0] % parts or vocab_VD.shape[0] % cuts:
        raise ValueError(
            f"lm_head: {shards} cuts the batch into {parts} and the vocabulary into "
            f"{cuts}; got hidden {hidden_BTD.shape}, vocab {vocab_VD.shape}"
        )
