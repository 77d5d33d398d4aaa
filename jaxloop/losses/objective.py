"""What an objective is: token statistics of a micro-batch in, its share of the step's
loss out.

One frozen dataclass a family; what varies inside a family is a function or a number.
The sum over a micro-batch is divided by the counts of the whole optimiser step, so
neither accumulation nor sharding changes the loss (but for those that look across the
batch and say so: `aot`, KTO's reference point).

A batch is a dict of arrays whose first axis is B, sequences. All but the mask are
optional; an objective that needs one says which is missing:

- `mask_BC` (bool or float, > 0 counts): the completion tokens that are trained on.
- `valid_B`: rows that count; one that does not adds exactly nothing, neither to the
  loss nor to a denominator, whatever its numbers are.
- `weight_B`: multiplies the loss of a sequence, or of a pair (both its rows carry the
  pair's), not the denominator. `weight_BC`: the same by token.
- `reference_logp_BC`, `previous_logp_BC`, `old_logp_BC`: log-probabilities under the
  reference, a second reference, the weights before the batch's first update.
- `sampler_logp_BC`, `drawn_logp_BC`: what the sampler said, of the untruncated
  distribution and of the one it drew from.
- `advantage_B`, or `advantage_BC` by token, which then wins; `opposed_B`: what cancels
  in `advantage_B` of pushes up and down, where it is a sum over labels.
- `reward_BC`, `return_BC`, `value_BC`: rewards, returns and old values by token;
  `reward_B`: the reward of a completion, NaN where unscored; `token_reward_BC`: what
  T-REG's regulariser aims at; `edited_BC`: 1 where a pair's completions differ.
- `target_B`: a soft label or a regression target (pairs: on the chosen row);
  `margin_B`: by how much the chosen one should win; `label_B`: > 0 is desirable;
  `group_B`: int32, equal for the rows of one prompt; `truncated_B`: > 0 where the
  completion ended at the length limit; `step_BC`: labels at the ends of steps, NaN
  elsewhere.
- `teacher_ids_BCK`, `teacher_logp_BCK`: a teacher's K likeliest tokens.

Log-probabilities are in nats, float32.

Shapes: B sequences, C completion tokens (padded), E = C + 1, K choices or outputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxloop.losses.reduce import Metrics, Sum, select

Batch = Mapping[str, jax.Array]
Counts = dict[str, jax.Array]
Memory = dict[str, jax.Array]
Need = Literal[
    "advantage",
    "reference",
    "previous",
    "teacher",
    "mismatch",
    "head",
    "token_reward",
    "edits",
]
"""What the loop must provide beside tokens: advantages; log-probabilities of a
reference, of a second one; a teacher's choices; completions under another prompt (KTO);
a scalar head on the model; rewards by token (T-REG); where the completions of a pair
differ."""
Kind = Literal["demonstrations", "pairs", "labelled", "groups"]
"""What an objective trains on."""


@struct.dataclass
class TokenStats:
    """What the model says of each completion token, (B, C) float32."""

    logp_BC: jax.Array
    entropy_BC: jax.Array
    hit_BC: jax.Array
    """1 where no token is likelier than the target. No gradient."""
    mean_logit_BC: jax.Array
    """Mean of the logits over the vocabulary. No gradient."""
    log_sum_sq_BC: jax.Array
    """log of the sum of squared probabilities. No gradient."""
    top_logp_BCK: jax.Array | None = None
    """Log-probabilities of the tokens `teacher_ids_BCK`."""
    head_BEK: jax.Array | None = None
    """The scalar head's outputs after e = 0 ... C completion tokens: entry t is the
    value before token t, entry t + 1 the reward after it."""


def stats_of(logp_BC: jax.Array, **others: jax.Array) -> TokenStats:
    """Statistics with the named ones given and zeros for the rest."""
    zeros = jnp.zeros_like(logp_BC)
    names = ("entropy_BC", "hit_BC", "mean_logit_BC", "log_sum_sq_BC")
    return TokenStats(logp_BC, **(dict.fromkeys(names, zeros) | others))


class Objective(Protocol):
    """What the training step asks of an objective; to inherit, with its defaults."""

    @property
    def trains_on(self) -> Kind:
        """What the rows of its batches are."""
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """What batches must carry beside tokens and masks."""
        return frozenset()

    @property
    def temperature_from_sampling(self) -> bool:
        """Whether log-probabilities are taken at the sampling temperature, or at 1."""
        return False

    def counts(self, batch: Batch) -> Counts:
        """Denominators, from masks alone. The caller adds them up over the step."""
        ...

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        """(this micro-batch's share of the loss, metrics of this micro-batch)."""
        ...


def memory_of(objective: Objective) -> Memory:
    """The scalars that an objective keeps from step to step, at their start.

    An objective that has any defines `memory() -> Memory` and `remember(memory,
    figures) -> Memory`, figures being the values of the whole step's metrics. It finds
    the scalars in the batch, under their names.
    """
    start: Callable[[], Memory] | None = getattr(objective, "memory", None)
    return {} if start is None else start()


def remembered(objective: Any, memory: Memory, figures: Mapping) -> Memory:
    """The scalars after a step."""
    return objective.remember(memory, figures) if memory else memory


def valid_rows(batch: Batch) -> jax.Array:
    """(B,) bool."""
    return jnp.broadcast_to(batch.get("valid_B", True), batch["mask_BC"].shape[:1]) > 0


def active_tokens(batch: Batch) -> jax.Array:
    """(B, C) bool: tokens that count, of rows that count."""
    return (batch["mask_BC"] > 0) & valid_rows(batch)[:, None]


def required(batch: Batch, key: str, objective) -> jax.Array:
    """What the batch must hold; ValueError where it does not."""
    if key not in batch:
        name = type(objective).__name__
        raise ValueError(f"{name} needs {key!r} in the batch; it has {sorted(batch)}")
    return batch[key]


def row_weights(batch: Batch) -> jax.Array:
    """(B,): weights of the rows that count, 1 where none are given. No gradient."""
    weight_B = batch.get("weight_B", jnp.ones(batch["mask_BC"].shape[:1]))
    return select(jax.lax.stop_gradient(weight_B), valid_rows(batch))


def token_weights(batch: Batch, active_BC: jax.Array) -> jax.Array:
    """(B, C): `weight_BC` of the active tokens, 1 where none are given. No gradient."""
    if "weight_BC" not in batch:
        return jnp.ones(active_BC.shape)
    return select(jax.lax.stop_gradient(batch["weight_BC"]), active_BC)


@dataclass(frozen=True)
class Mixture(Objective):
    """A weighted sum of objectives over the same batch.

    Metrics of the first that logs a name are kept; `loss/0`, `loss/1`, ... are the
    parts, unweighted.
    """

    parts: tuple[Objective, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if not self.parts or len(self.parts) != len(self.weights):
            raise ValueError(
                f"Mixture: {len(self.parts)} parts and {len(self.weights)} weights; "
                "give one weight a part"
            )
        kinds = sorted({part.trains_on for part in self.parts})
        if len(kinds) > 1:
            raise ValueError(f"Mixture: its parts train on {' and '.join(kinds)}")
        if len({"mismatch" in part.needs for part in self.parts}) > 1:
            raise ValueError(
                "Mixture: one part wants mismatched rows (KTO), which another would "
                "take for examples"
            )

    @property
    def trains_on(self) -> Kind:
        return self.parts[0].trains_on

    @property
    def whole_groups(self) -> bool:
        """Whether a part wants all rows of a group in one micro-batch."""
        return any(getattr(part, "whole_groups", False) for part in self.parts)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def temperature_from_sampling(self) -> bool:
        """One pass over the model has one temperature: with a policy objective among
        the parts it is the sampler's."""
        return any(part.temperature_from_sampling for part in self.parts)

    def memory(self) -> Memory:
        """All parts' scalars."""
        return {k: v for part in self.parts for k, v in memory_of(part).items()}

    def remember(self, memory: Memory, figures: Mapping) -> Memory:
        """Each part's own."""
        for part in self.parts:
            own = {name: memory[name] for name in memory_of(part)}
            memory = memory | remembered(part, own, figures)
        return memory

    def counts(self, batch: Batch) -> Counts:
        """Each part's, under its number."""
        return {
            f"{i}/{name}": value
            for i, part in enumerate(self.parts)
            for name, value in part.counts(batch).items()
        }

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        total, metrics = jnp.zeros(()), {}
        for i, (part, weight) in enumerate(zip(self.parts, self.weights, strict=True)):
            prefix = f"{i}/"
            own = {
                name.removeprefix(prefix): value
                for name, value in counts.items()
                if name.startswith(prefix)
            }
            loss, logged = part(stats, batch, own)
            total = total + weight * loss
            share = Sum(jax.lax.stop_gradient(loss))
            metrics = logged | {f"loss/{i}": share} | metrics
        return total, metrics
