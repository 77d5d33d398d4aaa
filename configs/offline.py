"""Training on a file of preferences: DPO, KTO or a reward model, nothing sampled.

    jaxloop run configs/offline.py model.path=DIR data.pairs=pairs.jsonl
    jaxloop run configs/offline.py:kto model.path=DIR data.labelled=votes.jsonl
    jaxloop run configs/offline.py:reward model.path=DIR data.pairs=pairs.jsonl

Rows of pairs are {prompt, chosen, rejected}, or chosen and rejected that begin alike;
rows with labels {prompt, completion, label}. Texts or conversations (docs/data.md).
Another objective: a copy of this file with another line of `configs/objectives.py`.

DPO: Rafailov et al. 2023 (arXiv 2305.18290); KTO: Ethayarajh et al. 2024 (arXiv
2402.01306); the reward model is Bradley and Terry's. The reference is the model itself.

Expected: `rewards/accuracies` rises above 0.5 and `logps/chosen` does not fall far.
Held-out accuracy needs `data.test` and an `evaluation.scorer`. Rates and epochs are
TRL's defaults (learning rate 1e-6, beta 0.1) or our own.
"""

from dataclasses import replace

from jaxloop.config import unknown_variant
from jaxloop.experiment import Config, Model
from jaxloop.loop.recipe import OfflineStage
from jaxloop.losses.objectives import Pairwise, RewardModel, Unpaired
from jaxloop.prompts.dataset import JsonlData
from jaxloop.training.optimizer import Optimizer

STAGE = OfflineStage(
    Pairwise(beta=0.1),
    batch_size=64,
    accumulation=8,
    max_completion_tokens=512,
    on_long="filter",
    optimizer=Optimizer(learning_rate=1e-6, warmup=10, schedule="linear"),
)
STAGES = {
    None: STAGE,
    "kto": replace(STAGE, objective=Unpaired(beta=0.1)),
    "reward": replace(
        STAGE,
        objective=RewardModel(centring=0.01),
        optimizer=replace(STAGE.optimizer, learning_rate=1e-5),
    ),
}


def get_config(variant: str | None = None) -> Config:
    if variant not in STAGES:
        raise unknown_variant(variant or "", [name for name in STAGES if name])
    return Config(
        name="offline" if variant is None else f"offline-{variant}",
        model=Model(outputs=1 if variant == "reward" else 0),
        data=JsonlData(on_long="filter"),
        offline=STAGES[variant],
    )
