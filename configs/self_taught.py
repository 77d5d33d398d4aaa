"""Self-taught evaluators (Wang et al. 2024, arXiv 2408.02666).

A judge learns from itself, without anybody's labels. Of each pair one answer is known
to be worse, since it answers a slightly different question. Each round the judge writes
15 judgements of every pair in both orders; one that names the better answer is kept,
as many of the pairs whose first answer is the better one as of the others, and the
model that the run began with is fine-tuned on them. It shows that judgements that come
out right teach judging, and that labels from people are not needed for it. Watch
`eval/consistent_accuracy` (right in both orders) and `eval/flips`.

    jaxloop run configs/self_taught.py model.path=DIR \\
        data.train.pairs=pairs.jsonl data.test.pairs=held_out.jsonl
    jaxloop run configs/self_taught.py:dpo ...      afterwards, from the model that this
        gave: right judgements against wrong ones
    jaxloop run configs/self_taught.py:tiny         pairs of sums, on a CPU in a minute
        or two; also tiny-dpo

Rows are {prompt, chosen, rejected}; those to train on are made by answering a question
and a perturbed one (`jaxloop.prompts.perturbed`). The held-out pairs are labelled ones:
they measure only. For the paper's vote of 32 add `evaluation.sampling.n=32
evaluation.sampling.temperature=0.7` and read `eval/maj@32`.

Expected: the paper took Llama-3-70B-Instruct on RewardBench from 75.4 to 83.9 % in one
round and 88.3 in five, 88.7 with 32 votes. Here no model of that size has been run.
Tiny, one run (seed 0): no clear rise. Pairs that are right in both orders go from 29
to 31, 33 and 28 % in three rounds, flips from 56 to 56, 50 and 56. tiny-dpo, one run
(seed 0) from the same judge, ruins it: it names the first answer without working it
out, 95 % of the verdicts, and flips go to 91 %.

Of the settings, known at second hand or from the published configurations: 15 samples
at temperature 0.7 and top-p 0.9, 4,096 new tokens, one judgement a prompt, labels
balanced, five rounds from the seed model, rate 1e-6 with 100 steps of warm-up, cosine
decay to a fifth, two passes; for `dpo` beta 0.1, likelihood term 1.5, rate 5.5e-8,
single pairs in four parts. Ours: the words of the judge's prompt, batches (32 for `dpo`
are eight devices), three pairs a prompt and one pass for `dpo` (the paper: at most
3,000 steps).
"""

from dataclasses import replace

from configs import judging, quickstart
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config
from jaxloop.loop.recipe import Recipe, Rounds
from jaxloop.losses.objectives import Pairwise, Supervised
from jaxloop.selection import CorrectIncorrect, LabelBalanced, TopOne
from jaxloop.training.optimizer import Optimizer

RECIPE = Recipe(
    sampling=replace(judging.SAMPLING, n=15, temperature=0.7, top_p=0.9),
    scorer=judging.scorer(judging.VERDICT),
    selector=LabelBalanced(TopOne(minimum=1.0)),
    objective=Supervised(),
    schedule=Rounds(5, start="seed", epochs=2, batch_size=16, row_tokens=8192),
    optimizer=Optimizer(
        learning_rate=1e-6, warmup=100, schedule="cosine", final_fraction=0.2
    ),
)
DPO = replace(
    RECIPE,
    selector=LabelBalanced(CorrectIncorrect(pairs=3)),
    objective=Pairwise(beta=0.1, nll=1.5),
    schedule=Rounds(1, batch_size=32, accumulation=4),
    optimizer=Optimizer(learning_rate=5.5e-8),
)
TINY = replace(
    RECIPE,
    sampling=judging.TINY_SAMPLING,
    scorer=judging.scorer(judging.SUMS),
    schedule=Rounds(3, start="seed", epochs=3, batch_size=16, row_tokens=64),
    optimizer=replace(quickstart.ADAM, learning_rate=1e-3),
)
RECIPES = {
    None: RECIPE,
    "dpo": DPO,
    "tiny": TINY,
    "tiny-dpo": replace(
        TINY,
        selector=DPO.selector,
        objective=DPO.objective,
        schedule=Rounds(1, batch_size=64),
        optimizer=quickstart.ADAM,
    ),
}


def get_config(variant: str | None = None) -> Config:
    if variant not in RECIPES:
        raise unknown_variant(variant, [name for name in RECIPES if name])
    base = judging.get_config("tiny" if "tiny" in (variant or "") else None)
    name = "-".join(["self_taught", *filter(None, [variant])])
    return replace(base, name=name, recipe=RECIPES[variant])
