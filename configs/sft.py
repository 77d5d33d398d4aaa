"""Supervised fine-tuning on worked solutions, and what the other configs share.

The stage that self-improvement methods usually start from: the model imitates the
`answer` column of GSM8K (Cobbe et al. 2021, arXiv 2110.14168), whose last line holds
the final number behind `####`. Rows are {question, answer}.

    jaxloop run configs/sft.py model.path=DIR \\
        data.train=train.jsonl data.test=test.jsonl
    jaxloop run configs/sft.py:tiny    the quickstart's sums, on a CPU in seconds

For a chat model add `data.chat=true`: the question becomes the user's message, the
solution the assistant's. Then `jaxloop convert runs/sft/checkpoints/latest NEW` makes
the directory that the other configs take as `model.path`.

Expected: completions take the form of the data, so that `eval/strict` comes up to
`eval/flexible`; how far both rise depends on the model. Tiny: the model answers in the
right form and mostly guesses, as its demonstrations do.

Nothing here is a paper's setting: rate, batch and epochs, and the words of the prompt,
are our own. The data's solutions hold marks like <<48/2=24>>; they are learnt with the
rest.
"""

from dataclasses import replace

from configs import quickstart
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config, Model
from jaxloop.loop.recipe import Evaluation, SupervisedStage
from jaxloop.prompts.dataset import JsonlData
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring import GSM8K
from jaxloop.training.optimizer import Optimizer

TEMPLATE = (
    "{question}\n"
    "Work this out step by step. On the last line write ####, a space and the final "
    "number.\n"
)
PROMPTS = JsonlData(template=TEMPLATE, max_prompt_tokens=512)
DEMONSTRATIONS = replace(PROMPTS, demonstrations="train", completion_field="answer")
SAMPLING = Sampling(n=8, max_new_tokens=1024, rows=128)
GOLD = GSM8K()
STAGE = SupervisedStage(
    epochs=3,
    batch_size=16,
    row_tokens=1024,
    accumulation=2,
    optimizer=Optimizer(learning_rate=1e-5, warmup=20, schedule="cosine"),
)


def get_config(variant: str | None = None) -> Config:
    if variant == "tiny":
        return tiny("sft")
    if variant is not None:
        raise unknown_variant(variant, ["tiny"])
    return Config(
        name="sft",
        model=Model(),
        data=DEMONSTRATIONS,
        sft=STAGE,
        evaluation=Evaluation(
            scorer=GOLD, sampling=replace(SAMPLING, n=1, temperature=0.0)
        ),
    )


def tiny(name: str) -> Config:
    """The quickstart's world, model and supervised stage (a shorter one), no recipe."""
    base = quickstart.get_config()
    stage = replace(quickstart.SFT, steps=300)
    evaluation = replace(base.evaluation, prompts=256)
    return replace(
        base, name=f"{name}-tiny", sft=stage, recipe=None, evaluation=evaluation
    )
