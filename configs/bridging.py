"""Verifiable and judged prompts in one training (Lanchantin et al. 2025, arXiv
2506.21495).

Online DPO on batches of both kinds: a verifier checks the solutions of problems, a
judge scores the answers to instructions, and of each prompt the best is preferred to
the worst. The model improves at both; trained on one kind alone it loses on the other.
configs/online_dpo.py has the paper's other half, offline to online DPO and GRPO on
problems.

    jaxloop run configs/bridging.py model.path=DIR \\
        data.sources.0.train=problems.jsonl data.sources.0.test=... \\
        data.sources.1.train=instructions.jsonl data.sources.1.test=...
    jaxloop run configs/bridging.py:semi ...    the sampler gets the weights every 10
        steps
    jaxloop run configs/bridging.py:grpo ...    GRPO instead of DPO
    jaxloop run configs/bridging.py:tiny        sums, on a CPU in minutes; tiny-grpo

Problems are rows {question, answer} as GSM8K has them, instructions {prompt}. Of the
problems twice as many are taken (`data.weights`). Held out, `eval/accuracy` is that of
problems, `eval/judged/accuracy` the judge's mean score of answers.

Expected: from the seed model the paper came to 50.2 % on Math500 and 71.0 % on
AlpacaEval 2 (length-controlled); with problems alone the latter stayed at 31.4, with
instructions alone Math500 fell to 35.0. Here no model of that size has been run. Tiny:
half of the sums have lost their answers and go to the model as it was at first, which
judges them; in one run accuracy on held-out sums went from 14 to 97 %.

Of the settings, the paper's for the mixture are: beta 0.01, rate 1e-6, Adam's eps 1e-8,
clipping at 0.1, batches of 32, 1024 tokens, a reference that stays, two problems to one
instruction. Ours: the judge, which is the first model with the prompt of
configs/self_rewarding.py (the paper has a reward model, Athene-RM-8B; with one that
shares the tokenizer, `RewardHead(DIR)`), GSM8K, 8 samples a prompt, prompts, 1500
steps; and best against worst for problems too, where scores are 0 and 1 and it comes to
correct against incorrect.
"""

from dataclasses import replace

from configs import online_dpo, quickstart, self_rewarding, sft
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config, Model
from jaxloop.loop.recipe import Evaluation, Online
from jaxloop.losses.objectives import Pairwise
from jaxloop.prompts.dataset import JsonlData
from jaxloop.prompts.mixed import Mixed, Unlabelled
from jaxloop.scoring import Routed
from jaxloop.selection import BestWorst
from jaxloop.training.optimizer import Optimizer

JUDGE = replace(self_rewarding.JUDGE, by="first")
RECIPE = replace(
    online_dpo.RECIPE,
    scorer=Routed((("judged", JUDGE),), sft.GOLD),
    selector=BestWorst(),
    objective=Pairwise(beta=0.01),
    schedule=Online(steps=1500, prompts=32, accumulation=4),
    optimizer=Optimizer(learning_rate=1e-6, eps=1e-8, clip_norm=0.1),
)
TINY_JUDGE = replace(quickstart.JUDGE, by="first", truth=None)
TINY = replace(
    online_dpo.TINY,
    scorer=Routed((("unlabelled", TINY_JUDGE),), quickstart.GOLD),
    selector=BestWorst(gap=0.5),
)
VARIANTS = (None, "semi", "grpo", "tiny", "tiny-grpo")


def get_config(variant: str | None = None) -> Config:
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    tiny, every = "tiny" in (variant or ""), 10 if variant == "semi" else 1
    base, recipe = (small(), TINY) if tiny else (real(), RECIPE)
    recipe = replace(recipe, schedule=replace(recipe.schedule, sync_every=every))
    if "grpo" in (variant or ""):
        recipe = online_dpo.grpo(recipe)
    name = "-".join(["bridging", *filter(None, [variant])])
    return replace(base, name=name, recipe=recipe)


def real() -> Config:
    instructions = JsonlData(max_prompt_tokens=512)
    greedy = replace(sft.SAMPLING, n=1, temperature=0.0)
    return Config(
        name="bridging",
        model=Model(),
        data=Mixed((sft.PROMPTS, instructions), ("", "judged"), (2.0, 1.0)),
        evaluation=Evaluation(scorer=RECIPE.scorer, sampling=greedy, every=100),
    )


def small() -> Config:
    base = quickstart.get_config("self_rewarding")
    return replace(base, data=Unlabelled(base.data))
