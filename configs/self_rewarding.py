"""Self-rewarding language models (Yuan et al. 2024, arXiv 2401.10020).

One model answers and judges. Each round it writes four answers to every prompt, gives
each a score out of five three times over (one point for each of five criteria), and is
trained by DPO on its best answer against its worst; prompts whose answers are scored
alike are left out. It shows that answers get better without anybody's labels, and that
the judge gets better with them. Answers get longer too: watch
`completions/mean_length` and `judge/length_corr`, and `judge/tied_frac`, which says how
much the judge still tells apart.

    jaxloop run configs/self_rewarding.py model.path=DIR \\
        data.train=prompts.jsonl data.test=held_out.jsonl
    jaxloop run configs/self_rewarding.py:frozen ...  control: the first model judges
    jaxloop run configs/self_rewarding.py:random ...  control: scores dealt out anew
    jaxloop run configs/self_rewarding.py:tiny        sums, on a CPU in a minute; also
        tiny-frozen, tiny-random

Rows are {prompt}. The model should follow instructions and have seen some judging;
configs/sft.py makes one from demonstrations of both.

Expected: the paper's AlpacaEval 2 win rates for Llama-2-70B are 9.9 % (after its
supervised stage), 15.4 and 20.4 % (two rounds), at twice the length. Here no model of
that size has been run. Held out, the first model judges: its mean points out of five
(`eval/accuracy`, called a score where it is shown) are not a win rate. Tiny: accuracy
rises from a quarter to above 90 %, with the frozen judge too; with random scores it
stays below a half.

Of the settings, known at second hand: 4 answers at temperature 0.7 and top-p 0.9, 3
judgements, best against worst, beta 0.1, rate 1e-6 falling to 1e-7, batches of 16, two
rounds from fresh prompts. Ours: the words of the judge's prompt, the temperature of
judging, lengths, one pass. The paper writes its prompts by 8-shot self-instruct with a
fixed model, and picks a checkpoint by another judge; here prompts come from a file
(configs/self_instruct.py writes one), and the last weights count.
"""

from dataclasses import replace

from configs import quickstart
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config, Model
from jaxloop.loop.recipe import Evaluation, Recipe, Rounds
from jaxloop.losses.objectives import Pairwise
from jaxloop.prompts.dataset import JsonlData
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring import Judge, Shuffled
from jaxloop.selection import BestWorst
from jaxloop.training.optimizer import Optimizer

SAMPLING = Sampling(n=4, temperature=0.7, top_p=0.9, max_new_tokens=1024, rows=128)
JUDGE = Judge(sampling=Sampling(n=3, temperature=0.7, max_new_tokens=512, rows=128))
RECIPE = Recipe(
    sampling=SAMPLING,
    scorer=JUDGE,
    selector=BestWorst(),
    objective=Pairwise(beta=0.1),
    schedule=Rounds(2, prompts=5000, disjoint=True, batch_size=16, accumulation=2),
    optimizer=Optimizer(learning_rate=1e-6, schedule="linear", final_fraction=0.1),
)
VARIANTS = (None, "frozen", "random", "tiny", "tiny-frozen", "tiny-random")


def get_config(variant: str | None = None) -> Config:
    if variant not in VARIANTS:
        raise unknown_variant(variant, [name for name in VARIANTS if name])
    tiny, control = "tiny" in (variant or ""), (variant or "").removeprefix("tiny-")
    base = quickstart.get_config("self_rewarding") if tiny else real()
    assert base.recipe is not None
    judge = quickstart.JUDGE if tiny else JUDGE
    scorer = {"frozen": replace(judge, by="first"), "random": Shuffled(judge)}
    recipe = replace(base.recipe, scorer=scorer.get(control, judge))
    name = "-".join(["self_rewarding", *filter(None, [variant])])
    return replace(base, name=name, recipe=recipe)


def real() -> Config:
    return Config(
        name="self_rewarding",
        model=Model(),
        data=JsonlData(max_prompt_tokens=512),
        recipe=RECIPE,
        evaluation=Evaluation(
            scorer=replace(JUDGE, by="first"),
            sampling=replace(SAMPLING, n=1, temperature=0.0),
        ),
    )
