"""A judge of pairs before it is trained, and what the configs that train one share.

Of each pair of answers one is known to be better. Judged in both orders:
`eval/accuracy` is the share of right judgements, `eval/consistent_accuracy` that of
pairs that are right in both orders, `eval/flips` of those whose orders disagree (J1's
measures, arXiv 2505.10320), `eval/first` of verdicts for the place shown first. An
unreadable judgement (`eval/invalid`) is a wrong one.

    jaxloop run configs/judging.py model.path=DIR data.test.pairs=pairs.jsonl
    jaxloop run configs/judging.py:scores ...       two scores; the higher one counts
    jaxloop run configs/judging.py:pointwise ...    one answer at a time: its score, in
        the mean (`accuracy`); `eval/ranking_accuracy` and `eval/ties` of the pairs
    jaxloop run configs/judging.py:tiny    a judge of sums that is shown biased guesses,
        on a CPU in half a minute; also tiny-pointwise

Rows are {prompt, chosen, rejected}; a field `set` measures its values apart. For a vote
of 32 add `evaluation.sampling.n=32 evaluation.sampling.temperature=0.7`:
`eval/maj@32`. configs/judge_pairs.py measures any judge, this one just as it is trained
by configs/self_taught.py and configs/j1.py.

Expected: no real model has been measured here. Tiny, one run (seed 0):
57 % of the judgements right, 29 % of the pairs in both orders, 56 % flips; three
quarters of the verdicts are for the place shown first.
"""

from dataclasses import replace

from configs import quickstart
from jaxloop.config import unknown_variant
from jaxloop.evaluation.consistency import order_consistency, ranking_accuracy
from jaxloop.experiment import Config, Model
from jaxloop.loop.recipe import Evaluation
from jaxloop.prompts.dataset import JsonlData
from jaxloop.prompts.judge_tasks import JudgeTasks
from jaxloop.prompts.judged_arithmetic import JUDGE_TEMPLATE, read_verdict
from jaxloop.prompts.pair_judging import PAIR_TEMPLATE, SumPairs
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring import After, Judge, LabelMatch, Said, Tagged, Verdict
from jaxloop.scoring.judge import both_orders, each

PAIRS = JsonlData(chat=False, max_prompt_tokens=2048, on_long="filter")
SAMPLING = Sampling(max_new_tokens=4096, rows=128)
TINY_SAMPLING = replace(quickstart.SAMPLING, max_new_tokens=48)
VERDICT = Judge(template="pairwise", parse=Verdict(), show=both_orders)
SUMS = Judge(
    template=PAIR_TEMPLATE,
    parse=read_verdict,
    show=both_orders,
    sees=After("#"),
    question="problem",
    guarded=False,
)
JUDGES = {
    None: VERDICT,
    "scores": replace(VERDICT, template="pairwise_scores", parse=Tagged()),
    "pointwise": Judge(template="pointwise", parse=Tagged(), show=each),
    "tiny": SUMS,
    "tiny-pointwise": replace(SUMS, template=JUDGE_TEMPLATE, show=each),
}


def scorer(judge: Judge) -> LabelMatch | Said:
    """What its judgements are worth, or say where it sees one answer at a time."""
    return Said(judge.parse) if judge.show is each else LabelMatch(judge.parse)


def get_config(variant: str | None = None) -> Config:
    if variant not in JUDGES:
        raise unknown_variant(variant, [name for name in JUDGES if name])
    judge, tiny = JUDGES[variant], "tiny" in (variant or "")
    alone, name = judge.show is each, "-".join(["judging", *filter(None, [variant])])
    evaluation = Evaluation(
        scorer=scorer(judge),
        sampling=replace(TINY_SAMPLING if tiny else SAMPLING, n=1, temperature=0.0),
        summaries=(ranking_accuracy if alone else order_consistency,),
    )
    if not tiny:
        data = JudgeTasks(PAIRS, PAIRS, judge)
        return Config(name, Model(), data, evaluation=evaluation)
    world, sft = SumPairs(shown=1 if alone else 2), replace(quickstart.SFT, steps=2000)
    data = JudgeTasks(world, replace(world, split="test"), judge)
    base = replace(quickstart.get_config("self_rewarding"), name=name, recipe=None)
    return replace(base, data=data, sft=sft, evaluation=evaluation)
