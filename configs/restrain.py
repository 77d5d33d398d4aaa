"""RESTRAIN (Yu et al. 2025, arXiv 2510.02172): RL from votes that restrains itself.

No gold answers in training. The baseline, TTRL (arXiv 2504.16084, as recalled), rewards
each sample that gives the most voted answer; where the majority is wrong, that makes it
surer. RESTRAIN mistrusts votes in three ways: every answer counts as a label by a
Gaussian of its share of votes; where no answer has enough votes, all samples are pushed
down; and a prompt counts by how far the first model agreed with itself on it. It shows
that restraint takes votes nearly as far as gold answers, where TTRL collapses.

    jaxloop run configs/restrain.py model.path=DIR \\
        data.train=train.jsonl data.test=test.jsonl
    jaxloop run configs/restrain.py:ttrl ...         the baseline
    jaxloop run configs/restrain.py:tiny             sums of two sizes, on a CPU in a
    jaxloop run configs/restrain.py:tiny-ttrl        minute

The answers in `train.jsonl` are not used, those in `test.jsonl` measure only.

Expected: the paper has 51.0 % with Qwen3-4B-Base over six benchmarks, 51.4 with gold
answers, 42.2 with TTRL, which collapses after about 50 steps. Here no model of that
size has been run. Tiny: nearly all short sums come right, from about a half; long ones,
where wrong estimates win the votes at first, go from below 10 to 66-90 %. That TTRL
does worse is not shown: on long sums, three pairs of runs had RESTRAIN / TTRL at 82/39,
66/58 and 90/90 %, and this world was chosen of five by the first of them. In the others
both stayed near 0 (`data.long_direct=0.8`), or both rose as far.

Of the settings, the method's form is the paper's, known at second hand. Its numbers are
unknown to us: both widths, the share of votes that is enough, how hard is pushed,
samples and rate are ours; the data here is GSM8K, the paper's is DAPO-14k-Math. The
loss is exactly the weighted sum of the labels' losses: with `recipe.schedule.updates`
above 1 ratios are clipped for each label by itself (`policy.both_ways`). The paper
draws the first model's samples once, beforehand; here they are drawn when a prompt
comes up, the same ones each time, at the cost of as many samples again.
"""

from dataclasses import replace

from configs import quickstart, sft
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config
from jaxloop.loop.recipe import Online, Recipe
from jaxloop.losses.objectives import Policy
from jaxloop.prompts.uneven_arithmetic import UnevenArithmetic
from jaxloop.scoring import FirstVote, Hashes, MajorityVote
from jaxloop.selection import (
    FirstAgreement,
    GroupAdvantage,
    NegativeOffset,
    PseudoLabels,
)
from jaxloop.training.optimizer import Optimizer

LABELS = PseudoLabels(GroupAdvantage(), width=0.3)
RESTRAINED = FirstAgreement(NegativeOffset(LABELS, minimum=0.5, offset=0.1), width=0.3)
TTRL = Recipe(
    sampling=replace(sft.SAMPLING, n=16),
    scorer=MajorityVote(extract=Hashes()),
    advantage=PseudoLabels(GroupAdvantage(), width=0.0),
    objective=Policy(),
    schedule=Online(steps=500, prompts=32, accumulation=32),
    optimizer=Optimizer(learning_rate=1e-6),
)
TINY = replace(
    TTRL,
    sampling=replace(quickstart.SAMPLING, n=16, max_new_tokens=32),
    scorer=quickstart.VOTE,
    schedule=Online(steps=40, prompts=24),
    optimizer=replace(quickstart.ADAM, learning_rate=3e-4),
)


def restrained(recipe: Recipe) -> Recipe:
    assert isinstance(recipe.scorer, MajorityVote)
    scorer = FirstVote(recipe.scorer, recipe.sampling)
    return replace(recipe, scorer=scorer, advantage=RESTRAINED)


RECIPES = {None: restrained(TTRL), "ttrl": TTRL}
RECIPES |= {"tiny": restrained(TINY), "tiny-ttrl": TINY}


def get_config(variant: str | None = None) -> Config:
    if variant not in RECIPES:
        raise unknown_variant(variant, [name for name in RECIPES if name])
    base = replace(sft.get_config(), data=sft.PROMPTS, sft=None)
    evaluation = replace(base.evaluation, every=100)
    if "tiny" in (variant or ""):
        base = replace(quickstart.get_config(), data=UnevenArithmetic())
        base = replace(base, sft=replace(quickstart.SFT, steps=1000))
        sampling = replace(base.evaluation.sampling, max_new_tokens=32)
        evaluation = replace(base.evaluation, sampling=sampling)
    name = "-".join(["restrain", *filter(None, [variant])])
    return replace(base, name=name, recipe=RECIPES[variant], evaluation=evaluation)
