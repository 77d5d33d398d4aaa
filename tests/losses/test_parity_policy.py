"""Policy losses against torch in float64: formulas written out once more, completion by
completion, with autograd; and TRL's own loss code where TRL is installed."""

from collections import defaultdict
from types import SimpleNamespace as Bag

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.losses import kl, off_policy, policy, ppo
from jaxloop.losses.objective import stats_of
from jaxloop.losses.objectives import OffPolicy, Policy
from jaxloop.losses.reduce import values
from tests.losses.policy_samples import TERMS

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity tests need torch")
close = np.testing.assert_allclose


def samples(seed=0):
    """Float64 completions without weights or invalid rows, all of some length."""
    rng = np.random.default_rng(seed)
    rows, tokens = 6, 7
    base_BC = -rng.exponential(1.0, (rows, tokens))
    lengths_B1 = rng.integers(1, tokens + 1, (rows, 1))

    def near():
        return base_BC - 0.2 * np.abs(rng.normal(size=(rows, tokens)))

    batch = {
        "mask_BC": np.arange(tokens) < lengths_B1,
        "advantage_B": rng.normal(size=rows),
        "old_logp_BC": near(),
        "reference_logp_BC": near(),
        "sampler_logp_BC": near(),
    }
    return near(), rng.uniform(0, 2, (rows, tokens)), batch


def ours(objective, logp_BC, entropy_BC, batch, **memory):
    """(loss, gradients in logp and entropy, metrics) in float64."""
    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, batch | memory)

        def loss(logp_BC, entropy_BC):
            stats = stats_of(logp_BC, entropy_BC=entropy_BC)
            return objective(stats, arrays, objective.counts(arrays))

        compute = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (value, metrics), gradients = compute(jnp.asarray(logp_BC), entropy_BC)
        return jax.device_get((value, gradients, values(metrics)))


def clipped(row, low=0.2, high=0.2, w=None, most=None):
    w, A = row.w if w is None else w, row.A
    first = w if most is None else w.clamp(max=most)
    return -torch.min(first * A, w.clamp(1 - low, 1 + high) * A)


def dual(row, c):
    loss = clipped(row)
    return (
        loss if row.A >= 0 else torch.minimum(loss, torch.full_like(loss, -c * row.A))
    )


def gmpo(row, e):
    q = row.lr.clamp(max=e) if row.A > 0 else row.lr.clamp(min=-e)
    return -row.A * q.mean().exp() * torch.ones_like(q)


def vespo(row):
    k, lam = (2.0, 3.0) if row.A >= 0 else (3.0, 2.0)
    W = row.product.detach()
    return -(W**k * torch.exp(lam - lam * W)) * row.A * row.logp


def topr(row):
    taper = 1.0 if row.A >= 0 else row.product.detach().clamp(max=1)
    return -taper * row.A * row.logp


def sapo(row):
    tau = 1.0 if row.A > 0 else 1.05
    return -4 / tau * torch.sigmoid(tau * (row.w - 1)) * row.A


def dppo(row, e):
    moved = row.logp.detach().exp() - row.old.exp()
    gone = (moved > e) if row.A > 0 else (moved < -e)
    return -torch.where(gone, 0.0, row.w * row.A) + 1e-3 * row.lr**2


def cispo(row, cap, w):
    return -w.detach().clamp(max=cap) * row.A * row.logp


TORCH = {
    "clipped": (clipped, "token"),
    "clip_higher": (lambda r: clipped(r, high=0.28), "token"),
    "constant": (clipped, "constant"),
    "level_sequence": (lambda r: clipped(r, w=r.mean), "sequence"),
    "level_sum": (lambda r: clipped(r, w=r.product), "sum"),
    "two_sided": (lambda r: clipped(r, most=1.5), "token"),
    "dual_clip": (lambda r: dual(r, 1.4), "token"),
    "gspo": (lambda r: clipped(r, 0.05, 0.05, r.mean), "sequence"),
    "luspo": (lambda r: clipped(r, 0.05, 0.05, r.mean), "sum"),
    "rloo": (lambda r: clipped(r, w=r.product), "sequence"),
    "cispo": (lambda r: cispo(r, 1.2, r.w), "token"),
    "cispo_sequence": (lambda r: cispo(r, 1.2, r.mean), "token"),
    "sapo": (sapo, "sequence"),
    "vespo": (vespo, "token"),
    "gmpo": (lambda r: gmpo(r, 0.2), "sequence"),
    "topr": (topr, "sum"),
    "dppo": (lambda r: dppo(r, 0.05), "token"),
}


