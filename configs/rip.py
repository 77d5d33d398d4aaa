"""R.I.P., rejecting instruction preferences (Yu et al. 2025, arXiv 2501.18578).

Which prompts are worth training on is read off the pairs that they give. A bad prompt
makes bad rejected answers: poor, short, and far below the best one. Kept are prompts
whose rejected answer's score is above the median of the pool, whose rejected answer's
length is, and whose gap between best and worst is below it; then one run of DPO, best
against worst. It shows that a quarter of a pool can be worth more than all of it.

    jaxloop run configs/rip.py model.path=DIR recipe.scorer.path=REWARD_MODEL \\
        data.train=prompts.jsonl data.test=held_out.jsonl
    jaxloop run configs/rip.py:judge model.path=DIR ...   scores 0-10 by the model
        itself, the mean of ten; another judge: recipe.scorer.by=DIR
    jaxloop run configs/rip.py:unfiltered ...      the control
    jaxloop run configs/rip.py:self ...            Self-RIP: see below
    jaxloop run configs/rip.py:tiny                sums, half of them garbled, on a CPU
    jaxloop run configs/rip.py:tiny-unfiltered     in a minute; as many pairs

Rows are {prompt}. REWARD_MODEL is a directory with a scalar head and DIR's tokenizer.

Self-RIP filters prompts that the model writes itself after those that were kept. Their
file is what a run of this config leaves: give `jaxloop prompts` the seeds
`data.train=runs/rip/records/round_000/pairs.jsonl data.prompt_field=prompt.text`, and
what it wrote to `:self` as `data.train`; that drops near copies (ROUGE-L 0.7), then
takes the medians of the written pool. `RIPBounds` has those of another pool instead.

Expected: the paper took Llama-3.1-8B-Instruct on AlpacaEval 2 from 48.4 (all 20,000
WildChat prompts) to 57.8 % (4,538 kept), Self-RIP to 60.2. Here no model of that size
has been run. Tiny: of the pairs that are left a tenth come from garbled prompts in
place of a half. They teach more than about as many pairs of the whole pool (68 to 59 %
over three seeds) and less than all of its pairs, four times as many: docs/claims.md.

The paper's settings: 64 answers at temperature 0.8 and top-p 0.95, the three medians,
beta 0.1, rate 1e-6, batches of 64, a judge's mean of ten. Ours: the words of the
judge's prompt, lengths, one pass, the measure (the first model judges held-out answers,
which is no win rate).
"""

from dataclasses import replace

from configs import quickstart, self_rewarding
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config
from jaxloop.loop.recipe import Recipe, Rounds
from jaxloop.losses.objectives import Pairwise
from jaxloop.prompts.garbled_arithmetic import Closeness, GarbledArithmetic
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring import Judge, RewardHead, Tagged
from jaxloop.selection import RIP, BestWorst, Dedupe
from jaxloop.training.optimizer import Optimizer

RECIPE = Recipe(
    sampling=Sampling(n=64, temperature=0.8, top_p=0.95, max_new_tokens=1024, rows=128),
    scorer=RewardHead("REWARD_MODEL"),
    filters=(RIP(),),
    selector=BestWorst(),
    objective=Pairwise(beta=0.1),
    schedule=Rounds(1, batch_size=64, accumulation=8),
    optimizer=Optimizer(learning_rate=1e-6),
)
JUDGE = Judge(
    template="pointwise",
    parse=Tagged(),
    sampling=Sampling(n=10, temperature=0.7, max_new_tokens=512, rows=128),
)
TINY = replace(
    RECIPE,
    sampling=quickstart.SAMPLING,
    scorer=Closeness(),
    schedule=Rounds(1, prompts=1024, epochs=4, batch_size=64),
    optimizer=quickstart.ADAM,
)
RECIPES = {
    None: RECIPE,
    "judge": replace(RECIPE, scorer=JUDGE),
    "unfiltered": replace(RECIPE, filters=()),
    "self": replace(RECIPE, filters=(Dedupe(0.7), RIP())),
    "tiny": TINY,
    "tiny-unfiltered": replace(
        TINY, filters=(), schedule=replace(TINY.schedule, prompts=288)
    ),
}


def get_config(variant: str | None = None) -> Config:
    if variant not in RECIPES:
        raise unknown_variant(variant, [name for name in RECIPES if name])
    base = self_rewarding.real()
    if "tiny" in (variant or ""):
        base = replace(quickstart.get_config(), data=GarbledArithmetic())
    name = "-".join(["rip", *filter(None, [variant])])
    return replace(base, name=name, recipe=RECIPES[variant])
