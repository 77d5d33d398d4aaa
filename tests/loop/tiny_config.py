"""A run so small that it takes a second: the same line as the quickstart's."""

from dataclasses import dataclass, replace

import numpy as np

from jaxloop.experiment import Characters, Checkpointing, Config, Model
from jaxloop.loop.recipe import (
    Evaluation,
    From,
    OfflineStage,
    Online,
    Recipe,
    Rounds,
    SupervisedStage,
)
from jaxloop.losses import preference
from jaxloop.losses.objectives import (
    GAE,
    Mixture,
    Pairwise,
    Policy,
    Supervised,
    Unpaired,
    Value,
)
from jaxloop.mesh import MeshShape
from jaxloop.models.decoder import ModelShape
from jaxloop.prompts.dataset import Dataset
from jaxloop.records import Demonstration, Labelled, Prompt, Rollout, Score, Scored
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring import Judge, MetaJudged, WithPrevious
from jaxloop.scoring.judge import both_orders
from jaxloop.selection import JudgePairs, Streams
from jaxloop.selection.advantages import GroupAdvantage
from jaxloop.selection.consistency import RankConsistency
from jaxloop.selection.selectors import AllCorrect, BestWorst, CorrectIncorrect
from jaxloop.training.optimizer import Optimizer


@dataclass(frozen=True)
class Digits:
    """Prompts `3+` and demonstrations of random digits."""

    prompts: int = 24

    def load(self, tokenizer) -> Dataset:
        rng = np.random.default_rng(0)

        def prompt(split: str, i: int) -> Prompt:
            text = f"{i % 10}{i // 10}+"
            return Prompt(f"{split}{i}", text, tokenizer.encode(text), {})

        def demonstration(i: int) -> Demonstration:
            question = tokenizer.encode(f"{i % 10}{i // 10}+")
            digits = "".join(map(str, rng.integers(0, 10, rng.integers(1, 5))))
            answer = (*tokenizer.encode(digits), tokenizer.eos_ids[0])
            mask = (0,) * len(question) + (1,) * len(answer)
            return Demonstration(str(i), question + answer, mask)

        def labelled(i: int) -> Labelled:
            question = prompt("labelled", i)
            text = "9" * (1 + i % 3) if i % 2 else "1" * (1 + i % 4)
            ids = (*tokenizer.encode(text), tokenizer.eos_ids[0])
            rollout = Rollout(question.id, 0, ids, text, (), (), "eos")
            return Labelled(question, rollout, float(i % 2))

        return Dataset(
            train=[prompt("train", i) for i in range(self.prompts)],
            test=[prompt("test", i) for i in range(8)],
            demonstrations=[demonstration(i) for i in range(self.prompts)],
            labelled=[labelled(i) for i in range(self.prompts)],
        )


@dataclass(frozen=True)
class CountNines:
    """A score that is easy to raise and has several values: the share of nines."""

    def __call__(self, prompts, rollouts) -> list[Scored]:
        def score(text: str) -> Score:
            return Score(text.count("9") / max(len(text), 1), answer=text)

        return [
            Scored(prompt, group, tuple(score(r.text) for r in group))
            for prompt, group in zip(prompts, rollouts, strict=True)
        ]


def share_of_nines(text: str, shown: int) -> tuple[float, ...] | None:
    """A verdict that any model gives: the share of nines in what it writes, invalid
    where it writes nothing."""
    return (text.count("9") / len(text),) if text else None


def nines_against_ones(text: str, shown: int) -> tuple[float, ...] | None:
    """Two numbers that any model gives: how many nines it writes, and how many ones."""
    return (float(text.count("9")), float(text.count("1"))) if text else None


SAMPLING = Sampling(n=4, max_new_tokens=8, rows=16, prefill_rows=8, chunk=4)
OPTIMIZER = Optimizer(learning_rate=1e-2, warmup=2, schedule="linear")


