"""Thinking LLMs: thought preference optimisation, TPO (Wu et al. 2024, arXiv
2410.10630).

The model is asked to think in writing before it responds. A judge sees the question and
the response alone, so no thought is ever scored, or wanted in a particular form; DPO on
the whole output, thought and response, then teaches whatever thoughts lead to responses
that the judge prefers. It shows that thinking, which at first makes a model's responses
worse, comes out ahead of the same training without thoughts.

    jaxloop run configs/tpo.py model.path=DIR \\
        data.train=questions.jsonl data.test=held_out.jsonl
    jaxloop run configs/tpo.py:specific ...     thoughts are a draft and its evaluation
    jaxloop run configs/tpo.py:direct ...       control: no thoughts, else the same
    jaxloop run configs/tpo.py:tiny             sums, on a CPU in minutes; also
        tiny-direct

Rows are {question}. The judge is the model as it was at first; a better one, such as
the paper's Self-Taught Evaluator, is `recipe.scorer.by=DIR`. It compares all pairs of
responses in both orders, 56 requests a question; `Judge(show=one_order)` halves that.
Outputs without the marker cannot be split: they stay unscored and are never trained on
(`judge/unjudged_frac`).

Expected: the paper's Llama-3-8B-Instruct comes to 52.5 % length-controlled win rate on
AlpacaEval 2, from 24.9, and to 37.3 % on Arena-Hard; without thoughts 4.1 and 4.3
points less. Here no model of that size has been run. Tiny: the model answers 28 % of
held-out sums after a thought and 93 % at once; three rounds take the first to 96.5 %,
the second to 90. Another seed, two rounds: 27 to 97, and 92 to 91.

Of the settings, known at second hand: 8 outputs at temperature 0.8 and top-p 0.95,
5,000 fresh prompts a round, up to four rounds, all pairs in both orders with Elo for
scores, the charge for length (rho from 0 to 0.5), the marker, no supervised stage for
thoughts. Ours: the words of the prompts, Bradley-Terry with a prior for the Elo, rho
0.25, beta, rate, batch, lengths, and one pass where the paper has ten and keeps the
best checkpoint on 1,500 held-out prompts (`checkpoint.best=eval/accuracy` does that).
"""

from dataclasses import replace

from configs import judge_pairs, quickstart, self_rewarding
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config
from jaxloop.loop.recipe import Rounds
from jaxloop.prompts.dataset import JsonlData
from jaxloop.prompts.thinking_arithmetic import ThinkingArithmetic
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring import After, BradleyTerry, Judge, Regex, WholeText
from jaxloop.selection import ZLength
from jaxloop.selection.length_control import CharactersOf

ENDING = """
Nobody will read that part. Then write a line that begins with RESPONSE: and, after it,
your response, which must stand by itself.
"""
PROMPTS = {
    None: "\nFirst think in writing, in any way that helps." + ENDING,
    "specific": "\nFirst write a draft, and what is good and bad about it." + ENDING,
    "direct": "",
}
RESPONSE = Regex(r"(?m)^RESPONSE:\s*(\S.*)")
COMPARE = replace(
    judge_pairs.PAIRWISE,
    combine=BradleyTerry(),
    sampling=replace(judge_pairs.PAIRWISE.sampling, rows=128),
    by="first",
    question="question",
)
RECIPE = replace(
    self_rewarding.RECIPE,
    sampling=Sampling(n=8, temperature=0.8, top_p=0.95, max_new_tokens=2048, rows=128),
    schedule=Rounds(4, prompts=5000, disjoint=True, batch_size=32, accumulation=4),
)
TINY = replace(
    quickstart.SELF_REWARDING,
    scorer=replace(quickstart.JUDGE, by="first"),
    selector=ZLength(rho=0.1, length=CharactersOf(After("#"))),
    schedule=Rounds(3, prompts=512, disjoint=True, epochs=3, batch_size=64),
)


def get_config(variant: str | None = None) -> Config:
    known = (*PROMPTS, "tiny", "tiny-direct")
    if variant not in known:
        raise unknown_variant(variant, known)
    name = "-".join(["tpo", *filter(None, [variant])])
    if variant not in PROMPTS:
        base = quickstart.get_config("self_rewarding")
        world = ThinkingArithmetic(thinking=variant == "tiny")
        sft = replace(quickstart.SFT, steps=1400)
        return replace(base, name=name, data=world, sft=sft, recipe=TINY)
    base, seen = self_rewarding.real(), WholeText() if variant == "direct" else RESPONSE
    data = JsonlData(template="{question}\n" + PROMPTS[variant], max_prompt_tokens=1024)
    selector = ZLength(rho=0.25, length=CharactersOf(seen))
    recipe = replace(RECIPE, scorer=replace(COMPARE, sees=seen), selector=selector)
    held_out = Judge(by="first", sees=seen, question="question")
    evaluation = replace(base.evaluation, scorer=held_out)
    return replace(base, name=name, data=data, recipe=recipe, evaluation=evaluation)
