"""Learning a teacher's distribution at every token, not only the token that was said.

A divergence is a function of two arrays of log-probabilities over the same N outcomes,
(B, C, N), the student's and the teacher's; it returns nats a token, (B, C). What the
outcomes are is said by `outcomes`: the teacher's K likeliest tokens, and as one more
outcome all others together.

What the data is makes the method, the loss stays: a teacher's or a dataset's
completions (logit distillation), the student's own samples (on-policy distillation,
GKD), a teacher that is the model itself behind a richer prompt (prompt or context
distillation), a mean of several teachers (`jaxloop.training.teachers`).

Shapes: B sequences, C completion tokens, K choices of the teacher, N outcomes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxloop.losses import keywords
from jaxloop.losses.objective import (
    Batch,
    Counts,
    Kind,
    Need,
    Objective,
    TokenStats,
    active_tokens,
    required,
)
from jaxloop.losses.reduce import Mean, Metrics, count, masked_sum, ratio, select
from jaxloop.losses.supervised import loss_weights

LEAST_TAIL = 1e-5
"""A tail below this is rounding: float32 probabilities that add up to 1."""
NOTHING = -1e30
"""The log-probability of what cannot be; finite, so that 0 x log 0 is 0."""


def forward_kl(student_BCN: jax.Array, teacher_BCN: jax.Array) -> jax.Array:
    """KL(teacher, student): the student learns all that the teacher might say.

    loss = sum_n q_n (log q_n - log p_n), p the student's, q the teacher's

    Hinton et al. 2015 (arXiv 1503.02531), for language models Kim and Rush 2016 (arXiv
    1606.07947), word level; beta = 0 of Agarwal et al. 2023 (arXiv 2306.13649).
    Use: off-policy, or where no answer of the teacher may be lost; the default.
    Names: TRL `beta=0`, verl `forward_kl_topk_tail`, OpenRLHF's `train_kd`.
    """
    return _kl(teacher_BCN, student_BCN)


def reverse_kl(student_BCN: jax.Array, teacher_BCN: jax.Array) -> jax.Array:
    """KL(student, teacher): the student says only what the teacher might say.

    loss = sum_n p_n (log p_n - log q_n), p the student's, q the teacher's

    Gu et al. 2023 (arXiv 2306.08543); beta = 1 of Agarwal et al. 2023 (arXiv
    2306.13649). All outcomes are summed, so none is estimated by sampling.
    Use: on the student's own samples, for a student too small to cover the teacher.
    Names: TRL `beta=1`.
    """
    return _kl(student_BCN, teacher_BCN)


def jensen_shannon(
    student_BCN: jax.Array, teacher_BCN: jax.Array, *, beta: float = 0.5
) -> jax.Array:
    """Generalised Jensen-Shannon divergence: between the two directions, and bounded.

    loss = beta KL(q, m) + (1 - beta) KL(p, m), m = beta q + (1 - beta) p, p the
    student's, q the teacher's

    Agarwal et al. 2023 (arXiv 2306.13649), equation 1. Near 0 it is beta times the
    forward KL, near 1 (1 - beta) times the reverse; TRL puts these in at the ends.
    Use: on-policy, where the reverse KL collapses.
    Names: TRL `beta`.
    """
    mean_BCN = jnp.logaddexp(
        teacher_BCN + math.log(beta), student_BCN + math.log1p(-beta)
    )
    return beta * _kl(teacher_BCN, mean_BCN) + (1 - beta) * _kl(student_BCN, mean_BCN)


def _kl(p_BCN: jax.Array, q_BCN: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(p_BCN) * (p_BCN - q_BCN), axis=-1)


def outcomes(
    student_BCK: jax.Array,
    teacher_BCK: jax.Array,
    *,
    tail: bool = True,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities (student's, teacher's) of what is compared, (B, C, N) each.

    student_BCK, teacher_BCK: log-probabilities of the same K tokens among all tokens,
    untempered. The teacher gets no gradient.

    tail: N = K + 1, the last outcome being any other token, for both sides. Nothing is
    lost to the student by putting mass where the teacher has none, but how it is spread
    there does not matter. Without: N = K, both renormalised over the choices; then the
    student's mass on other tokens does not matter either.

    With K = V, all tokens, either form is the divergence of the two distributions
    themselves (the tail is empty and left out).

    temperature: outcomes p become p^(1 / temperature), renormalised. That is exact for
    the choices; for K < V the tail is tempered as the one outcome it is here. There is
    no factor temperature^2 (as in TRL; Hinton et al. have it).
    """
    teacher_BCK = jnp.maximum(jax.lax.stop_gradient(teacher_BCK), NOTHING)
    student_BCN, teacher_BCN = student_BCK, teacher_BCK
    if tail:
        student_BCN, teacher_BCN = _with_tail(student_BCK, teacher_BCK)
    if tail and temperature == 1:
        return student_BCN, teacher_BCN
    return (
        jax.nn.log_softmax(student_BCN / temperature),
        jax.nn.log_softmax(teacher_BCN / temperature),
    )


