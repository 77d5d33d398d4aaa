"""One optimiser step: accumulate, clip, update, or skip when anything is not finite."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from jaxloop.losses.objective import Memory, Objective, memory_of, remembered
from jaxloop.losses.reduce import collapse, values
from jaxloop.mesh import sharding, shardings_of
from jaxloop.models.decoder import Decoder, init_boxed
from jaxloop.training.logprobs import head_after, token_stats
from jaxloop.training.optimizer import Optimizer, apply_updates, make_optimizer


@struct.dataclass
class TrainState:
    """`step` counts the batches seen, `skipped` those whose update was not finite.

    `memory`: what the objective keeps from step to step (`memory_of`), float32 scalars
    by name; {} for most.
    """

    step: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array
    params: dict
    opt_state: optax.OptState
    memory: Memory = struct.field(default_factory=dict)


def state_shardings(
    model: Decoder, optimizer: Optimizer, mesh: Mesh, memory: Memory | None = None
) -> TrainState:
    """Where each array of the state lives. The optimiser follows its parameters."""
    tx = make_optimizer(optimizer)

    def boxed():
        params = init_boxed(model, jax.random.key(0))
        return _fresh(params, tx, memory)

    return shardings_of(jax.eval_shape(boxed), mesh)


def _fresh(params, tx, memory: Memory | None) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        skipped=zero,
        skipped_in_row=zero,
        params=params,
        opt_state=tx.init(params),
        memory=jax.tree.map(jnp.float32, memory or {}),
    )


def fresh_state(
    params: dict,
    optimizer: Optimizer,
    shardings: TrainState,
    memory: Memory | None = None,
) -> TrainState:
    """A state with moments of zero around parameters that are on the devices already.

    It takes the parameters over: the first train step gives their memory away.
    `memory`: the objective's, at its start; None where it has none.
    """
    tx = make_optimizer(optimizer)
    moments = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    step, skipped, skipped_in_row = (
        jax.device_put(np.int32(0), shardings.step) for _ in range(3)
    )
    return TrainState(
        step=step,
        skipped=skipped,
        skipped_in_row=skipped_in_row,
        params=params,
        opt_state=moments,
        memory=jax.device_put(jax.tree.map(np.float32, memory or {}), shardings.memory),
    )


def abstract_state(
    model, optimizer, mesh, dtype, memory: Memory | None = None
) -> TrainState:
    """Shapes, dtypes and shardings of the state; nothing is allocated."""
    tx = make_optimizer(optimizer)

    def unboxed():
        params = nn.unbox(init_boxed(model, jax.random.key(0), dtype))
        return _fresh(params, tx, memory)

    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(unboxed),
        state_shardings(model, optimizer, mesh, memory),
    )


def make_train_step(
    model: Decoder,
    objective: Objective,
    optimizer: Optimizer,
    mesh: Mesh,
    *,
    start: int,
    temperature: float = 1.0,
    vocab: int | None = None,
) -> Callable:
    """`step(state, batch, rate) -> (state, metrics)`, compiled once a batch shape.

    Every array of `batch` is (A, B, ...): A micro-batches, scanned. `counts` of the
    whole step divide every micro-batch, so A changes nothing but memory. The state is
    donated. The metrics (name to scalar) are still on the devices: fetch them one step
    late. The objective finds its memory in every micro-batch, under its names; what is
    not finite never gets into it.
    """
    tx = make_optimizer(optimizer)
    shardings = state_shardings(model, optimizer, mesh, memory_of(objective))
    score = partial(
        token_stats, model, start=start, temperature=temperature, vocab=vocab
    )

    def loss_fn(params, micro, counts):
        return objective(score(params, micro), micro, counts)

    def gradients(params, batch, memory):
        counts = jax.vmap(lambda micro: objective.counts(micro | memory))(batch)
        counts = jax.tree.map(jnp.sum, counts)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        accumulation = jax.tree.leaves(batch)[0].shape[0]
        if accumulation == 1:
            micro = jax.tree.map(lambda x: x[0], batch) | memory
            (loss, metrics), grads = grad_fn(params, micro, counts)
            return loss, metrics, grads

        def accumulate(total, micro):
            (loss, metrics), grads = grad_fn(params, micro | memory, counts)
            grads = jax.lax.with_sharding_constraint(grads, shardings.params)
            total = jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads)
            return total, (loss, metrics)

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        grads, (losses, metrics) = jax.lax.scan(accumulate, zeros, batch)
        return losses.sum(), collapse(metrics), grads

    def train_step(state: TrainState, batch, rate):
        loss, metrics, grads = gradients(state.params, batch, state.memory)
        grads = jax.lax.with_sharding_constraint(grads, shardings.params)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params, opt_state = apply_updates(
            state.params, opt_state, updates, rate, state.step
        )
        figures = values(metrics) | {"loss": loss, "grad_norm": norm}
        memory = remembered(objective, state.memory, figures)
        keep = partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
        state = TrainState(
            step=state.step + 1,
            skipped=state.skipped + ~finite,
            skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            memory=keep(_finite(memory, state.memory), state.memory),
        )
        figures |= {
            "skipped_updates": state.skipped,
            "skipped_in_row": state.skipped_in_row,
        }
        return state, figures

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, sharding(mesh, None, "batch"), None),
        out_shardings=(shardings, None),
    )


def _finite(memory: Memory, before: Memory) -> Memory:
    """Scalars that are not finite (a figure that counted nothing is NaN) stay."""

    def kept(new, old):
        return jnp.where(jnp.isfinite(new), new, old).astype(old.dtype)

    return jax.tree.map(kept, memory, before)


def make_scorer(model: Decoder, mesh: Mesh, *, start: int, temperature=1.0, vocab=None):
    """`score(params, batch) -> logp_BC`, for references and old log-probabilities."""

    def score(params, batch):
        stats = token_stats(
            model, params, batch, start=start, temperature=temperature, vocab=vocab
        )
        return stats.logp_BC

    return jax.jit(score, in_shardings=(None, sharding(mesh, "batch")))


def make_head_scorer(model: Decoder, mesh: Mesh, *, start: int):
    """`score(params, batch) -> head_BEK`, the scalar head's outputs after e = 0 ... C
    completion tokens: old values for PPO, rewards of a reward model."""

    def score(params, batch):
        return head_after(model, params, batch, start=start)

    return jax.jit(score, in_shardings=(None, sharding(mesh, "batch")))
