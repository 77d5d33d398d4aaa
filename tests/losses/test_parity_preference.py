"""Pair and unpaired losses against torch in float64: the formulas written out once
more, example by example, with autograd."""

import math
from types import SimpleNamespace as Bag

import jax
import numpy as np
import pytest

from jaxloop.losses import pair_terms, preference, unpaired
from jaxloop.losses.pairs import Pairs
from tests.losses import pair_samples
from tests.losses.pair_samples import MATCHED, TABLE, random_batch

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity tests need torch")
F = torch.nn.functional
ls = F.logsigmoid
sg = torch.sigmoid


def smoothed(x, e):
    return -(1 - e) * ls(x) - e * ls(-x)


def log_odds(x):
    return x - torch.log(1 - torch.exp(x))


def orpo(p, beta):
    return -beta * ls(log_odds(p.c / p.Lw) - log_odds(p.r / p.Ll))


def discopop(x, tau=0.05):
    q = sg(x / tau)
    return (1 - q) * -ls(x) + q * torch.exp(-x)


def exo(x, e):
    right = sg(x) * (ls(x) - math.log(1 - e))
    return right + sg(-x) * (ls(-x) - math.log(e))


def inpo(p, eta, tau):
    reference = tau / eta * (p.c0 - p.r0)
    previous = (eta - tau) / eta * (p.cp - p.rp)
    return (p.c - p.r - reference - previous - 1 / (2 * eta)) ** 2


def alpha_po(p, beta, alpha):
    def reward(mean):
        return (1 - torch.exp(mean) ** -alpha) / alpha

    return -ls(beta * (reward(p.c / p.Lw) - reward(p.r / p.Ll)) - 0.5)


def js(h):
    return math.log(2) + ls(h)


def forward(h):
    return 1 - torch.exp(-h)


def square_root(h):
    return (torch.exp(-h / 2) - 1) / -0.5


# One pair in, its preference term out. h, l: log-ratios of chosen and rejected; c, r:
# log-probabilities; Lw, Ll: lengths, at least 1; t: target; m: margin.
WRITTEN = {
    "sigmoid": lambda p: -ls(0.1 * (p.h - p.l)),
    "sigmoid_norm": lambda p: -ls(2 * (p.h / p.Lw - p.l / p.Ll)),
    "cdpo": lambda p: smoothed(0.1 * (p.h - p.l), 0.1),
    "robust": lambda p: (
        (-0.9 * ls(0.1 * (p.h - p.l)) + 0.1 * ls(-0.1 * (p.h - p.l))) / 0.8
    ),
    "soft": lambda p: smoothed(0.1 * (p.h - p.l), 1 - p.t),
    "odpo": lambda p: -ls(0.1 * (p.h - p.l) - 0.5 * p.m),
    "hinge": lambda p: torch.relu(1 - 0.1 * (p.h - p.l)),
    "ipo": lambda p: (p.h / p.Lw - p.l / p.Ll - 5) ** 2,
    "ipo_sum": lambda p: (p.h - p.l - 5) ** 2,
    "exo_pair": lambda p: exo(0.1 * (p.h - p.l), 1e-3),
    "discopop": lambda p: discopop(0.1 * (p.h - p.l)),
    "nca_pair": lambda p: -ls(0.1 * p.h) - (ls(-0.1 * p.h) + ls(-0.1 * p.l)) / 2,
    "bco_pair": lambda p: -ls(0.1 * p.h) - ls(-0.1 * p.l),
    "sppo_hard": lambda p: (p.h - 5) ** 2 + (p.l + 5) ** 2,
    "apo_zero": lambda p: 1 - sg(0.1 * p.h) + sg(0.1 * p.l),
    "apo_down": lambda p: sg(0.1 * p.h) + 1 - sg(0.1 * (p.h - p.l)),
    "forward_kl": lambda p: -ls(0.1 * (forward(p.h) - forward(p.l))),
    "js_divergence": lambda p: -ls(0.1 * (js(p.h) - js(p.l))),
    "alpha_divergence": lambda p: -ls(0.1 * (square_root(p.h) - square_root(p.l))),
    "sppo": lambda p: (p.h - 10 * (p.t - 0.5)) ** 2 + (p.l - 10 * (1 - p.t - 0.5)) ** 2,
    "inpo": lambda p: inpo(p, 0.2, 0.05),
    "none": lambda p: 0 * p.c,
    "cpo": lambda p: -ls(0.1 * (p.c - p.r)),
    "simpo": lambda p: -ls(2 * (p.c / p.Lw - p.r / p.Ll) - 0.5),
    "alpha_po": lambda p: alpha_po(p, 2.0, 0.25),
    "orpo": lambda p: orpo(p, 0.1),
    "rf_nll": lambda p: -p.c / p.Lw,
    "margin_ranking": lambda p: torch.relu(p.r / p.Ll - p.c / p.Lw + 1),
    "ipo_forward_kl": lambda p: (forward(p.h) / p.Lw - forward(p.l) / p.Ll - 5) ** 2,
    "normalised": lambda p: (p.h / p.Lw - 0.5) ** 2 + (p.l / p.Ll + 0.5) ** 2,
    "normalised_inpo": lambda p: inpo(means_of(p), 0.2, 0.05),
    "all": lambda p: exo(0.3 * (js(p.h) - js(p.l)), 0.01),
}


