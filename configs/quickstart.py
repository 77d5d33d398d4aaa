"""A small model finds out that writing the working pays. CPU, about a minute.

A character-level decoder of 100,000 parameters learns two-digit sums from
demonstrations of two styles: some write the working, most guess. After the supervised
stage it mostly guesses too, and is mostly wrong. Then it improves itself: it samples
answers to problems that were in no demonstration, something says which are good, and it
is trained on pairs. The held-out problems are in neither set.

    ./launch/local.sh configs/quickstart.py     gold answers (IRPO); or a variant:
        quickstart.py:self_rewarding            no answers: its own verdicts
        quickstart.py:scpo                      no answers: votes (ScPO)
        quickstart.py:grpo                      gold answers, online (GRPO)
        quickstart.py:shuffled                  control: rewards without meaning

Expected: docs/quickstart.md has the table over five seeds. The settings are our own.
"""

from dataclasses import replace

from jaxloop.config import unknown_variant
from jaxloop.experiment import Characters, Config, Model
from jaxloop.loop.recipe import Evaluation, Online, Recipe, Rounds, SupervisedStage
from jaxloop.losses.objectives import Pairwise, Policy
from jaxloop.models.decoder import ModelShape
from jaxloop.prompts.arithmetic import Arithmetic, direct_share
from jaxloop.prompts.judged_arithmetic import (
    JUDGE_TEMPLATE,
    JudgedArithmetic,
    read_verdict,
)
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring import (
    After,
    Exact,
    Judge,
    MajorityVote,
    Numeric,
    Regex,
    Routed,
    Shuffled,
)
from jaxloop.selection import (
    BestWorst,
    CorrectIncorrect,
    GroupAdvantage,
    MinVote,
    VoteClusters,
    VoteMargin,
)
from jaxloop.training.optimizer import Optimizer

GOLD = Numeric(extract=After("#"))
VOTE = MajorityVote(extract=After("#"))
SAMPLING = Sampling(n=8, max_new_tokens=24, rows=512, prefill_rows=256)
ADAM = Optimizer(learning_rate=1e-4, b2=0.98, weight_decay=0.01)
SFT = SupervisedStage(
    steps=600,
    batch_size=16,
    row_tokens=64,
    optimizer=replace(
        ADAM, learning_rate=5e-3, warmup=20, schedule="linear", final_fraction=0.1
    ),
)
ROUNDS = Rounds(2, prompts=256, epochs=4, batch_size=64)

IRPO = Recipe(
    sampling=SAMPLING,
    scorer=GOLD,
    selector=CorrectIncorrect(pairs=2),
    objective=Pairwise(beta=0.1, nll=1.0),
    schedule=ROUNDS,
    optimizer=ADAM,
)
JUDGE = Judge(
    template=JUDGE_TEMPLATE,
    parse=read_verdict,
    sampling=replace(SAMPLING, n=3, max_new_tokens=36),
    sees=After("#"),
    question="problem",
    guarded=False,
    truth=GOLD,
)
SELF_REWARDING = replace(
    IRPO,
    scorer=JUDGE,
    selector=BestWorst(gap=0.5),
    objective=Pairwise(beta=0.5),
    schedule=replace(ROUNDS, epochs=2),
)
SCPO = replace(
    IRPO,
    scorer=VOTE,
    filters=(MinVote(0.25),),
    selector=VoteClusters(),
    weighting=VoteMargin(),
    objective=Pairwise(beta=0.5, nll=1.0),
)
GRPO = Recipe(
    sampling=SAMPLING,
    scorer=GOLD,
    advantage=GroupAdvantage(),
    objective=Policy(),
    schedule=Online(steps=40, prompts=32),
    optimizer=replace(ADAM, learning_rate=3e-4),
)
RECIPES = {
    None: IRPO,
    "scpo": SCPO,
    "grpo": GRPO,
    "shuffled": replace(IRPO, scorer=Shuffled(GOLD)),
    "self_rewarding": SELF_REWARDING,
}


def get_config(variant: str | None = None) -> Config:
    if variant is not None and variant not in RECIPES:
        raise unknown_variant(variant, [name for name in RECIPES if name])
    world = Arithmetic()
    config = Config(
        name="quickstart" if variant is None else f"quickstart-{variant}",
        model=Model(shape=ModelShape(vocab=16), dtype="float32", remat="none"),
        tokenizer=Characters(world.alphabet),
        data=world,
        sft=SFT,
        recipe=RECIPES[variant],
        evaluation=Evaluation(
            scorer=GOLD,
            sampling=replace(SAMPLING, n=1, temperature=0.0),
            measures=(direct_share,),
        ),
    )
    return judging(config) if variant == "self_rewarding" else config


def judging(config: Config) -> Config:
    """The same, with a model that is shown how to judge as well, and is measured by
    verdicts on held-out problems too."""
    world, verdicts = JudgedArithmetic(), Exact(extract=Regex(r"([YN])$"))
    evaluation = replace(
        config.evaluation,
        scorer=Routed((("verdicts", verdicts),), GOLD),
        sampling=replace(config.evaluation.sampling, max_new_tokens=36),
    )
    return replace(
        config,
        model=replace(config.model, shape=ModelShape(vocab=32)),
        tokenizer=Characters(world.alphabet),
        data=world,
        sft=replace(SFT, steps=1000),
        evaluation=evaluation,
    )
