"""A judge against people: which of two answers is the better one?

Pairwise judging as in MT-Bench (Zheng et al. 2023, arXiv 2306.05685): each pair is
judged in both orders, and what is reported is how often the judge agrees with the
people who chose, how often with itself once the two have changed places, and how much
it favours the first place. Nothing is trained.

    jaxloop judge configs/judge_pairs.py model.path=DIR data.pairs=pairs.jsonl
    jaxloop judge configs/judge_pairs.py:points ...    one at a time, out of five
    jaxloop judge configs/judge_pairs.py:p_true ...    the probability of a "yes"
    jaxloop judge configs/judge_pairs.py:endpoint ... \\
        evaluation.scorer.by.url=http://localhost:8000/v1 \\
        evaluation.scorer.by.model=NAME
    jaxloop judge configs/judge_pairs.py:questions model.path=DIR \\
        data.test=question.jsonl

Rows of `data.pairs` are {prompt, chosen, rejected}, or chosen and rejected that begin
alike, transcripts among them: HH-RLHF (Bai et al. 2022, arXiv 2204.05862) as it is. For
`questions` they are MT-Bench's, {turns: [...]}: the model answers each first turn twice
and judges that; without labels there is no accuracy, but all else. `model.path` is the
judge, or with `evaluation.scorer.by=DIR` another one; for the endpoint only its
tokenizer is used.

Expected: a random model's judgements cannot be read, which is counted and said. Of real
ones the papers report, as recalled and not checked against them: GPT-4 agrees with
people on MT-Bench in 85 % of the pairs without ties, as people among themselves do (81
%). Nothing of that size has been run here. The templates' words are ours.
"""

from dataclasses import replace

from jaxloop.config import unknown_variant
from jaxloop.experiment import Config, Model
from jaxloop.loop.recipe import Evaluation
from jaxloop.prompts.candidates import CandidateData
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring import Endpoint, Judge, PTrue, Verdict
from jaxloop.scoring.judge import both_orders

ANSWERS = Sampling(n=2, temperature=0.7, max_new_tokens=1024, rows=64)
PAIRWISE = Judge(
    template="pairwise",
    parse=Verdict(),
    show=both_orders,
    sampling=Sampling(n=1, temperature=0.0, max_new_tokens=1024, rows=64),
)
ENDPOINT = Endpoint("http://localhost:8000/v1", "NAME", key_variable="")
JUDGES = {
    None: PAIRWISE,
    "points": Judge(sampling=replace(PAIRWISE.sampling, n=3, temperature=0.7)),
    "p_true": PTrue(),
    "endpoint": replace(PAIRWISE, by=ENDPOINT),
    "questions": PAIRWISE,
}
DATA = CandidateData(
    chat=False,
    max_prompt_tokens=2048,
    on_long="filter",
    on_bad_row="skip",
    max_bad_fraction=0.02,  # HH-RLHF has a few empty answers
)


def get_config(variant: str | None = None) -> Config:
    if variant not in JUDGES:
        raise unknown_variant(variant or "", [name for name in JUDGES if name])
    data = replace(DATA, chat=None, prompt_field="turns.0")
    return Config(
        name="judge_pairs" if variant is None else f"judge_pairs-{variant}",
        model=Model(),
        data=data if variant == "questions" else DATA,
        evaluation=Evaluation(scorer=JUDGES[variant], sampling=ANSWERS),
    )