def transcribed(name, logp_BC, batch):
    """(loss, gradient) by torch."""
    term, way = TORCH[name]
    leaf_BC = torch.tensor(logp_BC, requires_grad=True)
    losses = []
    for b, mask_C in enumerate(batch["mask_BC"]):
        logp, old = leaf_BC[b][mask_C], torch.tensor(batch["old_logp_BC"][b][mask_C])
        lr = logp - old
        row = Bag(logp=logp, old=old, lr=lr, w=lr.exp(), A=batch["advantage_B"][b])
        row.mean, row.product = lr.mean().exp(), lr.sum().exp()
        losses.append(term(row) * torch.ones_like(logp))
    total = sum(loss.sum() for loss in losses)
    loss = {
        "token": total / batch["mask_BC"].sum(),
        "sequence": sum(loss.mean() for loss in losses) / len(losses),
        "constant": total / (len(losses) * 8),
        "sum": total / len(losses),
    }[way]
    loss.backward()
    return loss.item(), leaf_BC.grad.numpy()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TERMS)
def test_terms_and_their_gradients(name, seed):
    logp_BC, entropy_BC, batch = samples(seed)
    loss, (gradient_BC, _), _ = ours(TERMS[name], logp_BC, entropy_BC, batch)
    expected, expected_BC = transcribed(name, logp_BC, batch)
    close(loss, expected, rtol=1e-6)
    close(gradient_BC, expected_BC, rtol=1e-6, atol=1e-12)


def test_gae_by_torch():
    _, value_BC, batch = samples()
    reward_BC, mask_BC = batch["old_logp_BC"], batch["mask_BC"]
    with jax.enable_x64(True):
        actual = ppo.gae(*map(jnp.asarray, (reward_BC, value_BC, mask_BC)), decay=0.9)
        actual = jax.device_get(actual)
    for b, length in enumerate(mask_BC.sum(1)):
        value = torch.tensor([*value_BC[b, :length], 0.0])
        delta = torch.tensor(reward_BC[b, :length]) + value[1:] - value[:-1]
        powers = 0.9 ** torch.arange(length, dtype=torch.float64)
        for t in range(length):
            expected = (powers[: length - t] * delta[t:]).sum()
            close(actual[0][b, t], expected, rtol=1e-6)
            close(actual[1][b, t], expected + value_BC[b, t], rtol=1e-6)


# TRL's loss code, on a stand-in for its trainer.

SEQUENCE = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
GSPO = {"clip_low": 0.05, "clip_high": 0.05}
TRL = {
    "dapo": (Policy(), {}),
    "grpo": (Policy(aggregation="sequence"), {"loss_type": "grpo"}),
    "bnpo": (Policy(), {"loss_type": "bnpo"}),
    "dr_grpo": (
        Policy(aggregation="constant", max_completion_length=9),
        {"loss_type": "dr_grpo", "max_completion_length": 9},
    ),
    "gspo": (Policy(policy.gspo, **GSPO), {**SEQUENCE, "epsilon": 0.05}),
    "luspo": (
        Policy(policy.gspo, **GSPO, aggregation="sum"),
        {**SEQUENCE, "loss_type": "luspo", "epsilon": 0.05},
    ),
    "cispo": (
        Policy(policy.cispo, clip_high=1.1),
        {"loss_type": "cispo", "epsilon_high": 1.1},
    ),
    "sapo": (Policy(policy.sapo), {"loss_type": "sapo"}),
    "vespo": (Policy(policy.vespo), {"loss_type": "vespo"}),
    "two_sided": (Policy(policy.two_sided, delta=1.3), {"delta": 1.3}),
    "kl": (Policy(kl=0.3), {"beta": 0.3}),
    "kl_plain": (
        Policy(kl=0.3, kl_bias_correction=False),
        {"beta": 0.3, "use_bias_correction_kl": False},
    ),
    "kl_sequence": (
        Policy(policy.gspo, **GSPO, kl=0.3),
        {**SEQUENCE, "epsilon": 0.05, "beta": 0.3},
    ),
    "entropy": (Policy(entropy=0.2), {"entropy_coef": 0.2}),
    "top_entropy": (
        Policy(top_entropy=0.4, entropy=0.2, kl=0.3),
        {"top_entropy_quantile": 0.4, "entropy_coef": 0.2, "beta": 0.3},
    ),
    "off_policy_mask": (
        Policy(off_policy=OffPolicy(None, stray_threshold=0.01)),
        {"off_policy_mask_threshold": 0.01},
    ),
}
MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
for mode in MODES:
    corrected = OffPolicy(getattr(off_policy, mode), least=0.8, most=1.3)
    TRL[mode] = (Policy(off_policy=corrected, kl=0.3), {"mode": mode, "beta": 0.3})