def tensor(x):
    return torch.tensor(np.asarray(x), dtype=torch.float64)


class Side:
    """One completion: the tokens that count, as a list would have them."""

    def __init__(self, logp_BC, batch, row):
        counts_C = torch.tensor(batch["mask_BC"][row])
        self.tokens = int(counts_C.sum())
        self.length = max(self.tokens, 1)
        self.logp_C = logp_BC[row][counts_C]

        def known(key):
            return tensor(batch[key][row])[counts_C]

        self.reference_C = known("reference_logp_BC")
        self.previous_C = known("previous_logp_BC")
        self.weight_C = known("weight_BC")
        self.reward_C = known("token_reward_BC")
        self.edited_C = known("edited_BC")

    def totals(self, shared, objective):
        """Policy, reference, second reference."""
        beyond_C = np.arange(self.tokens) >= shared
        share_C = tensor(np.where(beyond_C, objective.ld_alpha, 1.0))
        share_C[self.edited_C == 0] *= objective.edit_alpha
        kinds = (self.logp_C, self.reference_C, self.previous_C)
        return ((x_C * self.weight_C * share_C).sum() for x_C in kinds)

    def nll(self):
        return -(self.weight_C * self.logp_C).sum()

    def likelihood(self, log_sum_sq):
        """WPO's w."""
        aligned_C = self.logp_C.detach() - log_sum_sq
        return torch.exp(aligned_C.sum() / self.length)

    def squares(self, beta):
        """T-REG's."""
        gap_C = beta * (self.logp_C - self.reference_C) - self.reward_C
        return (gap_C**2).sum()


def pair_of(w, l, objective):
    shared = min(w.tokens, l.tokens)
    c, c0, cp = w.totals(shared, objective)
    r, r0, rp = l.totals(shared, objective)
    sums = {"c": c, "c0": c0, "cp": cp, "r": r, "r0": r0, "rp": rp}
    return Bag(**sums, h=c - c0, l=r - r0, Lw=w.length, Ll=l.length)


def means_of(p):
    w, l = p.Lw, p.Ll
    means = {"c": p.c / w, "c0": p.c0 / w, "cp": p.cp / w}
    return Bag(**means, r=p.r / l, r0=p.r0 / l, rp=p.rp / l)


def written_out(name, objective, logp_BC, batch):
    """The mean over valid pairs, in plain loops."""
    valid_P = np.asarray(batch["valid_B"]).reshape(-1, 2).all(1)
    losses, likelihood, tokens = [], 0.0, 0
    for i in np.flatnonzero(valid_P):
        w, l = (Side(logp_BC, batch, row) for row in (2 * i, 2 * i + 1))
        pair = pair_of(w, l, objective)
        pair.t, pair.m, weight = (
            float(batch[key][2 * i]) for key in ("target_B", "margin_B", "weight_B")
        )
        loss = WRITTEN.get(name, WRITTEN["sigmoid"])(pair)
        if objective.wpo:
            level = -0.3 if objective.wpo is pair_terms.wpo else 0.0
            loss = loss * w.likelihood(level) * l.likelihood(level)
        squares = w.squares(objective.beta) + l.squares(objective.beta)
        mean = squares / max(w.tokens + l.tokens, 1)
        loss = loss + objective.token_regulariser * mean
        loss = loss + objective.optimism * objective.beta * (pair.h + pair.l) / 2
        loss = loss + objective.nll * w.nll() / w.length
        losses.append(weight * loss)
        likelihood, tokens = likelihood + weight * w.nll(), tokens + w.tokens
    sft = objective.sft * likelihood / max(tokens, 1)
    return sum(losses) / len(losses) + sft


