"""From a batch of token ids to what the losses look at, one number a token."""

import jax

from jaxloop.losses.objectives import TokenStats
from jaxloop.mesh import constrain, current_batch_parts
from jaxloop.models.decoder import Decoder, unembedding
from jaxloop_kernels.lm_head import lm_head


def token_stats(
    model: Decoder,
    params: dict,
    batch: dict[str, jax.Array],
    *,
    start: int,
    temperature: float = 1.0,
    vocab: int | None = None,
) -> TokenStats:
    """Log-probability, entropy and so on of tokens `start` to the end, (B, T - start).

    batch: `tokens_BT`, `positions_BT`, `segments_BT`, int32. Token t is scored by the
    hidden state of t - 1, so `start` is at least 1. Rows of the vocabulary from `vocab`
    on (padding of the embedding) take no probability. No (B, T, V) array is formed.
    """
    tokens_BT = batch["tokens_BT"]
    hidden_BTD, _ = model.apply(
        {"params": params}, tokens_BT, batch["positions_BT"], batch["segments_BT"]
    )
    # Whole along D first, or every chunk of the head would gather it over fsdp again.
    vocab_VD = constrain(unembedding(params).astype(model.dtype), "vocab", None)
    head = lm_head(
        hidden_BTD[:, start - 1 : -1],
        vocab_VD,
        tokens_BT[:, start:],
        temperature=temperature,
        valid=vocab,
        parts=current_batch_parts(),
    )
    return TokenStats(
        logp_BC=head.logp_BT,
        entropy_BC=head.entropy_BT,
        hit_BC=head.hit_BT,
        mean_logit_BC=head.mean_logit_BT,
    )