for mode in MODES[:2]:
    corrected = OffPolicy(getattr(off_policy, mode), least=0.8, most=1.3)
    TRL[f"vespo_{mode}"] = (
        Policy(policy.vespo, off_policy=corrected),
        {"loss_type": "vespo", "mode": mode},
    )


class OneProcess:
    """What the loss asks of an accelerator, with one process."""

    num_processes, device, sync_gradients = 1, "cpu", True

    def gather(self, x):
        return x

    def pad_across_processes(self, x, **_):
        return x

    def reduce(self, x, **_):
        return x


def trainer_of(cls, leaf_BC, entropy_BC, **settings):
    """An object with what `cls._compute_loss` reads of its trainer."""
    numbers = {
        **{"loss_type": "dapo", "importance_sampling_level": "token", "beta": 0.0},
        **{"epsilon": 0.2, "max_completion_length": 7, "top_entropy_quantile": 1.0},
        **{"off_policy_mask_threshold": None, "entropy_coef": 0.0, "mode": None},
        **{"delta": None, "use_bias_correction_kl": True},
    } | settings
    numbers.setdefault("epsilon_high", numbers["epsilon"])
    args = Bag(
        delta=numbers["delta"],
        use_bias_correction_kl=numbers["use_bias_correction_kl"],
        **{"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05},
        **{"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0},
        **{"vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0},
        steps_per_generation=1,
    )
    bag = Bag(
        args=args,
        epsilon_low=numbers["epsilon"],
        current_gradient_accumulation_steps=1,
        accelerator=OneProcess(),
        aux_loss_enabled=False,
        use_vllm=numbers["mode"] is not None,
        vllm_importance_sampling_correction=True,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=numbers["entropy_coef"] != 0,
        _metrics={"train": defaultdict(list)},
        model=Bag(training=True),
        get_off_policy_mask=getattr(cls, "get_off_policy_mask", None),
        get_gamma_weights=getattr(cls, "get_gamma_weights", None),
        **{k: v for k, v in numbers.items() if k not in ("delta", "mode")},
    )
    bag.get_high_entropy_mask = lambda *x: cls.get_high_entropy_mask(bag, *x)
    bag._get_per_token_logps_and_entropies = lambda *_, **__: (
        leaf_BC,
        entropy_BC,
        None,
    )
    return bag


def inputs_of(batch):
    mask_BC = torch.tensor(batch["mask_BC"]).long()
    empty = torch.zeros(len(mask_BC), 1).long()
    return {
        "prompt_ids": empty,
        "prompt_mask": empty,
        "completion_ids": torch.zeros_like(mask_BC),
        "completion_mask": mask_BC,
        "advantages": torch.tensor(batch["advantage_B"]),
        "old_per_token_logps": torch.tensor(batch["old_logp_BC"]),
        "ref_per_token_logps": torch.tensor(batch["reference_logp_BC"]),
        "sampling_per_token_logps": torch.tensor(batch["sampler_logp_BC"]),
        "num_items_in_batch": mask_BC.sum(),
    }


def trl_ratio(mode, batch):
    """The weights that TRL's sampling code hands to its loss."""
    gap_BC = (batch["old_logp_BC"] - batch["sampler_logp_BC"]) * batch["mask_BC"]
    if mode.startswith("sequence"):
        gap_BC = gap_BC.sum(1, keepdims=True)
    rho_BC = np.exp(gap_BC)
    if mode.endswith("truncate"):
        return torch.tensor(np.clip(rho_BC, 0.8, 1.3))
    return torch.tensor(np.where((rho_BC < 0.8) | (rho_BC > 1.3), 0.0, rho_BC))


def check(actual, expected, leaves, theirs, skip=()):
    """Loss, gradients, and every metric that TRL logs."""
    loss, gradients, metrics = actual
    close(loss, expected.item(), rtol=1e-6)
    for gradient_BC, leaf_BC in zip(gradients, leaves, strict=True):
        grad = 0.0 if leaf_BC.grad is None else leaf_BC.grad.numpy()
        expected_BC = np.broadcast_to(grad, gradient_BC.shape)
        close(gradient_BC, expected_BC, rtol=1e-6, atol=1e-12)
    for name, value in theirs.items():
        if name not in skip:
            close(metrics[name], value[-1], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", TRL)
def test_losses_gradients_and_metrics_of_trl(name):
    import trl

    objective, settings = TRL[name]
    logp_BC, entropy_BC, batch = samples(4)
    leaves = [torch.tensor(x, requires_grad=True) for x in (logp_BC, entropy_BC)]
    trainer = trainer_of(trl.GRPOTrainer, *leaves, **settings)
    inputs = inputs_of(batch)
    if "mode" in settings:
        inputs["importance_sampling_ratio"] = trl_ratio(settings["mode"], batch)
    expected = trl.GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    expected.backward()
    # Theirs: KL after the correction; the clip after delta; the sum of loss and KL.
    skip = {"policy_loss"} | ({"kl"} if objective.kl_bias_correction else set())
    if name == "two_sided":
        skip |= {
            "clip_ratio/high_mean",
            "clip_ratio/high_max",
            "clip_ratio/region_mean",
        }
    actual = ours(objective, logp_BC, entropy_BC, batch)
    check(actual, expected, leaves, trainer._metrics["train"], skip)


def test_gmpo_of_trl():
    from trl.experimental.gmpo import GMPOTrainer

    logp_BC, entropy_BC, batch = samples(4)
    leaves = [torch.tensor(x, requires_grad=True) for x in (logp_BC, entropy_BC)]
    trainer = trainer_of(GMPOTrainer, *leaves, epsilon=0.2, beta=0.3)
    expected = GMPOTrainer._compute_loss(trainer, trainer.model, inputs_of(batch))
    expected.backward()
    objective = Policy(
        policy.gmpo, clip_low=0.2, clip_high=0.2, kl=0.3, kl_bias_correction=False
    )
    actual = ours(objective, logp_BC, entropy_BC, batch)
    check(actual, expected, leaves, trainer._metrics["train"])


def test_rloo_of_trl():
    import trl

    logp_BC, entropy_BC, batch = samples(4)
    leaves = [torch.tensor(x, requires_grad=True) for x in (logp_BC, entropy_BC)]
    trainer = trainer_of(trl.RLOOTrainer, *leaves)
    inputs = inputs_of(batch)
    inputs["old_logps"] = torch.tensor((batch["old_logp_BC"] * batch["mask_BC"]).sum(1))
    expected = trl.RLOOTrainer._compute_loss(trainer, trainer.model, inputs)
    expected.backward()
    actual = ours(Policy(policy.rloo), logp_BC, entropy_BC, batch)
    check(actual, expected, leaves, trainer._metrics["train"])


def test_kl_in_the_reward_is_rloo_s():
    _, _, batch = samples()
    reward_BC = kl.in_reward(
        *(jnp.asarray(batch[f"{x}_logp_BC"]) for x in ("old", "reference")),
        batch["mask_BC"],
        weight=0.05,
    )
    gap_BC = batch["old_logp_BC"] - batch["reference_logp_BC"]
    expected_B = -0.05 * (gap_BC * batch["mask_BC"]).sum(1)
    close(reward_BC.sum(1), expected_B, rtol=1e-4, atol=1e-6)