@pytest.mark.parametrize("name", sorted(set(TABLE) - set(MATCHED)))
def test_values_and_gradients_written_out_in_torch(name):
    objective = TABLE[name]
    with jax.enable_x64(True):
        logp_BC, batch = random_batch(11, pairs=5, tokens=7, dtype=np.float64)
        loss, gradient_BC, _ = pair_samples.evaluate(objective, logp_BC, batch)
        loss, gradient_BC, logp_BC = jax.device_get((loss, gradient_BC, logp_BC))
        batch = jax.device_get(batch)
    tolerance = {"rtol": 1e-9, "atol": 1e-12}
    leaf_BC = torch.tensor(np.nan_to_num(logp_BC), requires_grad=True)
    expected = written_out(name, objective, leaf_BC, batch)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), **tolerance)
    np.testing.assert_allclose(gradient_BC, leaf_BC.grad, **tolerance)


@pytest.mark.parametrize("loss", [preference.aot, preference.aot_unpaired])
def test_sorted_losses_written_out_in_torch(loss):
    rng = np.random.default_rng(0)
    policy_P2, reference_P2 = rng.normal(-20, 5, (2, 6, 2))
    leaf_P2 = torch.tensor(policy_P2, requires_grad=True)
    h_P2 = leaf_P2 - tensor(reference_P2)
    if loss is preference.aot:
        above = leaf_P2[:, 0] - leaf_P2[:, 1]
        below = tensor(reference_P2[:, 0] - reference_P2[:, 1])
    else:
        above, below = h_P2[:, 0], h_P2[:, 1]
    d_P = torch.sort(above).values - torch.sort(below).values
    expected = smoothed(0.2 * d_P, 0.1).mean()
    expected.backward()

    def ours(policy_P2):
        pairs = Pairs(policy_P2, reference_P2, np.ones((6, 2)))
        valid_P = np.ones(6, bool)
        return loss(pairs, beta=0.2, valid_P=valid_P, smoothing=0.1)[0].mean()

    with jax.enable_x64(True):
        value, gradient_P2 = jax.device_get(jax.value_and_grad(ours)(policy_P2))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-9)
    np.testing.assert_allclose(gradient_P2, leaf_P2.grad, rtol=1e-8)


def unpaired_written_out(name, h, good, kl, delta):
    y = 1.0 if good else -1.0
    if name == "kto":
        return 1 - sg(y * 0.1 * (h - max(0.0, kl)))
    if name == "apo_zero_unpaired":
        return 1 - sg(y * 0.1 * h)
    return -ls(y * (0.1 * h - delta))


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired", "bco"])
def test_unpaired_losses_written_out_in_torch(name):
    rng = np.random.default_rng(1)
    policy_N, reference_N = rng.normal(-20, 5, (2, 7))
    good_N = rng.random(7) < 0.5
    leaf_N = torch.tensor(policy_N, requires_grad=True)
    expected = sum(
        unpaired_written_out(name, leaf_N[i] - reference_N[i], good_N[i], 0.7, 0.3)
        for i in range(7)
    )
    expected.backward()
    numbers = {"kto": {"kl": 0.7}, "bco": {"delta": 0.3}}.get(name, {})

    def ours(policy_N):
        examples = unpaired.Examples(policy_N, reference_N, np.ones(7), good_N)
        return getattr(unpaired, name)(examples, beta=0.1, **numbers)[0].sum()

    with jax.enable_x64(True):
        value, gradient_N = jax.device_get(jax.value_and_grad(ours)(policy_N))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-9)
    np.testing.assert_allclose(gradient_N, leaf_N.grad, rtol=1e-9)
