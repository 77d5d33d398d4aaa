"""GRPO on GSM8K (Shao et al. 2024, arXiv 2402.03300), purely on-policy.

Each step samples 8 solutions of each of 32 questions; a solution is worth 1 if it ends
in the gold answer, else 0, and is pushed by how much it is better than its group. It
shows that a verifier alone, without any solution to imitate, improves reasoning.

    jaxloop run configs/gsm8k_grpo.py model.path=DIR \\
        data.train=train.jsonl data.test=test.jsonl
    jaxloop run configs/gsm8k_grpo.py:tiny    the quickstart's sums, on a CPU in seconds

For a chat model add `data.chat=true`. Where the model never writes `#### ` at first,
all rewards are 0: run `configs/sft.py` before, or set `recipe.scorer.score=flexible` to
accept the last number of a solution.

Expected, not yet measured: `reward` rises from the first tens of steps on,
`eval/strict` with it. Tiny: greedy accuracy on held-out sums rises.

Others publish for GSM8K: prompts up to 512 tokens, responses up to 1024, rate 1e-6, 8
samples. After the defaults of TRL 1.16: no KL term, clip 0.2, a mean over all tokens of
the step, advantages divided by the group's std. Ours: 32 questions a step, 500 steps,
prompt. The paper's own GRPO has a KL term and averages over each sequence first
(`recipe.objective.kl=0.04 recipe.objective.aggregation=sequence`; that 0.04 is
recalled).
"""

from dataclasses import replace

from configs import quickstart, sft
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config
from jaxloop.loop.recipe import Online, Recipe
from jaxloop.losses.objectives import Policy
from jaxloop.selection import GroupAdvantage
from jaxloop.training.optimizer import Optimizer

RECIPE = Recipe(
    sampling=replace(sft.SAMPLING, n=8, max_new_tokens=1024),
    scorer=sft.GOLD,
    advantage=GroupAdvantage(),
    objective=Policy(),
    schedule=Online(steps=500, prompts=32, accumulation=16),
    optimizer=Optimizer(learning_rate=1e-6),
)
TINY = replace(
    RECIPE,
    sampling=quickstart.SAMPLING,
    scorer=quickstart.GOLD,
    schedule=Online(steps=20, prompts=32),
    optimizer=replace(quickstart.ADAM, learning_rate=3e-4),
)


def get_config(variant: str | None = None) -> Config:
    if variant == "tiny":
        return replace(sft.tiny("gsm8k_grpo"), recipe=TINY)
    if variant is not None:
        raise unknown_variant(variant, ["tiny"])
    base = sft.get_config()
    return replace(
        base,
        name="gsm8k_grpo",
        data=sft.PROMPTS,
        sft=None,
        recipe=RECIPE,
        evaluation=replace(base.evaluation, every=100),
    )
