"""Pair, unpaired and reward losses against TRL's own functions, where it is installed:
values, gradients, and the metrics that it logs."""

from collections import defaultdict
from types import SimpleNamespace as Bag

import jax
import numpy as np
import pytest

from jaxloop.losses import reference_free, reward_model, unpaired
from jaxloop.losses.pairs import Pairs
from jaxloop.losses.pairwise import Pairwise
from jaxloop.losses.reward_model import RewardModel
from jaxloop.losses.unpaired import Unpaired
from tests.losses import pair_samples
from tests.losses.pair_samples import TABLE

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity tests need torch")
trl = pytest.importorskip("trl", reason="compares with TRL's own code")
F = torch.nn.functional


def tensor(x):
    return torch.tensor(np.asarray(x), dtype=torch.float64)


class Accelerator:
    """One process."""

    device = "cpu"

    def gather(self, x):
        return x

    gather_for_metrics = gather


def trl_self(**settings):
    """What TRL's loss methods read of their trainer."""
    defaults = {
        "beta": 0.1,
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "use_weighting": False,
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "calculate_KL": True,
        "args": Bag(discopop_tau=0.05),
        "accelerator": Accelerator(),
        "model": Bag(training=True),
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return Bag(**(defaults | settings))


def trl_model(logp_BC, mask_BC):
    """A model that has said what the statistics say; TRL's have a column in front."""

    def run(**_):
        logp = torch.where(mask_BC, logp_BC, 0.0)
        return Bag(
            log_probs=logp,
            log_sum_sq_probs=torch.full_like(logp, -0.3),
            entropy=-logp.detach(),
            mean_logits=2 * logp.detach(),
            is_top1=logp > -1.0,
        )

    return run


def trl_batch(mask_BC):
    """Chosen rows, then rejected ones, with a token of prompt in front."""
    mask = F.pad(mask_BC.long(), (1, 0))
    ones = torch.ones_like(mask)
    return {"completion_mask": mask, "input_ids": ones, "attention_mask": ones}


SAME_NAME = (
    *("sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard"),
    *("apo_zero", "apo_down", "discopop", "aot_unpaired"),
)
TRL_DPO = {name: {"loss_types": [name]} for name in SAME_NAME}
TRL_DPO |= {
    "sigmoid_norm": {"loss_types": ["sigmoid_norm"], "beta": 2.0},
    "exo_pair": {"loss_types": ["exo_pair"], "label_smoothing": 1e-3},
    "robust": {"loss_types": ["robust"], "label_smoothing": 0.1},
    "aot": {"loss_types": ["aot"], "label_smoothing": 0.1},
    "none": {"loss_types": ["sft"]},
    "rpo": {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
    "wpo": {"loss_types": ["sigmoid"], "use_weighting": True},
    "forward_kl": {"loss_types": ["sigmoid"], "f_divergence_type": "forward_kl"},
    "js_divergence": {"loss_types": ["sigmoid"], "f_divergence_type": "js_divergence"},
    "alpha_divergence": {
        "loss_types": ["sigmoid"],
        "f_divergence_type": "alpha_divergence",
    },
}
PLAIN = ("mask_BC", "reference_logp_BC")


def plain_batch():
    """Float64 pairs with neither weights nor invalid rows, all of some length."""
    rng = np.random.default_rng(5)
    mask_BC = np.arange(7) < rng.integers(1, 8, (10, 1))
    logp_BC, reference_BC = np.minimum(rng.normal(-1, 0.5, (2, 10, 7)), -1e-3)
    return logp_BC, {"mask_BC": mask_BC, "reference_logp_BC": reference_BC}


@pytest.mark.parametrize("name", TRL_DPO)
def test_dpo_losses_gradients_and_metrics_of_trl(name):
    logp_BC, batch = plain_batch()
    order = np.r_[0:10:2, 1:10:2]
    # TRL's alpha divergence knows no float64.
    single = name == "alpha_divergence"
    dtype, rtol = (torch.float32, 2e-4) if single else (torch.float64, 1e-6)
    leaf_BC = torch.tensor(logp_BC, dtype=dtype, requires_grad=True)
    mask_BC = torch.tensor(batch["mask_BC"])[order]
    reference_B = tensor((batch["reference_logp_BC"] * batch["mask_BC"]).sum(1))[order]
    settings = {"loss_weights": [1.0]} | TRL_DPO[name]
    trainer = trl_self(**settings)
    inputs = trl_batch(mask_BC)
    reference_chosen, reference_rejected = reference_B.to(dtype).chunk(2)
    inputs["ref_chosen_logps"] = reference_chosen
    inputs["ref_rejected_logps"] = reference_rejected
    model = trl_model(leaf_BC[order], mask_BC)
    expected = trl.DPOTrainer._compute_loss(trainer, model, inputs, False)
    expected.backward()
    with jax.enable_x64(True):
        found = pair_samples.evaluate(TABLE[name], logp_BC, batch)
        loss, gradient_BC, metrics = jax.device_get(found)
    np.testing.assert_allclose(loss, expected.item(), rtol=rtol)
    np.testing.assert_allclose(gradient_BC, leaf_BC.grad, rtol=rtol, atol=1e-12)
    theirs = {k: v[-1] for k, v in trainer._metrics["train"].items()}
    del theirs["num_tokens"]
    if name == "none":  # theirs has a reference, which only its metrics look at
        theirs = {k: v for k, v in theirs.items() if not k.startswith("rewards/")}
    for key, value in theirs.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("ld_alpha", [0.0, 0.4])
def test_desensitised_lengths_of_trl(ld_alpha):
    logp_BC, batch = plain_batch()
    order = np.r_[0:10:2, 1:10:2]
    leaf_BC = torch.tensor(logp_BC, requires_grad=True)
    mask_BC = torch.tensor(batch["mask_BC"])[order]
    reference = trl_model(tensor(batch["reference_logp_BC"])[order], mask_BC)
    settings = {"loss_types": ["sigmoid"], "loss_weights": [1.0], "ld_alpha": ld_alpha}
    trainer = trl_self(**settings, precompute_ref_logps=False, ref_model=reference)
    trainer.args.gradient_checkpointing_kwargs = None
    trainer.model = torch.nn.Linear(1, 1)
    trainer.model.is_gradient_checkpointing = False
    model = trl_model(leaf_BC[order], mask_BC)
    expected = trl.DPOTrainer._compute_loss(trainer, model, trl_batch(mask_BC), False)
    expected.backward()
    with jax.enable_x64(True):
        objective = Pairwise(ld_alpha=ld_alpha)
        found = pair_samples.evaluate(objective, logp_BC, batch)
        loss, gradient_BC, _ = jax.device_get(found)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient_BC, leaf_BC.grad, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "settings", "numbers"),
    [
        (reference_free.cpo, {"loss_type": "sigmoid"}, {"beta": 0.1}),
        (
            reference_free.simpo,
            {"loss_type": "simpo", "beta": 2.0, "label_smoothing": 0.1},
            {"beta": 2.0, "smoothing": 0.1},
        ),
        (
            reference_free.alpha_po,
            {"loss_type": "simpo", "beta": 2.0, "alpha": 0.25},
            {"beta": 2.0, "alpha": 0.25},
        ),
        (reference_free.orpo, {}, {"beta": 0.1}),
    ],
    ids=["cpo", "simpo", "alpha_po", "orpo"],
)
def test_losses_without_a_reference_of_trl(loss, settings, numbers):
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    rng = np.random.default_rng(3)
    policy_P2, tokens_P2 = rng.normal(-20, 5, (6, 2)), rng.integers(1, 30, (6, 2)) * 1.0
    means = loss is not reference_free.cpo
    chosen, rejected = torch.tensor(policy_P2 / (tokens_P2 if means else 1.0)).T
    trainer = trl_self(**({"simpo_gamma": 0.5, "alpha": 0.0} | settings))
    if loss is reference_free.orpo:
        theirs = ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)
        expected_P = -theirs[0]  # the sign that TRL takes back in its sum
    else:
        theirs = CPOTrainer.cpo_loss(trainer, chosen, rejected)
        expected_P = theirs[0]
    with jax.enable_x64(True):
        pairs = Pairs(policy_P2, np.zeros((6, 2)), tokens_P2)
        loss_P, metrics = jax.device_get(loss(pairs, **numbers))
    np.testing.assert_allclose(loss_P, expected_P, rtol=1e-5)
    if means:
        np.testing.assert_allclose(metrics["rewards/chosen"], theirs[1], rtol=1e-5)
        np.testing.assert_allclose(metrics["rewards/rejected"], theirs[2], rtol=1e-5)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_unpaired_losses_gradients_and_metrics_of_trl(name):
    logp_BC, batch = plain_batch()
    mask_BC = torch.tensor(batch["mask_BC"])
    reference_B = tensor((batch["reference_logp_BC"] * batch["mask_BC"]).sum(1))
    batch["label_B"] = np.repeat([1.0, -1, -1, 1, 1], 2)
    leaf_BC = torch.tensor(logp_BC, requires_grad=True)
    own = slice(0, None, 2) if name == "kto" else slice(None)
    kl_B = torch.where(mask_BC, leaf_BC, 0.0).sum(1)[1::2].detach()
    trainer = trl_self(
        loss_type=name,
        calculate_KL=name == "kto",
        desirable_weight=1.5,
        undesirable_weight=0.5,
        _compute_kl_logps=lambda *_: kl_B,
    )
    inputs = trl_batch(mask_BC[own])
    inputs["label"] = torch.tensor(batch["label_B"][own] > 0)
    inputs["ref_logps"], inputs["ref_KL_logps"] = reference_B[own], reference_B[1::2]
    model = trl_model(leaf_BC[own], mask_BC[own])
    expected = trl.KTOTrainer._compute_loss(trainer, model, inputs, False)
    expected.backward()
    objective = Unpaired(
        getattr(unpaired, name), desirable_weight=1.5, undesirable_weight=0.5
    )
    with jax.enable_x64(True):
        found = pair_samples.evaluate(objective, logp_BC, batch)
        loss, gradient_BC, metrics = jax.device_get(found)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient_BC, leaf_BC.grad, rtol=1e-6, atol=1e-12)
    theirs = {k: v[-1] for k, v in trainer._metrics["train"].items()}
    del theirs["num_tokens"]
    if name != "kto":
        assert theirs.pop("kl") == 0
    for key, value in theirs.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("margin", [False, True])
