"""From a batch of token ids to what the losses look at, a few numbers a token."""

import jax

from jaxloop.losses.objective import TokenStats
from jaxloop.mesh import axes_of, constrain, is_cut
from jaxloop.models.decoder import Decoder, head_outputs, unembedding
from jaxloop_kernels.lm_head import Shards, lm_head


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

    batch: `tokens_BT`, `positions_BT`, `segments_BT`, int32; with `teacher_ids_BCK`,
    int32, the log-probabilities of those tokens too. Rows of the vocabulary from
    `vocab` on (padding of the embedding) take no probability. No (B, T, V) array is
    formed.
    """
    hidden_BED = states_after(model, params, batch, start=start)
    head = lm_head(
        hidden_BED[:, :-1],
        output_matrix(model, params),
        batch["tokens_BT"][:, start:],
        batch.get("teacher_ids_BCK"),
        temperature=temperature,
        valid=vocab,
        shards=Shards(axes_of("batch"), axes_of("vocab")[0]) if is_cut() else None,
    )
    return TokenStats(
        logp_BC=head.logp_BT,
        entropy_BC=head.entropy_BT,
        hit_BC=head.hit_BT,
        mean_logit_BC=head.mean_logit_BT,
        log_sum_sq_BC=head.log_sum_sq_BT,
        top_logp_BCK=head.choice_logp_BTK,
        head_BEK=head_outputs(params, hidden_BED),
    )


def head_after(model: Decoder, params: dict, batch, *, start: int) -> jax.Array:
    """(B, E, K) float32: the scalar head's outputs after e = 0 ... C completion tokens.

    ValueError for a model without one.
    """
    hidden_BED = states_after(model, params, batch, start=start)
    head_BEK = head_outputs(params, hidden_BED)
    if head_BEK is None:
        raise ValueError("the model has no scalar head: its shape's `outputs` is 0")
    return head_BEK


def states_after(model: Decoder, params: dict, batch, *, start: int) -> jax.Array:
    """(B, E, D): the hidden states after e = 0 ... C completion tokens, E = C + 1.

    Token t is scored by the state before it, so `start`, the first completion token's
    column, is at least 1.
    """
    assert start >= 1, "the first token has no state before it"
    hidden_BTD, _ = model.apply(
        {"params": params},
        batch["tokens_BT"],
        batch["positions_BT"],
        batch["segments_BT"],
    )
    return hidden_BTD[:, start - 1 :]


def output_matrix(model: Decoder, params: dict) -> jax.Array:
    """(V, D) in the compute dtype, whole along D: else every chunk of the head would
    gather it over fsdp again."""
    return constrain(unembedding(params).astype(model.dtype), "vocab", None)
