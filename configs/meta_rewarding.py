"""Meta-rewarding language models (Wu et al. 2024, arXiv 2407.19594).

Self-rewarding with a third role. The model answers (actor), scores its answers (judge),
and judges its own judgements in pairs (meta-judge); one run of DPO a round learns from
pairs of answers and from pairs of judgements. Answers are paired under length control:
the shortest of the best against the longest of the worst. It shows that a judge that is
trained too keeps the answers getting better, and that length control stops the drift to
long answers. The paper saw judges saturate: watch `judge/mean`, `judge/tied_frac` and
`meta_judge/first_bias`.

    jaxloop run configs/meta_rewarding.py model.path=DIR \\
        data.train=prompts.jsonl data.test=held_out.jsonl
    jaxloop run configs/meta_rewarding.py:actor ...   answers alone in all rounds
    jaxloop run configs/meta_rewarding.py:tiny        sums, on a CPU in minutes; also
        tiny-actor; tiny-length: length control in both rounds

Rows are {prompt}.

Expected: the paper took Llama-3-8B-Instruct from 22.9 to 39.4 % length-controlled win
rate on AlpacaEval 2 in four rounds. Here no model of that size has been run. Tiny, from
a judge that has seen little: accuracy goes from a third to above 90 % in two rounds,
with judge pairs and without; they move the judge by two points at most
(docs/claims.md).

Of the settings, known at second hand: 7 answers, 11 judgements, rho 0.32 to 0.4, rate,
batches of 32, 5,000 prompts a round, four rounds, judgements of at most 1,100
characters chosen, from the second round on 1,000. Recalled, not checked against the
paper: temperature 0.8 and top-p 0.95 of answers and judgements, the longest of the
worst as the rejected one, beta 0.1, judge pairs in the first two rounds only. Ours: one
pass where the paper has up to ten, rho 0.4 in all rounds, the words of the prompts,
lengths. Tiny has two rounds, both with judge pairs (`recipe.schedule.rounds=3` adds one
without).
"""

from dataclasses import replace

from configs import quickstart, self_rewarding
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config
from jaxloop.loop.recipe import From, Rounds
from jaxloop.prompts.judged_arithmetic import META_TEMPLATE, JudgedArithmetic
from jaxloop.scoring import Judge, MetaJudged, Regex, both_orders
from jaxloop.selection import BestWorst, JudgePairs, Streams, TierLength
from jaxloop.training.optimizer import Optimizer

LENGTH = TierLength(rho=0.4)
SAMPLING = replace(self_rewarding.SAMPLING, n=7, temperature=0.8, top_p=0.95)
JUDGE = Judge(sampling=replace(SAMPLING, n=11, max_new_tokens=512))
RECIPE = replace(
    self_rewarding.RECIPE,
    sampling=SAMPLING,
    scorer=MetaJudged(JUDGE),
    selector=Streams((LENGTH, JudgePairs(longest=1100))),
    schedule=Rounds(4, prompts=5000, disjoint=True, batch_size=32, accumulation=4),
    optimizer=Optimizer(learning_rate=5e-6, schedule="cosine"),
    changes=(
        From(2, "selector.selectors.1.longest", 1000),
        From(3, "scorer", JUDGE),
        From(3, "selector", LENGTH),
    ),
)
TINY_JUDGE = replace(quickstart.JUDGE, sampling=replace(quickstart.JUDGE.sampling, n=6))
TINY_META = replace(
    quickstart.JUDGE,
    template=META_TEMPLATE,
    show=both_orders,
    sees=Regex(r"([YN])$"),
    columns=(("answer", "judged_answer"),),
    shown_as="judgement",
    truth=None,
    name="meta_judge",
)
TINY = replace(
    quickstart.SELF_REWARDING,
    scorer=MetaJudged(TINY_JUDGE, TINY_META),
    selector=Streams((BestWorst(gap=0.5), JudgePairs())),
    changes=(From(3, "scorer", TINY_JUDGE), From(3, "selector", BestWorst(gap=0.5))),
)
RECIPES = {
    None: RECIPE,
    "actor": RECIPE.of_round(2),
    "tiny": TINY,
    "tiny-actor": TINY.of_round(2),
    "tiny-length": replace(TINY, selector=Streams((LENGTH, JudgePairs())), changes=()),
}


def get_config(variant: str | None = None) -> Config:
    if variant not in RECIPES:
        raise unknown_variant(variant, [name for name in RECIPES if name])
    world = JudgedArithmetic(judgements=256, meta_judgements=1024)
    tiny = replace(quickstart.get_config("self_rewarding"), data=world)
    base = tiny if "tiny" in (variant or "") else self_rewarding.real()
    name = "-".join(["meta_rewarding", *filter(None, [variant])])
    return replace(base, name=name, recipe=RECIPES[variant])