def _with_tail(student_BCK, teacher_BCK) -> tuple[jax.Array, jax.Array]:
    rest_BC1s = [
        1 - jnp.exp(x).sum(axis=-1, keepdims=True) for x in (student_BCK, teacher_BCK)
    ]
    empty_BC1 = (rest_BC1s[0] < LEAST_TAIL) & (rest_BC1s[1] < LEAST_TAIL)

    def extended(x_BCK, rest_BC1):
        # The bound holds the value, not the gradient: an empty tail can fill again.
        held_BC1 = jnp.maximum(rest_BC1, LEAST_TAIL)
        rest_BC1 = rest_BC1 + jax.lax.stop_gradient(held_BC1 - rest_BC1)
        tail_BC1 = jnp.where(empty_BC1, NOTHING, jnp.log(rest_BC1))
        return jnp.concatenate([x_BCK, tail_BC1], axis=-1)

    return extended(student_BCK, rest_BC1s[0]), extended(teacher_BCK, rest_BC1s[1])


@dataclass(frozen=True)
class Distill(Objective):
    """A mean over the step's trained tokens of weight x (divergence + nll term).

    Batches carry the teacher's choices, `teacher_ids_BCK` and `teacher_logp_BCK`, at
    temperature 1; weights as in `Supervised`, where one below 0 has no meaning.
    """

    loss: Callable[..., jax.Array] = forward_kl
    """The divergence of a token: a function of `jaxloop.losses.distillation`, or your
    own of (student_BCN, teacher_BCN)."""
    beta: float | None = None
    """jensen_shannon's share of the teacher in the mean, above 0 and below 1; none is
    1/2."""
    tail: bool = True
    """Count the tokens that are not the teacher's choices as one more outcome; else
    renormalise over the choices."""
    temperature: float = 1.0
    """Softens both distributions before they are compared."""
    nll: float = 0.0
    """Weight of the negative log-likelihood of the tokens themselves."""

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"Distill: temperature {self.temperature} is not above 0")
        if not self.nll >= 0:
            raise ValueError(f"Distill: nll must not be negative, got {self.nll}")
        if self.beta is not None and not 0 < self.beta < 1:
            raise ValueError(
                f"Distill: beta {self.beta} is not between 0 and 1; at the ends are "
                "forward_kl (0) and reverse_kl (1)"
            )
        self._numbers()

    def _numbers(self) -> dict[str, float]:
        return keywords.numbers(self, self.loss, ("beta",))

    @property
    def trains_on(self) -> Kind:
        return "groups"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"teacher"})

    def counts(self, batch: Batch) -> Counts:
        """tokens."""
        return {"tokens": count(active_tokens(batch))}

    def __call__(
        self, stats: TokenStats, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, Metrics]:
        active_BC = active_tokens(batch)
        student_BCK, teacher_BCK = self._choices(stats, batch)
        student_BCN, teacher_BCN = outcomes(
            student_BCK, teacher_BCK, tail=self.tail, temperature=self.temperature
        )
        loss_BC = self.loss(student_BCN, teacher_BCN, **self._numbers())
        nll_BC = -select(stats.logp_BC, active_BC)
        metrics: Metrics = {
            "distillation/loss": Mean.of(loss_BC, active_BC),
            "distillation/student_mass": _mass(student_BCK, active_BC),
            "distillation/teacher_mass": _mass(teacher_BCK, active_BC),
            "nll_loss": Mean.of(nll_BC, active_BC),
            "entropy": Mean.of(stats.entropy_BC, active_BC),
            "mean_token_accuracy": Mean.of(stats.hit_BC, active_BC),
        }
        if self.nll:
            loss_BC = loss_BC + self.nll * nll_BC
        total = masked_sum(loss_weights(batch) * loss_BC, active_BC)
        return ratio(total, counts["tokens"]), metrics

    def _choices(self, stats: TokenStats, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of the teacher's choices: the student's, the teacher's."""
        required(batch, "teacher_ids_BCK", self)
        teacher_BCK = required(batch, "teacher_logp_BCK", self)
        assert stats.top_logp_BCK is not None, "statistics without teacher_ids_BCK"
        active_BC1 = active_tokens(batch)[..., None]
        return select(stats.top_logp_BCK, active_BC1), select(teacher_BCK, active_BC1)


def _mass(logp_BCK: jax.Array, active_BC: jax.Array) -> Mean:
    """The probability of the choices together."""
    return Mean.of(jnp.exp(logp_BCK).sum(axis=-1), active_BC)
