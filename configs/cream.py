"""CREAM, consistency-regularised self-rewarding (Wang et al. 2024, arXiv 2410.12735).

A model that rewards its own answers is too sure of rewards that are noise. Here the
model of the round before ranks the same answers too. How far the two rankings agree,
C in [0, 1] (Kendall's tau, mapped), is how sure a pair is: DPO towards a probability C
that the chosen answer is the better one, in place of 1. It shows that noise, which two
rounds do not share, is learnt less.

    jaxloop run configs/cream.py model.path=DIR recipe.scorer.scorer.against=BASE \\
        data.train=train.jsonl data.test=test.jsonl
    jaxloop run configs/cream.py:plain ... recipe.scorer.against=BASE   without it
    jaxloop run configs/cream.py:tiny          sums under a poor judge, on a CPU in a
    jaxloop run configs/cream.py:tiny-plain    minute

BASE is the model that DIR was fine-tuned from: the reward is the implicit one, beta
log(policy / BASE), and needs no judge. Tiny takes the judge of
configs/self_rewarding.py in its place, shown so few judgements that it is often wrong.
`agreement` is in each pair's reason, in records/.

Expected: the paper saw plain self-rewarding of 7B models gain less each round or lose,
and CREAM gain. Here no model of that size has been run. Tiny, at a rate too high for
pairs that are taken as certain (chosen for that, after gentler ones showed no
difference): both arms gain in the first round; by the third CREAM is near its best and
plain pairs have lost 2 to 49 points of theirs (91 to 69 % over three seeds:
docs/claims.md). With poorer judges (`data.judgements=128`) it was 88/5 where judges
ranked 68 % of answers right, and 57/64 where they were at chance: what agrees by chance
is learnt less too.

From the authors' code: 5 answers at temperature 0.8 and top-p 0.95, 768 tokens, beta
0.1, rate 1e-6 with cosine decay, one pass, C over the round or for each prompt
(`recipe.weighting.per_prompt=true`). Ours: batches, prompts a round, the data (one of
their five tasks). In the first round their previous model is BASE, ranking by its
likelihood per token; here it is the policy itself, which agrees with itself (C = 1, or
with a judge, how far two readings agree).
"""

from dataclasses import replace

from configs import quickstart, sft
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config
from jaxloop.loop.recipe import Recipe, Rounds
from jaxloop.losses import preference
from jaxloop.losses.objectives import Pairwise
from jaxloop.prompts.judged_arithmetic import JudgedArithmetic
from jaxloop.scoring import ImplicitReward, WithPrevious
from jaxloop.selection import BestWorst, RankConsistency
from jaxloop.training.optimizer import Optimizer

PLAIN = Recipe(
    sampling=replace(
        sft.SAMPLING, n=5, temperature=0.8, top_p=0.95, max_new_tokens=768
    ),
    scorer=ImplicitReward(beta=0.1, against="BASE"),
    selector=BestWorst(),
    objective=Pairwise(beta=0.1),
    schedule=Rounds(2, prompts=3000, disjoint=True, batch_size=32, accumulation=4),
    optimizer=Optimizer(learning_rate=1e-6, warmup=10, schedule="cosine"),
)
TINY = replace(
    quickstart.SELF_REWARDING,
    objective=Pairwise(beta=0.1),
    schedule=replace(quickstart.ROUNDS, rounds=3),
    optimizer=replace(quickstart.ADAM, learning_rate=3e-4),
)


def regularised(recipe: Recipe) -> Recipe:
    assert isinstance(recipe.objective, Pairwise)
    return replace(
        recipe,
        scorer=WithPrevious(recipe.scorer),
        weighting=RankConsistency(),
        objective=Pairwise(preference.soft, beta=recipe.objective.beta),
    )


RECIPES = {
    None: regularised(PLAIN),
    "plain": PLAIN,
    "tiny": regularised(TINY),
    "tiny-plain": TINY,
}


def get_config(variant: str | None = None) -> Config:
    if variant not in RECIPES:
        raise unknown_variant(variant, [name for name in RECIPES if name])
    base = replace(sft.get_config(), data=sft.PROMPTS, sft=None)
    if "tiny" in (variant or ""):
        world = JudgedArithmetic(judgements=256)
        base = replace(quickstart.get_config("self_rewarding"), data=world)
    name = "-".join(["cream", *filter(None, [variant])])
    return replace(base, name=name, recipe=RECIPES[variant])