def test_reward_model_of_trl(margin):
    rng = np.random.default_rng(2)
    reward_P2, margin_P = rng.normal(0, 2, (6, 2)), rng.uniform(0, 1, 6)
    leaf_P2 = torch.tensor(reward_P2, requires_grad=True)
    logits = leaf_P2.T.reshape(12, 1)
    trainer = trl_self()
    trainer.args.center_rewards_coefficient = 0.01
    inputs = {"attention_mask": torch.ones(12, 1)}
    if margin:
        inputs["margin"] = tensor(margin_P)
    expected = trl.RewardTrainer.compute_loss(
        trainer, lambda **_: Bag(logits=logits), inputs
    )
    expected.backward()
    loss = reward_model.bradley_terry_margin if margin else reward_model.bradley_terry
    objective = RewardModel(loss, centring=0.01)
    batch = {"mask_BC": np.ones((12, 1)), "margin_B": np.repeat(margin_P, 2)}

    def ours(reward_P2):
        # One token each: what is read stands after it.
        head_BEK = jax.numpy.stack([0 * reward_P2, reward_P2], -1).reshape(12, 2, 1)
        stats = pair_samples.token_stats(np.zeros((12, 1))).replace(head_BEK=head_BEK)
        return objective(stats, batch, objective.counts(batch))

    with jax.enable_x64(True):
        found = jax.value_and_grad(ours, has_aux=True)(reward_P2)
        (loss, metrics), gradient_P2 = jax.device_get(found)
        figures = jax.device_get(pair_samples.values(metrics))
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient_P2, leaf_P2.grad, rtol=1e-6)
    theirs = {k: v[-1] for k, v in trainer._metrics["train"].items()}
    del theirs["num_tokens"]
    assert set(figures) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_allclose(figures[key], value, rtol=1e-5, err_msg=key)
