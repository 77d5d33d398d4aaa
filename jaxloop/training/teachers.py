"""What teachers say of a batch's completions: their likeliest tokens at each position.

A student learns from `teacher_ids_BCK` and `teacher_logp_BCK` (`jaxloop.losses.
distillation`). On-policy distillation gives the teacher the student's own samples;
prompt distillation gives it the same completions behind a richer prompt, whose border
is then another `start`. Teacher and student share their tokens, not their sizes.

Shapes: B sequences, C completion tokens, D width, K tokens, J teachers, N = J K.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxloop.mesh import current_batch_parts, sharding
from jaxloop.models.decoder import Decoder
from jaxloop.training.logprobs import output_matrix, states_after
from jaxloop_kernels.lm_head import lm_head, top_tokens

NOT_A_CHOICE = -1e30


def make_teacher(
    model: Decoder, mesh: Mesh, *, start: int, k: int, vocab: int | None = None
) -> Callable:
    """`teach(params, batch) -> (ids_BCK int32, logp_BCK float32)`, compiled once a
    shape: the k likeliest tokens of each completion position, in falling order.

    batch: `tokens_BT`, `positions_BT`, `segments_BT`; completions begin at column
    `start`. `vocab`: tokens that exist, where the embedding has more rows; k may be as
    large.
    """
    return make_mixed_teacher([model], mesh, start=start, k=k, vocab=vocab)


def make_mixed_teacher(
    models: Sequence[Decoder],
    mesh: Mesh,
    *,
    start: int,
    k: int,
    weights: Sequence[float] | None = None,
    vocab: int | None = None,
    temperature: float = 1.0,
) -> Callable:
    """`teach(params_1, ..., params_J, batch)`: as `make_teacher`, of the weighted mean
    of J teachers' distributions (None: equal weights).

    The log-probabilities are the mixture's own. Their tokens are the k likeliest under
    it of all that are among some teacher's k likeliest: with k = V these are all.
    """
    share_J = np.ones(len(models)) if weights is None else np.asarray(weights, float)
    if share_J.shape != (len(models),) or not (share_J > 0).all():
        raise ValueError(f"{len(models)} teachers need as many weights > 0: {weights}")
    log_share_J = np.log(share_J / share_J.sum())

    def teach(*params_and_batch):
        *params_J, batch = params_and_batch
        how = {
            "valid": vocab,
            "parts": current_batch_parts(),
            "temperature": temperature,
        }
        heads = [
            (
                states_after(model, params, batch, start=start)[:, :-1],
                output_matrix(model, params),
            )
            for model, params in zip(models, params_J, strict=True)
        ]
        tops = [top_tokens(*head, k, **how) for head in heads]
        if len(tops) == 1:
            return tops[0].ids_BTK, tops[0].logp_BTK
        ids_BCN = jnp.sort(jnp.concatenate([top.ids_BTK for top in tops], -1), -1)
        target_BC = ids_BCN[..., 0]  # any will do
        stats = [lm_head(*head, target_BC, ids_BCN, **how) for head in heads]
        logp_JBCN = jnp.asarray([of.choice_logp_BTK for of in stats])
        return _likeliest(ids_BCN, logp_JBCN, log_share_J, k)

    in_shardings = (*(None for _ in models), sharding(mesh, "batch"))
    return jax.jit(teach, in_shardings=in_shardings)


def _likeliest(ids_BCN, logp_JBCN, log_share_J, k: int) -> tuple[jax.Array, jax.Array]:
    """The k likeliest of the sorted ids, each once, under the mixture."""
    log_share_J111 = jnp.asarray(log_share_J, jnp.float32)[:, None, None, None]
    mixed_BCN = jax.nn.logsumexp(logp_JBCN + log_share_J111, axis=0)
    again_BCN = jnp.diff(ids_BCN, axis=-1, prepend=-1) == 0
    logp_BCK, at_BCK = jax.lax.top_k(jnp.where(again_BCN, NOT_A_CHOICE, mixed_BCN), k)
    return jnp.take_along_axis(ids_BCN, at_BCK, axis=-1), logp_BCK