def config(kind: str, out, **changes) -> Config:
    """`kind`: dpo, rft, judged (by itself), cream (and by the model before), changing
    (from round to round, with extra samples), grpo, semi_online, meta (that, judging
    its judgements too), ppo (two updates a step) or offline."""
    recipes = {
        "dpo": Recipe(
            SAMPLING,
            CountNines(),
            Pairwise(beta=0.1, nll=1.0),
            Rounds(2, prompts=16, epochs=2, batch_size=8),
            selector=BestWorst(),
            optimizer=OPTIMIZER,
        ),
        "rft": Recipe(
            SAMPLING,
            CountNines(),
            Supervised(),
            Rounds(2, prompts=16, epochs=4, batch_size=2, row_tokens=32, start="seed"),
            selector=AllCorrect(threshold=0.1),
            optimizer=OPTIMIZER,
        ),
        "grpo": Recipe(
            SAMPLING,
            CountNines(),
            Policy(kl=0.01),
            Online(5, prompts=4),
            advantage=GroupAdvantage(),
            optimizer=OPTIMIZER,
        ),
        "semi_online": Recipe(
            SAMPLING,
            CountNines(),
            Pairwise(beta=0.1),
            Online(6, prompts=4, sync_every=3, sync_reference_every=2),
            selector=BestWorst(),
            optimizer=OPTIMIZER,
        ),
    }
    recipes["judged"] = replace(
        recipes["dpo"],
        scorer=Judge(
            template="{question}{answer}=",
            parse=share_of_nines,
            sampling=replace(SAMPLING, n=2),
            guarded=False,
            truth=CountNines(),
        ),
    )
    recipes["cream"] = replace(
        recipes["judged"],
        scorer=WithPrevious(recipes["judged"].scorer),
        weighting=RankConsistency(),
        objective=Pairwise(preference.soft, beta=0.1),
    )
    recipes["changing"] = replace(
        recipes["dpo"],
        selector=CorrectIncorrect(pairs=2, threshold=0.2),
        extra=replace(SAMPLING, n=2, temperature=2.0),
        changes=(
            From(2, "sampling.temperature", 1.5),
            From(2, "scorer", recipes["judged"].scorer),
            From(2, "selector", BestWorst()),
            From(2, "extra", None),
            From(2, "objective.beta", 0.5),
        ),
    )
    meta = Judge(
        template="{question}{judgement_A}{judgement_B}=",
        parse=nines_against_ones,
        show=both_orders,
        sampling=replace(SAMPLING, n=1),
        shown_as="judgement",
        guarded=False,
        name="meta_judge",
    )
    recipes["meta"] = replace(
        recipes["semi_online"],
        scorer=MetaJudged(recipes["judged"].scorer, meta),
        selector=Streams((BestWorst(), JudgePairs())),
    )
    recipes["ppo"] = replace(
        recipes["grpo"],
        objective=Mixture((Policy(), Value()), (1.0, 0.5)),
        advantage=GAE(),
        schedule=Online(4, prompts=4, updates=2),
    )
    shape = ModelShape(
        vocab=16, width=16, ffn=32, layers=2, heads=2, kv_heads=2, head_dim=8
    )
    offline = OfflineStage(Unpaired(), epochs=2, batch_size=8, optimizer=OPTIMIZER)
    base = Config(
        name=kind,
        model=Model(
            shape=shape, outputs=int(kind == "ppo"), dtype="float32", remat="none"
        ),
        data=Digits(),
        tokenizer=Characters("0123456789+=;#"),
        sft=SupervisedStage(steps=4, batch_size=4, row_tokens=32, optimizer=OPTIMIZER),
        offline=offline if kind == "offline" else None,
        recipe=recipes.get(kind),
        evaluation=Evaluation(
            scorer=CountNines(),
            sampling=replace(SAMPLING, n=1, temperature=0.0),
            every=3,
        ),
        checkpoint=Checkpointing(
            every=2, best="eval/accuracy" if kind == "changing" else ""
        ),
        mesh=MeshShape(data=1),
        tensorboard=False,
        out=str(out),
    )
    return replace(base, **changes)
