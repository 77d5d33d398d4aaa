"""Distillation and token losses against torch's autograd, and TRL's own where it is.

The formulas are written anew from dense logits, in float64. Needs torch.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.losses import distillation, sft

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity tests need torch")

B, C, V = 2, 3, 9
LOSSES = {
    0.0: distillation.forward_kl,
    0.25: partial(distillation.jensen_shannon, beta=0.25),
    0.5: distillation.jensen_shannon,
    1.0: distillation.reverse_kl,
}
every_beta = pytest.mark.parametrize("beta", LOSSES)


def make_logits(seed: int) -> np.ndarray:
    return 2 * np.random.default_rng(seed).normal(size=(2, B, C, V))


def by_torch(function, student: np.ndarray):
    """(sum of the losses, its gradient in the student's logits)."""
    leaf = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    total = function(leaf).sum()
    total.backward()
    return total.item(), leaf.grad.numpy()


def by_jax(function, student: np.ndarray):
    with jax.enable_x64(True):
        value, slope = jax.value_and_grad(lambda x: function(x).sum())(
            jnp.asarray(student)
        )
        return float(value), np.asarray(slope)


def assert_same(ours, theirs, rtol=1e-9):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=rtol, atol=1e-11)


def torch_divergence(p, q, beta: float):
    """From probabilities, student's and teacher's."""
    if beta == 0:
        return (q * (q / p).log()).sum(-1)
    if beta == 1:
        return (p * (p / q).log()).sum(-1)
    m = beta * q + (1 - beta) * p
    to_m = (q * (q / m).log()).sum(-1), (p * (p / m).log()).sum(-1)
    return beta * to_m[0] + (1 - beta) * to_m[1]


@every_beta
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("k", [1, 4, V])
@pytest.mark.parametrize("tail", [True, False])
def test_divergences(beta, temperature, k, tail):
    student, teacher = make_logits(0)

    def theirs(logits):
        p, q = logits.softmax(-1), torch.tensor(teacher).softmax(-1)
        at = q.topk(k, dim=-1).indices
        p, q = p.gather(-1, at), q.gather(-1, at)
        if tail and k < V:
            p = torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)
            q = torch.cat([q, 1 - q.sum(-1, keepdim=True)], -1)
        p, q = p ** (1 / temperature), q ** (1 / temperature)
        p, q = (x / x.sum(-1, keepdim=True) for x in (p, q))
        return torch_divergence(p, q, beta)

    def ours(logits):
        teacher_BCK, at = jax.lax.top_k(jax.nn.log_softmax(jnp.asarray(teacher)), k)
        student_BCK = jnp.take_along_axis(jax.nn.log_softmax(logits), at, axis=-1)
        both = distillation.outcomes(
            student_BCK, teacher_BCK, tail=tail, temperature=temperature
        )
        return LOSSES[beta](*both)

    assert_same(by_jax(ours, student), by_torch(theirs, student))


@every_beta
def test_trl_itself(beta):
    from trl.experimental import gkd

    student, teacher = make_logits(1)
    theirs = partial(
        gkd.GKDTrainer.generalized_jsd_loss,
        teacher_logits=torch.tensor(teacher),
        beta=beta,
        temperature=1.5,
        reduction="sum",
    )

    def ours(logits):
        both = (jax.nn.log_softmax(x) for x in (logits, jnp.asarray(teacher)))
        return LOSSES[beta](*distillation.outcomes(*both, temperature=1.5))

    assert_same(by_jax(ours, student), by_torch(theirs, student), rtol=1e-6)


def logp_of(logits):
    return logits.log_softmax(-1)[..., 0]


TOKENS = {
    "nll": (sft.nll, lambda x: -logp_of(x)),
    "dft": (sft.dft, lambda x: -logp_of(x).detach().exp() * logp_of(x)),
    "unlikelihood": (sft.unlikelihood, lambda x: -(1 - logp_of(x).exp()).log()),
    "anti_repetition": (
        lambda x: sft.anti_repetition(x, jnp.log(jnp.full_like(x, 0.2)), decay=0.5),
        lambda x: -(1 - (logp_of(x).exp() - 0.1).clamp(min=0)).log(),
    ),
}


@pytest.mark.parametrize("name", TOKENS)
def test_token_losses(name):
    student, _ = make_logits(2)
    ours, theirs = TOKENS[name]
    ours_of_logits = by_jax(lambda x: ours(jax.nn.log_softmax(x)[..., 0]), student)
    assert_same(ours_of_logits, by_torch(theirs, student))
