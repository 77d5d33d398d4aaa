"""J1: thinking judges by reinforcement learning (arXiv 2505.10320).

A judge is rewarded for its verdicts. Every pair is judged in both orders in the same
step, five times each, and a judgement counts as right only where the other order's is
right as well: GRPO on that. It shows that a judge trained so changes its mind less with
the order (`eval/flips`), which is what a reward for each order by itself leaves be.

    jaxloop run configs/j1.py model.path=DIR \\
        data.train.pairs=pairs.jsonl data.test.pairs=held_out.jsonl
    jaxloop run configs/j1.py:scores ...      two scores, the higher one is the verdict
    jaxloop run configs/j1.py:pointwise ...   one answer at a time: a score is right
        where it is on the right side of that of the other answer
    jaxloop run configs/j1.py:tiny            pairs of sums, on a CPU in a minute; also
        tiny-plain (each order rewarded by itself) and tiny-pointwise

Rows are {prompt, chosen, rejected}, as for configs/self_taught.py: worse answers to
perturbed questions, and wrong solutions of problems with a known result. A pointwise
judge is measured by `eval/ranking_accuracy` and `eval/ties`; its `eval/accuracy` is the
mean of the scores that it gives.

Expected: the paper took an 8B Llama from 54.7 to 59.2 on PPE Correctness and
from 69.5 to 85.7 on RewardBench; against plain rewards the joint one raised accuracy in
both orders from 39.1 to 43.9 % and cut flips from 36.8 to 28.7. Here no model of that
size has been run. Tiny, one run (seed 0): flips fall from 56 to 24 %,
pairs right in both orders rise from 29 to 53; with each order rewarded by itself to 41
and 41. tiny-pointwise, one run (seed 0): the better answer gets the higher score in 82
% of the pairs, from 27, and both the same in 16, from 73.

Of the settings, the paper's are: 5 samples at temperature 1, rate 1e-6, batches of 512,
KL 0.01 (8B; 0 at 70B), 4,096 new tokens, both orders in a batch. Ours: 512 are prompts,
steps (two passes over 22,000 pairs), the words of the prompts, which ask for the
reasoning before the verdict, not in a block of its own; how judgements of both orders
are matched (by their number). Not supported: scores and verdict together, pointwise and
pairwise prompts in one run.
"""

from dataclasses import replace

from configs import judging, quickstart
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config
from jaxloop.loop.recipe import Online, Recipe
from jaxloop.losses.objectives import Policy
from jaxloop.selection import GroupAdvantage, JointOrder, JointScore
from jaxloop.training.optimizer import Optimizer

PLAIN = GroupAdvantage()
RECIPE = Recipe(
    sampling=replace(judging.SAMPLING, n=5),
    scorer=judging.scorer(judging.VERDICT),
    advantage=JointOrder(PLAIN),
    objective=Policy(kl=0.01),
    schedule=Online(steps=170, prompts=512, together="pair", accumulation=64),
    optimizer=Optimizer(learning_rate=1e-6),
)
TINY = replace(
    RECIPE,
    sampling=judging.TINY_SAMPLING,
    schedule=Online(steps=30, prompts=32, together="pair"),
    optimizer=replace(quickstart.ADAM, learning_rate=3e-4),
)
VARIANTS = {
    None: JointOrder(PLAIN),
    "scores": JointOrder(PLAIN),
    "pointwise": JointScore(PLAIN),
    "tiny": JointOrder(PLAIN),
    "tiny-plain": PLAIN,
    "tiny-pointwise": JointScore(PLAIN),
}


def get_config(variant: str | None = None) -> Config:
    if variant not in VARIANTS:
        raise unknown_variant(variant, [name for name in VARIANTS if name])
    judge = "tiny" if variant == "tiny-plain" else variant
    recipe = replace(
        TINY if "tiny" in (variant or "") else RECIPE,
        scorer=judging.scorer(judging.JUDGES[judge]),
        advantage=VARIANTS[variant],
    )
    name = "-".join(["j1", *filter(None, [variant])])
    return replace(judging.get_config(judge), name=name, recipe=recipe)
