"""Offline, semi-online and online DPO (Lanchantin et al. 2025, arXiv 2506.21495).

One knob, s: the steps between copies of the trained weights to the sampler. Each step
samples 64 questions, takes one solution that reaches the gold answer against one that
does not, and makes one update of DPO. It shows that fresh samples matter, and that they
need not be perfectly fresh: s = 10 comes near s = 1, never copying stays well behind.
GRPO on the same samples is no better than DPO. configs/bridging.py has the paper's
other half, with prompts that no verifier can check.

    jaxloop run configs/online_dpo.py model.path=DIR \\
        data.train=train.jsonl data.test=test.jsonl  s = 1
    jaxloop run configs/online_dpo.py:semi ...       s = 10
    jaxloop run configs/online_dpo.py:offline ...    never: the first model's samples
    jaxloop run configs/online_dpo.py:grpo ...       GRPO at s = 1
    jaxloop run configs/online_dpo.py:tiny           s = 1 on the quickstart's sums, on
        a CPU in seconds; tiny-semi, tiny-offline: s = 10, never; tiny-grpo

For DPO the reference is copied together with the sampler; without that
(`recipe.schedule.sync_reference_every=0`) the paper saw lengths collapse at s = 1. The
checkpoint with the best held-out accuracy stays as `OUT/checkpoints/best`.

Expected: the paper took Llama-3.1-8B-Instruct on Math500 from 47.4 to 53.7 % offline,
57.2 at s = 10, 58.7 at s = 1, 58.1 with GRPO. Here no model of that size has been run.
Tiny: all four raise greedy accuracy on held-out sums.

Of the settings, the paper's for verifiable answers are: beta 0.1, rate 1e-6, Adam's eps
1e-4, clipping at 0.1, batches of 64, temperature 1, no likelihood term; for GRPO groups
of 8, a KL term of 0.001 to the first model, no importance ratios, and no division by a
completion's length (as in Dr. GRPO; nor, therefore, by the group's std). Ours: GSM8K
instead of NuminaMath, 8 samples a question, 500 steps, 1024 new tokens (the paper's
limit is 2048 in all), prompt, GRPO's optimiser, which is that of DPO. A question whose
samples are all right or all wrong gives no pair: `pairs/count` says how many are left.
"""

from dataclasses import replace

from configs import quickstart, sft
from jaxloop.config import unknown_variant
from jaxloop.experiment import Checkpointing, Config
from jaxloop.loop.recipe import Online, Recipe
from jaxloop.losses.objectives import Pairwise, Policy
from jaxloop.selection import CorrectIncorrect, GroupAdvantage
from jaxloop.training.optimizer import Optimizer

KINDS = ("semi", "offline", "grpo")
VARIANTS = (None, *KINDS, "tiny", *(f"tiny-{kind}" for kind in KINDS))
RECIPE = Recipe(
    sampling=sft.SAMPLING,
    scorer=sft.GOLD,
    selector=CorrectIncorrect(),
    objective=Pairwise(beta=0.1),
    schedule=Online(steps=500, prompts=64, accumulation=8),
    optimizer=Optimizer(learning_rate=1e-6, eps=1e-4, clip_norm=0.1),
)
TINY = replace(
    RECIPE,
    sampling=quickstart.SAMPLING,
    scorer=quickstart.GOLD,
    schedule=Online(steps=30, prompts=32),
    optimizer=replace(quickstart.ADAM, learning_rate=3e-4),
)


def get_config(variant: str | None = None) -> Config:
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    tiny, kind = "tiny" in (variant or ""), (variant or "").removeprefix("tiny-")
    recipe, every = TINY if tiny else RECIPE, {"semi": 10, "offline": 0}.get(kind, 1)
    schedule = replace(recipe.schedule, sync_every=every, sync_reference_every=every)
    recipe = replace(recipe, schedule=schedule)
    if kind == "grpo":
        recipe = grpo(recipe)
    real = replace(sft.get_config(), data=sft.PROMPTS, sft=None)
    base = sft.tiny("online_dpo") if tiny else real
    return replace(
        base,
        name="-".join(["online_dpo", *filter(None, [variant])]),
        recipe=recipe,
        evaluation=replace(base.evaluation, every=0 if tiny else 100),
        checkpoint=Checkpointing(best="eval/accuracy"),
    )


def grpo(recipe: Recipe) -> Recipe:
    """The same samples and scores, as groups."""
    length = recipe.sampling.max_new_tokens
    return replace(
        recipe,
        selector=None,
        advantage=GroupAdvantage(scale="none"),
        objective=Policy(kl=1e-3, aggregation="constant", max_completion_length=length),
        schedule=replace(recipe.schedule, sync_reference_every=0),
    )
